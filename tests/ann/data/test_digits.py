"""The digits of scikit-learn."""

import pytest
import torch

from pmsm.ann.data.digits import digits

pytest.importorskip("sklearn")


def test_digits_are_split_into_balanced_halves_that_share_no_image():
    train, test = digits()
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 8, 8)
    assert train.labels.bincount().min() >= 139
    assert test.labels.bincount().min() >= 34


def test_digits_are_the_same_in_every_call():
    for one, other in zip(digits(), digits(), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_digits_keep_all_17_grey_levels_over_the_full_range():
    train, _ = digits()
    levels = train.images.unique()
    assert (len(levels), int(levels.min()), int(levels.max())) == (17, 0, 255)


def test_stated_mean_and_std_are_those_of_the_training_images():
    train, _ = digits()
    x = train.images.double() / 255
    assert abs(x.mean() - train.mean[0]) < 5e-5  # the constants have four digits
    assert abs(x.std(correction=0) - train.std[0]) < 5e-5
