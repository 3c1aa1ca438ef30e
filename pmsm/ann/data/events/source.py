"""How the bytes of a recording are fetched, and how a refusal names the file and the byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from pmsm.ann.data.events.record import MAX_TIME, SensorSize, backwards, first, outside
from pmsm.errors import DataError

# What to do with a recording whose time goes backwards, which its format forbids.
Disorder = Literal["refuse", "sort"]

MAX_BYTES = 2**32  # of one recording; the longest of DVS128-Gesture have about 1e8


def fetch(path: Path) -> bytes:
    """All bytes of a recording.

    Raises:
        DataError: no such file, no plain file (a pipe would never end), empty, above 4 GiB, unreadable.
    """
    if not path.is_file():
        raise DataError(f"cannot read {str(path)!r}: there is no such file. Check the path.")
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES:
            refuse(path, 0, f"it has {size:,} bytes; 1 to {MAX_BYTES:,} are allowed")
        return path.read_bytes()
    except OSError as cause:
        raise DataError(f"cannot read {str(path)!r}: {cause.strerror or cause}.") from cause


def refuse(path: Path | str, offset: int, why: str) -> NoReturn:
    """Refuse a file for what stands at byte `offset`.

    Raises:
        DataError: always.
    """
    raise DataError(f"cannot read {str(path)!r}, byte {offset}: {why}.")


def check_decoded(
    path: Path | str,
    events: np.ndarray,
    sensor_size: SensorSize,
    offset: Callable[[int], int],
    disorder: Disorder,
) -> np.ndarray:
    """The decoded events of a file, refused if one is outside the sensor or goes back in time.

    Args:
        path: for the message.
        events: [n], fields x, y, t, p, or without y; n >= 1.
        offset: the byte where event i begins.
        disorder: "sort" puts events that go back in time in order, equal times as they stood.

    Returns:
        [n], `events` itself where it is in order.

    Raises:
        DataError: at the first wrong event.
    """
    if disorder not in ("refuse", "sort"):
        raise DataError(f"no disorder={disorder!r}; choose 'refuse' or 'sort'.")
    if len(events) == 0:
        refuse(path, 0, "it holds no event")
    for name, side in zip("xy", sensor_size, strict=False):
        if name in (events.dtype.names or ()) and (bad := outside(events[name], side)).any():
            i = first(bad)
            refuse(path, offset(i), f"event {i} has {name} = {events[name][i]}, outside [0, {side})")
    t = events["t"]
    if (bad := (t < -MAX_TIME) | (t > MAX_TIME)).any():
        i = first(bad)
        refuse(path, offset(i), f"event {i} is at {t[i]} microseconds, beyond 2^53")
    back = backwards(t)
    if not back.any():
        return events
    if disorder == "refuse":
        i = first(back) + 1
        refuse(
            path,
            offset(i),
            f"time goes backwards at event {i}, from {t[i - 1]} to {t[i]} microseconds, which the format "
            f"forbids. If the events are sound and only out of order, read them with disorder='sort'",
        )
    return events[np.argsort(t, kind="stable")]
