"""SHD, in HDF5 files written here after its description, good and hostile."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events import Framing, shd
from pmsm.errors import DataError

h5py = pytest.importorskip("h5py")
module = importlib.import_module(
    "pmsm.ann.data.events.shd"
)  # the name of the package's attribute is the function

TIMES = [[0.25, 0.0, 0.125], [0.5], []]
UNITS = [[3, 699, 0], [7], []]


def write(path, times=TIMES, units=UNITS, labels=(0, 19, 4), *, time_type="f2", unit_type="u2", only=None):
    with h5py.File(path, "w") as file:
        for name, kind, lists in (("times", time_type, times), ("units", unit_type, units)):
            if only in (None, name):
                made = file.create_dataset(f"spikes/{name}", (len(lists),), h5py.vlen_dtype(np.dtype(kind)))
                for i, values in enumerate(lists):
                    made[i] = np.array(values, kind)
        file["labels"] = np.array(labels)
        file["extra/speaker"] = np.array([1, 2, 3])
    return path


@pytest.fixture
def folder(tmp_path):
    for half in ("train", "test"):
        write(tmp_path / f"shd_{half}.h5")
    return tmp_path


def test_spikes_are_read_in_microseconds_and_sorted_by_time(folder):
    train, test = shd(folder)
    assert (train.name, test.name, len(train)) == ("SHD train", "SHD test", 3)
    assert (train.sensor_size, train.class_count) == ((700, 1, 1), 20)
    assert (train.classes[0], train.classes[19]) == ("zero", "neun")
    assert train.labels.tolist() == [0, 19, 4]
    assert train.recordings[0].tolist() == [(699, 0, True), (0, 125_000, True), (3, 250_000, True)]
    assert [len(events) for events in train.recordings] == [3, 1, 0]


def test_other_widths_of_numbers_give_the_same(tmp_path):
    for half in ("train", "test"):
        write(tmp_path / f"shd_{half}.h5", time_type="f8", unit_type="i8")
    assert shd(tmp_path)[0].recordings[0]["t"].tolist() == [0, 125_000, 250_000]


def test_one_of_the_two_files_names_the_set(folder):
    assert len(shd(folder / "shd_test.h5")[0]) == 3


def test_it_is_framed_over_its_channels(folder):
    frames = shd(folder)[0].to_frames(Framing(time_window=125_000, end_time=500_000, start_time=0))
    assert frames.frames.shape == (3, 4, 1, 1, 700)
    assert torch.argwhere(frames.frames[0, :, 0, 0]).tolist() == [[0, 699], [1, 0], [2, 3]]


def test_missing_files_are_named(tmp_path):
    write(tmp_path / "shd_train.h5")
    with pytest.raises(DataError, match=r"lacks shd_test\.h5\. SHD is read from"):
        shd(tmp_path)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(units=[[3, 700, 0], [7], []]), r"recording 0, spike 1: unit 700 is outside \[0, 700\)"),
        (dict(units=[[3, 9, 0], [-1], []], unit_type="i2"), r"recording 1, spike 0: unit -1 is outside"),
        (dict(times=[[0, 1, 2], [float("inf")], []]), r"recording 1, spike 0: time inf s is not finite"),
        (dict(times=[[0, 1, float("nan")], [1], []]), r"recording 0, spike 2: time nan s is not finite"),
        (dict(times=[[0, 1], [1], []]), r"recording 0 has 2 times, 3 units"),
        (dict(times=TIMES[:2]), r"its lists differ in length: .*'spikes/times': 2"),
        (dict(labels=[[0, 19, 4]]), r"labels has shape \[1, 3\]"),
        (dict(labels=[0.0, 19, 4]), r"labels holds entries of the wrong type, float64"),
        (dict(time_type="i4"), r"spikes/times holds entries of the wrong type"),
        (dict(unit_type="f4"), r"spikes/units holds entries of the wrong type"),
        (dict(only="times"), r"it lacks spikes/units"),
        (dict(labels=(0, 20, 4)), r"labels must lie in \[0, 20\), got 0 to 20"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_with_its_reason(folder, change, text):
    write(folder / "shd_train.h5", **change)
    with pytest.raises(DataError, match=rf"(shd_train\.h5|SHD train)'.*{text}"):
        shd(folder)


def test_what_is_no_hdf5_is_refused(folder):
    (folder / "shd_train.h5").write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match=r"shd_train\.h5': no HDF5, or damaged \(.*signature"):
        shd(folder)


def test_lists_in_other_files_are_not_followed(folder):
    other = write(folder / "other.h5")
    with h5py.File(folder / "shd_train.h5", "a") as file:
        del file["spikes/units"]
        file["spikes/units"] = h5py.ExternalLink(str(other), "spikes/units")
    with pytest.raises(DataError, match="it lacks spikes/units"):
        shd(folder)
    with h5py.File(folder / "shd_train.h5", "a") as file:
        del file["labels"]
        file.create_dataset("labels", (3,), "i8", external=[(str(other), 0, 24)])
    with pytest.raises(DataError, match="labels must be a list that stands in this file"):
        shd(folder)


def test_a_list_longer_than_the_file_is_refused_before_it_is_read(folder):
    with h5py.File(folder / "shd_train.h5", "a") as file:
        del file["labels"]
        file.create_dataset("labels", (2**40,), "i8", chunks=(2**10,))  # chunks that nothing was written to
    with pytest.raises(DataError, match=r"labels has shape \[1099511627776\] in a file of"):
        shd(folder)


def test_a_reader_that_does_not_come_to_an_end_is_stopped(folder, monkeypatch):
    monkeypatch.setattr(module, "LIMIT_SECONDS", 0.001)
    with pytest.raises(DataError, match="HDF5 has not come to an end in 0 seconds"):
        shd(folder)


@given(at=st.integers(0, 20_000), byte=st.sampled_from([0, 1, 127, 255]), more=st.integers(0, 20_000))
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes_give_a_set_or_a_refusal(folder, monkeypatch, at, byte, more):
    monkeypatch.setattr(module, "LIMIT_SECONDS", 2.0)
    path = write(folder / "shd_train.h5")
    data = bytearray(path.read_bytes())
    data[at % len(data)] = data[more % len(data)] = byte
    path.write_bytes(data)
    try:
        train, _ = shd(folder)
    except DataError as refusal:
        told = str(refusal)
    else:
        told = "shd_train.h5"
        assert sum(len(events) for events in train.recordings) <= len(data)
    assert "shd_train.h5" in told or "SHD train" in told
