"""The work of a float pass, counted by hand for each kind of operator."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.study.energy.operators import OPS, find
from pmsm.study.energy.work import Work


class Call(nn.Module):
    """A function of one tensor as a network."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def work(network: nn.Module, *shape: int) -> Work:
    """Of the operators of a network together, for one sample."""
    traced = graph.trace(network, torch.rand(1, *shape))
    counted = Work()
    for node in traced.graph.nodes:
        if node in graph.signals(traced) and node.op not in ("placeholder", "output"):
            op = find(traced, node, OPS)
            assert op is not None, node
            counted += op.work(traced, node)
    return counted


@pytest.mark.parametrize(
    ("network", "shape", "counted"),
    [
        (nn.Conv2d(2, 3, 3), (2, 5, 5), Work(macs=9 * 3 * 18)),
        (nn.ReLU(), (4,), Work(comparisons=4)),
        (nn.Hardtanh(), (4,), Work(comparisons=8)),
        (nn.LeakyReLU(), (4,), Work(comparisons=4, multiplies=4)),
        (nn.Sigmoid(), (4,), Work(functions=4)),
        (nn.GELU(), (4,), Work(functions=4, multiplies=4)),
        (nn.Softmax(-1), (2, 4), Work(comparisons=8, adds=16, functions=16)),
        (nn.LayerNorm(4), (3, 4), Work(multiplies=36, adds=48, functions=3)),
        (nn.LayerNorm((3, 4)), (3, 4), Work(multiplies=36, adds=48, functions=1)),
        (nn.GroupNorm(2, 4), (4, 3, 3), Work(multiplies=108, adds=144, functions=2)),
        (Call(lambda x: F.group_norm(x, 2)), (4, 3, 3), Work(multiplies=108, adds=144, functions=2)),
        (Call(lambda x: F.layer_norm(x, (4,))), (3, 4), Work(multiplies=36, adds=48, functions=3)),
        (nn.RMSNorm(4), (3, 4), Work(multiplies=36, adds=12, functions=3)),
        (nn.LocalResponseNorm(5), (6, 2), Work(multiplies=60, adds=60, functions=24)),
        (nn.BatchNorm2d(2), (2, 3, 3), Work(multiplies=18, adds=18)),
        (nn.MaxPool2d(2), (3, 4, 4), Work(comparisons=12 * 3)),
        (nn.MaxPool1d(3), (2, 6), Work(comparisons=4 * 2)),
        (nn.AdaptiveMaxPool2d(2), (1, 3, 3), Work(comparisons=4 * 3)),  # windows of 2x2 that overlap
        (nn.AvgPool2d(2), (3, 4, 4), Work(adds=12 * 3, multiplies=12)),
        (nn.AdaptiveAvgPool2d(1), (3, 4, 4), Work(adds=3 * 15, multiplies=3)),
        (Call(lambda x: x.mean((2, 3))), (3, 4, 4), Work(adds=3 * 15, multiplies=3)),
        (Call(lambda x: x.sum(1)), (3, 4), Work(adds=4 * 2)),
        (Call(lambda x: x.cumsum(1)), (3, 4), Work(adds=12)),
        (Call(lambda x: x + x), (5,), Work(adds=5)),
        (Call(lambda x: x * 2 / 3), (5,), Work(multiplies=10)),
        (Call(lambda x: 1 / (x + 2)), (5,), Work(adds=5, functions=5)),
        (Call(lambda x: torch.div(x, other=x)), (5,), Work(functions=5)),
        (Call(lambda x: x.amax(1)), (5,), Work(comparisons=5)),
        (Call(lambda x: x.clamp(0, 1)), (5,), Work(comparisons=10)),
        (Call(lambda x: torch.where(x > 0, x, -x)), (5,), Work(comparisons=5)),
        (Call(lambda x: x.var(1)), (5,), Work(multiplies=5, adds=10, functions=1)),
        (Call(lambda x: x.permute(0, 2, 1).reshape(-1, 12)[:, 1:]), (3, 4), Work()),
        (nn.Upsample(scale_factor=2, mode="nearest"), (1, 2, 2), Work()),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 2), Work(multiplies=16 * 4, adds=16 * 3)),
        (Call(lambda x: F.interpolate(x, size=6, mode="linear")), (1, 3), Work(multiplies=12, adds=6)),
        (Call(lambda x: F.interpolate(x, size=(2, 2), mode="area")), (1, 4, 4), Work(adds=16)),
    ],
)  # fmt: skip
def test_work_is_counted_by_hand(network, shape, counted):
    assert work(nn.Sequential(network).eval(), *shape) == counted
