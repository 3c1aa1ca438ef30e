"""Run as a program by `shd`: the lists of one HDF5 file to standard output, as four .npy arrays in a row.

A process of its own, because a damaged file can make HDF5's library loop for ever or crash; here that can be
stopped and told. It imports nothing of ours, so that it starts without torch.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

# The lists, and the kind of number in them: whole ones; lists of seconds; lists of channels.
KINDS = {"labels": "iu", "spikes/times": "f", "spikes/units": "iu"}
MEMORY_BYTES = 2**32  # of address space, and what follows more for each byte of the file
MEMORY_PER_BYTE = 16
REFUSED = 3  # exit status; the reason is on standard error


class Refused(Exception):
    """The file is not what it should be."""


def main() -> None:
    """Write labels [n], lengths [n], times [total] float32 in seconds, units [total]; whole numbers."""
    path = Path(sys.argv[1])
    size = path.stat().st_size
    limit_memory(MEMORY_BYTES + MEMORY_PER_BYTE * size)
    try:
        arrays = read_lists(path, size)
    except Refused as refusal:
        sys.exit(_leave(str(refusal)))
    except Exception as error:  # whatever the library raises on damage is told, and ends this process
        sys.exit(_leave(f"no HDF5, or damaged ({error})"))
    for array in arrays:
        np.save(sys.stdout.buffer, array, allow_pickle=False)


def read_lists(path: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of `main`; `size` bounds what the file may announce.

    Raises:
        Refused: a list is missing, of the wrong type, in another file, or longer than the file.
    """
    with importlib.import_module("h5py").File(path, "r") as file:
        labels, times, units = (_dataset(file, name, size) for name in KINDS)
        lengths = {name: len(found) for name, found in zip(KINDS, (labels, times, units), strict=True)}
        if len(set(lengths.values())) > 1:
            raise Refused(f"its lists differ in length: {lengths}")
        rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        total = 0
        for index in range(len(labels)):
            seconds, channels = times[index], units[index]
            if len(seconds) != len(channels):
                raise Refused(f"recording {index} has {len(seconds)} times, {len(channels)} units")
            total += seconds.nbytes + channels.nbytes
            if total > size:  # lists are stored as they are, so together they cannot exceed the file
                raise Refused(f"the lists up to recording {index} announce more bytes than the file has")
            rows[0].append(np.asarray(seconds, np.float32))
            rows[1].append(np.asarray(channels))
        counts = np.array([len(row) for row in rows[0]], np.int64)
        return np.asarray(labels[()], np.int64), counts, np.concatenate(rows[0]), np.concatenate(rows[1])


def limit_memory(limit: int) -> None:
    """Make a larger allocation fail, where the operating system can."""
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _dataset(file: Any, name: str, size: int) -> Any:
    """A list that stands in the file itself, [n], no longer than the file can hold; not read yet."""
    h5py = importlib.import_module("h5py")
    group, _, leaf = name.rpartition("/")
    for part in (group, name) if group else (leaf,):
        if not isinstance(file.get(part, getlink=True), h5py.HardLink):
            raise Refused(f"it lacks {name}")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise Refused(f"{name} must be a list that stands in this file")
    if found.ndim != 1 or not 0 < len(found) <= size:
        raise Refused(f"{name} has shape {list(found.shape)} in a file of {size} bytes")
    kind = (h5py.check_vlen_dtype(found.dtype) or np.dtype("V")) if group else found.dtype
    if np.dtype(kind).kind not in KINDS[name]:
        raise Refused(f"{name} holds entries of the wrong type, {found.dtype}")
    return found


def _leave(why: str) -> int:
    sys.stderr.write(why)
    return REFUSED


if __name__ == "__main__":
    main()
