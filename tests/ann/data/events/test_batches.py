"""Laws of batches of frames: those of image batches, with time in front."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsm.ann.data.epochs import move
from pmsm.ann.data.events import FrameBatches, Frames
from pmsm.errors import DataError


def make_frames(count: int = 23, dtype: torch.dtype = torch.int16, side: int = 8) -> Frames:
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 9, (count, 3, 2, side, side), generator=generator).to(dtype)
    return Frames(counts, torch.arange(count) % 4, 4, "toy")


def equal(one: FrameBatches, other: FrameBatches) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_time_comes_first_and_counts_are_scaled(dtype):
    frames = replace(make_frames(dtype=dtype), scale=0.25)
    x, y = next(iter(FrameBatches(frames, 5)))
    assert (x.shape, x.dtype, y.dtype) == ((3, 5, 2, 8, 8), torch.float32, torch.int64)
    assert torch.equal(x, frames.frames[:5].transpose(0, 1) / 4)
    assert x.is_contiguous()


@pytest.mark.parametrize("augment", ["none", "shift"])
def test_batches_of_the_same_seed_and_epoch_are_bit_equal_whatever_was_drawn_before(augment):
    whole, resumed = (FrameBatches(make_frames(), 5, seed=3, shuffle=True, augment=augment) for _ in range(2))
    for epoch in range(3):
        whole.set_epoch(epoch)
        list(whole)
    resumed.set_epoch(2)
    assert equal(whole, resumed)
    assert equal(whole, whole)


@pytest.mark.parametrize("change", ["seed", "epoch"])
def test_another_seed_or_epoch_gives_another_order(change):
    one, other = (
        FrameBatches(make_frames(), 23, shuffle=True, seed=seed) for seed in (0, int(change == "seed"))
    )
    other.set_epoch(int(change == "epoch"))
    assert not equal(one, other)


@given(count=st.integers(4, 30), batch_size=st.integers(1, 35), shuffle=st.booleans())
@settings(max_examples=50)
def test_an_epoch_shows_every_recording_once(count, batch_size, shuffle):
    numbered = torch.arange(count, dtype=torch.int16).view(count, 1, 1, 1, 1).expand(count, 2, 1, 2, 2)
    batches = FrameBatches(Frames(numbered, torch.arange(count), count, "n"), batch_size, shuffle=shuffle)
    seen = [(x[1, :, 0, 0, 0], y) for x, y in batches]
    assert len(seen) == len(batches)
    assert all(torch.equal(x.long(), y) for x, y in seen)
    assert torch.equal(torch.cat([y for _, y in seen]).sort().values, torch.arange(count))


def test_a_shift_moves_all_frames_of_a_recording_alike_and_by_an_eighth_at_most():
    dots = torch.zeros(200, 4, 2, 32, 32, dtype=torch.uint8)
    dots[..., 16, 16] = 1
    frames = Frames(dots, torch.arange(200) % 2, 2, "dots")
    x = torch.cat([x for x, _ in FrameBatches(frames, 40, augment="shift")], dim=1)
    assert torch.equal(x, x[:1, :, :1].expand_as(x))  # every step and polarity like the first
    where = torch.nonzero(x[0, :, 0])[:, 1:] - 16
    assert where.unique().tolist() == list(range(-4, 5))


def test_a_shift_is_the_move_of_images():
    frames = make_frames(4)
    (x, _), *_ = FrameBatches(frames, 4, augment="shift", seed=5)
    moved = [
        move(frames.frames[i], torch.tensor([[down, right]]).expand(3, 2), torch.zeros(3, dtype=torch.bool))
        for i in range(4)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]
    for i in range(4):
        assert any(torch.equal(x[:, i], one.float()) for one in moved[9 * i : 9 * i + 9])


def test_augmentation_never_touches_the_set():
    frames = make_frames()
    before = frames.frames.clone()
    for x, _ in FrameBatches(frames, 5, augment="shift"):
        x.zero_()
    assert torch.equal(frames.frames, before)


def test_drop_last_keeps_whole_batches_only():
    batches = FrameBatches(make_frames(23), 5, drop_last=True)
    assert [len(y) for _, y in batches] == [5] * len(batches) == [5] * 4


@pytest.mark.parametrize(
    "settings, text",
    [
        (dict(batch_size=0), "batch_size >= 1, got 0"),
        (
            dict(batch_size=4, augment="crop-flip"),
            r"no augment='crop-flip'; choose one of \('none', 'shift'\)",
        ),
        (dict(batch_size=4, seed=-1), "seed >= 0, got -1"),
        (dict(batch_size=24, drop_last=True), "has 23 recordings, less than one batch of 24"),
    ],
)
def test_batches_refuse_settings_that_make_no_sense(settings, text):
    with pytest.raises(DataError, match=text):
        FrameBatches(make_frames(), **settings)


def test_a_negative_epoch_is_refused():
    with pytest.raises(DataError, match="epoch >= 0, got -1"):
        FrameBatches(make_frames(), 4).set_epoch(-1)
