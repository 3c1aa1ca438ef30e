"""BatchNorm over the whole batch when its samples lie in several processes, on GPUs and on CPUs alike.

Nothing is replaced: modules stay what they are to tracing, conversion and checkpoints.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Sum over all processes, of values forward and of gradients backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """[...] of one process -> [...] summed over all."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The same for the gradients: each process holds a share of them."""
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


@contextmanager
def over_all_processes(network: nn.Module) -> Iterator[None]:
    """Inside, each BatchNorm in training mode takes mean and variance over the samples of all processes.

    Every process must make the same calls in the same order, as data parallelism has it anyway.
    """
    norms = [
        m for m in network.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)
    ]
    for norm in norms:
        norm.__dict__["forward"] = partial(_forward, norm, norm.forward)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _forward(norm: _BatchNorm, alone: Any, x: Tensor) -> Tensor:
    """[N, C, ...] -> [N, C, ...], normalized with the statistics of the whole batch."""
    if not (norm.training or norm.running_mean is None):
        return alone(x)
    norm._check_input_dim(x)
    channels, others = x.shape[1], [d for d in range(x.dim()) if d != 1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    counted = torch.cat([wide.sum(others), wide.new_tensor([x.numel() / channels])])
    counted = _Sum.apply(counted)
    assert isinstance(counted, Tensor)
    count = counted[-1].detach()
    mean = counted[:-1] / count
    centered = wide - mean.view(per_channel)
    squares = _Sum.apply(centered.square().sum(others))
    assert isinstance(squares, Tensor)
    variance = squares / count
    _remember(norm, mean.detach(), (squares / (count - 1)).detach())
    y = centered * torch.rsqrt(variance + norm.eps).view(per_channel)
    if norm.affine:
        y = y * norm.weight.view(per_channel) + norm.bias.view(per_channel)
    return y.to(x.dtype)


def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Running statistics as torch keeps them: the variance is the unbiased one."""
    if norm.running_mean is None or norm.running_var is None or not norm.training:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), rate)
