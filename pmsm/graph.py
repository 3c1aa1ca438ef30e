"""How a network becomes one graph of call sites: trace, look, swap, fold. The only file that imports torch.fx."""

import copy
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from pmsm.errors import TraceError

Network = fx.GraphModule
Node = fx.Node

# ---------------------------------------------------------------------------------------------------------------------
# Tables: what an operator is. Functions and methods are first turned into modules where a module exists.
# ---------------------------------------------------------------------------------------------------------------------

RELU = (nn.ReLU,)
"""Absorbed by a quantizer whose smallest code is zero."""

ACTIVATIONS = (
    *RELU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Softmax,
)  # fmt: skip
"""Every call of one of these gets a site."""

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
"""Layers whose input must be a code."""

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAXPOOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
AVGPOOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
MOVES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d,
)  # fmt: skip
"""Modules that only move, repeat or drop values (in evaluation): a code stays a code."""

MOVING_CALLS = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.cat, torch.stack,
    torch.chunk, torch.split, torch.movedim, operator.getitem, "flatten", "reshape", "view", "permute", "transpose",
    "squeeze", "unsqueeze", "contiguous", "chunk", "split", "expand", "repeat", "t", "mT", "detach", "clone",
}  # fmt: skip
"""Functions and methods that only move values."""

PADDING_CALLS = {F.pad, torch._C._nn.pad}
"""Padding; a code stays a code where it pads with zeros."""

MEAN_CALLS = {torch.mean, "mean", torch.sum, "sum"}
"""Averages written as calls; like average pools they are linear."""

WEIGHTED_CALLS = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
"""Functions that multiply their first argument by weights."""

SIZE_CALLS = {"size", "dim", "numel", getattr, len}
"""Calls that read a shape; their result is no signal."""


