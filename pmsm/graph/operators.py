"""What an operator is: the tables by which tracing, quantization and conversion know it."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class TrainingOnly(nn.Module):
    """What acts in training mode only, such as stochastic depth: the identity in evaluation mode."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """[N, ...] -> [N, ...]."""
        return self.module(x, *args, **kwargs) if self.training else x


RELU = (nn.ReLU,)
"""Absorbed by a quantizer whose smallest code is zero."""

ACTIVATIONS = (
    *RELU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Softmax,
)  # fmt: skip
"""Every call of one of these gets a site."""

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
"""Layers whose input must be a code."""

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAXPOOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip
AVGPOOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)  # fmt: skip
MOVES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d,
    nn.Unfold, TrainingOnly,
)  # fmt: skip
"""Modules that only move, repeat or drop values (in evaluation): a code stays a code."""

MOVING_CALLS = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.cat, torch.stack, torch.chunk, torch.split, torch.movedim, operator.getitem, "flatten",
    "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "chunk", "split",
    "expand", "repeat", "t", ".T", ".mT", "detach", "clone", torch.unbind, "unbind", torch.narrow,
    "narrow", torch.select, "select", torch.flip, "flip", torch.roll, "roll", "movedim", torch.swapaxes,
    "swapaxes", torch.unflatten, "unflatten", "expand_as", "view_as", torch.tile, "tile",
    torch.repeat_interleave, "repeat_interleave", "index_select", torch.index_select, torch.broadcast_to,
    "split_with_sizes", torch.clone, "reshape_as", torch.ravel, "ravel", torch.moveaxis, "moveaxis",
    torch.swapdims, "swapdims", torch.t, torch.adjoint, ".mH", torch.hstack, torch.vstack, torch.dstack,
    torch.concat, torch.concatenate, torch.tensor_split, "tensor_split", torch.diagonal, "diagonal",
    torch.rot90, "rot90", "unfold", F.pixel_shuffle, torch.pixel_shuffle, F.pixel_unshuffle,
    torch.pixel_unshuffle, F.channel_shuffle, torch.channel_shuffle, F.unfold, "expand_copy",
}  # fmt: skip
"""Functions and methods that only move values."""

PADDING_CALLS = {F.pad}
"""Padding; a code stays a code where it pads with zeros."""

MEAN_CALLS = {torch.mean, "mean", torch.sum, "sum"}
"""Averages written as calls; like average pools they are linear."""

WEIGHTED_CALLS = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}
"""Functions that multiply their first argument by weights."""

SIZE_CALLS = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point",
    ".shape", ".ndim", ".dtype", ".device", ".layout", ".is_cuda", ".requires_grad", len, torch.numel,
    torch.is_floating_point,
}  # fmt: skip
"""Calls that read a shape; their result is no signal."""


def _pool(pool: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: pool(*args, **kwargs)


def _plain(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(*args: Any, inplace: bool = False, **kwargs: Any) -> nn.Module:
        return kind(*args, **kwargs)

    return build


def _dropout(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
        return kind(p)  # also where training is False: it is self.training, read while tracing in evaluation

    return build


def _gelu(approximate: str = "none") -> nn.Module:
    return nn.GELU(approximate)


def _softmax(dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> nn.Module:
    if dtype is not None or dim is None:
        raise TypeError("softmax with dtype, or without dim")
    return nn.Softmax(dim)


def _stochastic_depth(p: float, mode: str, training: bool = True) -> nn.Module:
    from torchvision.ops import StochasticDepth

    return TrainingOnly(StochasticDepth(p, mode))


FUNCTIONAL: dict[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _plain(nn.ReLU)),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _plain(nn.Sigmoid)),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), _plain(nn.Tanh)),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), _softmax),
    F.gelu: _gelu,
    F.relu6: _plain(nn.ReLU6),
    F.leaky_relu: _plain(nn.LeakyReLU),
    F.leaky_relu_: _plain(nn.LeakyReLU),
    F.elu: _plain(nn.ELU),
    F.celu: _plain(nn.CELU),
    F.selu: _plain(nn.SELU),
    F.silu: _plain(nn.SiLU),
    F.mish: _plain(nn.Mish),
    F.hardswish: _plain(nn.Hardswish),
    F.hardtanh: _plain(nn.Hardtanh),
    F.hardsigmoid: _plain(nn.Hardsigmoid),
    F.softplus: _plain(nn.Softplus),
    F.softsign: _plain(nn.Softsign),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _pool(nn.MaxPool1d)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _pool(nn.MaxPool2d)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), _pool(nn.MaxPool3d)),
    F.adaptive_max_pool1d: _pool(nn.AdaptiveMaxPool1d),
    F.adaptive_max_pool2d: _pool(nn.AdaptiveMaxPool2d),
    F.avg_pool1d: _pool(nn.AvgPool1d),
    F.avg_pool2d: _pool(nn.AvgPool2d),
    F.avg_pool3d: _pool(nn.AvgPool3d),
    F.adaptive_avg_pool1d: _pool(nn.AdaptiveAvgPool1d),
    F.adaptive_avg_pool2d: _pool(nn.AdaptiveAvgPool2d),
    **dict.fromkeys((F.dropout, torch.dropout), _dropout(nn.Dropout)),
    F.dropout2d: _dropout(nn.Dropout2d),
    "torchvision.ops.stochastic_depth.stochastic_depth": _stochastic_depth,
}
"""Function or method name -> builder of the module that does the same; its arguments are those behind the
signal.
"""

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    **{
        f"{name}_": name
        for name in ("add", "sub", "mul", "div", "neg", "clamp", "squeeze", "unsqueeze", "transpose")
    },
}
"""In-place call -> the call that leaves its argument alone; every in-place call without an entry here is
refused.
"""

IN_PLACE_FUNCTIONS = {F.relu_, torch.relu_, F.leaky_relu_, F.elu_, F.hardtanh_, F.selu_, F.celu_}
MATRIX_PRODUCTS = {
    operator.matmul, torch.matmul, "matmul", torch.bmm, "bmm", torch.mm, "mm", torch.einsum, "__matmul__",
}  # fmt: skip
"""Products of matrices: every operand that carries data must be a code."""

TRANSPOSITIONS = {
    getattr(torch, name) for name in ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis")
} | {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}  # fmt: skip
"""Calls behind which a dimension is another one."""

_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_CHOICES = (
    *_COMPARISONS, "isnan", "isinf", "isfinite", "logical_and", "logical_or", "logical_xor", "logical_not",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "any", "all", "argmax", "argmin", "argsort",
)  # fmt: skip
DISCRETE_CALLS = {
    *(getattr(operator, name) for name in (*_COMPARISONS, "and_", "or_", "xor", "invert")),
    *(getattr(torch, name) for name in _CHOICES), *_CHOICES, F.one_hot, "bool", "int", "long",
}  # fmt: skip
"""Comparisons and choices: their results are truth values or whole numbers, which have no mean over time."""

ADDITIONS = {operator.add, torch.add, "add"}
