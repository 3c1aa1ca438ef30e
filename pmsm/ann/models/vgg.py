"""VGG with BatchNorm: VGG-16 for CIFAR and for ImageNet, and a slim one for tests and 28x28 data."""

from torch import Tensor, nn

# Widths of the convolutions; "M" is a MaxPool of 2. Configuration D of arXiv:1409.1556.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(nn.Module):
    """conv-BN-ReLU and MaxPool after `plan`, average over what is left, then `classifier`.

    [N, in_channels, H, W] -> [N, classes]; H and W at least 2 to the number of MaxPools. `features` and
    `classifier` count their layers as torchvision's VGG with BatchNorm does.

    Args:
        pooled: height and width that the average leaves.
    """

    def __init__(
        self, plan: tuple[int | str, ...], classifier: nn.Sequential, in_channels: int = 3, *, pooled: int = 1
    ) -> None:
        super().__init__()
        self.features = _features(plan, in_channels)
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.flatten = nn.Flatten()
        self.classifier = classifier
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] pictures -> [N, classes] logits."""
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def vgg16(classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 for CIFAR: 13 convolutions and 3 linear layers, 15.2 million parameters; 32x32 and up."""
    return VGG(VGG16, _classifier(512, 512, classes), in_channels)


def vgg16_imagenet(classes: int = 1000, in_channels: int = 3) -> VGG:
    """VGG-16 for 224x224, 138 million parameters; weights of torchvision's vgg16_bn load strictly."""
    return VGG(VGG16, _classifier(512 * 7 * 7, 4096, classes), in_channels, pooled=7)


def small_vgg(in_channels: int = 1, classes: int = 10, width: int = 16) -> VGG:
    """Five convolutions, two MaxPools and one linear layer; 4x4 and up, made for 28x28."""
    plan = (width, width, "M", 2 * width, 2 * width, "M", 4 * width)
    return VGG(plan, nn.Sequential(nn.Linear(4 * width, classes)), in_channels)


def _classifier(features: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.ReLU(), nn.Dropout(),
        nn.Linear(width, classes),
    )  # fmt: skip


def _features(plan: tuple[int | str, ...], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in plan:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
