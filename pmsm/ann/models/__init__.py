"""Networks for the demo, the tests and the published tables; any other PyTorch network does as well."""

from pmsm.ann.models.resnet import (
    CifarResNet,
    ResNet,
    resnet18,
    resnet18_cifar,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet56,
)
from pmsm.ann.models.small import SmallResNet
from pmsm.ann.models.vgg import VGG, small_vgg, vgg16, vgg16_imagenet
from pmsm.ann.models.vit import (
    VisionTransformer,
    vit_small_patch4_32,
    vit_small_patch16_224,
    vit_tiny_patch4_32,
)
from pmsm.ann.models.zoo import torchvision

__all__ = [
    "SmallResNet",
    "CifarResNet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "ResNet",
    "resnet18",
    "resnet18_cifar",
    "resnet34",
    "VGG",
    "vgg16",
    "vgg16_imagenet",
    "small_vgg",
    "VisionTransformer",
    "vit_small_patch16_224",
    "vit_small_patch4_32",
    "vit_tiny_patch4_32",
    "torchvision",
]
