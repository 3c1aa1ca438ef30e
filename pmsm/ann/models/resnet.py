"""The CIFAR ResNets of He et al., with parameter-free shortcuts and the layer names of published weights."""

from torch import Tensor, nn
from torch.nn import functional as F


class SubsampleShortcut(nn.Module):
    """Option A: every second pixel, and half of the new channels filled with zeros on each side.

    [N, C, H, W] -> [N, 2C, ceil(H / 2), ceil(W / 2)]; no parameters.

    Source: arXiv:1512.03385, 3.3 and 4.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.border = channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.border, self.border))


class CifarBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)); a stride of 2 doubles the channels."""

    def __init__(self, in_channels: int, stride: int) -> None:
        super().__init__()
        channels = in_channels * stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = SubsampleShortcut(in_channels) if stride == 2 else nn.Sequential()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of `blocks` residual blocks, 16-32-64 channels; [N, in_channels, 32, 32] -> [N, classes].

    Depth 6 * blocks + 2. Source: arXiv:1512.03385, section 4.2.
    """

    def __init__(self, blocks: int, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(CifarBlock(16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(CifarBlock(16, 2), *(CifarBlock(32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(CifarBlock(32, 2), *(CifarBlock(64, 1) for _ in range(blocks - 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.avgpool(x)))


def resnet20(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-20, 0.27 million parameters."""
    return CifarResNet(3, classes, in_channels)


def resnet32(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-32, 0.46 million parameters."""
    return CifarResNet(5, classes, in_channels)


def resnet44(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-44, 0.66 million parameters."""
    return CifarResNet(7, classes, in_channels)


def resnet56(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-56, 0.85 million parameters."""
    return CifarResNet(9, classes, in_channels)
