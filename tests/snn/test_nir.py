"""A reader that knows nothing but NIR's published equations computes the read-out at T=1."""

from typing import Any

import nir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pmsm
from pmsm.ann.models import resnet20
from pmsm.errors import ConversionError


class Pooled(nn.Module):
    """MaxPool, average pool, a site with negative counts, layers with the names of NIR's own ends."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, 4, 3, padding=1)
        self.pool1 = nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, groups=2)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.pool2 = nn.AvgPool2d(2)
        self.output = nn.Linear(6, 3)

    def forward(self, x):
        y = self.pool1(torch.relu(self.input(x)))
        y = torch.relu(self.conv3(self.conv2(y)))
        return self.output(self.pool2(y).flatten(1))


def value(node: Any, x: Tensor) -> Tensor:
    """The equation of a node, as its docstring gives it."""
    if isinstance(node, nir.Threshold):
        return (x > torch.tensor(node.threshold)).float()
    if isinstance(node, nir.Scale):
        return x * torch.tensor(node.scale)
    if isinstance(node, nir.Affine):
        return F.linear(x, torch.tensor(node.weight), torch.tensor(node.bias))
    if isinstance(node, nir.Conv2d):
        pairs = (tuple(map(int, getattr(node, key))) for key in ("stride", "padding", "dilation"))
        return F.conv2d(x, torch.tensor(node.weight), torch.tensor(node.bias), *pairs, int(node.groups))
    if isinstance(node, nir.SumPool2d):
        kernel, *others = (tuple(map(int, getattr(node, k))) for k in ("kernel_size", "stride", "padding"))
        return F.avg_pool2d(x, kernel, *others, divisor_override=1)
    if isinstance(node, nir.Flatten):
        return x.flatten(1 + int(node.start_dim))
    assert isinstance(node, nir.Input | nir.Output)
    return x


def run(graph: nir.NIRGraph, x: Tensor) -> Tensor:
    """What reaches the output; edges that meet add up."""
    values: dict[str, Tensor] = {"input": x}

    def find(name: str) -> Tensor:
        if name not in values:
            arriving = [find(source) for source, target in graph.edges if target == name]
            values[name] = value(graph.nodes[name], torch.stack(arriving).sum(0))
        return values[name]

    return find("output")


def rounded(randomize, build, shape, levels):
    x = torch.randn(5, *shape)
    qann = pmsm.calibrate(pmsm.quantize(randomize(build()), pmsm.PMSM(levels=levels), x), x)
    return pmsm.quantize_weights(qann, x), x


@pytest.mark.parametrize("build, shape", [(Pooled, (1, 8, 8)), (resnet20, (3, 8, 8))])
def test_the_equations_of_nir_give_the_integer_networks_read_out(randomize, tmp_path, build, shape):
    qann, x = rounded(randomize, build, shape, 5)
    pmsm.export_nir(pmsm.convert(qann), tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir")
    step = float(graph.metadata["input_step"].item())
    counts = (x / step + 0.5).floor().clamp(-127, 127)
    expected = pmsm.integer(qann)(x)
    assert torch.equal((run(graph, counts).double() / expected.unit).round().long(), expected.sums[0])


def test_what_nir_cannot_say_is_refused(randomize, tmp_path):
    qann, _ = rounded(randomize, Pooled, (1, 8, 8), 5)
    with pytest.raises(ConversionError, match="NIR holds one timestep of this network, not 4"):
        pmsm.export_nir(qann, tmp_path / "net.nir", timesteps=4)

    class Flipped(nn.Sequential):
        def forward(self, x):
            return self[1](torch.relu(self[0](x)).flip(1))

    flipped, _ = rounded(randomize, lambda: Flipped(nn.Linear(6, 5), nn.Linear(5, 2)), (6,), 5)
    with pytest.raises(ConversionError, match="no node that moves values as 'flip'"):
        pmsm.export_nir(flipped, tmp_path / "net.nir")
    assert not (tmp_path / "net.nir").exists()
