"""SHD, spoken digits as the spikes of an artificial cochlea, from its HDF5 files."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from pmsm.ann.data.events import shd_process
from pmsm.ann.data.events.record import MAX_TIME, SOUND, Recordings, first, outside
from pmsm.ann.data.events.sets import Events
from pmsm.errors import DataError, import_extra

CHANNELS = 700
SENSOR_SIZE = (CHANNELS, 1, 1)
# Of labels 0 to 19, as the files name them in extra/keys.
CLASSES = (
    "zero one two three four five six seven eight nine null eins zwei drei vier fuenf sechs sieben acht neun"
)
FILES = {"train": "shd_train.h5", "test": "shd_test.h5"}
LAYOUT = "SHD is read from shd_train.h5 and shd_test.h5 (unpack shd_train.h5.gz of zenkelab.org/datasets)."

# A file is given this long to be read, and a second more for each MiB; the larger one has 180 MiB.
LIMIT_SECONDS = 60.0


def shd(path: str | Path) -> tuple[Events, Events]:
    """SHD: about 8,200 training and 2,300 test recordings of spoken digits, 700 channels, 20 classes.

    Both files are read at once, in a process of their own that is stopped if a damaged file makes HDF5's
    library loop; spikes stay in memory, 6 bytes each, about 400 MB for the training half.

    Args:
        path: the folder that holds both files, or one of them.

    Returns:
        train, test: dtype SOUND, x the channel, t in microseconds, p always True; sensor (700, 1, 1). The
        format leaves a recording's spikes in any order; here they are sorted by time.

    Raises:
        DataError: a file or a list in it is missing, damaged, or not what it should be.
        MissingExtraError: h5py is not installed.

    Source: B. Cramer et al., The Heidelberg spiking data sets, 2020, arXiv:1910.07407, and zenkelab.org: root
    with spikes/times (lists of seconds), spikes/units (lists of channels), labels; extra, with the speakers
    and the names of the classes, is not read.
    """
    path = Path(path)
    directory = path.parent if path.is_file() else path
    missing = [name for name in FILES.values() if not (directory / name).is_file()]
    if missing:
        raise DataError(f"{str(directory)!r} lacks {' and '.join(missing)}. {LAYOUT}")
    train, test = (_read_half(directory / name, half) for half, name in FILES.items())
    return train, test


def _read_half(path: Path, half: str) -> Events:
    labels, lengths, seconds, units = _read_lists(path)
    bounds = np.concatenate(([0], np.cumsum(lengths)))

    def name_spike(bad: np.ndarray) -> str:
        """Where in the file the first bad spike is, for a refusal."""
        spike = first(bad)
        index = int(np.searchsorted(bounds, spike, side="right")) - 1
        return f"cannot read {str(path)!r}, recording {index}, spike {spike - bounds[index]}"

    # A time that is not a number is not within the bound either.
    if (bad := ~(np.abs(seconds) <= MAX_TIME / 1e6)).any():
        raise DataError(f"{name_spike(bad)}: time {seconds[first(bad)]} s is not finite, or beyond 2^53 us.")
    if (bad := outside(units, CHANNELS)).any():
        raise DataError(f"{name_spike(bad)}: unit {units[first(bad)]} is outside [0, {CHANNELS}).")

    def read(index: int) -> np.ndarray:
        """One recording, sorted by time; times are whole microseconds."""
        part = slice(bounds[index], bounds[index + 1])
        t = np.rint(seconds[part].astype(np.float64) * 1e6).astype(np.int64)
        order = np.argsort(t, kind="stable")
        events = np.empty(len(t), SOUND)
        events["x"], events["t"], events["p"] = units[part][order], t[order], True
        return events

    classes = tuple(CLASSES.split())
    return Events(
        Recordings(range(len(labels)), read), torch.from_numpy(labels), classes, SENSOR_SIZE, f"SHD {half}"
    )


def _read_lists(path: Path) -> list[np.ndarray]:
    """Labels [n], lengths [n], times in seconds and units [total] of a file, from `shd_process`."""
    import_extra("h5py", "events")
    limit = LIMIT_SECONDS + path.stat().st_size / 2**20
    # -P: the folder of the program holds modules of ours whose names must not hide others.
    command = [sys.executable, "-P", shd_process.__file__, str(path.resolve())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, check=False, env=environment)
    except subprocess.TimeoutExpired as cause:
        raise DataError(
            f"cannot read {str(path)!r}: HDF5 has not come to an end in {limit:.0f} seconds; a damaged file "
            f"can make it loop. Copy it anew."
        ) from cause
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        why = told[-1] if done.returncode > 0 else f"HDF5 crashed, signal {-done.returncode}"
        raise DataError(f"cannot read {str(path)!r}: {why}. Copy it anew. {LAYOUT}")
    stream = io.BytesIO(done.stdout)
    return [np.lib.format.read_array(stream, allow_pickle=False) for _ in range(4)]
