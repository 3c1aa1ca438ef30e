"""Laws of image sets and their batches."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pmsm.ann.data.epochs import move
from pmsm.ann.data.images import Batches, Images, normalize
from pmsm.errors import DataError

AUGMENTATIONS = ("none", "shift", "crop-flip")


def make_images(count: int = 23, channels: int = 1, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % 3
    return Images(pixels, labels, 3, (0.5,) * channels, (0.25,) * channels, "toy")


def equal(one: Batches, other: Batches) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def test_normalize_is_the_stated_formula():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    x = normalize(pixels, (0.2,), (0.5,))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.tensor([-0.4, 0.0, 1.6]))


def test_normalize_leaves_its_argument_alone():
    pixels = torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)
    normalize(pixels, (0.5,), (0.5,))
    assert torch.equal(pixels, torch.full((1, 1, 2, 2), 7, dtype=torch.uint8))


def test_moving_by_zero_without_a_flip_is_the_identity():
    pixels = make_images(5, 3).images
    still = move(pixels, torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.bool))
    assert torch.equal(still, pixels)


def test_flipping_twice_is_the_identity():
    pixels = make_images(5, 3).images
    shift, flip = torch.zeros(5, 2, dtype=torch.int64), torch.ones(5, dtype=torch.bool)
    once = move(pixels, shift, flip)
    assert torch.equal(once, pixels.flip(3))
    assert torch.equal(move(once, shift, flip), pixels)


@given(down=st.integers(-7, 7), right=st.integers(-7, 7))
def test_a_move_is_a_roll_whose_overflow_is_black(down, right):
    pixels = make_images(2).images
    moved = move(pixels, torch.tensor([[down, right], [0, 0]]), torch.tensor([False, False]))
    expected = pixels[:1].roll((down, right), dims=(2, 3))
    rows, columns = torch.arange(8) - down, torch.arange(8) - right
    seen = ((rows >= 0) & (rows < 8))[:, None] & ((columns >= 0) & (columns < 8))
    assert torch.equal(moved[:1], expected * seen)
    assert torch.equal(moved[1:], pixels[1:])  # each image moves on its own


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batches_of_the_same_seed_and_epoch_are_bit_equal(augment):
    images = make_images()
    first, again = (Batches(images, 5, seed=3, shuffle=True, augment=augment) for _ in range(2))
    assert equal(first, first)
    assert equal(first, again)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(augment):
    images = make_images()
    whole, resumed = (Batches(images, 5, seed=3, shuffle=True, augment=augment) for _ in range(2))
    for epoch in range(3):
        whole.set_epoch(epoch)
        last = list(whole)
    resumed.set_epoch(2)
    assert all(torch.equal(x, u) for (x, _), (u, _) in zip(last, resumed, strict=True))


@pytest.mark.parametrize("change", ["seed", "epoch"])
def test_another_seed_or_epoch_gives_another_order(change):
    images = make_images()
    one, other = (
        Batches(images, 23, shuffle=True),
        Batches(images, 23, shuffle=True, seed=int(change == "seed")),
    )
    other.set_epoch(int(change == "epoch"))
    assert not equal(one, other)


def test_seeds_beyond_32_bits_differ():
    images = make_images()
    assert not equal(Batches(images, 23, shuffle=True), Batches(images, 23, shuffle=True, seed=1 << 32))


@given(count=st.integers(2, 40), batch_size=st.integers(1, 45), shuffle=st.booleans())
def test_an_epoch_shows_every_image_once(count, batch_size, shuffle):
    pixels = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).expand(count, 1, 2, 2)
    images = Images(pixels, torch.arange(count), count, (0.0,), (1 / 255,), "numbered")
    batches = Batches(images, batch_size, shuffle=shuffle)
    seen = [(x[:, 0, 0, 0].round(), y) for x, y in batches]
    assert len(seen) == len(batches)
    assert all(torch.equal(x.long(), y) for x, y in seen)  # an image keeps its label
    assert torch.equal(torch.cat([y for _, y in seen]).sort().values, torch.arange(count))


def test_without_shuffle_the_order_is_that_of_the_set():
    images = make_images()
    assert torch.equal(torch.cat([y for _, y in Batches(images, 4)]), images.labels)


def test_drop_last_keeps_whole_batches_only():
    batches = Batches(make_images(23), 5, drop_last=True)
    assert [len(y) for _, y in batches] == [5] * len(batches) == [5] * 4


def test_shift_moves_by_an_eighth_of_the_height_at_most():
    pixels = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    pixels[:, :, 16, 16] = 255
    images = Images(pixels, torch.arange(400) % 2, 2, (0.0,), (1.0,), "dots")
    x = torch.cat([x for x, _ in Batches(images, 50, augment="shift")])
    where = torch.nonzero(x[:, 0])[:, 1:] - 16
    assert where.unique().tolist() == list(range(-4, 5))


def test_crop_flip_mirrors_about_half_of_the_images():
    pixels = torch.zeros(400, 1, 2, 32, dtype=torch.uint8)
    pixels[:, :, :, :16] = 255
    images = Images(pixels, torch.arange(400) % 2, 2, (0.0,), (1.0,), "left half white")
    x = torch.cat([x for x, _ in Batches(images, 50, augment="crop-flip")])
    mirrored = (x[..., 16:].sum((1, 2, 3)) > x[..., :16].sum((1, 2, 3))).float().mean()
    assert 0.4 < mirrored < 0.6  # 4 standard deviations of 400 fair coins are 0.1


def test_augmentation_never_touches_the_set():
    images = make_images()
    before = images.images.clone()
    for _ in Batches(images, 5, augment="crop-flip"):
        pass
    assert torch.equal(images.images, before)


def test_replaced_constants_normalize_anew():
    images = make_images()
    x, _ = next(iter(Batches(replace(images, mean=(0.0,), std=(1.0,)), 23)))
    torch.testing.assert_close(x, images.images / 255)


def test_take_keeps_images_and_labels_together():
    images = make_images()
    part = images.take(torch.tensor([4, 2]))
    assert torch.equal(part.images, images.images[[4, 2]])
    assert part.labels.tolist() == [1, 2]


def test_class_count_follows_names_or_number():
    images = make_images()
    assert images.class_count == 3
    assert replace(images, classes=("a", "b", "c", "d")).class_count == 4


@pytest.mark.parametrize(
    "change, text",
    [
        (
            dict(images=torch.zeros(0, 1, 8, 8, dtype=torch.uint8), labels=torch.zeros(0).long()),
            "it is empty",
        ),
        (dict(labels=torch.zeros(23).long()), "all 23 images are of class 0"),
        (dict(images=torch.zeros(23, 1, 8, 8)), r"must be uint8 \[n, C, H, W\], got float32 \[23, 1, 8, 8\]"),
        (dict(images=torch.zeros(23, 8, 8, dtype=torch.uint8)), r"got uint8 \[23, 8, 8\]"),
        (dict(labels=torch.arange(22)), r"labels must be int64 \[23\], got int64 \[22\]"),
        (dict(labels=torch.zeros(23)), "got float32"),
        (dict(classes=2), r"labels must lie in \[0, 2\), got 0 to 2"),
        (dict(labels=torch.arange(23) - 1, classes=30), r"got -1 to 21"),
        (dict(mean=(0.1, 0.2)), "1 numbers each"),
        (dict(std=(0.0,)), "positive std"),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_refused_with_its_reason(change, text):
    with pytest.raises(DataError, match=f"'toy'.*{text}"):
        replace(make_images(), **change)


@pytest.mark.parametrize(
    "settings, text",
    [
        (dict(batch_size=0), "batch_size >= 1, got 0"),
        (dict(batch_size=4, augment="rotate"), "no augment='rotate'"),
        (dict(batch_size=4, seed=-1), "seed >= 0, got -1"),
        (dict(batch_size=24, drop_last=True), "has 23 images, less than one batch of 24"),
    ],
)
def test_batches_refuse_settings_that_make_no_sense(settings, text):
    with pytest.raises(DataError, match=text):
        Batches(make_images(), **settings)


def test_a_negative_epoch_is_refused():
    with pytest.raises(DataError, match="epoch >= 0, got -1"):
        Batches(make_images(), 4).set_epoch(-1)
