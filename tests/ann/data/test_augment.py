"""What happens to batches: drawn by seed, epoch and number alone; labels stay shares of one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pmsm
from pmsm.ann.data import Augment, Batches, Images
from pmsm.ann.data.augment import cutmix, cutout, erase, mixup
from pmsm.ann.models import SmallResNet
from pmsm.errors import DataError

ALL = "crop-flip+autoaugment+cutout+erase+mixup+cutmix"
WORDS = ["autoaugment", "cutout", "erase", "mixup", "cutmix"]


def toy(count: int = 40, side: int = 16, classes: int = 5) -> Images:
    pixels = torch.randint(0, 256, (count, 3, side, side)).to(torch.uint8)
    return Images(pixels, torch.arange(count) % classes, classes, (0.5,) * 3, (0.25,) * 3, "toy")


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("augment", [*WORDS, ALL])
def test_a_resumed_run_sees_bit_equal_batches(augment):
    images = toy()
    whole, resumed = (Batches(images, 8, seed=3, shuffle=True, augment=augment) for _ in range(2))
    for epoch in range(3):
        whole.set_epoch(epoch)
        last = list(whole)
    resumed.set_epoch(2)
    for (x, y), (u, v) in zip(last, resumed, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@pytest.mark.parametrize("augment", [*WORDS, ALL])
def test_another_seed_or_epoch_draws_anew(augment):
    images = toy()
    batches = [Batches(images, 40, seed=seed, augment=augment) for seed in (0, 0, 1)]
    batches[1].set_epoch(1)
    x, u, v = (next(iter(one))[0] for one in batches)
    assert not torch.equal(x, u)
    assert not torch.equal(x, v)


def test_two_batches_of_an_epoch_draw_apart():
    images = toy(8)
    twice = Images(
        images.images.repeat(2, 1, 1, 1), images.labels.repeat(2), 5, (0.5,) * 3, (0.25,) * 3, "twice"
    )
    (x, _), (u, _) = Batches(twice, 8, augment="autoaugment+cutout")
    assert not torch.equal(x, u)


@pytest.mark.parametrize("augment", ["mixup", "cutmix", ALL])
def test_soft_labels_are_shares_that_sum_to_one(augment):
    for x, y in Batches(toy(), 8, augment=augment):
        assert y.shape == (8, 5)
        assert y.dtype == x.dtype == torch.float32
        assert y.min() >= 0
        torch.testing.assert_close(y.sum(1), torch.ones(8), rtol=0, atol=2**-22)  # two roundings


@pytest.mark.parametrize("augment", ["none", "crop-flip", "autoaugment+cutout+erase"])
def test_without_a_mixture_labels_stay_class_indices(augment):
    images = toy()
    assert torch.equal(torch.cat([y for _, y in Batches(images, 8, augment=augment)]), images.labels)


def test_the_set_stays_as_it_was():
    images = toy()
    before = images.images.clone()
    list(Batches(images, 8, augment=ALL))
    assert torch.equal(images.images, before)


@given(side=st.integers(1, 16))
def test_cutout_takes_a_square_cut_off_at_the_border(side):
    gone = cutout(torch.ones(20, 2, 16, 16), side, draw()) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert torch.equal(gone[:, 0], rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        length = line.sum(1)
        assert (length <= side).all()
        assert (length >= (side + 1) // 2).all()  # the center is inside
        assert ((line[:, 1:] != line[:, :-1]).sum(1) <= 2).all()  # in one piece


def test_erasing_takes_rectangles_of_the_stated_area_from_the_stated_share():
    x = torch.full((2000, 1, 32, 32), 9.0)
    gone = erase(x, 0.25, draw())[:, 0] != 9
    hit = gone.any(1).any(1)
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.04)  # four standard deviations
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None, :])
    area = gone[hit].float().mean((1, 2))
    assert area.min() >= 0.012  # 0.02, and sides rounded to whole pixels
    assert area.max() <= 0.42
    assert 0.5 < x[:, 0][gone].std() < 1.5


def test_mixup_blends_pictures_and_labels_by_one_share():
    x, y = torch.eye(6).view(6, 1, 1, 6).clone(), torch.eye(6)
    mixed, labels = mixup(x, y, 1.0, draw(1))
    assert torch.equal(mixed.view(6, 6), labels)  # pictures that are their own labels stay it
    assert len(labels[(labels > 0) & (labels < 1)].unique()) == 2


def test_cutmix_labels_by_the_area_that_is_there():
    for seed in range(20):
        x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 15, 15).clone()
        mixed, labels = cutmix(x, torch.eye(4), 1.0, draw(seed))
        for i in range(4):
            for j in range(4):
                share = (mixed[i] == j).float().mean()
                assert labels[i, j].item() == pytest.approx(share.item(), abs=1e-6)


def test_one_coin_for_each_batch_chooses_between_mixup_and_cutmix():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    both = Augment(mixup=1.0, cutmix=1.0)
    blended = [
        bool((both.on_batch(x.clone(), torch.arange(4), 4, draw(seed))[0] % 1 != 0).any())
        for seed in range(60)
    ]
    assert 15 <= sum(blended) <= 45  # four standard deviations of 60 fair coins


@given(
    st.builds(
        Augment,
        move=st.sampled_from(["none", "shift", "crop-flip"]),
        autoaugment=st.booleans(),
        cutout=st.sampled_from([0, 0.25, 0.5]),
        erase=st.sampled_from([0, 0.5, 1]),
        mixup=st.sampled_from([0, 0.2, 1]),
        cutmix=st.sampled_from([0, 1]),
    )
)
def test_parse_reads_what_str_writes(setting):
    assert Augment.parse(str(setting)) == setting


@pytest.mark.parametrize(
    "text, message",
    [
        ("rotate", "'rotate' is unknown or repeated"),
        ("crop-flip+shift", "'shift' is unknown or repeated"),
        ("cutout+cutout", "unknown or repeated"),
        ("shift=3", "'shift=3' is unknown"),
        ("", "'' is unknown"),
        ("cutout=wide", "'wide' is no number"),
        ("cutout=1.5", "needs 0 <= cutout <= 1.0, got 1.5"),
        ("erase=-1", "needs 0 <= erase"),
        ("mixup=nan", "needs 0 <= mixup"),
        ("cutmix=inf", "needs 0 <= cutmix"),
    ],
)
def test_what_is_no_augmentation_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        Augment.parse(text)


def test_what_is_neither_words_nor_an_augment_is_refused():
    with pytest.raises(DataError, match="no augment=None; pass an Augment"):
        Batches(toy(), 8, augment=None)


def test_an_unknown_move_is_refused():
    with pytest.raises(DataError, match="no move='spin'"):
        Augment(move="spin")


@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_training_takes_mixed_batches(augment):
    pytest.importorskip("accelerate")
    network = SmallResNet(3, 5, width=4)
    history = pmsm.train(network, Batches(toy(), 8, augment=augment), Batches(toy(), 40), epochs=1)
    assert len(history.epochs) == 1
