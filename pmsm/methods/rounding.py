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


def quantize(
    x: Tensor,
    scale: Tensor,
    quant_min: int,
    quant_max: int,
    slack: float = 0.5,
    initial: Tensor | None = None,
) -> Tensor:
    """`scale * count(x / scale + initial)`, with the straight-through gradient in `x`, the exact one in
    `scale`.

    Args:
        x: [...], activation; half precisions are computed in the precision of `scale` and returned in their
            own.
        scale: scalar or broadcastable to `x` with every dimension 1 but the channel's; positive, activation
            units.
        slack: how far beyond the outermost codes, in steps, the gradient of `x` still passes: 1/2 for PMSM
            (the whole cell of the outermost code), 0 for QCFS.
        initial: as `scale`, in [-1/2, 1/2): the potential / threshold that a neuron starts with; None for 0.

    Returns:
        [...], whole multiples of `scale` between quant_min and quant_max.

    With u = x / scale + initial, k = count(u) and "inside" = quant_min - slack <= u < quant_max + slack:
    d/dx = 1 inside, else 0; d/dscale = k - x / scale inside, k outside; d/dinitial = scale inside, else 0.
    """
    if initial is None:
        initial = scale.new_zeros(())
    return _Quantize.apply(x, scale, initial.to(scale.dtype), quant_min, quant_max, slack)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, initial, quant_min, quant_max, slack):
        """See `quantize`."""
        ctx.save_for_backward(x, scale, initial)  # codes and mask are cheaper to recompute than to keep
        ctx.settings = quant_min, quant_max, slack
        return _forward(x, scale, initial, quant_min, quant_max)

    @staticmethod
    def backward(ctx, grad):
        """[...] gradient of the result -> those of x, scale and initial; none for the settings."""
        x, scale, initial = ctx.saved_tensors
        grad_x, grad_scale = _backward(grad, x, scale, initial, *ctx.settings)
        grad_initial = None
        if ctx.needs_input_grad[2]:
            grad_initial = (grad_x * scale).sum_to_size(initial.shape)
        return grad_x, grad_scale, grad_initial, None, None, None


def _forward(x: Tensor, scale: Tensor, initial: Tensor, quant_min: int, quant_max: int) -> Tensor:
    if torch.compiler.is_compiling():
        u = x.to(scale.dtype) / scale + initial
        return (count(u, quant_min, quant_max) * scale).to(x.dtype)
    x = dense(x)
    out = torch.empty_like(x)
    arrays = flat_arrays(scale, x, out)
    pattern = None if arrays is None else channel_pattern(x, scale, initial)
    if arrays is not None and pattern is not None:
        kernel = kernels().quantize_float32 if x.dtype == torch.float32 else kernels().quantize_bfloat16
        kernel(*arrays, *pattern, np.float32(quant_min), np.float32(quant_max))
        return out
    for x_, out_ in blocks(_wider(scale, initial), x, out):
        u = torch.div(x_.to(scale.dtype), scale, out=out_ if out_.dtype == scale.dtype else None)
        count(u.add_(initial), quant_min, quant_max, out=u).mul_(scale)
        if u.dtype != out_.dtype:
            out_.copy_(u)
    return out


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor, initial: Tensor, quant_min: int, quant_max: int, slack: float
) -> tuple[Tensor, Tensor]:
    settings = (scale, initial, quant_min, quant_max, slack)
    if torch.compiler.is_compiling():
        grad_x, grad_scale = _backward_block(grad, x, *settings)
        return grad_x.to(x.dtype), grad_scale
    grad_x, grad_scale = torch.empty_like(x), torch.zeros_like(scale)
    arrays = flat_arrays(scale, grad, x, grad_x)
    pattern = None if arrays is None else channel_pattern(x, scale, initial)
    if arrays is not None and pattern is not None:
        kernel = kernels().gradients_float32 if x.dtype == torch.float32 else kernels().gradients_bfloat16
        sums = np.zeros(pattern[0].size, np.float32)
        kernel(*arrays, sums, *pattern, *map(np.float32, (quant_min, quant_max, slack)))
        return grad_x, grad_scale + _by_channel(sums, pattern[2], x, scale)
    for grad_, x_, out_ in blocks(_wider(scale, initial), grad, x, grad_x):
        grad_x_, grad_scale_ = _backward_block(grad_, x_, *settings)
        out_.copy_(grad_x_)
        grad_scale += grad_scale_
    return grad_x, grad_scale


