"""How to look at a traced network and change it: nodes, modules, shapes; insert, remove, fold BatchNorm."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pmsm.errors import PMSMError
from pmsm.graph.operators import (
    BATCHNORMS,
    CONVOLUTIONS,
    MATRIX_PRODUCTS,
    SIZE_CALLS,
    TRANSPOSITIONS,
    WEIGHTED,
)

Network = fx.GraphModule
Node = fx.Node


def input_count(network: Network) -> int:
    """How many inputs the network must be given; those with a default do not count."""
    return sum(node.op == "placeholder" and not node.args for node in network.graph.nodes)


def inputs_of(network: Network, batch: Any) -> tuple[Any, ...]:
    """The inputs in a batch: the batch itself, or the first entries of an (input, ..., label) tuple."""
    return tuple(batch[: input_count(network)]) if isinstance(batch, tuple | list) else (batch,)


def batches_of(network: Network, batches: Any) -> Iterator[tuple[Any, ...]]:
    """The inputs of each batch: `batches` is one tensor, one (input, labels) pair, or an iterable of
    either.
    """
    single = isinstance(batches, torch.Tensor) or (
        isinstance(batches, tuple)
        and len(batches) == 1 + input_count(network)
        and isinstance(batches[-1], torch.Tensor)
        and batches[-1].dim() == 1
        and not batches[-1].is_floating_point()
    )
    for batch in [batches] if single else batches:
        yield inputs_of(network, batch)


def run(network: Network, inputs: tuple[Any, ...], refuse: type[PMSMError], where: str = "") -> Any:
    """The output of the network.

    Raises:
        refuse: inputs without values, with NaN or Inf, or that do not fit the network; the text names shape
            and cause.
    """
    for x in inputs:
        if isinstance(x, torch.Tensor) and (x.dim() == 0 or x.numel() == 0):
            raise refuse(f"{where}is empty, shape {tuple(x.shape)}: leave empty batches out, x is [N, ...].")
        if isinstance(x, torch.Tensor) and x.is_meta:
            raise refuse(
                f"{where}has no values, it is on the meta device: pass real data, torch.randn(x.shape)."
            )
        if isinstance(x, torch.Tensor) and x.is_floating_point() and not _finite(x):
            raise refuse(
                f"{where}holds {int((~torch.isfinite(x)).sum())} values that are NaN or Inf. Remove or "
                f"repair those samples; torch.isfinite(x) finds them."
            )
    try:
        return network(*inputs)
    except PMSMError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError) as error:
        shapes = ", ".join(str(tuple(x.shape)) if hasattr(x, "shape") else type(x).__name__ for x in inputs)
        raise refuse(
            f"{where}does not fit the network, which refuses inputs of shape {shapes}: {error}"
        ) from error


def _finite(x: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(x))


def require(network: Any, verb: str, refuse: type[PMSMError]) -> None:
    """Refuse what is no traced network."""
    if not isinstance(network, fx.GraphModule):
        raise refuse(
            f"{verb} needs a network from pmsm.quantize or pmsm.convert, got {type(network).__name__}. Call "
            f"qann = pmsm.quantize(ann, pmsm.PMSM(levels=9), example) first."
        )


def module_of(network: Network, node: Node) -> nn.Module:
    """The module that a `call_module` node calls."""
    return network.get_submodule(str(node.target))


def kind_of(network: Network, node: Node) -> Any:
    """What decides the fate of a node: the type of its module, or what `call_of` says."""
    return type(module_of(network, node)) if node.op == "call_module" else call_of(node)


def call_of(node: Node) -> Any:
    """The function of a node, the name of its method, or "." and the name of the attribute that it reads."""
    return f".{node.args[1]}" if node.target is getattr else node.target


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
        if depends and not (node.op in ("call_method", "call_function") and call_of(node) in SIZE_CALLS):
            found.add(node)
    return found


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape recorded for the example; () where the node is no tensor."""
    found = node.meta.get("tensor_meta")
    return tuple(getattr(found, "shape", ()))


def dtype_of(node: Node) -> torch.dtype | None:
    """Kind of numbers recorded for the example, of the first tensor where there are several; or None."""
    found = pytree.tree_leaves(node.meta.get("tensor_meta"))
    return next((leaf for leaf in found if isinstance(leaf, torch.dtype)), None)


def channel_dim(network: Network, node: Node) -> int | None:
    """The dimension of a node's signal that counts channels: 1, but the last one behind Linear and LayerNorm.

    None behind a transposition or a matrix product: there the last dimension may be a number of tokens.
    """
    while isinstance(node, Node):
        if is_module(network, node, (nn.Linear, nn.LayerNorm)):
            return -1
        if node.op in ("call_function", "call_method") and node.target in MATRIX_PRODUCTS | TRANSPOSITIONS:
            return None
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
    """The name under which a user knows this call: the module's path, or the call and the path that holds
    it.
    """
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"{path}.{node.name}" if path else node.name


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


def replace_module(network: Network, name: str, module: nn.Module) -> None:
    """Put `module` in the place of another, whose submodules it takes over."""
    for child, submodule in network.get_submodule(name).named_children():
        module.add_module(child, submodule)
    network.set_submodule(name, module)


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
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    for path in [path for path in called if isinstance(network.get_submodule(path), BATCHNORMS)]:
        children = network.get_submodule(path)._modules  # an activation inside it, by `replace_module`
        for name in [n for n in children if not any(f"{c}.".startswith(f"{path}.{n}.") for c in called)]:
            del children[name]
    network.graph.lint()
    network.recompile()
    return network


def fold_batchnorm(network: Network) -> Network:
    """A copy of a traced network in evaluation mode with each BatchNorm folded into the layer in front of it.

    Folded are BatchNorms with running statistics that follow a convolution, or Linear on [N, D], with one
    call and one reader. The result agrees
    with `network` up to rounding, not bit for bit.
    """
    network = copy.deepcopy(network).eval()
    calls: dict[str, int] = {}
    for node in network.graph.nodes:
        calls[str(node.target)] = calls.get(str(node.target), 0) + (node.op == "call_module")
    for node in list(network.graph.nodes):
        if not is_module(network, node, BATCHNORMS):
            continue
        layer = node.all_input_nodes[0]
        if not is_module(network, layer, WEIGHTED) or len(layer.users) > 1 or calls[str(layer.target)] > 1:
            continue
        over_features = isinstance(module_of(network, layer), CONVOLUTIONS) or len(shape_of(layer)) == 2
        if not over_features or module_of(network, node).running_mean is None:
            continue
        _fold(module_of(network, layer), module_of(network, node))
        if calls[str(node.target)] == 1:
            replace_module(network, str(node.target), nn.Identity())
        remove(network, node)
    return finish(network)


def _fold(layer: Any, norm: Any) -> None:
    """w <- w * gain, b <- (b - mean) * gain + beta, with gain = gamma / sqrt(var + eps) per output
    channel.
    """
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
        layer.bias = nn.Parameter(
            (bias - norm.running_mean) * gain + beta, requires_grad=layer.weight.requires_grad
        )
