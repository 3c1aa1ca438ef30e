"""A C99 compiler makes of the exported header what the integer network computes."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.models import resnet20
from pmsm.ann.models.small import SmallResNet

SOURCE = Path(__file__).parents[2] / "docs" / "run_network.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class Shuffled(nn.Module):
    """Grouped, dilated and strided convolutions, concatenation, an average pool, negative counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
        self.pool = nn.AvgPool2d(2, 1, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8 * 25, 5)

    def forward(self, x):
        y = torch.relu(self.conv2(self.conv1(x)))
        y = self.pool(torch.cat([y, y.flip(1)], 1))
        return self.linear(torch.relu(self.conv3(y)).flatten(1))


NETWORKS = {
    "max-pooled residual": (lambda: SmallResNet(1, 4, width=4), (1, 12, 12)),
    "subsampled residual": (resnet20, (3, 8, 8)),
    "groups, concatenation": (Shuffled, (2, 8, 8)),
}


def compiled(folder: Path) -> Path:
    program = folder / "run_network"
    command = [COMPILER, "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-include",
               folder / "network.h", SOURCE, "-o", program, "-lm"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_compiled_header_computes_the_integer_networks_sums(randomize, tmp_path, name):
    build, shape = NETWORKS[name]
    x = torch.randn(3, *shape)
    qann = pmsm.calibrate(pmsm.quantize(randomize(build()), pmsm.PMSM(levels=9), x), x)
    qann = pmsm.quantize_weights(qann, x)
    pmsm.export_c(pmsm.convert(qann), tmp_path / "network.h")
    done = subprocess.run(
        [compiled(tmp_path), "3"], input=x.numpy().tobytes(), capture_output=True, check=True
    )
    found = torch.tensor([list(map(int, line.split())) for line in done.stdout.decode().splitlines()])
    expected = pmsm.integer(qann)(x, 3).sums.transpose(0, 1).flatten(0, 1)
    assert torch.equal(found, expected)
