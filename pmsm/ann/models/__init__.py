"""Networks for the demo, the tests and the published tables; any other PyTorch network does as well."""

from pmsm.ann.models.resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56
from pmsm.ann.models.small import SmallResNet
from pmsm.ann.models.vgg import VGG, small_vgg, vgg16
from pmsm.ann.models.zoo import torchvision

__all__ = [
    "SmallResNet",
    "CifarResNet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "VGG",
    "vgg16",
    "small_vgg",
    "torchvision",
]
