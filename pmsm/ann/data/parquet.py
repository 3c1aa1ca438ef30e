"""Parquet files as Hugging Face writes them: labels, and coded pictures that are decoded block by block."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pmsm.ann.data.pictures import decode_picture
from pmsm.ann.data.store import Progress, in_threads
from pmsm.errors import DataError, import_extra

MAX_ROWS = 1_000_000  # of one half; CIFAR has 50,000
MAX_CODE_BYTES = 2**16  # of one coded picture of 32x32, which has 3,072 bytes uncoded
BLOCK = 250  # pictures that one thread decodes before it reports

# Where a copy of a repository of Hugging Face has its shards.
SUBFOLDERS = ("", "data", "plain_text", "cifar10", "cifar100")


def files_of(directory: Path, half: str) -> list[Path]:
    """The shards of "train" or "test" in `directory`, in order.

    Raises:
        DataError: a shard is missing, by the number in the names: train-00000-of-00002.parquet.
    """
    found = sorted(directory.glob(f"{half}*.parquet"))
    numbered = [match for path in found if (match := re.search(r"-(\d{5})-of-(\d{5})", path.stem))]
    totals = {int(match[2]) for match in numbered}
    there = {int(match[1]) for match in numbered}
    missing = sorted(set(range(min(max(totals, default=0), 10_000))) - there)
    if numbered and (len(totals) > 1 or len(numbered) < len(found) or missing):
        lacks = [f"{half}-{shard:05d}-of-{max(totals):05d}.parquet" for shard in missing[:8]]
        raise DataError(
            f"the shards of {half!r} in {str(directory)!r} are not one whole set: there are "
            f"{', '.join(path.name for path in found[:8])}"
            + (f"; missing: {', '.join(lacks)}" if lacks else "")
            + ". Copy the missing shards, or remove those of another set."
        )
    return found


def folder_of(directory: Path) -> Path | None:
    """`directory`, or the folder in it, that holds files of the two halves; None without."""
    for folder in (directory / name for name in SUBFOLDERS):
        if any(path for half in ("train", "test") for path in folder.glob(f"{half}*.parquet")):
            return folder
    return None


def columns_of(file: Path) -> list[str]:
    """Names of the columns, from the footer alone."""
    with _opened(file) as opened:
        return opened.schema_arrow.names


def read_column(file: Path, column: str) -> list[Any]:
    """One column as Python objects, refused unread if it is absent or announces absurdly much."""
    with _opened(file) as opened:
        _check(opened, file, column)
        return opened.read(columns=[column])[column].to_pylist()


def read_labels(file: Path, column: str) -> np.ndarray:
    """[rows], int64, refused unless they are whole numbers >= 0."""
    labels = read_column(file, column)
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < 2**31:
            raise DataError(f"{str(file)!r}, row {row}: {column} must be a whole number >= 0, got {label!r}.")
    return np.array(labels, dtype=np.int64)


def decoded(
    files: list[Path], column: str, count: int, size: tuple[int, int], progress: Progress | None
) -> Iterator[np.ndarray]:
    """The pictures of all rows, block by block, [some, 3, H, W], uint8; decoded in threads.

    Args:
        column: {bytes, path}, or the bytes alone.
        count: rows that the labels have.
        size: (width, height) of every picture.

    Raises:
        DataError: a file is damaged, a picture cannot be decoded, or there are not `count` of them.
    """
    done = 0
    tasks = (task for file in files for task in _blocks(file, column))
    for block in in_threads(partial(_decode_block, size=size), tasks):
        done += len(block)
        if done > count:
            break
        yield block
        if progress is not None:
            progress(done, count)
    if done != count:
        raise DataError(
            f"cannot use {', '.join(repr(str(file)) for file in files)}: {count:,} labels and another number "
            f"of pictures, it is damaged. Copy it anew."
        )


def _blocks(file: Path, column: str) -> Iterator[tuple[Path, int, list[Any]]]:
    """File, number of the first row, and the coded pictures of some rows."""
    arrow, compute = import_extra("pyarrow", "data"), import_extra("pyarrow.compute", "data")
    start = 0
    with _opened(file) as opened:
        _check(opened, file, column)
        schema = opened.metadata.schema
        leaves = {schema.column(leaf).path for leaf in range(opened.metadata.num_columns)}
    # As a dictionary, a picture that a hostile file repeats a million times stays one picture.
    with _opened(file, read_dictionary=sorted(leaves & {f"{column}.bytes", column})) as opened:
        for batch in opened.iter_batches(BLOCK, columns=[column]):
            codes = batch.column(0)
            if arrow.types.is_struct(codes.type) and codes.type.get_field_index("bytes") >= 0:
                codes = codes.field("bytes")
            longest = compute.max(compute.binary_length(getattr(codes, "dictionary", codes))).as_py()
            if longest is not None and longest > MAX_CODE_BYTES:
                raise DataError(
                    f"cannot use {str(file)!r}, rows {start} to {start + len(codes) - 1}: a picture has "
                    f"{longest:,} bytes; {MAX_CODE_BYTES:,} are allowed."
                )
            yield file, start, codes.to_pylist()
            start += len(codes)


def _decode_block(block: tuple[Path, int, list[Any]], size: tuple[int, int]) -> np.ndarray:
    file, start, rows = block
    return np.stack([_decode_row(row, f"{str(file)!r}, row {start + i}", size) for i, row in enumerate(rows)])


def _decode_row(code: Any, where: str, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(code, bytes):
        raise DataError(f"{where}: img must be {{bytes, path}} with the coded picture in bytes.")
    return decode_picture(code, where, size)


@contextmanager
def _opened(file: Path, **options: Any) -> Iterator[Any]:
    arrow = import_extra("pyarrow", "data")
    parquet = import_extra("pyarrow.parquet", "data")
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True, **options) as opened:
            yield opened
    except (arrow.ArrowException, OSError, ValueError) as cause:
        raise DataError(
            f"cannot read {str(file)!r}: not parquet, damaged or truncated ({str(cause)[:200]}). Copy it "
            f"anew."
        ) from cause


def _check(opened: Any, file: Path, column: str) -> None:
    """Refuse what the footer announces before a row is read."""
    rows, names = opened.metadata.num_rows, opened.schema_arrow.names
    if not 0 < rows <= MAX_ROWS:
        raise DataError(f"cannot use {str(file)!r}: it has {rows:,} rows; 1 to {MAX_ROWS:,} are allowed.")
    if names.count(column) != 1:
        raise DataError(f"{str(file)!r} must have one column {column!r}; it has {', '.join(names)}.")
    # Coded pictures and events hardly shrink further, and labels are short.
    allowed = 32 * file.stat().st_size + 16 * rows + 2**20
    unpacked = sum(
        opened.metadata.row_group(group).column(leaf).total_uncompressed_size
        for group in range(opened.metadata.num_row_groups)
        for leaf in range(opened.metadata.num_columns)
    )
    if not 0 <= unpacked <= allowed:
        raise DataError(
            f"cannot use {str(file)!r}: it unpacks to {unpacked:,} bytes, more than 32 times its size. "
            f"That is no set of coded pictures."
        )
