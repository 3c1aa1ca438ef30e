"""Weights of torchvision's and timm's networks load strictly and give the same outputs."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from pmsm.ann import models
from pmsm.ann.models import torchvision

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("torchvision") is None, reason="needs timm and torchvision"
)


def theirs(source: str, name: str, **settings) -> nn.Module:
    """The network of that name, random weights."""
    module = torchvision()
    if source == "torchvision":
        return module.models.get_model(name, weights=None, **settings)
    import timm

    return timm.create_model(name, pretrained=False, **settings)


@pytest.mark.parametrize(
    "source, name", [("torchvision", "resnet18"), ("torchvision", "resnet34"), ("timm", "resnet18")]
)
def test_weights_of_resnets_give_equal_outputs(source, name, randomize: Callable):
    other = randomize(theirs(source, name))
    ours = getattr(models, name)().eval()
    ours.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), other(x))  # the same operators in the same order


def test_the_stem_for_cifar_is_torchvisions_network_with_another_first_layer(randomize: Callable):
    other = theirs("torchvision", "resnet18", num_classes=10)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    other = randomize(other)
    ours = models.resnet18_cifar().eval()
    ours.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ours(x), other(x))


def test_weights_of_vgg16_give_equal_outputs(randomize: Callable):
    # torchvision's network with the small classifier that pictures of CIFAR need.
    with torch.device("meta"):  # what is replaced needs no memory
        other = theirs("torchvision", "vgg16_bn")
    other.features = theirs_features()
    other.avgpool = nn.AdaptiveAvgPool2d(1)
    other.classifier = models.vgg16(10).classifier
    ours = models.vgg16(10).eval()
    other = randomize(other)
    ours.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), other(x))


def theirs_features() -> nn.Sequential:
    torchvision()
    from torchvision.models.vgg import cfgs, make_layers

    return make_layers(cfgs["D"], batch_norm=True)


def test_vgg16_for_imagenet_has_the_names_and_shapes_of_torchvision():
    with torch.device("meta"):  # 138 million parameters that need no memory
        other, ours = theirs("torchvision", "vgg16_bn"), models.vgg16_imagenet()
    wanted, got = other.state_dict(), ours.state_dict()
    assert [(key, got[key].shape) for key in got] == [(key, wanted[key].shape) for key in wanted]
    assert ours.avgpool.output_size == 7


@pytest.mark.parametrize("depth, width, heads", [(6, 192, 3), (9, 128, 4)])
def test_weights_of_a_small_vision_transformer_give_equal_outputs(depth, width, heads):
    shape = dict(img_size=32, patch_size=4, embed_dim=width, depth=depth, num_heads=heads, num_classes=10)
    other = theirs("timm", "vit_tiny_patch16_224", **shape).double().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ours = models.vit_tiny_patch4_32(10, depth, width=width, heads=heads).double().eval()
    ours.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        wanted, got = other(x), ours(x)
    assert wanted.std() > 0.1
    # The same sums in another order: q is scaled before the product there, behind it here.
    assert (wanted - got).abs().max() <= 1e-9
