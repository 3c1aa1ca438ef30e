"""One rounding rule, used by every quantizer and every neuron, each direction in one pass through memory.

The element-wise chains below are memory bound. On a CPU they are compiled (extra `fast`), or else run block
by block, so that a tensor travels through main memory once instead of once per operation. Every operation is
correctly rounded, so neither can change a bit of the result.
"""

import os
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 17
"""Elements per block: 512 KiB in float32, a few of which fit into the second-level cache of a core."""


def count(v: Tensor, quant_min: int, quant_max: int, out: Tensor | None = None) -> Tensor:
    """Signed spike count of the membrane potential `v`.

    Args:
        v: [...], potential / threshold (dimensionless).
        quant_min, quant_max: most negative and most positive count; quant_min <= 0 < quant_max.
        out: where to write the result; may be `v` itself.

    Returns:
        [...], whole numbers in [quant_min, quant_max], dtype of `v`.

    Quantizer and neuron both call this, so they agree bit for bit at T=1. Ties go up: `torch.round`, which
    sends them to the even side, is another rule. Formula of this project, after the idea of arXiv:2508.14520.

    >>> count(torch.tensor([-9.0, -0.5, 0.4, 2.5]), -2, 3)
    tensor([-2.,  0.,  0.,  3.])
    """
    return torch.add(v, 0.5, out=out).floor_().clamp_(quant_min, quant_max)


def quantize(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, slack: float = 0.5) -> Tensor:
    """`scale * count(x / scale)`, with the straight-through gradient in `x` and the exact one in `scale`.

    Args:
        x: [...], activation; half precisions are computed in the precision of `scale` and returned in their
            own.
        scale: scalar or broadcastable to `x` with every dimension 1 but the channel's; positive, activation
            units.
        slack: how far beyond the outermost codes, in steps, the gradient of `x` still passes: 1/2 for PMSM
            (the whole cell of the outermost code), 0 for QCFS.

    Returns:
        [...], whole multiples of `scale` between quant_min and quant_max.

    With u = x / scale, k = count(u) and "inside" = quant_min - slack <= u < quant_max + slack:
    d/dx = 1 inside, else 0; d/dscale = k - u inside, k outside.
    """
    return _Quantize.apply(x, scale, quant_min, quant_max, slack)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, quant_min, quant_max, slack):
        ctx.save_for_backward(x, scale)  # x alone: codes and mask are cheaper to recompute than to keep
        ctx.settings = quant_min, quant_max, slack
        return _forward(x, scale, quant_min, quant_max)

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        quant_min, quant_max, slack = ctx.settings
        grad_x, grad_scale = _backward(grad, x, scale, quant_min, quant_max, slack)
        return grad_x, grad_scale, None, None, None


