"""Sets that lie as one folder per class, and the split of those that come without one."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pmsm.ann.data.events.record import Recordings, SensorSize
from pmsm.ann.data.events.sets import Events
from pmsm.errors import DataError


def require_folder(directory: str | Path, layout: str) -> Path:
    """The folder, refused unless it is one; `layout` says what it should hold.

    Raises:
        DataError: no such folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{str(directory)!r} is not a folder. {layout}")
    return directory


def list_recordings(
    directory: Path, classes: Sequence[str], suffixes: tuple[str, ...], layout: str
) -> list[list[Path]]:
    """The files of each class, sorted by name; `layout` says what is expected.

    Args:
        directory: holds a folder for each of `classes`.
        suffixes: how the names of recordings end.

    Raises:
        DataError: classes without a folder or without a recording, all named.
    """
    files = [
        sorted(path for path in (directory / name).glob("*") if path.suffix in suffixes) for name in classes
    ]
    missing = [name for name, found in zip(classes, files, strict=True) if not found]
    if missing:
        some = ", ".join(missing[:12]) + (", ..." if len(missing) > 12 else "")
        raise DataError(
            f"{str(directory)!r} has no recording ({' or '.join(suffixes)}) in the class folders {some}. "
            f"{layout}"
        )
    return files


def split_by_name(
    files: list[list[Path]], test_share: float, seed: int
) -> tuple[list[list[Path]], list[list[Path]]]:
    """A split of our own: of each class, the files whose names hash lowest are for testing.

    The hash is SHA-256 of "seed/class folder/file name": the split is the same on every machine and in every
    version, and hardly changes when files are missing.

    Args:
        files: per class, at least two files.
        test_share: of each class, rounded, at least one file and not all; in (0, 1).
        seed: any whole number.

    Raises:
        DataError: test_share outside (0, 1), or a class of one file.
    """
    if not 0 < test_share < 1:
        raise DataError(f"a split needs 0 < test_share < 1, got {test_share}.")
    train, test = [], []
    for found in files:
        if len(found) < 2:
            raise DataError(f"cannot split {str(found[0].parent)!r}: it holds one recording only.")
        ranked = sorted(found, key=partial(_rank, seed))
        count = min(max(1, round(test_share * len(found))), len(found) - 1)
        chosen = set(ranked[:count])
        train.append([path for path in found if path not in chosen])
        test.append([path for path in found if path in chosen])
    return train, test


def label_by_folder(
    files: list[list[Path]],
    read: Callable[[Path], np.ndarray],
    classes: tuple[str, ...],
    sensor_size: SensorSize,
    name: str,
) -> Events:
    """The set of these files, label = place of the list they are in."""
    labels = [label for label, found in enumerate(files) for _ in found]
    recordings = Recordings([path for found in files for path in found], read)
    return Events(recordings, torch.tensor(labels, dtype=torch.int64), classes, sensor_size, name)


def own_split(
    name: str,
    files: list[list[Path]],
    read: Callable[[Path], np.ndarray],
    classes: tuple[str, ...],
    sensor_size: SensorSize,
    *,
    test_share: float,
    seed: int,
) -> tuple[Events, Events]:
    """Training and test set of a set without an official split; their names say that it is ours.

    Raises:
        DataError: as `split_by_name`.
    """
    train, test = (
        label_by_folder(half, read, classes, sensor_size, f"{name} {which} (own split, seed {seed})")
        for half, which in zip(split_by_name(files, test_share, seed), ("train", "test"), strict=True)
    )
    return train, test


def _rank(seed: int, path: Path) -> bytes:
    return hashlib.sha256(f"{seed}/{path.parent.name}/{path.name}".encode()).digest()
