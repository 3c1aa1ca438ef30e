"""How a network becomes one graph of call sites, in which every activation is a module."""

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from pmsm.errors import TraceError
from pmsm.graph.decompose import decompose
from pmsm.graph.network import Network, Node, add_module, call_of, module_of, replace_module
from pmsm.graph.operators import (
    BATCHNORMS,
    FUNCTIONAL,
    IN_PLACE_FUNCTIONS,
    MOVING_CALLS,
    OUT_OF_PLACE,
    TrainingOnly,
)
from pmsm.graph.tracer import Tracer

REWRITTEN = 1e-3
"""How far, relative to the largest output, a graph with written-out attention may differ from the network:
rounding of other kernels, through many layers. A wrong decomposition differs by orders more."""


def trace(network: nn.Module, example: Any = None, leaves: Iterable[type[nn.Module]] = ()) -> Network:
    """Write `network` down as a graph in which every activation is a module and every stateless module has
    one call.

    Args:
        network: any `nn.Module`; it is copied, never modified.
        example: a tensor, or a tuple of tensors for several inputs, batch first. With it, shapes are
            recorded, and the graph is proved to compute what the network computes on it, bit for bit, in
            evaluation mode.
        leaves: module types to be kept as one opaque operator each.

    Returns:
        A graph module in evaluation mode; parameters keep their names. In training mode it does what the
        network does as far as that is done by modules; what else hangs on `self.training` inside a forward
        pass is as in evaluation.

    Raises:
        TraceError: control flow that depends on data, an in-place call that cannot be undone, an example that
        the
            network refuses, a graph that computes something else. The text names the line and the remedy.
    """
    network = copy.deepcopy(network).eval()
    inputs = None if example is None else _inputs(example)
    names = _input_names(network, inputs)
    tracer = Tracer(tuple(leaves), inputs)
    try:
        graph = _enter(tracer, network, names)
    except Exception as error:
        raise TraceError(_untraceable(network, error)) from error
    traced = fx.GraphModule(network, graph, type(network).__name__)
    traced.meta["name"] = type(network).__name__  # a copy of the network forgets the name of its class
    wanted = _output(network, example) if example is not None else None
    _keep_keys(network, traced)
    _keep_training(network, traced, tracer.training_only)
    _undo_in_place(traced)
    rewritten = decompose(traced)
    _functions_to_modules(traced)
    _one_module_per_call(traced)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    if example is not None:
        record_shapes(traced, example)
        _prove_equal(wanted, traced, example, REWRITTEN if rewritten else 0.0)
    return traced


def _input_names(network: nn.Module, inputs: tuple[Any, ...] | None) -> list[str]:
    """The parameters of the forward pass that are inputs: as many as the example holds, or all without a
    default. The others stay constants.
    """
    parameters = inspect.signature(network.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in positional if p.default is p.empty]
    if inputs is None:
        return needed
    more = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if len(inputs) < len(needed) or (more is None and len(inputs) > len(positional)):
        raise TraceError(
            f"{type(network).__name__} takes {len(needed)} inputs, the example holds "
            f"{len(inputs)}. Pass a tensor for one input, a tuple of tensors for several."
        )
    names = [p.name for p in positional][: len(inputs)]
    return names + [f"{more}_{i}" for i in range(len(inputs) - len(names))]


def _enter(tracer: Tracer, network: nn.Module, names: list[str]) -> fx.Graph:
    """Trace a forward pass that takes the inputs and nothing else.

    torch.fx reads the number and names of the inputs off a function's code, so one of that very signature is
    made; a decorated forward, or one with **kwargs, would mislead it.
    """
    given = ", ".join(names)
    forward = eval(f"lambda self, {given}: self.forward({given})")
    kind = type(network)
    network.__class__ = type(kind.__name__, (kind,), {"_enter": forward, "__module__": kind.__module__})
    tracer.traced_func_name = "_enter"
    try:
        return tracer.trace(network)
    finally:
        network.__class__ = kind


