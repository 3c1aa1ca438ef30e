"""AEDAT 3.1: packets of polarity events, as cAER wrote DVS128-Gesture."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pmsm.ann.data.events.header import check_version, skip_comments
from pmsm.ann.data.events.record import SensorSize, check_sensor_size, make_events
from pmsm.ann.data.events.source import Disorder, check_decoded, fetch, refuse

PACKET = struct.Struct("<hhiiiiii")
EVENT = np.dtype([("data", "<u4"), ("t", "<i4")])
POLARITY = 1  # event type; every other one is skipped
MAX_SIZE = 2**24  # bytes of one event; only frames have more than a few dozen


class _Packet(NamedTuple):
    """The header of a packet, field by field as in the file."""

    kind: int
    source: int
    size: int
    time_offset: int
    overflow: int
    capacity: int
    number: int
    valid: int


def read_aedat3(
    path: str | Path, sensor_size: SensorSize = (128, 128, 2), *, disorder: Disorder = "refuse"
) -> np.ndarray:
    """The polarity events of one AEDAT 3.1 file, such as those of DVS128-Gesture.

    Args:
        path: the file.
        sensor_size: (W, H, 2) of the camera.
        disorder: "sort" where time goes backwards.

    Returns:
        [n], n >= 1, dtype EVENT of `record`; (0, 0) is the top left pixel; time in microseconds as in the
        file, with the overflow counter of the packets. Events that a packet marks as invalid are left out.

    Raises:
        DataError: another version, truncated, a packet that contradicts itself, events of two cameras, an
            event outside the sensor, time going backwards.

    Source: docs.inivation.com, AEDAT 3.1, libcaer's events/common.h and polarity.h, and the README of
    DVS128-Gesture (A. Amir et al., CVPR 2017). Little-endian; packets of a 28-byte header (type, source, size
    of an event, offset of its time, overflow, capacity, number, number of valid ones) and their events: bits
    31-17 x, 16-2 y, 1 polarity, 0 valid; then time, to which overflow << 31 is added.
    """
    path = Path(path)
    check_sensor_size(sensor_size)
    data = fetch(path)
    position = skip_comments(data, path, check_version(data, path, "3.1"), until_end_line=True)
    parts, offsets, sources = [], [], set()
    while position < len(data):
        packet = _packet(path, data, position)
        begin = position + PACKET.size
        if packet.kind == POLARITY:
            events, kept = _decode(path, data, position, packet)
            parts.append(events)
            offsets.append(begin + EVENT.itemsize * kept)
            sources.add(packet.source)
            if len(sources) > 1:
                refuse(path, position, f"it holds events of the sources {sorted(sources)}; one is read only")
        position = begin + packet.number * packet.size
    if not parts:
        refuse(path, position, "it holds no packet of polarity events")
    at = np.concatenate(offsets)
    return check_decoded(path, np.concatenate(parts), sensor_size, lambda i: int(at[i]), disorder)


def _packet(path: Path, data: bytes, position: int) -> _Packet:
    """The header at `position`, refused unless the file holds what it announces."""
    if len(data) - position < PACKET.size:
        refuse(
            path,
            position,
            f"{len(data) - position} bytes are left, too few for the header of a packet ({PACKET.size}). "
            f"Copy it anew",
        )
    packet = _Packet(*PACKET.unpack_from(data, position))
    if not (packet.kind >= 0 and 1 <= packet.size <= MAX_SIZE and packet.overflow >= 0):
        refuse(path, position, f"no header of a packet: {_show(packet)}")
    if not 0 <= packet.valid <= packet.number == packet.capacity:
        refuse(
            path,
            position,
            f"a packet must have 0 <= valid <= number = capacity: {_show(packet)}. Copy it anew",
        )
    left = len(data) - position - PACKET.size
    if packet.number * packet.size > left:
        refuse(
            path,
            position,
            f"the packet announces {packet.number} events of {packet.size} bytes, {left} bytes are left. "
            f"Copy it anew",
        )
    return packet


def _decode(path: Path, data: bytes, position: int, packet: _Packet) -> tuple[np.ndarray, np.ndarray]:
    """The valid events of a polarity packet, [n], and which of its events they are, [n]."""
    if (packet.size, packet.time_offset) != (EVENT.itemsize, 4):
        refuse(
            path,
            position,
            f"polarity events have 8 bytes and their time at byte 4; this packet says {_show(packet)}",
        )
    raw = np.frombuffer(data, EVENT, packet.number, position + PACKET.size)
    bits = raw["data"].astype(np.int64)
    kept = np.arange(packet.number)
    # Where the header calls all of them valid, their marks are not asked.
    if packet.valid < packet.number:
        kept = np.flatnonzero(bits & 1)
        if len(kept) != packet.valid:
            refuse(
                path, position, f"the packet announces {packet.valid} valid events, {len(kept)} are marked so"
            )
    t = raw["t"].astype(np.int64) + (packet.overflow << 31)
    events = make_events((bits >> 17) & 0x7FFF, (bits >> 2) & 0x7FFF, t, (bits & 2) > 0)
    return events[kept], kept


def _show(packet: _Packet) -> str:
    return ", ".join(f"{name} {value}" for name, value in packet._asdict().items())