def _forward(x: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    if torch.compiler.is_compiling():
        return (count(x.to(scale.dtype) / scale, quant_min, quant_max) * scale).to(x.dtype)
    x = dense(x)
    out = torch.empty_like(x)
    arrays = flat_arrays(scale, x, out)
    if arrays is not None:
        kernel = kernels().quantize_float32 if x.dtype == torch.float32 else kernels().quantize_bfloat16
        kernel(*arrays, *map(np.float32, (scale.item(), quant_min, quant_max)))
        return out
    for x_, out_ in blocks(scale, x, out):
        u = torch.div(x_.to(scale.dtype), scale, out=out_ if out_.dtype == scale.dtype else None)
        count(u, quant_min, quant_max, out=u).mul_(scale)
        if u.dtype != out_.dtype:
            out_.copy_(u)
    return out


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor, quant_min: int, quant_max: int, slack: float
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        grad_x, grad_scale = _backward_block(grad, x, scale, quant_min, quant_max, slack)
        return grad_x.to(x.dtype), grad_scale
    grad_x, grad_scale = torch.empty_like(x), torch.zeros_like(scale)
    arrays = flat_arrays(scale, grad, x, grad_x)
    if arrays is not None:
        kernel = kernels().gradients_float32 if x.dtype == torch.float32 else kernels().gradients_bfloat16
        sums = np.zeros(kernels().TILE, np.float32)
        kernel(*arrays, sums, *map(np.float32, (scale.item(), quant_min, quant_max, slack)))
        return grad_x, grad_scale + float(sums.sum(dtype=np.float64))
    for grad_, x_, out_ in blocks(scale, grad, x, grad_x):
        grad_x_, grad_scale_ = _backward_block(grad_, x_, scale, quant_min, quant_max, slack)
        out_.copy_(grad_x_)
        grad_scale += grad_scale_
    return grad_x, grad_scale


def _backward_block(
    grad: Tensor, x: Tensor, scale: Tensor, quant_min: int, quant_max: int, slack: float
) -> tuple[Tensor, Tensor]:
    u = x.to(scale.dtype) / scale
    code = (u + 0.5).floor_()
    if slack == 0.5:  # inside exactly where clamping changes nothing
        clamped = code.clamp(quant_min, quant_max)
        inside = code.eq_(clamped)
    else:
        clamped = code.clamp_(quant_min, quant_max)
        inside = ((u >= quant_min - slack) & (u < quant_max + slack)).to(scale.dtype)
    grad = grad.to(scale.dtype)
    slope = torch.addcmul(clamped, u, inside, value=-1)
    if scale.numel() == 1:
        grad_scale = torch.sum(slope.mul_(grad)).reshape(scale.shape)
    else:
        grad_scale = slope.mul_(grad).sum_to_size(scale.shape)
    return inside.mul_(grad), grad_scale


def blocks(scale: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape, in step, into views of about `BLOCK` elements; on a GPU, one piece.

    Args:
        scale: what the pieces will be combined with; a scalar lets them be flat, otherwise they are cut along
            dim 0.
    """
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        yield tensors
        return
    if scale.numel() == 1 and all(t.stride() == first.stride() for t in tensors):
        flat = [_flat(t) for t in tensors]
        if all(f is not None for f in flat):
            yield from zip(*(f.split(BLOCK) for f in flat if f is not None), strict=True)
            return
    rows = max(1, BLOCK * first.shape[0] // first.numel())
    yield from zip(*(t.split(rows) for t in tensors), strict=True)


@cache
def kernels() -> Any:
    """The compiled kernels, or None where numba is missing or PMSM_KERNELS=torch asks for the plain form."""
    if find_spec("numba") is None or os.environ.get("PMSM_KERNELS") == "torch":
        return None
    return import_module("pmsm.methods.kernels")


def flat_arrays(scale: Tensor, *tensors: Tensor) -> list[Any] | None:
    """The memory of tensors of one shape as flat arrays for a kernel; None where the plain form must serve.

    A kernel takes float32, or bfloat16 as its bits, on a CPU, one scale, and tensors in the same dense order.
    It runs on
    one thread: beyond two, torch's own threads are faster.
    """
    first = tensors[0]
    fits = (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.bfloat16)
        and scale.dtype == torch.float32
        and scale.numel() == 1
        and all(t.dtype == first.dtype and t.stride() == first.stride() for t in tensors)
    )
    if not fits or torch.get_num_threads() > 2 or kernels() is None:
        return None
    flat = [_flat(t.detach()) for t in tensors]
    if flat[0] is None:
        return None
    if first.dtype == torch.bfloat16:
        return [f.view(torch.uint16).numpy() for f in flat if f is not None]
    return [f.numpy() for f in flat if f is not None]


def dense(x: Tensor) -> Tensor:
    """`x`, copied if its memory has holes: part of a larger tensor, as q, k and v are."""
    return x if x.device.type != "cpu" or _flat(x) is not None else x.clone()


def _flat(x: Tensor) -> Tensor | None:
    """`x` as one dimension, in the order of its memory, without a copy; None where its memory has holes."""
    size = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1 and stride != size:
            return None
        size *= length
    return x.as_strided((x.numel(),), (1,))