def _untraceable(network: nn.Module, error: Exception) -> str:
    """What to say when torch.fx gives up: the user's own line, and the ways on."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside)]
    where = (
        f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else "torch.fx itself"
    )
    return (
        f"cannot trace {type(network).__name__}: {error}. It happens at {where}. Control flow and writes "
        f"must not depend on the data: use torch.where or an out-of-place operation there, or keep the "
        f"module that holds the line as one operator, pmsm.quantize(ann, method, example, "
        f"leaves=[ThatModule])."
    )


def _inputs(example: Any) -> tuple[Any, ...]:
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def _fresh(example: Any) -> tuple[Any, ...]:
    """Copies of the inputs, for a network that may write into them."""
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in _inputs(example))


def record_shapes(network: Network, example: Any) -> None:
    """Run `example` through the graph in evaluation mode and note each node's shape for `shape_of`."""
    with torch.no_grad():
        ShapeProp(network).propagate(*_fresh(example))


def stepwise(network: Network, example: Any) -> Callable[[Node], Any]:
    """A function that runs node after node, in their order, and notes their shapes for `shape_of`."""
    interpreter = ShapeProp(network)
    interpreter.args_iter = iter(_fresh(example))

    def run(node: Node) -> Any:
        with torch.no_grad():
            interpreter.env[node] = interpreter.run_node(node)
        return interpreter.env[node]

    return run


def _output(network: nn.Module, example: Any) -> Any:
    """What the network computes on copies of the example.

    Raises:
        TraceError: the network refuses the example.
    """
    inputs = _fresh(example)
    try:
        with torch.no_grad():
            return network(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
        raise TraceError(
            f"{type(network).__name__} refuses the example of shape {shapes}: {error}. Pass one real batch, "
            f"batch dimension first."
        ) from error


def _prove_equal(wanted: Any, traced: Network, example: Any, tolerance: float) -> None:
    got = _output(traced, example)
    pairs = list(zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True))
    if not all(_same(a, b, tolerance) for a, b in pairs):
        if any(isinstance(a, Tensor) and not bool(torch.isfinite(a).all()) for a, _ in pairs):
            raise TraceError(
                "the network's output on the example holds NaN or Inf. Check the weights and the example."
            )
        raise TraceError(
            f"the graph of {type(traced).__name__} does not compute what the network computes on the "
            f"example: something in its forward pass is hidden from tracing (a random layer that is active "
            f"in evaluation mode, a tensor written in place through a view, a Python side effect). Rewrite "
            f"that part without it, or keep its module as one operator, leaves=[ThatModule]."
        )


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if not isinstance(a, Tensor):
        return a is b or a == b
    if tolerance and a.is_floating_point() and bool(torch.isfinite(a).all()):
        return bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-30)) if a.numel() else True
    return torch.equal(a, b)


def _keep_keys(network: nn.Module, traced: Network) -> None:
    """Buffers that the network does not save, such as tables of indices, are not saved here either."""
    unsaved = {path: module._non_persistent_buffers_set for path, module in network.named_modules()}
    for path, module in traced.named_modules():
        module._non_persistent_buffers_set |= unsaved.get(path, set())


def _keep_training(network: nn.Module, traced: Network, training_only: set[str]) -> None:
    """Let training do what it did, though the graph was traced in evaluation mode.

    Stochastic depth and the like stay modules. A subclass of BatchNorm that calls `F.batch_norm` itself
    becomes a BatchNorm under its name, which updates its running statistics.
    """
    for path in training_only:
        traced.set_submodule(path, TrainingOnly(traced.get_submodule(path)).eval())
    for node in traced.graph.nodes:
        if node.target is not F.batch_norm:
            continue
        path = list((node.meta.get("nn_module_stack") or {"": ("",)}).values())[-1][0]
        owner: Any = network.get_submodule(path)
        kind = next((kind for kind in BATCHNORMS if isinstance(owner, kind)), None)
        statistics = [getattr(argument, "target", None) for argument in node.args[1:3]]
        if kind is not None and statistics == [f"{path}.running_mean", f"{path}.running_var"]:
            norm = kind(owner.num_features, owner.eps, owner.momentum, owner.affine).eval()
            norm._parameters, norm._buffers = owner._parameters, owner._buffers
            replace_module(traced, path, norm)
            node.op, node.target, node.args, node.kwargs = "call_module", path, node.args[:1], {}


