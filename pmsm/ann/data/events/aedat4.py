"""AEDAT 4.0: compressed packets of FlatBuffers, as iniVation's DV writes them."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from pmsm.ann.data.events.flatbuffer import Damaged, Table
from pmsm.ann.data.events.header import check_version
from pmsm.ann.data.events.record import SensorSize, check_sensor_size, make_events
from pmsm.ann.data.events.source import Disorder, check_decoded, fetch, refuse
from pmsm.errors import import_extra

PACKET = struct.Struct("<ii")  # stream, size of what follows
EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1"), ("padding", "V3")])
COMPRESSIONS = ("none", "lz4", "lz4", "zstd", "zstd")  # by number: none, LZ4, LZ4 high, ZSTD, ZSTD high

# LZ4 shrinks to 1/255 at best; events shrink to about a third. What claims to be more is no recording.
MAX_RATIO = 256
SLACK_BYTES = 2**16  # so that a tiny file may hold a blank packet
MAX_PACKET_BYTES = 2**28

CRUMB_BYTES = 256
MIN_WINDOW_BYTES = 2**23  # zstd asks for up to 8 MiB at its usual levels, however small the packet
MAX_WINDOW_BYTES = 2**27

UNREADABLE = (RuntimeError, EOFError, ValueError)  # of `_decompressor`, on damaged content

Decompress = Callable[[bytes, int], bytes]  # at most so many bytes of the packet's content


def read_aedat4(
    path: str | Path,
    sensor_size: SensorSize,
    *,
    stream: int | None = None,
    disorder: Disorder = "refuse",
) -> np.ndarray:
    """The events of one AEDAT 4.0 file; its frames, IMU samples and triggers are skipped.

    Args:
        path: the file.
        sensor_size: (W, H, 2) of the camera.
        stream: which stream of events; without it the file must have one only.
        disorder: "sort" where time goes backwards.

    Returns:
        [n], n >= 1, dtype EVENT of `record`; (0, 0) is the top left pixel; time in microseconds, as in the
        file counted from 1970.

    Raises:
        DataError: another version, truncated, damaged, no or several streams of events, an event outside the
            sensor, time going backwards, a packet that inflates beyond 256 times its size.
        MissingExtraError: the packets are compressed and lz4 or zstandard is not installed.

    Source: docs.inivation.com, AEDAT 4.0, and the schemas ioheader.fbs and events.fbs of iniVation's
    dv-processing. Behind the version line a size-prefixed FlatBuffer IOHE (compression, position of the data
    table, text); then packets: stream and size, 32 bits each, little-endian, and one frame of the compressor
    around a size-prefixed FlatBuffer, whose type is named at its byte 4: EVTS is a vector of 16-byte structs,
    time 64 bits, x and y 16 bits, polarity 8 bits.
    """
    path = Path(path)
    check_sensor_size(sensor_size)
    data = fetch(path)
    begin, end, decompress = _header(path, data)
    parts, offsets, streams = [], [], set()
    for position, number, body in _packets(path, data, begin, end, decompress):
        if body[8:12] == b"EVTS":
            streams.add(number)
            if stream in (None, number):
                parts.append(_decode(path, position, body))
                # Inside a compressed packet a byte has no place in the file: its events begin where it does.
                offsets.append(np.full(len(parts[-1]), position))
    if not parts or (stream is None and len(streams) > 1):
        found = f"of events it holds the streams {sorted(streams)}" if streams else "it holds no events"
        refuse(path, begin, f"{found}, asked for is stream={stream}")
    at = np.concatenate(offsets)
    return check_decoded(path, np.concatenate(parts), sensor_size, lambda i: int(at[i]), disorder)


def _header(path: Path, data: bytes) -> tuple[int, int, Decompress]:
    """Where the packets begin and end, and how they are decompressed."""
    begin = check_version(data, path, "4.0")
    size = _size(path, data, begin)
    table = _table(path, begin, data[begin + 4 : begin + 4 + size])
    if table.name != b"IOHE":
        refuse(path, begin + 8, f"the header must be of type IOHE, it is {table.name!r}")
    try:
        compression, end = table.number(0, "<i", 0), table.number(1, "<q", -1)
    except Damaged as cause:
        refuse(path, begin + 4 + cause.offset, f"damaged header ({cause}). Copy it anew")
    packets = begin + 4 + size
    if not 0 <= compression < len(COMPRESSIONS):
        refuse(path, begin, f"no compression has number {compression}; known are 0 to 4")
    if end != -1 and not packets <= end <= len(data):
        refuse(
            path, begin, f"the data table should stand at byte {end}, outside the file's {len(data)} bytes"
        )
    return packets, len(data) if end == -1 else end, _decompressor(COMPRESSIONS[compression])


def _packets(
    path: Path, data: bytes, begin: int, end: int, decompress: Decompress
) -> Iterator[tuple[int, int, bytes]]:
    """Position, stream and content of each packet."""
    position, budget = begin, MAX_RATIO * len(data) + SLACK_BYTES
    while position < end:
        if end - position < PACKET.size:
            refuse(path, position, f"{end - position} bytes are left, too few for a packet. Copy it anew")
        number, size = PACKET.unpack_from(data, position)
        content = position + PACKET.size
        if not 0 <= size <= end - content:
            refuse(
                path, position, f"the packet announces {size} bytes, {end - content} are left. Copy it anew"
            )
        limit = min(budget, MAX_RATIO * size + SLACK_BYTES, MAX_PACKET_BYTES)
        try:
            body = decompress(data[content : content + size], limit)
        except UNREADABLE as cause:
            refuse(path, content, f"cannot decompress the packet ({cause}). Copy it anew")
        if len(body) > limit:
            refuse(path, content, f"the packet of {size} bytes inflates beyond {limit}; that is no recording")
        if len(body) < 12 or not body[8:12].isalpha():
            refuse(path, content, f"the packet holds no FlatBuffer with the name of its type: {body[:12]!r}")
        budget -= len(body)
        yield content, number, body
        position = content + size


def _decode(path: Path, position: int, body: bytes) -> np.ndarray:
    """The events of the packet whose content stands at `position`: [n], dtype EVENT of `record`."""
    size = _size(path, body, 0, position)
    table = _table(path, position, body[4 : 4 + size])
    try:
        raw = table.vector(0, EVENT)
    except Damaged as cause:
        refuse(path, position, f"damaged events ({cause}, {cause.offset} into the packet). Copy it anew")
    return make_events(raw["x"], raw["y"], raw["t"], raw["p"] != 0)


def _size(path: Path, data: bytes, at: int, position: int | None = None) -> int:
    """The size prefix at byte `at` of `data`, which must hold as much."""
    where = at if position is None else position
    left = len(data) - at - 4
    if left < 0:
        refuse(path, where, "it ends before the size of a FlatBuffer. Copy it anew")
    size = int.from_bytes(data[at : at + 4], "little")
    if size > left:
        refuse(path, where, f"a FlatBuffer of {size} bytes is announced, {left} are left. Copy it anew")
    return size


def _table(path: Path, position: int, buffer: bytes) -> Table:
    try:
        return Table(buffer)
    except Damaged as cause:
        refuse(path, position, f"damaged FlatBuffer ({cause}). Copy it anew")


def _decompressor(name: str) -> Decompress:
    """How to undo `name`; damaged content raises one of UNREADABLE."""
    if name == "none":
        return lambda content, limit: content
    if name == "lz4":
        frame = import_extra("lz4.frame", "events")
        return lambda content, limit: _inflate_lz4(frame, content, limit)
    zstandard = import_extra("zstandard", "events")
    return lambda content, limit: _inflate_zstd(zstandard, content, limit)


def _inflate_lz4(frame: ModuleType, content: bytes, limit: int) -> bytes:
    decompressor = frame.LZ4FrameDecompressor()
    body = decompressor.decompress(content, max_length=limit + 1)
    if len(body) <= limit and not decompressor.eof:
        raise EOFError("it ends too early")
    return body


def _inflate_zstd(zstandard: ModuleType, content: bytes, limit: int) -> bytes:
    # Fed in crumbs, because only the input can be bounded: 128 KiB come out of 3 bytes at best.
    window = max(MIN_WINDOW_BYTES, min(limit, MAX_WINDOW_BYTES))
    decompressor = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
    body = bytearray()
    try:
        for start in range(0, len(content), CRUMB_BYTES):
            body += decompressor.decompress(content[start : start + CRUMB_BYTES])
            if decompressor.eof or len(body) > limit:
                return bytes(body)
    except zstandard.ZstdError as cause:
        raise ValueError(str(cause)) from cause
    raise EOFError("it ends too early")
