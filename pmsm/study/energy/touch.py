"""Where a spike arrives: operators with every weight replaced by 1, so that their gradient counts synapses.

The result of a touch holds how many spikes have arrived at each place, and is linear in the spikes. The
gradient of its sum is, at each neuron, how many places one spike of it reaches: its fan-out, exact at
borders, because the operator itself, and no formula of ours, says which values it reads.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.graph import Network, Node

Values = Mapping[Node, Any]
Touch = Callable[[Network, Node, Values, set[Node]], Any]
"""(network, call, operands, those among them that hold spikes) -> arrivals, [1, ...] float64. The spikes of
one sample are float64, other operands as the network computed them.
"""


def as_it_is(network: Network, node: Node, values: Values, spiking: set[Node]) -> Any:
    """Moves, repeats and sums: every weight is 1 already."""
    return graph.apply(network, node, dict(values))


def added(network: Network, node: Node, values: Values, spiking: set[Node]) -> Tensor:
    """Sums, differences, products with a constant: signs and factors belong to the weights behind."""
    operands = [values[leaf] for leaf in mentions(node) if leaf in spiking]
    return torch.stack(torch.broadcast_tensors(*operands)).sum(0).expand(graph.shape_of(node))


def summed(network: Network, node: Node, values: Values, spiking: set[Node]) -> Tensor:
    """A mean without its factor."""
    args, kwargs = _filled(node, values)
    return torch.sum(*args, **kwargs)


def spread(network: Network, node: Node, values: Values, spiking: set[Node]) -> Tensor:
    """Average pools and interpolations, dimension by dimension: every weight that is not 0 becomes 1."""
    source = node.all_input_nodes[0]
    counts: Tensor = values[source]
    sizes = counts.shape[2:]
    for dim, places in enumerate(sizes):
        # One picture per place along this dimension: 1 there, 0 elsewhere, the same along all others.
        shape = [places, 1, *(places if d == dim else 1 for d in range(len(sizes)))]
        basis = torch.eye(places, dtype=counts.dtype, device=counts.device).view(shape)
        basis = basis.expand(places, 1, *sizes)
        reached = graph.apply(network, node, {**values, source: basis}) != 0
        reached = reached.movedim(dim + 2, 1).flatten(2).any(2).to(counts.dtype)
        counts = (counts.movedim(dim + 2, -1) @ reached).movedim(-1, dim + 2)
    return counts


def unit_weights(network: Network, node: Node, values: Values, spiking: set[Node]) -> Tensor:
    """A weighted layer; all output channels of a group are alike, so that one stands for all."""
    if _first(node) not in spiking:
        return one_operand(network, node, values, spiking)
    module: Any = graph.module_of(network, node) if node.op == "call_module" else None
    settings = _settings(node, values) if module is None else {}
    counts: Tensor = values[_first(node)]
    weight: Tensor = settings["weight"] if module is None else module.weight
    if weight.dim() == 2:
        return counts.sum(-1, keepdim=True) * len(weight)
    groups = settings.get("groups", 1) if module is None else module.groups
    transposed = node.target in TRANSPOSED if module is None else module.transposed
    channel = 1 - weight.dim()
    counts = counts.unflatten(channel, (groups, -1)).sum(channel)
    kernel = torch.ones(groups, 1, *weight.shape[2:], dtype=counts.dtype, device=counts.device)
    outputs = weight.shape[1] if transposed else len(weight) // groups
    if module is None:
        return node.target(**settings | {"input": counts, "weight": kernel, "bias": None}) * outputs  # pyright: ignore[reportCallIssue]
    unit = copy.copy(module)
    unit._parameters = {"weight": nn.Parameter(kernel, requires_grad=False), "bias": None}
    args, kwargs = _filled(node, values)
    return unit(counts, *args[1:], **kwargs) * outputs


TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
PARAMETERS = ("input", "weight", "bias", "stride", "padding")


def _settings(node: Node, values: Values) -> dict[str, Any]:
    """The arguments of a weighted function by name."""
    args, kwargs = _filled(node, values)
    last = ("output_padding", "groups", "dilation") if node.target in TRANSPOSED else ("dilation", "groups")
    return dict(zip((*PARAMETERS, *last), args, strict=False)) | kwargs


def _first(node: Node) -> Node:
    return node.kwargs["input"] if "input" in node.kwargs else node.args[0]  # pyright: ignore[reportReturnType]


def one_operand(network: Network, node: Node, values: Values, spiking: set[Node]) -> Tensor:
    """A product of matrices: the spikes of its first spiking operand, against matrices of 1."""
    leaves, form = pytree.tree_flatten((node.args, node.kwargs))
    driver = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Node) and leaf in spiking)
    ones = [torch.ones_like(values[x], dtype=torch.float64) if isinstance(x, Node) else x for x in leaves]
    ones[driver] = values[leaves[driver]]
    args, kwargs = pytree.tree_unflatten(ones, form)
    if isinstance(node.target, str):
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def mentions(node: Node) -> list[Node]:
    """The operands of a call, each as often as it is mentioned; those inside a slice once."""
    leaves = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]
    return leaves + [n for n in node.all_input_nodes if n not in leaves]


def _filled(node: Node, values: Values) -> tuple[list[Any], dict[str, Any]]:
    """Arguments with the values in place of the nodes."""
    leaves, form = pytree.tree_flatten((node.args, node.kwargs))
    args, kwargs = pytree.tree_unflatten([values[x] if isinstance(x, Node) else x for x in leaves], form)
    return list(args), dict(kwargs)
