"""A network with BatchNorm, and batches that it fits: the same weights and pictures in every test."""

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def ann() -> nn.Sequential:
    """[N, 3, 6, 6] -> [N, 4]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
        )


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Three of 16 pictures each."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 3, 6, 6, generator=draw), torch.randint(0, 4, (48,), generator=draw)
    return list(zip(x.split(16), y.split(16), strict=True))
