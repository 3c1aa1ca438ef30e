"""Networks that send the spikes they are told to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer, Start
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert


@pytest.fixture(scope="session")
def spiking() -> Callable[..., Network]:
    """A function: float network, example -> spiking network whose thresholds are all 1."""

    def spiking(ann: nn.Module, x: Tensor, low: int = -4, high: int = 4, *, skip=(), **options) -> Network:
        qann = quantize(ann.eval(), PMSM(levels=high - low + 1, split=(low, high)), x, skip=skip)
        for _, quantizer in graph.modules(qann, Quantizer):
            quantizer.set_start(Start(torch.ones(quantizer.scale().shape), low, high))
        return convert(qann, **options)

    return spiking


@pytest.fixture(scope="session")
def told() -> Callable[..., nn.Sequential]:
    """A function: layers -> network whose first neurons send the whole numbers that are given to it."""

    def told(channels: int, *layers: nn.Module, dims: int = 2) -> nn.Sequential:
        same = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        first = same(channels, channels, *([1] if dims else []), bias=False)
        with torch.no_grad():
            first.weight.copy_(torch.eye(channels).view_as(first.weight))
        return nn.Sequential(first, nn.ReLU(), *layers)

    return told
