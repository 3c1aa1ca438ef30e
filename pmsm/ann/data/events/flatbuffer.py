"""As much of FlatBuffers as AEDAT 4 needs: numbers and structs of a root table, every offset checked."""

import struct
from typing import Any

import numpy as np


class Damaged(Exception):
    """An offset leads outside the buffer; `offset` is where in the buffer it stands."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset


class Table:
    """The root table of a FlatBuffer.

    Args:
        buffer: without a size prefix: offset of the root table, 4 bytes that name the type, then tables.

    Raises:
        Damaged: the buffer does not hold its root table.

    Source: flatbuffers.dev, Internals. Little-endian; a table starts with the distance back to its vtable,
    which holds its own size, the table's, and for each field its distance from the table's start, 0 where
    absent.
    """

    def __init__(self, buffer: bytes) -> None:
        self.buffer = buffer
        self.name = bytes(buffer[4:8])
        self.start = self._read("<I", 0)
        self.vtable = self.start - self._read("<i", self.start)
        self.fields = (self._read("<H", self.vtable) - 4) // 2

    def number(self, field: int, kind: str, default: int) -> int:
        """The number in `field` (0, 1, ...), of struct's type `kind`; `default` where the field is absent."""
        at = self._locate(field)
        return default if at is None else self._read(kind, at)

    def vector(self, field: int, kind: np.dtype) -> np.ndarray:
        """The structs in the vector of `field`: [n], dtype `kind`; empty where the field is absent."""
        at = self._locate(field)
        if at is None:
            return np.empty(0, kind)
        begin = at + self._read("<I", at)
        count = self._read("<I", begin)
        if count * kind.itemsize > len(self.buffer) - begin - 4:
            raise Damaged(begin, f"{count} entries are announced, {len(self.buffer) - begin - 4} bytes left")
        return np.frombuffer(self.buffer, kind, count, begin + 4)

    def _locate(self, field: int) -> int | None:
        if field >= self.fields:
            return None
        distance = self._read("<H", self.vtable + 4 + 2 * field)
        return self.start + distance if distance else None

    def _read(self, kind: str, at: int) -> Any:
        if not 0 <= at <= len(self.buffer) - struct.calcsize(kind):
            raise Damaged(max(at, 0), f"an offset leads to byte {at} of {len(self.buffer)}")
        return struct.unpack_from(kind, self.buffer, at)[0]
