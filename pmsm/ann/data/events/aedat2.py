"""AEDAT 2.0 of a DVS128, as jAER wrote CIFAR10-DVS."""

from pathlib import Path

import numpy as np

from pmsm.ann.data.events.header import check_version, skip_comments
from pmsm.ann.data.events.record import first, make_events
from pmsm.ann.data.events.source import Disorder, check_decoded, fetch, refuse

EVENT = np.dtype([("address", ">u4"), ("t", ">i4")])
SIDE = 128
SPECIAL = 0x8000_8000  # bit 15, a pulse at the IN pin; bit 31, jAER's own: neither comes from a pixel
UNUSED = 0x7FFF_0000  # no DVS128 sets these; a DAVIS does, with another layout


def read_aedat2(path: str | Path, *, disorder: Disorder = "refuse") -> np.ndarray:
    """The events of one AEDAT 2.0 file of a DVS128 camera, such as those of CIFAR10-DVS.

    Args:
        path: the file.
        disorder: "sort" where time goes backwards.

    Returns:
        [n], n >= 1, dtype EVENT of `record`; x and y in [0, 128), (0, 0) the top left pixel; time in
        microseconds as in the file. Special events, of no pixel, are left out.

    Raises:
        DataError: another version or camera, truncated, time going backwards.

    Source: docs.inivation.com, AEDAT 2.0: behind lines that start with '#', pairs of 32 bits, big-endian,
    address and time in microseconds, never decreasing. Address of a DVS128: bits 14-8 row from below, 7-1
    column, bit 0 polarity. What that page leaves out is in jAER's DVS128.java, and in the dat2mat.m that the
    publishers of CIFAR10-DVS recommend: columns count from the right, and bit 0 is 0 for ON, 1 for OFF.
    """
    path = Path(path)
    data = fetch(path)
    begin = skip_comments(data, path, check_version(data, path, "2.0"), until_end_line=False)
    count, rest = divmod(len(data) - begin, EVENT.itemsize)
    if rest:
        refuse(path, len(data) - rest, f"the last event has {rest} of {EVENT.itemsize} bytes. Copy it anew")
    raw = np.frombuffer(data, EVENT, count, begin)
    address = raw["address"].astype(np.int64)
    _check_camera(path, begin, address)
    kept = np.flatnonzero((address & SPECIAL) == 0)
    address = address[kept]
    x = SIDE - 1 - ((address >> 1) & 127)
    y = SIDE - 1 - ((address >> 8) & 127)
    events = make_events(x, y, raw["t"][kept], (address & 1) == 0)
    at = lambda i: begin + EVENT.itemsize * int(kept[i])  # noqa: E731  # one line, used once
    return check_decoded(path, events, (SIDE, SIDE, 2), at, disorder)


def _check_camera(path: Path, begin: int, address: np.ndarray) -> None:
    foreign = (address & UNUSED) != 0
    if foreign.any():
        i = first(foreign)
        refuse(
            path,
            begin + EVENT.itemsize * i,
            f"address 0x{address[i]:08x} has bits that no DVS128 sets. Recordings of other cameras (DAVIS) "
            f"lay out their addresses in another way",
        )
