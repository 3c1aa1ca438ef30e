"""AEDAT 2.0 of a DVS128, written here from its description, good and hostile."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events import check_events, read_aedat2
from pmsm.errors import DataError

HEAD = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"


def encode(x: int, y: int, t: int, p: bool) -> bytes:
    """jAER's address: column from the right in bits 1-7, row from below in bits 8-14, bit 0 is 0 for ON."""
    return struct.pack(">Ii", (127 - y) << 8 | (127 - x) << 1 | (not p), t)


def write(path, *rows, head=HEAD):
    path.write_bytes(head + b"".join(encode(*row) for row in rows))
    return path


pixel = st.integers(0, 127)


@given(
    rows=st.lists(st.tuples(pixel, pixel, st.integers(-9, 2**31 - 1), st.booleans()), min_size=1, max_size=9)
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_are_read_as_they_were_written(tmp_path, rows):
    rows.sort(key=lambda row: row[2])
    assert read_aedat2(write(tmp_path / "a.aedat", *rows)).tolist() == rows


def test_bits_lie_where_the_description_puts_them(tmp_path):
    path = tmp_path / "a.aedat"
    # Address 0: the rightmost column, the lowest row, ON. Its highest: the other corner, OFF.
    path.write_bytes(HEAD + bytes.fromhex("00000000 00000005 00007fff 00000102"))
    assert read_aedat2(path).tolist() == [(127, 127, 5, True), (0, 0, 0x102, False)]


def test_events_of_no_pixel_are_left_out(tmp_path):
    path = tmp_path / "a.aedat"
    special = struct.pack(">Ii", 0x8000, 1) + struct.pack(">Ii", 0x8000_0000, 2)
    path.write_bytes(HEAD + encode(1, 2, 0, True) + special + encode(3, 4, 9, False))
    assert read_aedat2(path).tolist() == [(1, 2, 0, True), (3, 4, 9, False)]


@pytest.mark.parametrize(
    "data, text",
    [
        (b"\x00" * 16, r"byte 0: not AEDAT 2\.0: it must start with '#!AER-DAT2\.0'"),
        (
            b"#!AER-DAT3.1\r\n",
            r"byte 9: it is AEDAT 3\.1, not 2\.0\. Use pmsm\.ann\.data\.events\.read_aedat3",
        ),
        (b"#!AER-DAT1.0\r\n", r"byte 9: it is AEDAT 1\.0, not 2\.0\. Readable are 2\.0, 3\.1, 4\.0"),
        (b"#!AER-DAT2.0\r\n# no end", r"byte 14: the file ends inside a line of its header"),
        (HEAD, r"byte 0: it holds no event"),
        (HEAD + encode(1, 1, 1, True) + b"\x00", rf"byte {len(HEAD) + 8}: the last event has 1 of 8 bytes"),
        (
            HEAD + encode(1, 1, 1, True) + struct.pack(">Ii", 0x0040_0000, 2),
            rf"byte {len(HEAD) + 8}: address 0x00400000 has bits that no DVS128 sets",
        ),
        (
            HEAD + struct.pack(">Ii", 0x8000, 0) + encode(1, 1, 7, True) + encode(1, 1, 6, True),
            rf"byte {len(HEAD) + 16}: time goes backwards at event 1, from 7 to 6",
        ),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_name_and_byte(tmp_path, data, text):
    path = tmp_path / "bad.aedat"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot read '.*bad\.aedat', {text}"):
        read_aedat2(path)


@given(cut=st.integers(0, 400), at=st.integers(0, 200), byte=st.integers(0, 255))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes_give_a_recording_or_a_refusal_with_a_byte(tmp_path, cut, at, byte):
    path = write(tmp_path / "a.aedat", *((i, 9, 10 * i, i % 2 == 0) for i in range(12)))
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data[: cut or None])
    try:
        check_events(read_aedat2(path), (128, 128, 2))
    except DataError as refusal:
        told = str(refusal)
    else:
        told = ""
    assert not told or "a.aedat', byte " in told
