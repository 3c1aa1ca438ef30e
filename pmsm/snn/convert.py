"""QANN -> SNN: every quantizer becomes its neuron, every other operator gets a rule that says how it runs
over time.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import ConversionError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.qann.quantize import refuse_bad_weights
from pmsm.snn.temporal import Rule, Static, TensorMethod

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
    **dict.fromkeys(
        (F.interpolate, "to", "float", "type_as", nn.Fold, F.fold, torch.cumsum, "cumsum"), LINEAR
    ),
    **dict.fromkeys((operator.mul, torch.mul, "mul", operator.truediv, torch.div, "div"), PRODUCT),
    **dict.fromkeys((*graph.MATRIX_PRODUCTS, *graph.WEIGHTED_CALLS), PRODUCT),
    **dict.fromkeys((torch.where, "where", torch.masked_fill, "masked_fill"), PRODUCT),
    **dict.fromkeys((*graph.MAXPOOLS, *graph.ACTIVATIONS, nn.LogSoftmax), STATIC),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm), STATIC),
    **dict.fromkeys((F.layer_norm, F.group_norm, F.rms_norm, F.log_softmax, torch.log_softmax), STATIC),
    **dict.fromkeys(
        (F.normalize, torch.rsqrt, "rsqrt", torch.sqrt, "sqrt", "pow", torch.pow, operator.pow), STATIC
    ),
    **dict.fromkeys((nn.Embedding, F.embedding, F.batch_norm), LINEAR),
    **dict.fromkeys(
        (torch.clamp, "clamp", torch.abs, "abs", torch.exp, "exp", torch.maximum, torch.minimum), STATIC
    ),
    **dict.fromkeys(("clamp_min", "clamp_max", torch.clamp_min, torch.clamp_max, torch.log, "log"), STATIC),
    **dict.fromkeys((torch.amax, "amax", torch.amin, "amin", torch.max, "max", torch.min, "min"), STATIC),
    **dict.fromkeys((torch.var, "var", torch.std, "std", torch.norm, "norm"), STATIC),
    **dict.fromkeys((torch.square, "square", torch.reciprocal, "reciprocal", torch.sin, torch.cos), STATIC),
    **dict.fromkeys((torch.linalg.norm, torch.linalg.vector_norm, torch.erf, "erf"), STATIC),
    **dict.fromkeys((torch.gather, "gather"), PRODUCT),
}
"""Module type, function or method name -> how it runs over time; a callable makes the module that replaces
it.
"""

DIVISIONS = {operator.truediv, torch.div, "div"}
"""Products that are not linear in their second operand."""


def convert(
    qann: Network,
    *,
    mode: str = "integrate",
    burst: int | None = None,
    rules: Mapping[Any, Any] = RULES,
    skip: Iterable[str] = (),
    fold: bool = False,
) -> Network:
    """The spiking network of a calibrated or trained QANN; run it with `simulate`.

    At T=1 it computes what `qann` computes in evaluation mode, bit for bit, if the method is exact.

    Args:
        qann: calibrated quantized network; left untouched.
        mode: "integrate": a rate code, the read-out is the mean over the steps and tends to the clipped float
            network. "tracking": a differential code, the read-out is the sum of the spikes and settles on the
            output of `qann`; after that nothing is sent.
        burst: most spikes per neuron and step in tracking mode; default: enough to settle in one step.
        rules: how each operator runs over time; extend with `RULES | {MyLayer: Rule.LINEAR}`.
        skip: name patterns of operators that run float, as static maps, without a rule of their own.
        fold: fold BatchNorm into the layers in front, for deployment; equal up to rounding only.

    Returns:
        A graph module; called directly, it runs one timestep. Its weights keep their requires_grad: torch
        chooses kernels by it, and equality bit for bit wants the same kernels.

    Raises:
        ConversionError: operators without a rule (all are listed), or a site without a positive step.
    """
    graph.require(qann, "convert", ConversionError)
    refuse_bad_weights(qann, ConversionError)
    _refuse_unknown(qann, rules, tuple(skip))
    snn = graph.fold_batchnorm(qann) if fold else copy.deepcopy(qann)
    snn.eval()
    snn.meta["mode"] = mode
    snn.meta["batch_first"] = graph.keeps_batch_first(snn)
    signals = graph.signals(snn)
    for node in _operators(snn, signals):
        if graph.is_module(snn, node, (Quantizer,)):
            quantizer: Any = graph.module_of(snn, node)
            snn.set_submodule(str(node.target), quantizer.neuron(mode, burst))
            continue
        rule = rule_for(snn, node, signals, rules) or STATIC  # none: skipped by name
        if not isinstance(rule, Rule):
            snn.set_submodule(str(node.target), rule(graph.module_of(snn, node)))
        elif rule is STATIC and mode == "integrate":  # tracking: sums travel, f of the sums is what arrives
            _make_static(snn, node, signals)
    return graph.finish(snn)


def rule_for(
    network: Network, node: Node, signals: set[Node], rules: Mapping[Any, Any] = RULES
) -> Rule | Callable[[nn.Module], nn.Module] | None:
    """How an operator runs over time: LINEAR, STATIC or a user's callable; None if nothing is known of it."""
    rule = rules.get(_key(graph.kind_of(network, node), rules))
    if rule is PRODUCT:
        return LINEAR if _is_linear(node, signals) else STATIC
    return rule


