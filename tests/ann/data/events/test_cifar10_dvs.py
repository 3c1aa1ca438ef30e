"""CIFAR10-DVS: its folders, in AEDAT 2.0 or 4.0, and the split that is ours."""

import struct

import pytest

from pmsm.ann.data.events import cifar10_dvs
from pmsm.ann.data.events.cifar10_dvs import CLASSES
from pmsm.errors import DataError


def encode(x: int, start: int) -> bytes:
    """AEDAT 2.0: two events in column x of the top row, ON."""
    address = 127 << 8 | (127 - x) << 1
    return b"#!AER-DAT2.0\r\n" + struct.pack(">IiIi", address, start, address, start + 9)


def encode4(x: int, start: int) -> bytes:
    """AEDAT 4.0, uncompressed, with the same two events."""
    head = struct.pack("<I4sHHHHiiq", 16, b"IOHE", 8, 16, 4, 8, 8, 0, -1)
    body = struct.pack("<I4sHHHxxiII", 16, b"EVTS", 6, 8, 4, 8, 4, 2)
    body += b"".join(struct.pack("<qhh?xxx", t, x, 0, True) for t in (start, start + 9))
    body = struct.pack("<I", len(body)) + body
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(head)) + head + struct.pack("<ii", 0, len(body)) + body


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"cifar10_{name}_{i}.aedat").write_bytes(encode(label, 1000 * i))
    return tmp_path


def test_folders_give_the_labels_and_time_counts_from_the_first_event(folder):
    train, test = cifar10_dvs(folder, test_share=0.4)
    assert (len(train), len(test)) == (30, 20)
    assert test.name == "CIFAR10-DVS test (own split, seed 0)"
    assert (train.classes, train.sensor_size) == (CLASSES, (128, 128, 2))
    for half in (train, test):
        for events, label in zip(half.recordings, half.labels.tolist(), strict=True):
            assert events.tolist() == [(label, 0, 0, True), (label, 0, 9, True)]


def test_files_converted_to_aedat4_give_the_same(folder):
    before = [events.tolist() for events in cifar10_dvs(folder)[1].recordings]
    for label, name in enumerate(CLASSES):
        for path in (folder / name).iterdir():
            path.with_suffix(".aedat4").write_bytes(encode4(label, 1_600_000_000_000_000))
            path.unlink()
    assert [events.tolist() for events in cifar10_dvs(folder)[1].recordings] == before


def test_missing_classes_are_named_with_what_is_expected(folder):
    (folder / "ship").rename(folder / "boat")
    with pytest.raises(DataError, match=r"in the class folders ship\. CIFAR10-DVS is read from airplane/"):
        cifar10_dvs(folder)


def test_disorder_is_refused_or_sorted_as_asked(folder):
    for path in (folder / "airplane").iterdir():
        early, late = encode(3, 0), encode(4, 50)[14:]
        path.write_bytes(early[:14] + late + early[14:])
    train, _ = cifar10_dvs(folder)
    with pytest.raises(DataError, match=r"byte 30: time goes backwards at event 2, from 59 to 0"):
        train.recordings[0]
    train, _ = cifar10_dvs(folder, disorder="sort")
    assert train.recordings[0]["t"].tolist() == [0, 9, 50, 59]
