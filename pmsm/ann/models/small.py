"""A residual network small enough to train within seconds, and whole: BatchNorm, skip, MaxPool."""

from torch import Tensor, nn


class SmallBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)), [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three residual blocks with a MaxPool between the first two; [N, in_channels, H, W] -> [N, classes].

    H and W from 8 up: 8x8 digits, 28x28 clothes and 32x32 pictures all pass. Widths: `width`, 2x and 4x.
    """

    def __init__(self, in_channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.block1 = SmallBlock(width, width)
        self.maxpool = nn.MaxPool2d(2)
        self.block2 = SmallBlock(width, 2 * width, stride=2)
        self.block3 = SmallBlock(2 * width, 4 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] pictures -> [N, classes] logits."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.maxpool(self.block1(x))
        x = self.block3(self.block2(x))
        return self.linear(self.flatten(self.avgpool(x)))
