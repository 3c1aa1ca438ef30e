"""VGG-16 for CIFAR and its slim sibling."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from pmsm.ann.models import small_vgg, torchvision, vgg16


def test_vgg16_has_sixteen_weighted_layers():
    model = vgg16(100).eval()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 16
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 100)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")
def test_vgg16_counts_its_layers_as_torchvision_does():
    theirs = torchvision().models.vgg16_bn().state_dict()
    ours = vgg16().state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in ours if key.startswith("features"))


@pytest.mark.parametrize("side", [8, 28, 32])
def test_small_vgg_takes_every_size_in_use(side):
    assert small_vgg(1, 7).eval()(torch.zeros(2, 1, side, side)).shape == (2, 7)
