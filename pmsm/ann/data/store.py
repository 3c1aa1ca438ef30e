"""Where decoded pixels are kept: a file in the cache, written once and mapped into memory ever after."""

import hashlib
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor

from pmsm.errors import DataError

Progress = Callable[[int, int], None]  # called with what is done and its total

MAX_MEMORY_BYTES = 2**33  # of a set that is held in memory; CIFAR's training half has 1.5e8

T = TypeVar("T")
R = TypeVar("R")


def digest_of(files: Iterable[Path]) -> str:
    """A key that changes with the content of any of the files, and with what decodes them."""
    # Another Pillow may bring another decoder, and so other pixels.
    digest = hashlib.sha256(PIL.__version__.encode())
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as cause:
            raise DataError(f"cannot read {str(path)!r}: {cause.strerror or cause}.") from cause
    return digest.hexdigest()[:20]


def stored(name: str, key: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """What was kept under `name` and `key`, mapped; None where it is absent, damaged or of another shape.

    Args:
        shape: None stands for any length.

    Returns:
        [shape], `dtype`. The file never changes: a page that is written to is copied; above 8 GiB none can be
        written to.
    """
    try:
        array = _mapped(_path(name, key))
    except (OSError, ValueError, EOFError):
        return None
    fits = array.dtype == dtype and array.ndim == len(shape)
    if not fits or any(side not in (None, found) for side, found in zip(shape, array.shape, strict=True)):
        return None
    return array


def store(
    name: str, key: str, dtype: str, shape: tuple[int, ...], blocks: Callable[[], Iterator[np.ndarray]]
) -> np.ndarray:
    """Keep what `blocks` yields under `name` and `key`; where the cache cannot be written, in memory.

    Args:
        dtype, shape: of the whole.
        blocks: called at least once; yields rows in order, [some, *shape[1:]], `shape[0]` of them in all.

    Returns:
        [shape], mapped where it was written.

    Raises:
        DataError: whatever `blocks` raises, or the set fits neither into the cache nor into memory.
    """
    path, needed = _path(name, key), int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free > needed:
            with part.open("wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
                for block in blocks():
                    file.write(np.ascontiguousarray(block, dtype).data)
            part.replace(path)
            return _mapped(path)
    except OSError:  # a cache that cannot be written costs time, not the result
        pass
    finally:
        _remove(part)
    return _collect(dtype, shape, needed, path.parent, blocks())


def in_threads(work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
    """`work` on each task, in order, as many at once as there are cores; few results wait to be taken.

    Pillow and zlib release the interpreter, so threads are enough.
    """
    threads = os.cpu_count() or 1
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _path(name: str, key: str) -> Path:
    folder = Path(os.environ.get("PMSM_CACHE") or Path.home() / ".cache" / "pmsm").expanduser()
    return folder / f"{name}-{key}.npy"


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor; one that is not writable must only be read."""
    with warnings.catch_warnings():
        # torch has no tensors that are only read, and says so; `stored` tells which are.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _mapped(path: Path) -> np.ndarray:
    # Pages that could be copied count as memory: Linux refuses to map more of them than there is.
    small = path.stat().st_size <= MAX_MEMORY_BYTES
    return np.load(path, mmap_mode="c" if small else "r", allow_pickle=False)


def _collect(
    dtype: str, shape: tuple[int, ...], needed: int, cache: Path, blocks: Iterator[np.ndarray]
) -> np.ndarray:
    if needed > MAX_MEMORY_BYTES:
        raise DataError(
            f"the decoded pictures need {needed:,} bytes, too many for memory, and {str(cache)!r} cannot "
            f"take them. Set the environment variable PMSM_CACHE to a folder with that much space."
        )
    array, done = np.empty(shape, dtype), 0
    for block in blocks:
        array[done : done + len(block)] = block
        done += len(block)
    return array


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # its folder is no folder: there is nothing to remove
        pass