def _undo_in_place(network: Network) -> None:
    """Out-of-place calls everywhere; who read the overwritten tensor later now reads the result."""
    order = {node: i for i, node in enumerate(network.graph.nodes)}
    writers = [node for node in network.graph.nodes if _writes(network, node)]  # before any module is changed
    for node in writers:
        if node.op == "call_module":
            module_of(network, node).inplace = False  # pyright: ignore[reportArgumentType]
        elif node.target in OUT_OF_PLACE:
            node.op = "call_method" if isinstance(OUT_OF_PLACE[node.target], str) else "call_function"
            node.target = OUT_OF_PLACE[node.target]
        elif node.target not in FUNCTIONAL:
            raise TraceError(
                f"cannot trace the in-place call {node.target!r} ({node.name!r}): it has no out-of-place "
                f"form in pmsm.graph.operators.OUT_OF_PLACE. Write it out of place, y = x.op()."
            )
        overwritten = node.kwargs["input"] if "input" in node.kwargs else node.args[0]
        if _shares_memory(overwritten):
            raise TraceError(
                f"cannot trace the in-place call {node.name!r}: it writes through {overwritten.name!r}, a "
                f"view of another tensor, which changes too. Write it out of place, and put parts together "
                f"with torch.cat."
            )
        for user in list(overwritten.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(overwritten, node)


def _shares_memory(node: Any) -> bool:
    """Whether others may read the memory that a node's result lies in: it is a view, and no only child."""
    call = call_of(node) if isinstance(node, Node) and node.op in ("call_function", "call_method") else None
    if call not in MOVING_CALLS - {torch.cat, torch.stack, "clone", "repeat"}:
        return False
    return any(len(source.users) > 1 or _shares_memory(source) for source in node.all_input_nodes)


def _writes(network: Network, node: Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module_of(network, node), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    in_place_name = (
        isinstance(node.target, str) and node.target.endswith("_") and not node.target.endswith("__")
    )
    return (
        in_place_name
        or node.target in IN_PLACE_FUNCTIONS
        or node.target in OUT_OF_PLACE
        or node.kwargs.get("inplace") is True
    )


def _functions_to_modules(network: Network) -> None:
    """Every functional activation, pool and dropout with constant settings becomes a module beside its
    caller.
    """
    for node in list(network.graph.nodes):
        builder = _builder(node)
        if builder is None:
            continue
        args, kwargs = list(node.args), {k: v for k, v in node.kwargs.items() if k != "input"}
        signal = node.kwargs["input"] if "input" in node.kwargs else args.pop(0)
        if fx.map_arg((args, kwargs), lambda n: n) and _mentions_node((args, kwargs)):
            continue  # settings that are computed: no module can hold them, conversion will name the call
        try:
            module = builder(*args, **kwargs).eval()
        except TypeError:
            continue
        with network.graph.inserting_before(node):
            new = network.graph.call_module(
                add_module(network, _beside(node, type(module)), module), (signal,)
            )
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        network.graph.erase_node(node)


def _builder(node: Node) -> Callable[..., nn.Module] | None:
    """What makes the module for a call; a function of another package is known by its full name."""
    if node.op not in ("call_function", "call_method"):
        return None
    target: Any = node.target
    full_name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return FUNCTIONAL.get(target) or FUNCTIONAL.get(full_name)


def _mentions_node(settings: Any) -> bool:
    return any(isinstance(leaf, Node) for leaf in pytree.tree_leaves(settings))


def _beside(node: Node, kind: type[nn.Module]) -> str:
    """Name for a new module: the path of the module whose forward holds the call, and the kind."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"{path}.{kind.__name__.lower()}" if path else kind.__name__.lower()


def _one_module_per_call(network: Network) -> None:
    """Copy modules without parameters and buffers until each has one call; shared weights stay shared."""
    seen: set[str] = set()
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        module = module_of(network, node)
        stateless = next(module.parameters(), None) is None and next(module.buffers(), None) is None
        if stateless and node.target in seen:
            node.target = add_module(network, str(node.target), copy.deepcopy(module))
        seen.add(str(node.target))
