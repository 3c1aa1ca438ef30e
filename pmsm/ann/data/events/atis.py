"""The 40-bit events of N-MNIST and N-Caltech101 (.bin, .bs2), as the ATIS camera's recorder wrote them."""

from pathlib import Path

import numpy as np

from pmsm.ann.data.events.record import SensorSize, check_sensor_size, make_events
from pmsm.ann.data.events.source import Disorder, check_decoded, fetch, refuse

EVENT_BYTES = 5

# An event with this y is no event: the ATIS has 240 rows, 0 to 239. It says that the recorder's clock of 13
# bits has run over, so it and all that follow are 2^13 microseconds later. Source: eventvision.py of
# github.com/gorchard/event-Python, by the data sets' author; their printed description leaves it out.
OVERFLOW_Y = 240
OVERFLOW_TIME = 2**13


def read_atis(
    path: str | Path, sensor_size: SensorSize = (34, 34, 2), *, disorder: Disorder = "refuse"
) -> np.ndarray:
    """The events of one .bin or .bs2 file.

    Args:
        path: the file.
        sensor_size: (W, H, 2); N-MNIST (34, 34, 2), N-Caltech101 (240, 180, 2).
        disorder: "sort" where time goes backwards.

    Returns:
        [n], n >= 1, dtype EVENT, time in microseconds as in the file; overflow marks are gone.

    Raises:
        DataError: no such file, truncated, an event outside the sensor, time going backwards.

    Source: G. Orchard et al., Converting static image datasets to spiking neuromorphic datasets using
    saccades, 2015, doi:10.3389/fnins.2015.00437, and garrickorchard.com/datasets/n-mnist. Big-endian, 40
    bits: 39-32 x, 31-24 y, 23 polarity (1 ON), 22-0 time in microseconds.
    """
    path = Path(path)
    return decode_atis(fetch(path), path, sensor_size, disorder=disorder)


def decode_atis(
    data: bytes, path: Path | str, sensor_size: SensorSize = (34, 34, 2), *, disorder: Disorder = "refuse"
) -> np.ndarray:
    """Like `read_atis`, from bytes already in memory; `path` is where they came from, for the messages."""
    check_sensor_size(sensor_size)
    count, rest = divmod(len(data), EVENT_BYTES)
    if rest:
        refuse(path, count * EVENT_BYTES, f"the last event has {rest} of {EVENT_BYTES} bytes. Copy it anew")
    columns = np.frombuffer(data, np.uint8).reshape(count, EVENT_BYTES).T
    x, y, high, middle, low = (column.astype(np.int64) for column in columns)
    overflow = y == OVERFLOW_Y
    t = ((high & 127) << 16) + (middle << 8) + low + OVERFLOW_TIME * np.cumsum(overflow)
    kept = np.flatnonzero(~overflow)
    events = make_events(x[kept], y[kept], t[kept], (high >> 7)[kept])
    return check_decoded(path, events, sensor_size, lambda i: EVENT_BYTES * int(kept[i]), disorder)
