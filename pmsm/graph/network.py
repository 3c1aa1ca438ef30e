"""How to look at a traced network and change it: nodes, modules, shapes; insert, remove, fold BatchNorm."""

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from pmsm.graph.operators import BATCHNORMS, CONVOLUTIONS, SIZE_CALLS, WEIGHTED

Network = fx.GraphModule
Node = fx.Node


def input_count(network: Network) -> int:
    """How many inputs the network must be given; those with a default do not count."""
    return sum(node.op == "placeholder" and not node.args for node in network.graph.nodes)


def inputs_of(network: Network, batch: Any) -> tuple[Any, ...]:
    """The inputs in a batch: the batch itself, or the first entries of an (input, ..., label) tuple."""
    return tuple(batch[: input_count(network)]) if isinstance(batch, tuple | list) else (batch,)


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


def channel_dim(network: Network, node: Node) -> int:
    """The dimension of a node's signal that counts channels: 1, but the last one behind Linear and
    LayerNorm.
    """
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


def keeps_batch_first(network: Network) -> bool:
    """Whether the batch is dimension 0 of every signal, as far as the calls that move dimensions can tell."""
    return not any(_moves_first(node) for node in signals(network))


def _moves_first(node: Node) -> bool:
    """Whether a call moves, splits or joins dimension 0 of its signal; in doubt, it does."""
    call = call_of(node) if node.op in ("call_function", "call_method") else None
    settings = [*node.args[1:], *node.kwargs.values()]
    if call in (torch.cat, torch.stack, torch.chunk, torch.split, "chunk", "split", torch.unbind, "unbind"):
        position = {torch.cat: 1, torch.stack: 1, torch.unbind: 1, "unbind": 1}.get(call, 2)
        return bool(node.kwargs.get("dim", node.args[position] if len(node.args) > position else 0) == 0)
    if call in (torch.permute, "permute"):
        first = settings[0][0] if settings and isinstance(settings[0], tuple | list) else (settings or [1])[0]
        return bool(first != 0)
    if call in (torch.transpose, "transpose", torch.movedim, torch.unsqueeze, "unsqueeze"):
        return any(dim == 0 or not isinstance(dim, int) or dim <= -len(shape_of(node)) for dim in settings)
    if call is operator.getitem and shape_of(node.all_input_nodes[0]):
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return index[0] is not Ellipsis and bool(index[0] != slice(None))
    return call in (".T", ".mT", "t", torch.squeeze, "squeeze")


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