def _pool(pool: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: pool(*args, **kwargs)


def _plain(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(*args: Any, inplace: bool = False, **kwargs: Any) -> nn.Module:
        return kind(*args, **kwargs)

    return build


def _dropout(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
        return kind(p) if training else nn.Identity()

    return build


def _gelu(approximate: str = "none") -> nn.Module:
    return nn.GELU(approximate)


def _softmax(dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> nn.Module:
    if dtype is not None or dim is None:
        raise TypeError("softmax with dtype, or without dim")
    return nn.Softmax(dim)


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
}
"""Function or method name -> builder of the module that does the same; its arguments are those behind the signal."""

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    **{f"{name}_": name for name in ("add", "sub", "mul", "div", "neg", "clamp", "squeeze", "unsqueeze", "transpose")},
}
"""In-place call -> the call that leaves its argument alone; every in-place call without an entry here is refused."""

IN_PLACE_FUNCTIONS = {F.relu_, torch.relu_, F.leaky_relu_, F.elu_, F.hardtanh_, F.selu_, F.celu_}
ADDITIONS = {operator.add, torch.add, "add"}


# ---------------------------------------------------------------------------------------------------------------------
# Trace
# ---------------------------------------------------------------------------------------------------------------------


def trace(network: nn.Module, example: Any = None, leaves: Iterable[type[nn.Module]] = ()) -> Network:
    """Write `network` down as a graph in which every activation is a module and every stateless module has one call.

    Args:
        network: any `nn.Module`; it is copied, never modified.
        example: a tensor, or a tuple of tensors for several inputs, batch first. With it, shapes are recorded, and the
            graph is proved to compute what the network computes on it, bit for bit, in evaluation mode.
        leaves: module types to be kept as one opaque operator each.

    Returns:
        A graph module in evaluation mode; parameters keep their names.

    Raises:
        TraceError: control flow that depends on data, an in-place call that cannot be undone, an example that the
            network refuses, a graph that computes something else. The text names the line and the remedy.
    """
    leaves = tuple(leaves)
    network = copy.deepcopy(network).eval()
    tracer = _Tracer(leaves)
    try:
        graph = tracer.trace(network)
    except Exception as error:
        raise TraceError(_untraceable(network, error)) from error
    traced = fx.GraphModule(network, graph, type(network).__name__)
    if example is not None and _expected_inputs(traced) != len(_inputs(example)):
        raise TraceError(
            f"{type(network).__name__} takes {_expected_inputs(traced)} inputs, the example holds "
            f"{len(_inputs(example))}. Pass a tensor for one input, a tuple of tensors for several."
        )
    _undo_in_place(traced)
    _functions_to_modules(traced)
    _one_module_per_call(traced)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    if example is not None:
        record_shapes(traced, example)
        _prove_equal(network, traced, example)
    return traced


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type[nn.Module], ...]):
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def _untraceable(network: nn.Module, error: Exception) -> str:
    """What to say when torch.fx gives up: the user's own line, and the ways on."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside)]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else "torch.fx itself"
    return (
        f"cannot trace {type(network).__name__}: {error}. It happens at {where}. Control flow and writes must not "
        f"depend on the data: use torch.where or an out-of-place operation there, or keep the module that holds the line "
        f"as one operator, pmsm.quantize(ann, method, example, leaves=[ThatModule])."
    )


def _inputs(example: Any) -> tuple[Any, ...]:
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def _expected_inputs(network: Network) -> int:
    return sum(node.op == "placeholder" and not node.args for node in network.graph.nodes)


def record_shapes(network: Network, example: Any) -> None:
    """Run `example` through the graph in evaluation mode and note each node's shape for `shape_of`.

    Raises:
        TraceError: the network refuses the example.
    """
    inputs = _inputs(example)
    try:
        with torch.no_grad():
            ShapeProp(network).propagate(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
        cause = str(error.__cause__ or error).split("\nWhile executing")[0].strip()
        raise TraceError(
            f"the network refuses the example of shape {shapes}: {cause}. Pass one real batch, batch dimension first."
        ) from error


def _prove_equal(network: nn.Module, traced: Network, example: Any) -> None:
    with torch.no_grad():
        wanted, got = network(*_inputs(example)), traced(*_inputs(example))
    pairs = list(zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True))
    if not all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs):
        if any(isinstance(a, Tensor) and not bool(torch.isfinite(a).all()) for a, _ in pairs):
            raise TraceError(
                "the network's output on the example holds NaN or Inf. Check the weights and the example."
            )
        raise TraceError(
            f"the graph of {type(network).__name__} does not compute what the network computes on the example: "
            f"something in its forward pass is hidden from tracing (a random layer that is active in evaluation mode, "
            f"a tensor written in place through a view, a Python side effect). Rewrite that part without it, or keep "
            f"its module as one operator, leaves=[ThatModule]."
        )


def _undo_in_place(network: Network) -> None:
    """Out-of-place calls everywhere; who read the overwritten tensor later now reads the result."""
    order = {node: i for i, node in enumerate(network.graph.nodes)}
    for node in list(network.graph.nodes):
        if not _writes(network, node):
            continue
        if node.op == "call_module":
            module_of(network, node).inplace = False  # pyright: ignore[reportArgumentType]
        elif node.target in OUT_OF_PLACE:
            node.op = "call_method" if isinstance(OUT_OF_PLACE[node.target], str) else "call_function"
            node.target = OUT_OF_PLACE[node.target]
        elif node.target not in FUNCTIONAL:
            raise TraceError(
                f"cannot trace the in-place call {node.target!r} ({node.name!r}): it has no out-of-place form in "
                f"graph.OUT_OF_PLACE. Write it out of place, y = x.op() instead of x.op_()."
            )
        for user in list(node.args[0].users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(node.args[0], node)


def _writes(network: Network, node: Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module_of(network, node), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    in_place_name = isinstance(node.target, str) and node.target.endswith("_") and not node.target.endswith("__")
    return (
        in_place_name
        or node.target in IN_PLACE_FUNCTIONS
        or node.target in OUT_OF_PLACE
        or node.kwargs.get("inplace") is True
    )


def _functions_to_modules(network: Network) -> None:
    """Every functional activation, pool and dropout with constant settings becomes a module beside its caller."""
    for node in list(network.graph.nodes):
        if node.op not in ("call_function", "call_method") or node.target not in FUNCTIONAL:
            continue
        args, kwargs = list(node.args), {k: v for k, v in node.kwargs.items() if k != "input"}
        signal = node.kwargs["input"] if "input" in node.kwargs else args.pop(0)
        if fx.map_arg((args, kwargs), lambda n: n) and _mentions_node((args, kwargs)):
            continue  # settings that are computed: no module can hold them, conversion will name the call
        try:
            module = FUNCTIONAL[node.target](*args, **kwargs)
        except TypeError:
            continue
        with network.graph.inserting_before(node):
            new = network.graph.call_module(
                add_module(network, _beside(node, type(module)), module), (signal,)
            )
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        network.graph.erase_node(node)


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


# ---------------------------------------------------------------------------------------------------------------------
# Look
# ---------------------------------------------------------------------------------------------------------------------


def module_of(network: Network, node: Node) -> nn.Module:
    """The module that a `call_module` node calls."""
    return network.get_submodule(str(node.target))


def kind_of(network: Network, node: Node) -> Any:
    """What decides the fate of a node: the type of its module, its function, or the name of its method."""
    return type(module_of(network, node)) if node.op == "call_module" else node.target


def is_module(network: Network, node: Any, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether `node` calls a module of one of `kinds`."""
    return isinstance(node, Node) and node.op == "call_module" and isinstance(module_of(network, node), kinds)


