"""AEDAT 4.0, written here from its description and schemas, good and hostile."""

import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events import check_events, read_aedat4
from pmsm.errors import DataError

SIZE = (128, 128, 2)
HEAD = b"#!AER-DAT4.0\r\n"
NONE, LZ4, LZ4_HIGH, ZSTD, ZSTD_HIGH = range(5)
ROWS = [
    (1, 2, 1_600_000_000_000_003, True),
    (127, 0, 1_600_000_000_000_003, False),
    (5, 6, 1_600_000_000_000_009, True),
]


def prefixed(buffer: bytes) -> bytes:
    return struct.pack("<I", len(buffer)) + buffer


def header(compression: int, position: int = -1, name: bytes = b"IOHE") -> bytes:
    """Fields 0 and 1 of the table at 16, behind its vtable at 8; padding keeps 64 bits aligned."""
    return prefixed(struct.pack("<I4sHHHHiiq", 16, name, 8, 16, 4, 8, 8, compression, position))


def packet(*rows, name: bytes = b"EVTS", count: int | None = None) -> bytes:
    """A table at 16 whose field 0 leads to a vector of 16-byte structs."""
    head = struct.pack("<I4sHHHxxiI", 16, name, 6, 8, 4, 8, 4)
    events = b"".join(struct.pack("<qhh?xxx", t, x, y, p) for x, y, t, p in rows)
    return prefixed(head + struct.pack("<I", len(rows) if count is None else count) + events)


def compress(body: bytes, compression: int) -> bytes:
    if compression in (LZ4, LZ4_HIGH):
        return pytest.importorskip("lz4.frame").compress(body)
    if compression in (ZSTD, ZSTD_HIGH):
        return pytest.importorskip("zstandard").compress(body)
    return body


def file(*bodies: tuple[int, bytes], compression: int = NONE) -> bytes:
    packed = ((stream, compress(body, compression)) for stream, body in bodies)
    return HEAD + header(compression) + b"".join(struct.pack("<ii", s, len(b)) + b for s, b in packed)


# What Google's builder (flatbuffers 25.12.19) makes of a header with text, and of two events.
GOOGLE_HEADER = bytes.fromhex(
    "3800000014000000494f484500000a0008000000000004000a00000004000000170000003c64762076657273696f6e3d"
    "22322e30223e3c2f64763e00"
)
GOOGLE_EVENTS = bytes.fromhex(
    "3c000000100000004556545300000600080004000600000004000000020000000300a40731af05000100020001000000"
    "0900a40731af05007f00000000000000"
)

BEGIN = len(HEAD + header(NONE))
FIRST = BEGIN + 8  # where the content of the first packet stands


def read(tmp_path, data: bytes, **options):
    path = tmp_path / "a.aedat4"
    path.write_bytes(data)
    return read_aedat4(path, options.pop("size", SIZE), **options)


@pytest.mark.parametrize("compression", [NONE, LZ4, LZ4_HIGH, ZSTD, ZSTD_HIGH])
def test_events_are_read_as_they_were_written_in_every_compression(tmp_path, compression):
    data = file((0, packet(*ROWS[:1])), (0, packet()), (0, packet(*ROWS[1:])), compression=compression)
    assert read(tmp_path, data).tolist() == ROWS


def test_buffers_of_googles_builder_are_read(tmp_path):
    data = HEAD + GOOGLE_HEADER + struct.pack("<ii", 0, len(GOOGLE_EVENTS)) + GOOGLE_EVENTS
    assert read(tmp_path, data).tolist() == [
        (1, 2, 1_600_000_000_000_003, True),
        (127, 0, 1_600_000_000_000_009, False),
    ]


def test_frames_samples_and_triggers_are_skipped(tmp_path):
    others = [(k, packet(name=name)) for k, name in enumerate([b"FRME", b"IMUS", b"TRIG"], 1)]
    assert read(tmp_path, file(*others, (0, packet(*ROWS)), *others)).tolist() == ROWS


def test_the_table_of_data_behind_the_packets_is_not_read_as_a_packet(tmp_path):
    packets = file((0, packet(*ROWS)))[BEGIN:]
    data = HEAD + header(NONE, BEGIN + len(packets)) + packets + b"\xff" * 50
    assert read(tmp_path, data).tolist() == ROWS


def test_of_several_streams_one_must_be_chosen(tmp_path):
    data = file((0, packet(ROWS[0])), (3, packet(ROWS[2])))
    assert read(tmp_path, data, stream=3).tolist() == ROWS[2:]
    with pytest.raises(
        DataError, match=rf"byte {BEGIN}: of events it holds the streams \[0, 3\], .*stream=None"
    ):
        read(tmp_path, data)
    with pytest.raises(DataError, match=r"streams \[0, 3\], asked for is stream=1"):
        read(tmp_path, data, stream=1)


