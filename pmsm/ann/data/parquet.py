"""CIFAR-10 and CIFAR-100 from parquet files of coded pictures, decoded once and cached."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from pmsm.ann.data.images import Images
from pmsm.errors import DataError, import_extra
from pmsm.files import write_atomic

Progress = Callable[[int, int], None]  # called with the pictures done and their total

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "AVIF",
)  # every other decoder of Pillow stays out of reach of a hostile file
SIDE = 32
MAX_ROWS = 1_000_000  # of one half; CIFAR has 50,000
BLOCK = 250  # pictures that one thread decodes before it reports

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class _Kind:
    name: str
    label: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Mean and std measured over all pixels of 50,000 training images coded in AVIF of quality 90, divided by 255.
# The usual means of CIFAR-10's uncoded images, .4914 .4822 .4465, are half a grey level away.
CIFAR10 = _Kind(
    "CIFAR-10", "label", tuple(CIFAR10_CLASSES.split()), (0.4893, 0.4840, 0.4439), (0.2469, 0.2432, 0.2612)
)
CIFAR100 = _Kind(
    "CIFAR-100",
    "fine_label",
    tuple(CIFAR100_CLASSES.split()),
    (0.5057, 0.4885, 0.4385),
    (0.2670, 0.2560, 0.2756),
)


def cifar10(directory: str | Path, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """CIFAR-10 from `train*.parquet` and `test*.parquet`: 50,000 and 10,000 images, RGB, 32x32, 10 classes.

    Columns: `img` = {bytes, path}, `label`. The first call decodes every picture and keeps the pixels in
    `$PMSM_CACHE` or `~/.cache/pmsm`, under the hash of the files; where that cannot be written, it decodes
    each time.

    Raises:
        DataError: a file or column is missing, a picture is broken or of another size, a label out of range.
        MissingExtraError: pyarrow is not installed.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    return _read_set(Path(directory), CIFAR10, progress)


def cifar100(directory: str | Path, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """CIFAR-100, like `cifar10`, with the 100 fine classes of the column `fine_label`."""
    return _read_set(Path(directory), CIFAR100, progress)


def has_parquet_files(directory: Path) -> bool:
    """Whether `directory` holds a file that could be half of a set."""
    return any(files_of(directory, half) for half in ("train", "test"))


def load_parquet(directory: Path, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """CIFAR-10 or CIFAR-100, told apart by the label column.

    Raises:
        DataError: neither, or any error of the set itself.
    """
    _, columns = _describe((files_of(directory, "train") or files_of(directory, "test"))[0])
    for kind in (CIFAR100, CIFAR10):
        if {"img", kind.label} <= set(columns):
            return _read_set(directory, kind, progress)
    raise DataError(
        f"the parquet files in {str(directory)!r} are neither CIFAR-10 (columns img, label) nor CIFAR-100 "
        f"(img, fine_label): they have {', '.join(columns)}. Rename the columns, or build "
        f"pmsm.ann.data.Images yourself."
    )


def _read_set(directory: Path, kind: _Kind, progress: Progress | None) -> tuple[Images, Images]:
    missing = [f"{half}*.parquet" for half in ("train", "test") if not files_of(directory, half)]
    if missing:
        raise DataError(
            f"{str(directory)!r} lacks {' and '.join(missing)}. {kind.name} is read from train*.parquet and "
            f"test*.parquet with the columns img and {kind.label}."
        )
    train, test = (_read_half(directory, kind, half, progress) for half in ("train", "test"))
    return train, test


def _read_half(directory: Path, kind: _Kind, half: str, progress: Progress | None) -> Images:
    files = files_of(directory, half)
    labels = np.concatenate([read_labels(file, kind.label) for file in files])
    pixels = _cached(f"{kind.name}-{half}", files, len(labels), progress)
    name = f"{kind.name} {half}"
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), kind.classes, kind.mean, kind.std, name)


def files_of(directory: Path, half: str) -> list[Path]:
    return sorted(directory.glob(f"{half}*.parquet"))


