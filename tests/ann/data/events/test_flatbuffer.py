"""The little of FlatBuffers that AEDAT 4 needs, on buffers written by hand."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events.flatbuffer import Damaged, Table

# Root at 16, its vtable at 8: 8 bytes of vtable, 12 of table; field 0 at 4, field 1 absent, then -7.
BUFFER = struct.pack("<I4sHHHHihxx", 16, b"TEST", 8, 12, 4, 0, 8, -7) + bytes(4)


def vector(values: bytes, count: int) -> bytes:
    """A root table whose field 0 leads to a vector behind it."""
    return struct.pack("<I4sHHHxxiI", 16, b"TEST", 6, 8, 4, 8, 4) + struct.pack("<I", count) + values


def test_a_number_is_read_where_the_vtable_puts_it_and_is_the_default_where_absent():
    table = Table(BUFFER)
    assert table.name == b"TEST"
    assert table.number(0, "<h", 0) == -7
    assert table.number(1, "<h", 5) == 5  # the vtable holds 0
    assert table.number(9, "<q", -1) == -1  # the vtable ends before


def test_structs_are_read_from_the_vector_of_a_field():
    kind = np.dtype("<u2")
    assert Table(vector(struct.pack("<3H", 1, 2, 3), 3)).vector(0, kind).tolist() == [1, 2, 3]
    assert Table(vector(b"", 0)).vector(0, kind).tolist() == []
    assert len(Table(BUFFER).vector(1, kind)) == 0


def test_a_vector_longer_than_the_buffer_is_refused_before_it_is_made():
    with pytest.raises(Damaged, match="4294967295 entries are announced, 6 bytes left"):
        Table(vector(b"\x00" * 6, 2**32 - 1)).vector(0, np.dtype("<u2"))


@pytest.mark.parametrize(
    "buffer", [b"", b"\xff\xff\xff\x7fTEST", struct.pack("<I4si", 8, b"TEST", 2**31 - 1)]
)
def test_offsets_outside_the_buffer_are_refused(buffer):
    with pytest.raises(Damaged, match="an offset leads to byte"):
        Table(buffer)


@given(at=st.integers(0, 31), byte=st.integers(0, 255), cut=st.integers(0, 32))
@settings(max_examples=120)
def test_mutated_bytes_never_lead_outside(at, byte, cut):
    buffer = bytearray(vector(struct.pack("<4H", 1, 2, 3, 4), 4))
    buffer[at] = byte
    try:
        table = Table(bytes(buffer[: cut or None]))
        table.number(1, "<q", -1)
        values = table.vector(0, np.dtype("<u2"))
    except Damaged:
        return
    assert values.nbytes <= len(buffer)
