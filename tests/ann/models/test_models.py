"""Every network of this folder goes the whole way to spikes, and is exact there."""

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann import models
from pmsm.ann.models import VGG, ResNet, VisionTransformer


def slim_vgg() -> VGG:
    """The head of VGG-16 for ImageNet, a hundredth as wide."""
    classifier = nn.Sequential(nn.Linear(8 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10))
    return VGG((8, "M", 8), classifier, pooled=7)


# Builder of the network, side of its pictures; on small ones, sites and operators are those of large ones.
NETWORKS = {
    "resnet20": (models.resnet20, 8),
    "resnet32": (models.resnet32, 8),
    "resnet44": (models.resnet44, 8),
    "resnet56": (models.resnet56, 8),
    "resnet18": (lambda: models.resnet18(10), 33),
    "resnet34": (lambda: models.resnet34(10), 33),
    "resnet18_cifar": (models.resnet18_cifar, 8),
    "vgg16": (models.vgg16, 32),
    "vgg pooled to 7x7": (slim_vgg, 28),
    "vit_small_patch16": (lambda: VisionTransformer(32, 16, 384, 12, 6, 10), 32),
    "vit_small_patch4": (lambda: VisionTransformer(8, 4, 384, 2, 6, 10), 8),  # 2 of its 12 equal blocks
    "vit_tiny_patch4": (lambda: VisionTransformer(8, 4, 192, 6, 3, 10), 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_at_the_first_step_the_spiking_network_is_its_quantized_network(name, randomize):
    build, side = NETWORKS[name]
    x = torch.randn(2, 3, side, side)
    qann = pmsm.quantize(randomize(build()), pmsm.PMSM(levels=9), x)
    pmsm.calibrate(qann, [x])
    snn = pmsm.convert(qann)
    report = pmsm.verify(qann, snn, x)
    assert report.exact
    assert report.max_difference == 0
    assert report.codes > 0
    assert torch.equal(pmsm.simulate(snn, x, 1).output, qann(x))


@pytest.mark.parametrize("name, millions", [("resnet18", 11.69), ("resnet34", 21.80)])
def test_parameters_are_those_of_torchvisions_tables(name, millions):
    with torch.device("meta"):
        network = getattr(models, name)()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_stem_for_cifar_keeps_the_size_of_its_pictures():
    network = models.resnet18_cifar(100).eval()
    sizes = []
    network.layer1.register_forward_hook(lambda module, x, y: sizes.append(y.shape[2:]))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    assert sizes == [(32, 32)]
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())


def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="stem 'imagenet' or 'cifar', got 'mnist'"):
        ResNet((1, 1, 1, 1), 10, stem="mnist")


def test_every_builder_is_in_the_table_of_contents():
    assert all(hasattr(models, name) for name in models.__all__)
