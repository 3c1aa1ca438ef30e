"""The ResNets of He et al., with the layer names of published weights: those for CIFAR, ResNet-18 and -34."""

from typing import Literal

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
        """[N, C, H, W] -> [N, 2C, ceil(H / 2), ceil(W / 2)]."""
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
        """[N, in, H, W] -> [N, in * stride, ceil(H / stride), ceil(W / stride)]."""
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
        """[N, in_channels, 32, 32] pictures -> [N, classes] logits."""
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


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)); the shortcut projects where stride or width change.

    [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class ResNet(nn.Module):
    """Four stages of basic blocks, 64-128-256-512 channels; [N, in_channels, H, W] -> [N, classes].

    Weights of torchvision's ResNet-18 and ResNet-34 load strictly with the stem of ImageNet.

    Args:
        blocks: in each of the four stages.
        stem: "imagenet", a 7x7 convolution of stride 2 and a MaxPool, made for 224x224, or "cifar", a 3x3
            convolution of stride 1, made for 32x32.

    Raises:
        ValueError: another stem.

    Source: arXiv:1512.03385, table 1.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        classes: int,
        *,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"ResNet needs stem 'imagenet' or 'cifar', got {stem!r}.")
        small = stem == "cifar"
        kernel, stride, border = (3, 1, 1) if small else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, padding=border, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(64, 128, blocks[1], stride=2)
        self.layer3 = _stage(128, 256, blocks[2], stride=2)
        self.layer4 = _stage(256, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] pictures -> [N, classes] logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


def resnet18(classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-18 for ImageNet, 11.7 million parameters."""
    return ResNet((2, 2, 2, 2), classes, in_channels=in_channels)


def resnet34(classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-34 for ImageNet, 21.8 million parameters."""
    return ResNet((3, 4, 6, 3), classes, in_channels=in_channels)


def resnet18_cifar(classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-18 for 32x32, 11.2 million parameters."""
    return ResNet((2, 2, 2, 2), classes, stem="cifar", in_channels=in_channels)


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    later = (BasicBlock(channels, channels) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *later)
