"""The official python archives of CIFAR: which files they hold, and their pictures, read without `pickle`."""

import gzip
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pmsm.ann.data.pickles import read_pickle
from pmsm.ann.data.store import Progress
from pmsm.errors import DataError
from pmsm.files import read_bounded

PIXELS = 3 * 32 * 32  # of one picture: 1,024 red, then green, then blue

MAX_FILE_BYTES = 2**28  # of one pickle; CIFAR-100's training half has 155 million
MAX_TAR_BYTES = 2**29  # of an archive once unpacked; both have 186 million
MAX_MEMBERS = 64  # of an archive; both have fewer than ten


@dataclass(frozen=True)
class Archive:
    """The names in one of the two archives.

    Args:
        file: of the archive.
        folder: in it.
        label: key of the labels in each pickle.
        halves: the pickles of "train" and of "test".
    """

    file: str
    folder: str
    label: str
    halves: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """All pickles that are read."""
        return tuple(name for names in self.halves.values() for name in names)


@dataclass(frozen=True)
class Found:
    """An archive that lies at `path`: its folder, or the packed file."""

    archive: Archive
    path: Path

    def files(self) -> list[Path]:
        """What the pictures depend on.

        Raises:
            DataError: a pickle is missing in the folder.
        """
        if self.path.is_file():
            return [self.path]
        files = [self.path / name for name in self.archive.names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{str(self.path)!r} lacks {', '.join(missing)}. Unpack {self.archive.file} anew, or put the "
                f"packed file itself there."
            )
        return files

    def read(self, half: str, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pictures [n, 3, 32, 32], uint8, and labels [n], int64, of "train" or "test".

        Raises:
            DataError: a file is missing, damaged, or holds anything else.
        """
        names = self.archive.halves[half]
        data = self._unpacked(names) if self.path.is_file() else None
        pixels, labels = [], []
        for done, name in enumerate(names, 1):
            where = f"{self.path}/{name}"
            code = (
                read_bounded(self.path / name, MAX_FILE_BYTES, "a file of CIFAR", DataError)
                if data is None
                else data.pop(name)
            )
            some = read_pickle(code, where)
            pixels.append(_pixels(some, where))
            labels.append(_labels(some, self.archive.label, len(pixels[-1]), where))
            if progress is not None:
                progress(done, len(names))
        return np.concatenate(pixels), np.concatenate(labels)

    def _unpacked(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """The members of these names, in memory: no path in the archive is ever one on the disk."""
        wanted = {f"{self.archive.folder}/{name}": name for name in names}
        found: dict[str, bytes] = {}
        try:
            with (
                gzip.open(self.path) as packed,
                tarfile.open(fileobj=_Bounded(packed, self.path), mode="r|") as tar,  # pyright: ignore
            ):
                for count, member in enumerate(tar):
                    name = wanted.get(member.name.removeprefix("./"))
                    if name is not None:
                        found[name] = self._member(tar, member)
                    if len(found) == len(wanted) or count == MAX_MEMBERS:
                        break
        # What gzip and tarfile raise on damaged bytes.
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, RecursionError) as cause:
            raise DataError(
                f"cannot read {str(self.path)!r}: broken or truncated ({str(cause)[:200]}). Copy it anew."
            ) from cause
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(
                f"{str(self.path)!r} lacks {', '.join(missing)} in {self.archive.folder}/. It is not the "
                f"official archive; download that anew."
            )
        return found

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        plain = member.isreg() and not member.issparse()
        if not plain or not 0 < member.size <= MAX_FILE_BYTES:
            raise DataError(
                f"cannot read {member.name[:200]!r} of {str(self.path)!r}: it must be a plain file "
                f"of at most {MAX_FILE_BYTES:,} bytes, no link; it has {member.size:,}. Copy it anew."
            )
        opened = tar.extractfile(member)
        return b"" if opened is None else opened.read()


class _Bounded:
    """A stream that ends in a refusal after `MAX_TAR_BYTES`: a small file may unpack to any size."""

    def __init__(self, file: gzip.GzipFile, path: Path) -> None:
        self.file, self.path, self.left = file, path, MAX_TAR_BYTES

    def read(self, size: int) -> bytes:
        """At most `size` bytes more, as tarfile asks for them."""
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(
                f"{str(self.path)!r} unpacks to more than {MAX_TAR_BYTES:,} bytes: it is no CIFAR."
            )
        return data


def find_archive(directory: Path, archive: Archive) -> Found | None:
    """The archive in `directory`, or `directory` itself where it is the unpacked folder."""
    if (directory / archive.folder).is_dir():
        return Found(archive, directory / archive.folder)
    if directory.name == archive.folder or all((directory / name).is_file() for name in archive.names):
        return Found(archive, directory)
    packed = directory / archive.file
    return Found(archive, packed) if packed.is_file() else None


def _pixels(some: dict[str, Any], where: str) -> np.ndarray:
    data = some.get("data")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS:
        raise DataError(f"cannot read {where!r}: 'data' must be an array of uint8 [n, {PIXELS}].")
    return data.reshape(-1, 3, 32, 32)


def _labels(some: dict[str, Any], key: str, count: int, where: str) -> np.ndarray:
    labels = some.get(key)
    if not isinstance(labels, list) or not all(type(one) is int and 0 <= one < 256 for one in labels):
        raise DataError(f"cannot read {where!r}: {key!r} must be a list of whole numbers from 0 to 255.")
    if len(labels) != count:
        raise DataError(f"cannot read {where!r}: it holds {count:,} pictures and {len(labels):,} labels.")
    return np.array(labels, np.int64)
