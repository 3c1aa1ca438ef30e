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
from pmsm.methods.base import Method, Quantizer
from pmsm.qann.quantize import refuse_bad_weights
from pmsm.qann.units import InputGrid
from pmsm.snn.temporal import Rule, Static, TensorMethod
from pmsm.snn.unroll import unrolled

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
    **dict.fromkeys(("to", "type_as", "float", "double", "half", "bfloat16"), LINEAR),
    **dict.fromkeys((F.interpolate, nn.Fold, F.fold, torch.cumsum, "cumsum"), LINEAR),
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
    **dict.fromkeys(graph.DISCRETE_CALLS, STATIC),
    graph.additive_mask: LINEAR,
    InputGrid: LINEAR,  # the input of each step is rounded as it comes, and so is the mean of equal inputs
}
"""Module type, function or method name -> how it runs over time; a callable makes the module that replaces
it.
"""

DIVISIONS = {operator.truediv, torch.div, "div"}
"""Products that are not linear in their second operand."""


def convert(
    qann: Network,
    *,
    mode: str | None = None,
    burst: int | None = None,
    rules: Mapping[Any, Any] = RULES,
    skip: Iterable[str] = (),
    fold: bool = False,
    unroll: bool = False,
) -> Network:
    """The spiking network of a calibrated or trained QANN; run it with `simulate`.

    At T=1 it computes what `qann` computes in evaluation mode, bit for bit, if the method is exact.

    Args:
        qann: calibrated quantized network; left untouched.
        mode: "integrate": a rate code, the read-out is the mean over the steps and tends to the clipped float
            network. "tracking": a differential code, the read-out is the sum of the spikes and settles on the
            output of `qann`; after that nothing is sent. None: that of the method's own neuron.
        burst: most spikes per neuron and step in tracking mode; default: enough to settle in one step, or
            what the method's own neuron sends.
        rules: how each operator runs over time; extend with `RULES | {MyLayer: Rule.LINEAR}`.
        skip: name patterns of operators that run float, as static maps, without a rule of their own.
        fold: fold BatchNorm into the layers in front, for deployment; equal up to rounding only.
        unroll: for hardware with binary spikes: a count k is sent as |k| spikes of one, in as many
            micro-steps of each timestep as the largest count has (`snn.meta["micro_steps"]`).

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
    mode, burst = _mode_of(snn, mode, burst)
    snn.meta["mode"] = mode
    snn.meta["batch_first"] = graph.keeps_batch_first(snn)
    signals = graph.signals(snn)
    for node in _operators(snn, signals):
        if graph.is_module(snn, node, (Quantizer,)):
            quantizer: Any = graph.module_of(snn, node)
            snn.set_submodule(str(node.target), quantizer.neuron(mode, burst))
            node.meta["method"] = getattr(quantizer, "method", None)  # whose neuron it is
            continue
        rule = rule_for(snn, node, signals, rules) or STATIC  # none: skipped by name
        if not isinstance(rule, Rule):
            snn.set_submodule(str(node.target), rule(graph.module_of(snn, node)))
        elif rule is STATIC and mode == "integrate":  # tracking: sums travel, f of the sums is what arrives
            _make_static(snn, node, signals)
    return unrolled(graph.finish(snn)) if unroll else graph.finish(snn)


def _mode_of(network: Network, mode: str | None, burst: int | None) -> tuple[str, int | None]:
    """What was asked for, or the neuron of the method: all sites of a network send the same way."""
    if mode is not None:
        return mode, burst
    sites = [quantizer for _, quantizer in graph.modules(network, Quantizer)]
    own: set[tuple[str, int | None]] = {
        (q.method.mode, q.method.burst) for q in sites if isinstance(getattr(q, "method", None), Method)
    }
    if len(own) > 1:
        raise ConversionError(
            "the methods of the sites send in different modes. Say which one, "
            "pmsm.convert(qann, mode='tracking') or mode='integrate'."
        )
    default, most = own.pop() if own else (Method.mode, Method.burst)
    return default, most if burst is None else burst


def rule_for(
    network: Network, node: Node, signals: set[Node], rules: Mapping[Any, Any] = RULES
) -> Rule | Callable[[nn.Module], nn.Module] | None:
    """How an operator runs over time: LINEAR, STATIC or a user's callable; None if nothing is known of it."""
    rule = rules.get(_key(graph.kind_of(network, node), rules))
    if rule is PRODUCT:
        rule = LINEAR if _is_linear(node, signals) else STATIC
    chooses = any(_is_choice(n, signals) for n in (node, *node.all_input_nodes))
    return STATIC if rule is LINEAR and chooses else rule


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
    """Whether a product is linear in the only operand that changes over time."""
    leaves = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]
    carriers = [n for n in leaves if n in signals and (_is_number(n) or _is_choice(n, signals))]
    if carriers and node.target in DIVISIONS:
        numerator = (*node.args, node.kwargs.get("input"))[0]
        return carriers == [numerator] and not node.kwargs.get("rounding_mode")
    return len(carriers) < 2


