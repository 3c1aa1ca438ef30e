"""QANN -> SNN: every quantizer becomes its neuron, every other operator gets a rule that says how it runs
over time.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pmsm import graph
from pmsm.errors import ConversionError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.snn.temporal import Method, Rule, Static

LINEAR, STATIC, PRODUCT = Rule.LINEAR, Rule.STATIC, Rule.PRODUCT

RULES: dict[Any, Rule | Callable[[nn.Module], nn.Module]] = {
    **dict.fromkeys((*graph.WEIGHTED, *graph.BATCHNORMS, *graph.AVGPOOLS, *graph.MOVES), LINEAR),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.ConstantPad1d, nn.ConstantPad2d), LINEAR),
    **dict.fromkeys(
        (*graph.MOVING_CALLS, *graph.PADDING_CALLS, *graph.MEAN_CALLS, *graph.SIZE_CALLS), LINEAR
    ),
    **dict.fromkeys(
        (*graph.ADDITIONS, operator.sub, torch.sub, "sub", operator.neg, torch.neg, "neg"), LINEAR
    ),
    **dict.fromkeys((F.interpolate, "to", "float"), LINEAR),
    **dict.fromkeys((operator.mul, torch.mul, "mul", operator.truediv, torch.div, "div"), PRODUCT),
    **dict.fromkeys((operator.matmul, torch.matmul, "matmul", torch.bmm, "bmm"), PRODUCT),
    **dict.fromkeys((*graph.WEIGHTED_CALLS, torch.einsum), PRODUCT),
    **dict.fromkeys((*graph.MAXPOOLS, *graph.ACTIVATIONS, nn.LogSoftmax), STATIC),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm), STATIC),
    **dict.fromkeys((F.layer_norm, F.group_norm, F.log_softmax, torch.log_softmax), STATIC),
    **dict.fromkeys(
        (torch.clamp, "clamp", torch.abs, "abs", torch.exp, "exp", torch.maximum, torch.minimum), STATIC
    ),
}
"""Module type, function or method name -> how it runs over time; a callable makes the module that replaces
it.
"""

SHAPE_ARITHMETIC = {
    operator.floordiv,
    operator.mod,
    operator.add,
    operator.sub,
    operator.mul,
    operator.getitem,
}


def convert(qann: Network, *, rules: Mapping[Any, Any] = RULES, fold: bool = False) -> Network:
    """The spiking network of a calibrated or trained QANN; run it with `simulate`.

    At T=1 it computes what `qann` computes in evaluation mode, bit for bit, if the method is exact.

    Args:
        qann: calibrated quantized network; left untouched.
        rules: how each operator runs over time; extend with `RULES | {MyLayer: Rule.LINEAR}`.
        fold: fold BatchNorm into the layers in front, for deployment; equal up to rounding only.

    Returns:
        A graph module without trainable parameters. Called directly, it runs one timestep.

    Raises:
        ConversionError: operators without a rule (all are listed), or a site without a positive step.
    """
    _refuse_unknown(qann, rules)
    snn = graph.fold_batchnorm(qann) if fold else copy.deepcopy(qann)
    snn.eval().requires_grad_(False)
    signals = graph.signals(snn)
    for node in list(snn.graph.nodes):
        if node not in signals or node.op in ("placeholder", "output"):
            continue
        if graph.is_module(snn, node, (Quantizer,)):
            quantizer: Any = graph.module_of(snn, node)
            snn.set_submodule(str(node.target), quantizer.neuron().requires_grad_(False))
            continue
        rule = rules[graph.kind_of(snn, node)]
        if rule is STATIC or (rule is PRODUCT and _operands(node, signals) > 1):
            _make_static(snn, node)
        elif not isinstance(rule, Rule):
            snn.set_submodule(str(node.target), rule(graph.module_of(snn, node)))
    return graph.finish(snn)


def _operands(node: Node, signals: set[Node]) -> int:
    """How many operands of the call carry data of the sample."""
    return sum(n in signals for n in node.all_input_nodes)


def _make_static(snn: Network, node: Node) -> None:
    if node.op == "call_module":
        snn.set_submodule(str(node.target), Static(graph.module_of(snn, node)))
        return
    function: Any = Method(str(node.target)) if node.op == "call_method" else node.target
    node.target = graph.add_module(snn, graph.operator_name(snn, node), Static(function))
    node.op = "call_module"


def _refuse_unknown(qann: Network, rules: Mapping[Any, Any]) -> None:
    unknown: dict[str, list[str]] = {}
    signals = graph.signals(qann)
    for node in qann.graph.nodes:
        if (
            node not in signals
            or node.op in ("placeholder", "output")
            or graph.is_module(qann, node, (Quantizer,))
        ):
            continue
        kind = graph.kind_of(qann, node)
        if kind not in rules:
            unknown.setdefault(_spelled(kind), []).append(graph.operator_name(qann, node))
    if unknown:
        listed = "; ".join(f"{kind} at {', '.join(map(repr, names))}" for kind, names in unknown.items())
        first = next(iter(unknown))
        raise ConversionError(
            f"cannot convert, no rule in snn.convert.RULES for: {listed}. Say how each runs over time, for "
            f"example convert(qann, rules=RULES | {{{first}: Rule.STATIC}}): Rule.LINEAR if it is affine in "
            f"its input, Rule.STATIC for any other map without memory."
        )


def _spelled(kind: Any) -> str:
    """As the user would write it as a key of `rules`."""
    if isinstance(kind, str):
        return repr(kind)
    module = getattr(kind, "__module__", None) or ""
    module = {"torch.nn.modules": "nn", "_operator": "operator"}.get(
        ".".join(module.split(".")[:3]) if module.startswith("torch.nn.modules") else module, module
    )
    return f"{module}.{getattr(kind, '__name__', kind)}".lstrip(".")