def _cached(name: str, files: list[Path], count: int, progress: Progress | None) -> np.ndarray:
    """The pixels of `files` ([count, 3, 32, 32], uint8) from the cache, or decoded and then cached."""
    path = _cache_directory() / f"{name}-{_digest(files)}.npy"
    pixels = _read_cache(path, (count, 3, SIDE, SIDE))
    if pixels is None:
        pixels = _decode(files, count, progress)
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        try:
            write_atomic(path, buffer.getvalue(), DataError)
        except DataError:  # a cache that cannot be written costs time, not the result
            pass
    return pixels


def _cache_directory() -> Path:
    return Path(os.environ.get("PMSM_CACHE") or Path.home() / ".cache" / "pmsm").expanduser()


def _digest(files: list[Path]) -> str:
    # Pillow is part of the key: another version may bring another decoder, and so other pixels.
    digest = hashlib.sha256(PIL.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _read_cache(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, or damaged: decode again
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.shape == shape else None


def read_column(file: Path, column: str) -> list[Any]:
    """One column as Python objects, refused unread if it is absent or announces absurdly many rows."""
    arrow = import_extra("pyarrow", "data")
    rows, names = _describe(file)
    if not 0 < rows <= MAX_ROWS:
        raise DataError(f"cannot use {str(file)!r}: it has {rows:,} rows; 1 to {MAX_ROWS:,} are allowed.")
    if names.count(column) != 1:
        raise DataError(f"{str(file)!r} must have one column {column!r}; it has {', '.join(names)}.")
    read_table = import_extra("pyarrow.parquet", "data").read_table
    try:
        # partitioning=None: a folder named label=3 must not become a column.
        return read_table(file, columns=[column], partitioning=None)[column].to_pylist()
    except (arrow.ArrowException, OSError) as cause:
        raise DataError(
            f"cannot read {column!r} of {str(file)!r}: damaged ({cause}). Copy it anew."
        ) from cause


def _describe(file: Path) -> tuple[int, list[str]]:
    """Number of rows and names of the columns, from the footer alone."""
    arrow = import_extra("pyarrow", "data")
    try:
        with import_extra("pyarrow.parquet", "data").ParquetFile(file) as opened:
            return opened.metadata.num_rows, opened.schema_arrow.names
    except (arrow.ArrowException, OSError) as cause:
        raise DataError(
            f"cannot read {str(file)!r}: not parquet, or truncated ({cause}). Copy it anew."
        ) from cause


def read_labels(file: Path, column: str) -> np.ndarray:
    labels = read_column(file, column)
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < 2**31:
            raise DataError(f"{str(file)!r}, row {row}: {column} must be a whole number >= 0, got {label!r}.")
    return np.array(labels, dtype=np.int64)


def _decode(files: list[Path], count: int, progress: Progress | None) -> np.ndarray:
    """The pictures of all rows, [count, 3, 32, 32], uint8; in threads, as Pillow releases the GIL."""
    pixels = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file in files:
            rows = read_column(file, "img")
            blocks = [(file, start, rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)]
            for block in pool.map(_decode_block, blocks):
                pixels[done : done + len(block)] = block
                done += len(block)
                if progress is not None:
                    progress(done, count)
    return pixels


def _decode_block(block: tuple[Path, int, Sequence[Any]]) -> np.ndarray:
    file, start, rows = block
    return np.stack([_decode_picture(row, f"{str(file)!r}, row {start + i}") for i, row in enumerate(rows)])


def _decode_picture(row: Any, where: str) -> np.ndarray:
    """One picture, [3, 32, 32], uint8; its size is checked before any pixel is decoded."""
    code = row.get("bytes") if isinstance(row, dict) else None
    if not isinstance(code, bytes):
        raise DataError(f"{where}: img must be {{bytes, path}} with the coded picture in bytes.")
    try:
        with Image.open(io.BytesIO(code), formats=FORMATS) as picture:
            if picture.size != (SIDE, SIDE):
                raise DataError(f"{where}: the picture must be {SIDE}x{SIDE}, it has size {picture.size}.")
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    # What Pillow's decoders raise on damaged bytes; which one depends on where the damage is.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as cause:
        raise DataError(
            f"{where}: cannot decode the picture ({cause}). Supported are {', '.join(FORMATS)}; "
            f"AVIF needs Pillow >= 11.3. Copy the file anew if it is damaged."
        ) from cause
