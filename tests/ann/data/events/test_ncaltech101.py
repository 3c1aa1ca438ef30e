"""N-Caltech101: its folders, and the split that is ours."""

import pytest

from pmsm.ann.data.events import ncaltech101
from pmsm.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """101 classes of three recordings in the folder Caltech101, and the annotations beside it."""
    for k in range(101):
        directory = tmp_path / "Caltech101" / f"class_{k:03d}"
        directory.mkdir(parents=True)
        for i in range(3):
            (directory / f"image_{i:04d}.bin").write_bytes(bytes([k, 179, 0, 0, i]))
    (tmp_path / "Caltech101_annotations").mkdir()
    return tmp_path


def test_folders_give_classes_and_both_halves_hold_all_of_them(folder):
    train, test = ncaltech101(folder)
    assert (len(train), len(test)) == (202, 101)
    assert train.name == "N-Caltech101 train (own split, seed 0)"
    assert (train.sensor_size, train.class_count, train.classes[5]) == ((240, 180, 2), 101, "class_005")
    for half in (train, test):
        assert [events["x"][0] for events in half.recordings] == half.labels.tolist()
    assert not set(train.recordings.keys) & set(test.recordings.keys)


def test_the_folder_of_classes_itself_is_accepted(folder):
    inside = ncaltech101(folder / "Caltech101")
    assert inside[0].recordings.keys == ncaltech101(folder)[0].recordings.keys


def test_another_seed_is_another_split(folder):
    assert ncaltech101(folder, seed=1)[1].recordings.keys != ncaltech101(folder)[1].recordings.keys


def test_a_folder_with_other_than_101_classes_is_refused(folder):
    (folder / "Caltech101" / "Faces").mkdir()
    with pytest.raises(DataError, match=r"holds 102 folders\. N-Caltech101 is read from"):
        ncaltech101(folder)


def test_an_empty_class_is_named(folder):
    for path in (folder / "Caltech101" / "class_042").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="in the class folders class_042"):
        ncaltech101(folder)


def test_a_recording_of_another_size_is_refused_on_access(folder):
    train, _ = ncaltech101(folder)
    train.recordings.keys[0].write_bytes(bytes([0, 200, 0, 0, 0]))
    with pytest.raises(DataError, match=r"class_000.*byte 0: event 0 has y = 200"):
        train.recordings[0]
