"""Where the public sets come from: their official files, fetched only when asked, and checked."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from pmsm.ann.data.store import Progress
from pmsm.errors import DataError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0  # without a byte


@dataclass(frozen=True)
class Remote:
    """The official files of a set.

    Args:
        url: of the folder that they lie in.
        files: name -> (bytes, published MD5).
    """

    url: str
    files: Mapping[str, tuple[int, str]]


# Sizes and checksums as their authors publish them, and as torchvision 0.28 checks them.
REMOTES: Mapping[str, Remote] = {
    "cifar10": Remote(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": (170_498_071, "c58f30108f718f92721af3b95e74349a")},
    ),
    "cifar100": Remote(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-python.tar.gz": (169_001_437, "eb9058c3a382ffc7106e4002c42a8d85")},
    ),
    "mnist": Remote(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            "train-labels-idx1-ubyte.gz": (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            "t10k-images-idx3-ubyte.gz": (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            "t10k-labels-idx1-ubyte.gz": (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
        },
    ),
    "fashion-mnist": Remote(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            "train-labels-idx1-ubyte.gz": (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            "t10k-images-idx3-ubyte.gz": (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            "t10k-labels-idx1-ubyte.gz": (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        },
    ),
}


def download(
    name: str,
    directory: str | Path,
    *,
    progress: Progress | None = None,
    remotes: Mapping[str, Remote] = REMOTES,
) -> Path:
    """Fetch the official files of a set into `directory`; those that are there already are only checked.

    A file appears under its name once all of it is there and its MD5 is the published one; until then it is
    called NAME.part.

    Args:
        name: "cifar10", "cifar100", "mnist" or "fashion-mnist".
        directory: is made where it does not exist.
        progress: called with the bytes fetched so far and their total, over all files.
        remotes: where sets lie; a mirror is `REMOTES | {"cifar10": replace(REMOTES["cifar10"], url=...)}`.

    Returns:
        `directory`, ready for `pmsm.ann.data.load`.

    Raises:
        DataError: no such set, no connection, another checksum or size, or the folder cannot be written.
    """
    if name not in remotes:
        raise DataError(f"no set {name!r} to download; choose one of {', '.join(remotes)}.")
    directory, remote = Path(directory), remotes[name]
    total, done = sum(size for size, _ in remote.files.values()), 0
    for file, (size, md5) in remote.files.items():
        path = directory / file
        if not _is_whole(path, size, md5):
            fetched = done

            def report(more: int, before: int = fetched) -> None:
                if progress is not None:
                    progress(before + more, total)

            try:
                _fetch(remote.url + file, path, size, md5, report)
            except (OSError, HTTPException, ValueError) as cause:
                raise DataError(_offline(remote, directory, file, cause)) from cause
        done += size
    return directory


def _is_whole(path: Path, size: int, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise DataError(
            f"{str(path)!r} is there already, but it is not the official file: its MD5 is {found}, not {md5} "
            f"({size:,} bytes). Remove it and repeat."
        )
    return True


def _fetch(url: str, path: Path, size: int, md5: str, report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    digest, done = hashlib.md5(usedforsecurity=False), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as source, part.open("wb") as file:
            while done <= size and (piece := source.read(CHUNK_BYTES)):
                file.write(piece)
                digest.update(piece)
                done += len(piece)
                report(min(done, size))
            file.flush()
            os.fsync(file.fileno())
        if done != size or digest.hexdigest() != md5:
            much = (
                f"MD5 {digest.hexdigest()}" if done == size else f"{done:,} bytes{' or more' * (done > size)}"
            )
            raise DataError(
                f"what {url} sent is not the official file: {much} instead of {size:,} bytes with MD5 {md5}. "
                f"Nothing was kept; repeat, or use a mirror: download(..., remotes=...)."
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _offline(remote: Remote, directory: Path, file: str, cause: Exception) -> str:
    reason = getattr(cause, "reason", None) or getattr(cause, "strerror", None) or cause
    files = "; ".join(f"{remote.url}{name} (MD5 {md5})" for name, (_, md5) in remote.files.items())
    it, they_are = ("it", "it is") if len(remote.files) == 1 else ("them", "they are")
    return (
        f"cannot download {file!r}: {str(reason)[:200]}. On a machine with a connection fetch {files}, and "
        f"put {it} into {str(directory)!r} as {they_are}."
    )