def modules(network: Network, kind: type[nn.Module]) -> Iterator[tuple[Node, Any]]:
    """Every node that calls a module of `kind`, with the module, in the order of execution."""
    for node in network.graph.nodes:
        if is_module(network, node, (kind,)):
            yield node, module_of(network, node)


def signals(network: Network) -> set[Node]:
    """The nodes that carry data of the sample: everything that depends on an input, shapes excepted."""
    found: set[Node] = set()
    for node in network.graph.nodes:
        depends = node.op == "placeholder" or any(n in found for n in node.all_input_nodes)
        if depends and not (node.op in ("call_method", "call_function") and node.target in SIZE_CALLS):
            found.add(node)
    return found


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape recorded for the example; () where the node is no tensor."""
    found = node.meta.get("tensor_meta")
    return tuple(getattr(found, "shape", ()))


def channel_dim(network: Network, node: Node) -> int:
    """The dimension of a node's signal that counts channels: 1, but the last one behind Linear and LayerNorm."""
    while isinstance(node, Node):
        if is_module(network, node, (nn.Linear, nn.LayerNorm)):
            return -1
        if is_module(network, node, (*CONVOLUTIONS, *BATCHNORMS)) or not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return 1


def apply(network: Network, node: Node, values: dict[Node, Any]) -> Any:
    """The result of one node, given the values of the nodes that it reads."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node.op == "call_module":
        return module_of(network, node)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def operator_name(network: Network, node: Node) -> str:
    """The name under which a user knows this call: the module's path, or the call and the path that holds it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"{path}.{node.name}" if path else node.name


# ---------------------------------------------------------------------------------------------------------------------
# Change
# ---------------------------------------------------------------------------------------------------------------------


def free_name(network: Network, name: str) -> str:
    """`name`, or with a number behind it if something of that name exists."""
    free, number = name, 0
    while _taken(network, free):
        number += 1
        free = f"{name}_{number}"
    return free


def add_module(network: Network, name: str, module: nn.Module) -> str:
    """Add `module` under `name`, with a number behind it if the name is taken; returns the name."""
    name = free_name(network, name)
    network.add_submodule(name, module)
    return name


def _taken(network: Network, name: str) -> bool:
    owner: Any = network
    for part in name.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def insert_after(
    network: Network, node: Node, name: str, module: nn.Module, readers: list[Node] | None = None
) -> Node:
    """Call `module` on the result of `node`, and let `readers` (default: all) read the new result instead."""
    readers = list(node.users) if readers is None else readers
    with network.graph.inserting_after(node):
        new = network.graph.call_module(add_module(network, name, module), (node,))
    for reader in readers:
        reader.replace_input_with(node, new)
    new.meta = {key: node.meta[key] for key in ("tensor_meta", "nn_module_stack") if key in node.meta}
    return new


def remove(network: Network, node: Node) -> None:
    """Take a node with one input out; its readers read its input."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    network.graph.erase_node(node)


def finish(network: Network) -> Network:
    """Drop what is no longer called, check the graph, and recompile it."""
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return network


def fold_batchnorm(network: Network) -> Network:
    """A copy of a traced network in evaluation mode with each BatchNorm folded into the layer in front of it.

    Folded are BatchNorms that follow a convolution or Linear with one call and one reader. The result agrees with
    `network` up to rounding, not bit for bit.
    """
    network = copy.deepcopy(network).eval()
    calls: dict[str, int] = {}
    for node in network.graph.nodes:
        calls[str(node.target)] = calls.get(str(node.target), 0) + (node.op == "call_module")
    for node in list(network.graph.nodes):
        if not is_module(network, node, BATCHNORMS):
            continue
        layer = node.args[0]
        if not is_module(network, layer, WEIGHTED) or len(layer.users) > 1 or calls[str(layer.target)] > 1:
            continue
        _fold(module_of(network, layer), module_of(network, node))
        remove(network, node)
    return finish(network)


def _fold(layer: Any, norm: Any) -> None:
    """w <- w * gain, b <- (b - mean) * gain + beta, with gain = gamma / sqrt(var + eps) per output channel."""
    with torch.no_grad():
        gain = torch.rsqrt(norm.running_var + norm.eps)
        gain = gain * norm.weight if norm.affine else gain
        bias = layer.bias if layer.bias is not None else torch.zeros_like(norm.running_mean)
        beta = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
        if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            into, out = layer.weight.shape[:2]
            grouped = layer.weight.view(layer.groups, into // layer.groups, out, -1)
            weight = (grouped * gain.view(layer.groups, 1, out, 1)).view_as(layer.weight)
        else:
            weight = layer.weight * gain.view(-1, *[1] * (layer.weight.dim() - 1))
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        layer.bias = nn.Parameter((bias - norm.running_mean) * gain + beta, requires_grad=layer.weight.requires_grad)
