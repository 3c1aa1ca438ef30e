"""A set of recordings, framed once: in memory or in a file, with the same frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pmsm.ann.data.events import EVENT, Events, Frames, Framing, Recordings, to_frames
from pmsm.errors import DataError

SIZE = (8, 8, 2)
TEN = Framing(n_time_bins=10)


def recording(index: int, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(index)
    events = np.empty(count, EVENT)
    events["x"], events["y"] = rng.integers(0, 8, (2, count))
    events["t"], events["p"] = np.sort(rng.integers(0, 1000, count)), rng.integers(0, 2, count)
    return events


def make_events(count: int = 7, read=recording) -> Events:
    return Events(Recordings(range(count), read), torch.arange(count) % 3, 3, SIZE, "toy")


def test_framing_a_set_is_framing_each_recording():
    frames = make_events().to_frames(TEN)
    assert frames.frames.shape == (7, 10, 2, 8, 8)
    assert (frames.frames.dtype, frames.labels.tolist(), frames.name) == (
        torch.int16,
        [0, 1, 2, 0, 1, 2, 0],
        "toy",
    )
    for i in range(7):
        assert np.array_equal(frames.frames[i], to_frames(recording(i), SIZE, n_time_bins=10))


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_frames_in_a_file_are_those_in_memory_and_survive_a_new_file(tmp_path, dtype):
    framing, file = replace(TEN, dtype=dtype), tmp_path / "frames.npy"
    inside = make_events().to_frames(framing)
    outside = make_events().to_frames(framing, file=file)
    assert torch.equal(inside.frames, outside.frames)
    make_events(read=lambda i: recording(i + 50)).to_frames(framing, file=file)
    assert torch.equal(inside.frames, outside.frames)  # the old file stays as long as it is mapped
    assert [path.name for path in tmp_path.iterdir()] == ["frames.npy"]


def test_writing_to_mapped_frames_leaves_the_file_alone(tmp_path):
    file = tmp_path / "frames.npy"
    frames = make_events().to_frames(TEN, file=file)
    before = file.read_bytes()
    frames.frames[:] = 1
    assert file.read_bytes() == before


def test_a_recording_that_fails_half_way_leaves_no_file_and_is_named(tmp_path):
    def read(index):
        return recording(index) if index < 4 else np.array([(9, 0, 0, True)], EVENT)

    with pytest.raises(DataError, match="cannot frame recording 4 of 'toy': event 0 has x = 9"):
        make_events(read=read).to_frames(TEN, file=tmp_path / "frames.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot write '.*absent.frames\.npy'"):
        make_events().to_frames(TEN, file=tmp_path / "absent" / "frames.npy")


def test_recordings_of_different_length_need_a_number_of_timesteps():
    events = make_events(read=lambda i: recording(i, 20 + 10 * (i % 2)))
    tens = Framing(event_count=10)
    with pytest.raises(
        DataError, match=r"recording 1 of 'toy' gives 3 frames, recording 0 2\. Pass timesteps="
    ):
        events.to_frames(tens)
    for timesteps in (1, 2, 5):
        frames = events.to_frames(tens, timesteps=timesteps).frames
        for i, found in enumerate(frames):
            whole = torch.from_numpy(to_frames(events.recordings[i], SIZE, event_count=10))
            kept = min(timesteps, len(whole))
            assert torch.equal(found[:kept], whole[:kept])
            assert not found[kept:].any()
    with pytest.raises(DataError, match="timesteps >= 1, got 0"):
        events.to_frames(tens, timesteps=0)


def test_progress_counts_to_the_number_of_recordings():
    seen = []
    make_events(3).to_frames(TEN, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_take_keeps_recordings_and_labels_together_and_reads_nothing():
    def read(index):
        raise AssertionError("read too early")

    part = make_events(read=read).take(torch.tensor([5, 3]))
    assert (list(part.recordings.keys), part.labels.tolist()) == ([5, 3], [2, 0])
    assert np.array_equal(make_events().take(slice(4, 6)).recordings[1], recording(5))
    lists = replace(make_events(), recordings=[recording(i) for i in range(7)])
    assert np.array_equal(lists.take(torch.tensor([5, 3])).recordings[0], recording(5))


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(labels=torch.arange(6)), r"labels must be int64 \[7\], got int64 \[6\]"),
        (dict(labels=torch.zeros(7)), r"got float32 \[7\]"),
        (dict(recordings=[], labels=torch.arange(0)), "it is empty: there are no recordings"),
        (dict(labels=torch.zeros(7).long()), "all 7 recordings are of class 0"),
        (dict(classes=2), r"labels must lie in \[0, 2\), got 0 to 2"),
        (dict(sensor_size=(8, 8)), r"sensor_size must be \(W, H, P\)"),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_refused(change, text):
    with pytest.raises(DataError, match=text):
        replace(make_events(), **change)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(frames=torch.zeros(7, 10, 2, 8, 8)), "must be uint8 or int16 .*got torch.float32"),
        (dict(frames=torch.zeros(7, 2, 8, 8).short()), r"\[n, T, C, H, W\], got torch.int16 \[7, 2, 8, 8\]"),
        (dict(frames=torch.zeros(7, 0, 2, 8, 8).short()), r"frames have shape \[7, 0, 2, 8, 8\]"),
        (dict(scale=0.0), "needs 0 < scale, got 0.0"),
        (dict(scale=float("nan")), "needs 0 < scale, got nan"),
        (dict(labels=torch.arange(6)), r"labels must be int64 \[7\]"),
    ],
)
def test_frames_that_cannot_be_trained_on_are_refused(change, text):
    with pytest.raises(DataError, match=f"'toy'.*{text}"):
        replace(make_events().to_frames(TEN), **change)


def test_class_count_follows_names_or_number_and_take_keeps_frames_and_labels_together():
    frames = make_events().to_frames(TEN)
    assert frames.class_count == make_events().class_count == 3
    assert replace(frames, classes=("a", "b", "c", "d")).class_count == 4
    part = frames.take(torch.tensor([2, 0]))
    assert isinstance(part, Frames)
    assert torch.equal(part.frames[1], frames.frames[0])
    assert part.labels.tolist() == [2, 0]
