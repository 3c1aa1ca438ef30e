"""The file around a network: safetensors, whose header is read with suspicion before anything is allocated.

Safetensors' own reader checks the same again when it hands out the tensors. What it lets pass and this does
not: a key twice, NaN as a number, a header so large or so deep that parsing it is an attack.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pmsm.errors import CheckpointError
from pmsm.files import write_atomic
from pmsm.graph.values import record, sizes

MAX_HEADER_BYTES = 2**23
"""Of a file's header; a network of 2,000 calls needs an eighth of it."""
MAX_DEPTH = 64
"""How deep brackets may nest."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "C64": torch.complex64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Safetensors' names of the kinds of numbers that networks are made of."""

_NO_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[^"\[\]{}]+')
_INNERMOST = re.compile(r"\[\]|\{\}")


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: kind of numbers and shape, as the header tells them."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def write(path: str | Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Write whole or not at all.

    Raises:
        CheckpointError: a header above `MAX_HEADER_BYTES`, or the folder cannot be written.
    """
    whole = safetensors.torch.save(tensors, metadata=metadata)
    needed = int.from_bytes(whole[:8], "little")
    if needed > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"cannot save to {str(path)!r}: the graph needs a header of {needed} bytes, and no more than "
            f"{MAX_HEADER_BYTES} are read. Save its parts as networks of their own."
        )
    write_atomic(path, whole, CheckpointError)


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, Stored]]:
    """Metadata and table of tensors; no tensor is read, and every size agrees with the file's length.

    Raises:
        CheckpointError: no regular file, or not safetensors to the last byte; the text says what is wrong.
    """
    try:
        with open(path, "rb") as file:
            length = file_length(file)
            announced = int.from_bytes(file.read(8), "little")
            if length < 8 or announced > min(length - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"it announces a header of {announced} bytes, has {length} in all, and at most "
                    f"{MAX_HEADER_BYTES} are read"
                )
            header = parsed(file.read(announced), "the header")
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error.strerror}") from error
    if not isinstance(header, dict):
        raise CheckpointError("its header is no object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError("its header lacks '__metadata__', an object of strings")
    return metadata, _table(header, length - 8 - announced)


def file_length(file: Any) -> int:
    """Bytes of an open file.

    Raises:
        CheckpointError: a folder, a pipe, a device.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("it is no regular file")
    return status.st_size


def parsed(text: bytes | str, where: str) -> Any:
    """JSON as the standard has it, and no key twice.

    Raises:
        CheckpointError: anything else, and brackets nested deeper than `MAX_DEPTH`.
    """
    try:
        characters = text.decode() if isinstance(text, bytes) else text
        if _deeper(characters, MAX_DEPTH):
            raise CheckpointError(f"{where} nests brackets deeper than {MAX_DEPTH}, or they do not match")
        return json.loads(characters, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is no JSON: {str(error)[:200]}") from error


def read_tensors(path: str | Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors one by one, each in memory of its own."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"safetensors cannot read it: {error}") from error


def digest(data: Tensor | str) -> str:
    """SHA-256 of a text, or of the bytes of a tensor in the order of its indices."""
    if isinstance(data, str):
        return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()
    flat = data.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _table(header: dict[str, Any], body: int) -> dict[str, Stored]:
    """The tensors of a header; together they fill the `body` bytes behind it, without a hole."""
    found: dict[str, Stored] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        where = f"the tensor {name[:200]!r}"
        record(entry, where, dtype=str, shape=list, data_offsets=list)
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{where} has numbers of the unknown kind {entry['dtype'][:40]!r}")
        stored = Stored(DTYPES[entry["dtype"]], sizes(entry["shape"], where))
        span = sizes(entry["data_offsets"], where)
        if len(span) != 2 or span[1] - span[0] != prod(stored.shape) * stored.dtype.itemsize:
            raise CheckpointError(
                f"{where} has {list(stored.shape)} for a shape and {list(span)} for its bytes"
            )
        found[name] = stored
        spans.append((span[0], span[1]))
    ends = [0, *(end for _, end in sorted(spans))]
    if ends[:-1] != [begin for begin, _ in sorted(spans)] or ends[-1] != body:
        raise CheckpointError(
            f"its tensors do not fill the {body} bytes behind the header: it is cut or damaged"
        )
    return found


def _deeper(characters: str, depth: int) -> bool:
    """Whether brackets nest deeper, or do not match: as many times as they may, the innermost are removed."""
    brackets = _NO_BRACKETS.sub("", characters)
    for _ in range(depth):
        brackets = brackets and _INNERMOST.sub("", brackets)
    return bool(brackets)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