@pytest.mark.parametrize(
    "data, text",
    [
        (b"#!AER-DAT3.1\r\n", r"byte 9: it is AEDAT 3\.1, not 4\.0\. Use .*read_aedat3"),
        (HEAD, r"byte 14: it ends before the size of a FlatBuffer"),
        (
            HEAD + b"\xff\xff\xff\xff1234",
            r"byte 14: a FlatBuffer of 4294967295 bytes is announced, 4 are left",
        ),
        (HEAD + prefixed(b"\xff" * 8), r"byte 14: damaged FlatBuffer \(an offset leads to byte"),
        (HEAD + header(NONE, name=b"EVTS"), r"byte 22: the header must be of type IOHE, it is b'EVTS'"),
        (HEAD + header(5), r"byte 14: no compression has number 5; known are 0 to 4"),
        (HEAD + header(NONE, 10**9), r"byte 14: the data table should stand at byte 1000000000"),
        (HEAD + header(NONE), rf"byte {BEGIN}: it holds no events"),
        (file((0, packet(name=b"FRME"))), rf"byte {BEGIN}: it holds no events"),
        (HEAD + header(NONE) + b"1234567", rf"byte {BEGIN}: 7 bytes are left, too few for a packet"),
        (
            HEAD + header(NONE) + struct.pack("<ii", 0, 9),
            rf"byte {BEGIN}: the packet announces 9 bytes, 0 are left",
        ),
        (HEAD + header(NONE) + struct.pack("<ii", 0, -1), rf"byte {BEGIN}: the packet announces -1"),
        (
            file((0, b"tiny")),
            rf"byte {FIRST}: the packet holds no FlatBuffer with the name of its type: b'tiny'",
        ),
        (file((0, packet(*ROWS)[:-1])), rf"byte {FIRST}: a FlatBuffer of 76 bytes is announced, 75 are left"),
        (
            file((0, packet(*ROWS, count=2**28))),
            rf"byte {FIRST}: damaged events \(268435456 entries are announced, 48 bytes left, 24 into",
        ),
        (file((0, packet((128, 0, 0, True)))), rf"byte {FIRST}: event 0 has x = 128"),
        (file((0, packet((0, -1, 0, True)))), rf"byte {FIRST}: event 0 has y = -1"),
        (file((0, packet((0, 0, 2**62, True)))), rf"byte {FIRST}: event 0 is at 4611686018427387904 micros"),
        (file((0, packet(*ROWS[::-1]))), rf"byte {FIRST}: time goes backwards at event 1"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_name_and_byte(tmp_path, data, text):
    with pytest.raises(DataError, match=rf"cannot read '.*a\.aedat4', {text}"):
        read(tmp_path, data)


@pytest.mark.parametrize("compression", [LZ4, ZSTD])
@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-3], lambda b: b[:5], lambda b: b"\x00" * 20, lambda b: b[:8] + b"\xff" * 9]
)
def test_a_packet_that_cannot_be_decompressed_is_refused(tmp_path, compression, spoil):
    body = spoil(compress(packet(*ROWS), compression))
    data = HEAD + header(compression) + struct.pack("<ii", 0, len(body)) + body
    with pytest.raises(
        DataError, match=rf"byte {FIRST}: (cannot decompress the packet|the packet holds no Flat)"
    ):
        read(tmp_path, data)


@pytest.mark.parametrize("compression", [LZ4, ZSTD])
def test_a_packet_that_inflates_without_end_is_refused_in_little_memory(tmp_path, compression):
    data = file((0, bytes(100 << 20)), compression=compression)
    tracemalloc.start()
    # LZ4 shrinks to 1/255, which is still allowed, and then finds no events; ZSTD to 1/10,000, which is not.
    with pytest.raises(DataError, match=rf"byte {FIRST}: the packet (of \d+ bytes inflates|holds no Flat)"):
        read(tmp_path, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 600 * len(data) + (
        32 << 20
    )  # the packet twice, while it grows, and the decompressor's window


@given(
    cut=st.integers(0, 300), at=st.integers(0, 290), byte=st.integers(0, 255), kind=st.sampled_from([0, 1, 3])
)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes_give_a_recording_or_a_refusal_with_a_byte(tmp_path, cut, at, byte, kind):
    data = bytearray(
        file((0, packet(*ROWS[:2])), (1, packet(name=b"IMUS")), (0, packet(ROWS[2])), compression=kind)
    )
    data[at % len(data)] = byte
    try:
        check_events(read(tmp_path, bytes(data[: cut or None])), SIZE)
    except DataError as refusal:
        told = str(refusal)
    else:
        told = ""
    assert not told or "a.aedat4', byte " in told
