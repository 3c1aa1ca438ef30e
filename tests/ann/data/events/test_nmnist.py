"""N-MNIST: the published folders, and parquet files of the same bytes."""

import numpy as np
import pytest

from pmsm.ann.data.events import Framing, nmnist, read_atis
from pmsm.errors import DataError


def encode(label: int, count: int = 3) -> bytes:
    return b"".join(bytes([label, i, 0x80, 0, i]) for i in range(count))


@pytest.fixture
def folder(tmp_path):
    """Two recordings of each digit in Train, one in Test; x is the digit."""
    for half, count in (("Train", 2), ("Test", 1)):
        for label in range(10):
            directory = tmp_path / half / str(label)
            directory.mkdir(parents=True)
            for i in range(count):
                (directory / f"{i:05d}.bin").write_bytes(encode(label))
    return tmp_path


def write_parquet(path, labels):
    arrow = pytest.importorskip("pyarrow")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = [{"bytes": encode(label), "path": f"{i}.bs2"} for i, label in enumerate(labels)]
    table = arrow.table({"events": arrow.array(rows, kind), "label": labels})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)


def test_folders_give_the_labels(folder):
    train, test = nmnist(folder)
    assert (train.name, test.name, len(train), len(test)) == ("N-MNIST train", "N-MNIST test", 20, 10)
    assert (train.class_count, train.sensor_size) == (10, (34, 34, 2))
    for half in (train, test):
        assert [events["x"][0] for events in half.recordings] == half.labels.tolist()


def test_files_named_bs2_are_read_as_well(folder):
    for path in list(folder.rglob("*.bin")):
        path.rename(path.with_suffix(".bs2"))
    assert len(nmnist(folder)[0]) == 20


def test_parquet_gives_the_same_recordings_as_folders(folder, tmp_path):
    directory = tmp_path / "parquet"
    directory.mkdir()
    for half in ("train", "test"):
        write_parquet(directory / f"{half}.parquet", [5, 0, 9])
    train, _ = nmnist(directory)
    assert train.labels.tolist() == [5, 0, 9]
    for label, events in zip([5, 0, 9], train.recordings, strict=True):
        assert np.array_equal(events, read_atis(folder / "Test" / str(label) / "00000.bin"))


def test_missing_classes_are_named_with_what_is_expected(folder):
    (folder / "Train" / "3" / "00000.bin").unlink()
    (folder / "Train" / "3" / "00001.bin").unlink()
    with pytest.raises(
        DataError, match=r"Train' has no recording \(\.bin or \.bs2\) in the class folders 3\. N-MN"
    ):
        nmnist(folder)


def test_an_empty_folder_and_no_folder_are_refused_with_the_layout(tmp_path):
    with pytest.raises(DataError, match=r"class folders 0, 1, .* Train/0 \.\.\. Train/9"):
        nmnist(tmp_path)
    with pytest.raises(DataError, match=r"absent' is not a folder\. N-MNIST is read from"):
        nmnist(tmp_path / "absent")


def test_half_a_set_of_parquet_is_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(DataError, match=r"lacks test\*\.parquet"):
        nmnist(tmp_path)


def test_a_damaged_recording_is_named_on_access_only(folder):
    (folder / "Test" / "7" / "00000.bin").write_bytes(b"\x01\x02")
    _, test = nmnist(folder)
    with pytest.raises(DataError, match=r"7.00000\.bin', byte 0: the last event has 2 of 5 bytes"):
        test.recordings[7]


def test_a_damaged_row_is_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    for half in ("train", "test"):
        rows = arrow.array([{"bytes": encode(1), "path": ""}, {"bytes": b"\x00", "path": ""}], kind)
        arrow.parquet = pytest.importorskip("pyarrow.parquet")
        arrow.parquet.write_table(
            arrow.table({"events": rows, "label": [0, 1]}), tmp_path / f"{half}.parquet"
        )
    with pytest.raises(DataError, match=r"train\.parquet, row 1', byte 0: the last event has 1 of 5"):
        nmnist(tmp_path)[0].recordings[1]


def test_the_real_sample_is_complete_ordered_and_framed_without_loss(shared_data):
    parquet = pytest.importorskip("pyarrow.parquet")
    if not (shared_data / "nmnist-sample").is_dir():
        pytest.skip("needs the sample of N-MNIST")
    train, test = nmnist(shared_data / "nmnist-sample")
    assert (len(train), len(test)) == (200, 100)
    assert train.labels.bincount().tolist() == [20] * 10
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # those of MNIST
    for half, name in ((train, "train"), (test, "test")):
        cells = parquet.read_table(shared_data / "nmnist-sample" / f"{name}.parquet")["events"].to_pylist()
        frames = half.to_frames(Framing(n_time_bins=10, dtype="uint8"))
        assert frames.frames.shape == (len(half), 10, 2, 34, 34)
        assert frames.frames.sum((1, 2, 3, 4)).tolist() == [len(cell["bytes"]) // 5 for cell in cells]
    first = train.recordings[0]
    assert 250_000 < first["t"][-1] - first["t"][0] < 350_000