def _backward_block(
    grad: Tensor, x: Tensor, scale: Tensor, initial: Tensor, quant_min: int, quant_max: int, slack: float
) -> tuple[Tensor, Tensor]:
    input_ = x.to(scale.dtype) / scale
    u = input_ + initial
    code = (u + 0.5).floor_()
    if slack == 0.5:  # inside exactly where clamping changes nothing
        clamped = code.clamp(quant_min, quant_max)
        inside = code.eq_(clamped)
    else:
        clamped = code.clamp_(quant_min, quant_max)
        inside = ((u >= quant_min - slack) & (u < quant_max + slack)).to(scale.dtype)
    grad = grad.to(scale.dtype)
    slope = torch.addcmul(clamped, input_, inside, value=-1)
    if scale.numel() == 1:
        grad_scale = torch.sum(slope.mul_(grad)).reshape(scale.shape)
    else:
        grad_scale = slope.mul_(grad).sum_to_size(scale.shape)
    return inside.mul_(grad), grad_scale


# ----------------------------------------------------------------------------------------------------------
# How tensors are cut, and laid before the compiled kernels
# ----------------------------------------------------------------------------------------------------------

Pattern = tuple[np.ndarray, np.ndarray, int]
"""Step and initial potential along memory, [period] each, and for how many elements each of them holds."""

SHORTEST_RUN, SHORTEST_PERIOD = 64, 1024  # elements; below, a kernel's inner loop is too short to be fast


def channel_pattern(x: Tensor, scale: Tensor, initial: Tensor) -> Pattern | None:
    """Which step and initial potential belong to the i-th element of `x` in memory.

    Args:
        x: dense in memory.
        scale, initial: scalar or broadcastable to `x`, with every dimension 1 but the channel's, which is not
            the first.

    Returns:
        Pattern: element i has number (i // run) % period of both. None where the plain form must serve.
    """
    wider = _wider(scale, initial)
    values = (scale.detach(), initial.detach())
    if wider.numel() == 1:
        step, start = (np.full(SHORTEST_PERIOD, float(t), np.float32) for t in values)
        return step, start, 1
    dim = _channel_dim(wider)
    if -dim >= x.dim() or wider.shape[dim] != x.shape[dim]:
        return None
    run = x.stride(dim)
    step, start = (t.expand(wider.shape).reshape(-1).to(torch.float32).numpy() for t in values)
    if run < SHORTEST_RUN:
        step, start, run = np.repeat(step, run), np.repeat(start, run), 1
    if run == 1 and step.size < SHORTEST_PERIOD:
        times = -(-SHORTEST_PERIOD // step.size)
        step, start = np.tile(step, times), np.tile(start, times)
    return np.ascontiguousarray(step), np.ascontiguousarray(start), run


def _by_channel(sums: np.ndarray, run: int, x: Tensor, scale: Tensor) -> Tensor:
    """The sums that a kernel has laid out as the pattern, added up to the shape of `scale`."""
    if scale.numel() == 1:
        return scale.new_full(scale.shape, float(sums.sum(dtype=np.float64)))
    if run == 1:  # as `channel_pattern` has repeated and tiled the channels
        run = x.stride(_channel_dim(scale))
        sums = sums.reshape(-1, scale.numel(), run).sum((0, 2), dtype=np.float64)
    return torch.from_numpy(sums.astype(np.float32)).reshape(scale.shape)


def _channel_dim(scale: Tensor) -> int:
    """The dimension that is not 1, counted from the end."""
    return max(range(-scale.dim(), 0), key=lambda dim: scale.shape[dim])


def _wider(scale: Tensor, initial: Tensor) -> Tensor:
    """Whichever of the two has more than one number."""
    return scale if scale.numel() > 1 else initial


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

    A kernel takes float32, or bfloat16 as its bits, on a CPU, and tensors in the same dense order. It runs on
    one thread: beyond two, torch's own threads are faster.
    """
    first = tensors[0]
    fits = (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.bfloat16)
        and scale.dtype == torch.float32
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
