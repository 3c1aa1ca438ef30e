"""How each operator is counted, and what a spike meets there: one table; what it does not hold is refused."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pmsm import graph
from pmsm.graph import Network, Node
from pmsm.qann.units import InputGrid
from pmsm.snn.convert import _key
from pmsm.study.energy import touch, work
from pmsm.study.energy.touch import Touch
from pmsm.study.energy.work import Count


@dataclass(frozen=True)
class Operator:
    """How an operator is counted.

    Args:
        work: what one pass costs where analog values arrive.
        touch: the operator with every weight 1, by which fan-out is counted; None for a nonlinear map, where
            spikes end as values that are read.
        carries: whether spikes go on behind it, as through a move, an average or a sum; otherwise each adds
            weights to what it touches.
    """

    work: Count
    touch: Touch | None = None
    carries: bool = False


_MOVE = Operator(work.free, touch.as_it_is, carries=True)
_FUNCTION = Operator(work.per_output(functions=1))
_CENTERED = work.Work(multiplies=3, adds=4)  # mean, difference, square and its sum, scale, gain, bias
_UNCENTERED = work.Work(multiplies=3, adds=1)

OPS: dict[Any, Operator] = {
    **dict.fromkeys((*graph.WEIGHTED, *graph.WEIGHTED_CALLS), Operator(work.multiplied, touch.unit_weights)),
    **dict.fromkeys(graph.MATRIX_PRODUCTS, Operator(work.multiplied, touch.one_operand)),
    **dict.fromkeys((*graph.MOVES, *graph.MOVING_CALLS, *graph.PADDING_CALLS, *graph.SIZE_CALLS), _MOVE),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, graph.additive_mask), _MOVE),
    **dict.fromkeys(("to", "type_as", "float", "double", "half", "bfloat16"), _MOVE),
    **dict.fromkeys((torch.where, "where", torch.masked_fill, "masked_fill", torch.gather, "gather"), _MOVE),
    **dict.fromkeys((nn.Embedding, F.embedding), Operator(work.free)),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), Operator(work.free, touch.added, carries=True)),
    **dict.fromkeys(
        (*graph.ADDITIONS, operator.sub, torch.sub, "sub"),
        Operator(work.per_output(adds=1), touch.added, carries=True),
    ),
    **dict.fromkeys(
        (operator.mul, torch.mul, "mul"), Operator(work.per_output(multiplies=1), touch.added, carries=True)
    ),
    **dict.fromkeys((operator.truediv, torch.div, "div"), Operator(work.divided, touch.added, carries=True)),
    **dict.fromkeys(graph.AVGPOOLS, Operator(work.averaged, touch.spread, carries=True)),
    **dict.fromkeys((torch.mean, "mean"), Operator(work.meaned, touch.summed, carries=True)),
    **dict.fromkeys((torch.sum, "sum"), Operator(work.joined, touch.as_it_is, carries=True)),
    **dict.fromkeys(
        (torch.cumsum, "cumsum", nn.Fold, F.fold),
        Operator(work.per_input(adds=1), touch.as_it_is, carries=True),
    ),
    **dict.fromkeys(
        (nn.Upsample, nn.UpsamplingBilinear2d, F.interpolate),
        Operator(work.interpolated, touch.spread, carries=True),
    ),
    **dict.fromkeys((*graph.BATCHNORMS, F.batch_norm), Operator(work.per_output(multiplies=1, adds=1))),
    **dict.fromkeys(graph.MAXPOOLS, Operator(work.maximum)),
    nn.ReLU: Operator(work.per_output(comparisons=1)),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh), Operator(work.per_output(comparisons=2))),
    InputGrid: Operator(work.per_output(multiplies=1, comparisons=2)),
    **dict.fromkeys(
        (nn.LeakyReLU, nn.PReLU, nn.RReLU), Operator(work.per_output(comparisons=1, multiplies=1))
    ),
    nn.Hardsigmoid: Operator(work.per_output(comparisons=2, multiplies=1, adds=1)),
    nn.Hardswish: Operator(work.per_output(comparisons=2, multiplies=2, adds=1)),
    **dict.fromkeys((nn.ELU, nn.CELU, nn.SELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign), _FUNCTION),
    **dict.fromkeys((nn.GELU, nn.SiLU, nn.Mish), Operator(work.per_output(functions=1, multiplies=1))),
    nn.Softmax: Operator(work.per_output(comparisons=1, adds=2, functions=2)),
    **dict.fromkeys(
        (nn.LogSoftmax, F.log_softmax, torch.log_softmax),
        Operator(work.per_output(comparisons=1, adds=3, functions=2)),
    ),
    **dict.fromkeys((nn.LayerNorm, F.layer_norm), Operator(work.normalized(work.last_dims, _CENTERED))),
    **dict.fromkeys((nn.GroupNorm, F.group_norm), Operator(work.normalized(work.channel_group, _CENTERED))),
    **dict.fromkeys((nn.RMSNorm, F.rms_norm), Operator(work.normalized(work.last_dims, _UNCENTERED))),
    nn.LocalResponseNorm: Operator(work.neighbors),
    F.normalize: Operator(work.per_output(multiplies=1, adds=1, functions=1)),
    **dict.fromkeys(
        (torch.var, "var", torch.std, "std"),
        Operator(work.both(work.per_input(multiplies=1, adds=2), work.per_output(functions=1))),
    ),
    **dict.fromkeys(
        (torch.norm, "norm", torch.linalg.norm, torch.linalg.vector_norm),
        Operator(work.both(work.per_input(multiplies=1, adds=1), work.per_output(functions=1))),
    ),
    **dict.fromkeys((torch.square, "square"), Operator(work.per_output(multiplies=1))),
    **dict.fromkeys((torch.abs, "abs"), Operator(work.per_output(comparisons=1))),
    **dict.fromkeys((torch.clamp, "clamp"), Operator(work.per_output(comparisons=2))),
    **dict.fromkeys(
        ("clamp_min", "clamp_max", torch.clamp_min, torch.clamp_max, torch.maximum, torch.minimum),
        Operator(work.per_output(comparisons=1)),
    ),
    **dict.fromkeys(
        (torch.amax, "amax", torch.amin, "amin", torch.max, "max", torch.min, "min"),
        Operator(work.per_input(comparisons=1)),
    ),
    **dict.fromkeys(graph.DISCRETE_CALLS, Operator(work.per_input(comparisons=1))),
    **dict.fromkeys((torch.rsqrt, "rsqrt", torch.sqrt, "sqrt", torch.pow, "pow", operator.pow), _FUNCTION),
    **dict.fromkeys((torch.reciprocal, "reciprocal", torch.exp, "exp", torch.log, "log"), _FUNCTION),
    **dict.fromkeys((torch.sin, torch.cos, torch.erf, "erf"), _FUNCTION),
}
"""Module type, function or method name -> how it is counted; extend with `OPS | {MyNorm: Operator(...)}`."""


def find(network: Network, node: Node, ops: Mapping[Any, Operator]) -> Operator | None:
    """The entry for a call: its own, or that of a base whose forward pass it inherits."""
    return ops.get(_key(graph.kind_of(network, node), ops))