def _is_choice(node: Node, signals: set[Node]) -> bool:
    """Whether the node gives truth values or whole numbers that depend on signals which change over time.

    Such a value has no mean: it travels as f of the mean inputs so far, see `Static`. Whole numbers that the
    network is given, and what depends on them alone, stay the same at every step.
    """
    waiting = [node] if node in signals else []
    seen = set(waiting)
    while waiting and not _is_number(waiting[-1]):
        waiting += signals.intersection(waiting.pop().all_input_nodes) - seen
        seen.update(waiting)
    return bool(waiting) and waiting[-1] is not node


def _is_number(node: Node) -> bool:
    dtype = graph.dtype_of(node)
    return dtype is None or dtype.is_floating_point or dtype.is_complex


def _make_static(snn: Network, node: Node, signals: set[Node]) -> None:
    """Give the call a `Static` of its own, also where its module has other calls."""
    varies = _where_signals((node.args, node.kwargs), signals)
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


def _where_signals(argument: Any, signals: set[Node]) -> Any:
    """Which parts of an argument are signals, as `Static` wants it told."""
    if isinstance(argument, dict):
        parts = {key: _where_signals(part, signals) for key, part in argument.items()}
        return parts if any(parts.values()) else False
    if isinstance(argument, list | tuple):
        parts = tuple(_where_signals(part, signals) for part in argument)
        return parts if any(parts) else False
    return isinstance(argument, Node) and argument in signals


def _refuse_unknown(qann: Network, rules: Mapping[Any, Any], skip: tuple[str, ...]) -> None:
    unknown: dict[str, list[str]] = {}
    names: list[str] = []
    signals = graph.signals(qann)
    for node in _operators(qann, signals):
        names.append(graph.operator_name(qann, node))
        skipped = any(fnmatchcase(names[-1], pattern) for pattern in skip)
        if skipped or graph.is_module(qann, node, (Quantizer,)):
            continue
        if reason := refusal(qann, node):
            raise ConversionError(reason)
        if rule_for(qann, node, signals, rules) is None:
            unknown.setdefault(spelled(graph.kind_of(qann, node)), []).append(names[-1])
    refuse_unmatched(skip, names)
    if unknown:
        listed = "; ".join(f"{kind} at {', '.join(map(repr, names))}" for kind, names in unknown.items())
        first = next(iter(unknown))
        raise ConversionError(
            f"cannot convert, no rule in snn.convert.RULES for: {listed}. Say how each runs over time, for "
            f"example convert(qann, rules=RULES | {{{first}: Rule.STATIC}}): Rule.LINEAR if it is affine in "
            f"its input, Rule.STATIC for any other map without memory. Or keep it float at its place, "
            f"convert(qann, skip=[{unknown[first][0]!r}])."
        )


def refuse_unmatched(skip: Iterable[str], names: list[str]) -> None:
    """A pattern without an operator is a mistake."""
    missing = [pattern for pattern in skip if not any(fnmatchcase(name, pattern) for name in names)]
    if missing:
        raise ConversionError(f"skip matches no operator: {', '.join(map(repr, missing))}. See pmsm.explain.")


def refusal(qann: Network, node: Node) -> str:
    """Why no rule can run an operator over time, though its kind has one; "" if one can."""
    name = graph.operator_name(qann, node)
    if node.op == "call_module":
        from_batch = graph.is_module(qann, node, graph.BATCHNORMS) and (
            graph.module_of(qann, node).running_mean is None
        )
    else:
        training = node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False)
        from_batch = node.target is F.batch_norm and bool(training)
    if from_batch:
        return (
            f"{name!r} takes its statistics from the batch (track_running_stats=False): it is no map of one "
            f"sample, so no rule can run it over time. Train it with track_running_stats=True."
        )
    by_mask = node.target is operator.getitem and torch.bool in map(graph.dtype_of, node.all_input_nodes[1:])
    if by_mask or (node.target is torch.where and len(node.args) + len(node.kwargs) == 1):
        return (
            f"{name!r} picks values by a mask: the size of its result depends on the data, and with it on "
            f"the timestep. Keep the size, torch.where(mask, x, 0) or x * mask in place of x[mask]."
        )
    if graph.kind_of(qann, node) in graph.DISCRETE_CALLS and graph.dtype_of(node) is None:
        return (
            f"{name!r} gives truth values or whole numbers, and the network has lost what kinds of numbers "
            f"it computes. Record them again: pmsm.graph.record_shapes(qann, example)."
        )
    return ""


def spelled(kind: Any) -> str:
    """As the user would write it as a key of `rules`."""
    if isinstance(kind, str):
        return repr(kind)
    module = getattr(kind, "__module__", None) or ""
    module = {"torch.nn.modules": "nn", "_operator": "operator"}.get(
        ".".join(module.split(".")[:3]) if module.startswith("torch.nn.modules") else module, module
    )
    return f"{module}.{getattr(kind, '__name__', kind)}".lstrip(".")
