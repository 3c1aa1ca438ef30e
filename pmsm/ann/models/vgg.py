"""VGG with BatchNorm for small pictures: VGG-16, and a slim one for tests and 28x28 data."""

from torch import Tensor, nn

# Widths of the convolutions; "M" is a MaxPool of 2. Configuration D of arXiv:1409.1556.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(nn.Module):
    """conv-BN-ReLU and MaxPool after `plan`, average over what is left, then `classifier`.

    [N, in_channels, H, W] -> [N, classes]; H and W at least 2 to the number of MaxPools. `features` and
    `classifier` count their layers as torchvision's VGG with BatchNorm does.
    """

    def __init__(self, plan: tuple[int | str, ...], classifier: nn.Sequential, in_channels: int = 3) -> None:
        super().__init__()
        self.features = _features(plan, in_channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = classifier
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def vgg16(classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 for CIFAR: 13 convolutions and 3 linear layers, 15.2 million parameters; 32x32 and up."""
    classifier = nn.Sequential(
        nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(),
        nn.Linear(512, classes),
    )  # fmt: skip
    return VGG(VGG16, classifier, in_channels)


def small_vgg(in_channels: int = 1, classes: int = 10, width: int = 16) -> VGG:
    """Five convolutions, two MaxPools and one linear layer; 4x4 and up, made for 28x28."""
    plan = (width, width, "M", 2 * width, 2 * width, "M", 4 * width)
    return VGG(plan, nn.Sequential(nn.Linear(4 * width, classes)), in_channels)


def _features(plan: tuple[int | str, ...], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in plan:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
