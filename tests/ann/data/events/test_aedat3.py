"""AEDAT 3.1, written here from its description, good and hostile."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events import check_events, read_aedat3
from pmsm.errors import DataError

HEAD = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-10-25 13:00:00 (TZ+0200)\r\n#!END-HEADER\r\n"
)
BEGIN = len(HEAD)


def encode(x: int, y: int, t: int, p: bool, valid: bool = True) -> bytes:
    return struct.pack("<Ii", x << 17 | y << 2 | p << 1 | valid, t)


def packet(*rows, kind=1, source=1, size=8, offset=4, overflow=0, capacity=None, number=None, valid=None):
    number = len(rows) if number is None else number
    capacity = number if capacity is None else capacity
    valid = sum(len(row) < 5 or row[4] for row in rows) if valid is None else valid
    head = struct.pack("<hhiiiiii", kind, source, size, offset, overflow, capacity, number, valid)
    return head + b"".join(encode(*row) for row in rows)


def write(path, *packets, head=HEAD):
    path.write_bytes(head + b"".join(packets))
    return path


ONE = (1, 2, 3, True)
pixel = st.integers(0, 127)


@given(
    rows=st.lists(st.tuples(pixel, pixel, st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=12),
    cut=st.integers(0, 12),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_are_read_as_they_were_written_over_several_packets(tmp_path, rows, cut):
    rows.sort(key=lambda row: row[2])
    path = write(tmp_path / "a.aedat", packet(*rows[:cut]), packet(*rows[cut:]))
    assert read_aedat3(path).tolist() == rows


def test_bits_lie_where_the_description_puts_them(tmp_path):
    path = tmp_path / "a.aedat"
    header = bytes.fromhex("0100 0000 08000000 04000000 02000000 01000000 01000000 01000000")
    path.write_bytes(HEAD + header + bytes.fromhex("17000600 05000000"))  # 0x00060017: x 3, y 5, ON, valid
    assert read_aedat3(path).tolist() == [(3, 5, 5 + (2 << 31), True)]


def test_other_packets_are_skipped_whatever_their_events_hold(tmp_path):
    imu = packet(kind=3, size=36, number=2, valid=2) + bytes(range(72))
    assert read_aedat3(write(tmp_path / "a.aedat", imu, packet(ONE), imu)).tolist() == [ONE]


def test_events_marked_as_invalid_are_left_out(tmp_path):
    rows = [(1, 1, 5, True, True), (127, 1, 6, True, False), (3, 3, 7, False, True)]
    path = write(tmp_path / "a.aedat", packet(*rows))
    assert read_aedat3(path).tolist() == [rows[0][:4], rows[2][:4]]


def test_marks_are_not_asked_where_the_header_calls_all_events_valid(tmp_path):
    path = write(tmp_path / "a.aedat", packet((*ONE, False), valid=1))
    assert read_aedat3(path).tolist() == [ONE]


@pytest.mark.parametrize(
    "data, text",
    [
        (
            b"#!AER-DAT2.0\r\n",
            r"byte 9: it is AEDAT 2\.0, not 3\.1\. Use pmsm\.ann\.data\.events\.read_aedat2",
        ),
        (b"MZ\x90\x00", r"byte 0: not AEDAT 3\.1"),
        (HEAD.replace(b"#!END-HEADER\r\n", b""), r"the header must end with a line '#!END-HEADER'"),
        (HEAD, rf"byte {BEGIN}: it holds no packet of polarity events"),
        (HEAD + packet(ONE)[:20], rf"byte {BEGIN}: 20 bytes are left, too few for the header of a packet"),
        (
            HEAD + packet(ONE)[:-1],
            rf"byte {BEGIN}: the packet announces 1 events of 8 bytes, 7 bytes are left",
        ),
        (
            HEAD + packet(ONE) + packet(number=2**31 - 1, valid=5),
            rf"byte {BEGIN + 36}: .* announces 2147483647",
        ),
        (
            HEAD + packet(ONE, capacity=2),
            rf"byte {BEGIN}: a packet must have .*capacity 2, number 1, valid 1",
        ),
        (HEAD + packet(number=-1, valid=-1), rf"byte {BEGIN}: a packet must have .*number -1"),
        (HEAD + packet(ONE, size=0), rf"byte {BEGIN}: no header of a packet: .*size 0"),
        (HEAD + packet(ONE, kind=-1), rf"byte {BEGIN}: no header of a packet: kind -1"),
        (HEAD + packet(ONE, overflow=-1), r"no header of a packet: .*overflow -1"),
        (
            HEAD + packet(ONE, offset=0),
            rf"byte {BEGIN}: polarity events have 8 bytes and their time at byte 4",
        ),
        (HEAD + packet(ONE, ONE, valid=1), rf"byte {BEGIN}: .* announces 1 valid events, 2 are marked so"),
        (HEAD + packet(ONE) + packet(ONE, source=2), rf"byte {BEGIN + 36}: .*of the sources \[1, 2\]"),
        (HEAD + packet(number=0), r"byte 0: it holds no event"),
        (HEAD + packet(ONE, (128, 0, 4, True)), rf"byte {BEGIN + 36}: event 1 has x = 128"),
        (
            HEAD + packet(ONE) + packet((1, 1, 2, True)),
            rf"byte {BEGIN + 64}: time goes backwards at event 1, from 3 to 2",
        ),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_name_and_byte(tmp_path, data, text):
    path = tmp_path / "bad.aedat"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot read '.*bad\.aedat', .*{text}"):
        read_aedat3(path)


@given(cut=st.integers(0, 400), at=st.integers(0, 300), byte=st.integers(0, 255))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes_give_a_recording_or_a_refusal_with_a_byte(tmp_path, cut, at, byte):
    packets = [packet(*((i, 9, 40 * k + i, i % 2 == 0) for i in range(4))) for k in range(3)]
    data = bytearray(HEAD[:14] + HEAD[-14:] + b"".join(packets))
    data[at % len(data)] = byte
    path = tmp_path / "a.aedat"
    path.write_bytes(data[: cut or None])
    try:
        check_events(read_aedat3(path), (128, 128, 2))
    except DataError as refusal:
        told = str(refusal)
    else:
        told = ""
    assert not told or "a.aedat', byte " in told
