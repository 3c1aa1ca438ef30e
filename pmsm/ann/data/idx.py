"""MNIST and Fashion-MNIST from their IDX files, refusing any file that is not exactly what it announces."""

import gzip
import math
import zlib
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pmsm.ann.data.images import Images
from pmsm.errors import DataError

# Both sets use these names, with or without .gz.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

MAX_BYTES = 2**30  # of one decompressed file; the largest of MNIST's family, EMNIST, has 0.55e9
MAX_RATIO = 100  # of a file to its gzip; the pictures of MNIST shrink to a fifth
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Kind:
    """One of the sets that share the file names; we know it by `first`, its first ten test labels."""

    name: str
    classes: tuple[str, ...]
    mean: float
    std: float
    first: tuple[int, ...]


FASHION_CLASSES = (
    "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot".split(", ")
)
# Measured over all pixels of the 60,000 training images, divided by 255.
FASHION = _Kind("Fashion-MNIST", tuple(FASHION_CLASSES), 0.2860, 0.3530, (9, 2, 1, 1, 6, 1, 4, 6, 5, 7))
# The usual constants of the 60,000 training images, not measured here (the test images have 0.1325, 0.3105).
MNIST = _Kind("MNIST", tuple("0123456789"), 0.1307, 0.3081, (7, 2, 1, 0, 4, 1, 4, 9, 5, 9))


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of an IDX file, gzipped if its name ends in .gz.

    Reads in pieces: a header that announces more than the file holds costs no memory.

    Args:
        path: the file.
        dimensions: 1 for labels, 3 for images.

    Returns:
        [n] or [n, H, W], uint8.

    Raises:
        DataError: wrong magic number, truncated, longer than announced, empty, broken gzip, unreadable.

    Source: the IDX format, big-endian: 0, 0, 8 (unsigned byte), number of dimensions; their sizes; data.
    """
    header_bytes = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_bytes)
            sizes = _sizes(path, header, dimensions)
            _check_ratio(path, math.prod(sizes))
            data = _read_at_most(file, math.prod(sizes) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as cause:
        raise DataError(
            f"cannot read {str(path)!r}: broken or truncated gzip ({cause}). Copy it anew."
        ) from cause
    except OSError as cause:
        raise DataError(f"cannot read {str(path)!r}: {cause.strerror or cause}.") from cause
    if len(data) != math.prod(sizes):
        much = "more" if len(data) > math.prod(sizes) else f"only {len(data):,}"
        raise DataError(
            f"cannot read {str(path)!r}: its header announces {' x '.join(map(str, sizes))} = "
            f"{math.prod(sizes):,} bytes, it holds {much}. Copy it anew."
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(sizes))


def mnist(directory: str | Path) -> tuple[Images, Images]:
    """MNIST: 60,000 training and 10,000 test images, grey, 28x28, 10 digits.

    Raises:
        DataError: a file is missing or damaged, images and labels differ in number, or it is another set.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    return _read_set(Path(directory), MNIST)


def fashion_mnist(directory: str | Path) -> tuple[Images, Images]:
    """Fashion-MNIST: 60,000 training and 10,000 test images, grey, 28x28, 10 kinds of clothes.

    Raises:
        DataError: a file is missing or damaged, images and labels differ in number, or it is another set.

    Source: arXiv:1708.07747.
    """
    return _read_set(Path(directory), FASHION)


def has_idx_files(directory: Path) -> bool:
    """Whether any file in `directory` has a name of this family."""
    return any(_find(directory, name) for names in FILES.values() for name in names)


def load_idx(directory: Path) -> tuple[Images, Images]:
    """MNIST or Fashion-MNIST, told apart by the first ten test labels.

    Raises:
        DataError: neither, or any file that the set lacks.
    """
    files = _require_files(directory)
    first = tuple(read_idx(files["t10k-labels-idx1-ubyte"], 1)[:10].tolist())
    for kind in (FASHION, MNIST):
        if first == kind.first:
            return _read_set(directory, kind)
    raise DataError(
        f"the IDX files in {str(directory)!r} are neither MNIST nor Fashion-MNIST: their first test labels "
        f"are {list(first)}. Read them with pmsm.ann.data.idx.read_idx and build pmsm.ann.data.Images."
    )


def _read_set(directory: Path, kind: _Kind) -> tuple[Images, Images]:
    files = _require_files(directory)
    train, test = (_read_half(files, kind, half) for half in ("train", "test"))
    first = tuple(test.labels[:10].tolist())
    if first != kind.first:
        raise DataError(
            f"{str(directory)!r} does not hold {kind.name}: its first test labels are {list(first)}, those "
            f"of {kind.name} are {list(kind.first)}. Let pmsm.ann.data.load recognise the set."
        )
    return train, test


def _read_half(files: dict[str, Path], kind: _Kind, half: str) -> Images:
    image_file, label_file = (files[name] for name in FILES[half])
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{str(image_file)!r} holds {len(images):,} images, {str(label_file)!r} {len(labels):,} labels; "
            f"they must be as many. Copy both anew."
        )
    name = f"{kind.name} {half}"
    return Images(images.unsqueeze(1), labels.to(torch.int64), kind.classes, (kind.mean,), (kind.std,), name)


def _require_files(directory: Path) -> dict[str, Path]:
    wanted = [name for names in FILES.values() for name in names]
    found = {name: path for name in wanted if (path := _find(directory, name))}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{str(directory)!r} lacks {', '.join(missing)}. Expected are these four files, with or without "
            f".gz: {', '.join(wanted)}. Without training images a set can be measured on, not trained on: "
            f"read it with pmsm.ann.data.idx.read_idx."
        )
    return found


def _find(directory: Path, name: str) -> Path | None:
    paths = [path for path in (directory / f"{name}.gz", directory / name) if path.is_file()]
    return paths[0] if paths else None


def _sizes(path: Path, header: bytes, dimensions: int) -> list[int]:
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"{str(path)!r} is not an IDX file of {dimensions}-dimensional unsigned bytes: it must start "
            f"with {magic.hex(' ')}, it starts with {header[:4].hex(' ') or 'nothing'}."
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"cannot read {str(path)!r}: it ends inside its header. Copy it anew.")
    sizes = np.frombuffer(header[4:], ">u4").tolist()
    if not 0 < math.prod(sizes) <= MAX_BYTES:
        raise DataError(
            f"cannot read {str(path)!r}: its header announces {' x '.join(map(str, sizes))} bytes; "
            f"between 1 and {MAX_BYTES:,} are allowed."
        )
    return sizes


def _check_ratio(path: Path, announced: int) -> None:
    """Refuse unread what could only be a file that unpacks without end, or one that is cut off."""
    there = path.stat().st_size
    if announced > MAX_RATIO * there + 2**20:
        raise DataError(
            f"cannot read {str(path)!r}: its header announces {announced:,} bytes, more than {MAX_RATIO} "
            f"times the {there:,} that the file has. Copy it anew."
        )


def _read_at_most(file: BufferedIOBase, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size and (piece := file.read(min(CHUNK_BYTES, size - len(data)))):
        data += piece
    return data