def _operators(network: Network, signals: set[Node]) -> list[Node]:
    """The calls that carry data of the sample."""
    return [n for n in network.graph.nodes if n in signals and n.op not in ("placeholder", "output")]


def _key(kind: Any, rules: Mapping[Any, Any]) -> Any:
    """The entry that speaks for `kind`: its own, or that of a base whose forward pass it inherits."""
    if kind in rules or not isinstance(kind, type):
        return kind
    bases = (base for base in kind.__mro__ if base in rules and base.forward is kind.forward)
    return next(bases, kind)


def _is_linear(node: Node, signals: set[Node]) -> bool:
    """Whether a product is linear in the only operand that carries data of the sample."""
    carriers = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if leaf in signals]
    if node.target in DIVISIONS and (node.args[0] not in signals or node.kwargs.get("rounding_mode")):
        return False
    return len(carriers) == 1


def _make_static(snn: Network, node: Node, signals: set[Node]) -> None:
    """Give the call a `Static` of its own, also where its module has other calls."""
    varies = tuple(leaf in signals for leaf in pytree.tree_leaves((node.args, node.kwargs)))
    if node.op == "call_module":
        operator_: Any = graph.module_of(snn, node)
    else:
        operator_ = TensorMethod(str(node.target)) if node.op == "call_method" else node.target
    name = graph.operator_name(snn, node)
    shared = node.op == "call_module" and sum(n.target == node.target for n in snn.graph.nodes) > 1
    if node.op == "call_module" and not shared:
        snn.set_submodule(name, Static(operator_, varies))
        return
    node.target = graph.add_module(snn, name, Static(operator_, varies))
    node.op = "call_module"


def _refuse_unknown(qann: Network, rules: Mapping[Any, Any], skip: tuple[str, ...]) -> None:
    unknown: dict[str, list[str]] = {}
    names: list[str] = []
    signals = graph.signals(qann)
    for node in _operators(qann, signals):
        names.append(graph.operator_name(qann, node))
        skipped = any(fnmatchcase(names[-1], pattern) for pattern in skip)
        if skipped or graph.is_module(qann, node, (Quantizer,)):
            continue
        if graph.is_module(qann, node, graph.BATCHNORMS) or node.target is F.batch_norm:
            _refuse_batch_statistics(qann, node)
        if rule_for(qann, node, signals, rules) is None:
            unknown.setdefault(spelled(graph.kind_of(qann, node)), []).append(names[-1])
    missing = [pattern for pattern in skip if not any(fnmatchcase(name, pattern) for name in names)]
    if missing:
        raise ConversionError(f"skip matches no operator: {', '.join(map(repr, missing))}. See pmsm.explain.")
    if unknown:
        listed = "; ".join(f"{kind} at {', '.join(map(repr, names))}" for kind, names in unknown.items())
        first = next(iter(unknown))
        raise ConversionError(
            f"cannot convert, no rule in snn.convert.RULES for: {listed}. Say how each runs over time, for "
            f"example convert(qann, rules=RULES | {{{first}: Rule.STATIC}}): Rule.LINEAR if it is affine in "
            f"its input, Rule.STATIC for any other map without memory. Or keep it float at its place, "
            f"convert(qann, skip=[{unknown[first][0]!r}])."
        )


def _refuse_batch_statistics(qann: Network, node: Node) -> None:
    if node.op == "call_module":
        from_batch = getattr(graph.module_of(qann, node), "running_mean", None) is None
    else:
        from_batch = bool(node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False))
    if from_batch:
        raise ConversionError(
            f"{graph.operator_name(qann, node)!r} takes its statistics from the batch "
            f"(track_running_stats=False): it is no map of one sample, so no rule can run it over time. "
            f"Train it with track_running_stats=True."
        )


def spelled(kind: Any) -> str:
    """As the user would write it as a key of `rules`."""
    if isinstance(kind, str):
        return repr(kind)
    module = getattr(kind, "__module__", None) or ""
    module = {"torch.nn.modules": "nn", "_operator": "operator"}.get(
        ".".join(module.split(".")[:3]) if module.startswith("torch.nn.modules") else module, module
    )
    return f"{module}.{getattr(kind, '__name__', kind)}".lstrip(".")
