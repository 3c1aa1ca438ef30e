"""How many multiply-accumulates an operator costs: one table, from the recorded shapes."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pmsm import graph
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.snn.convert import RULES, _key


def _operand(node: Node, position: int, name: str) -> tuple[int, ...]:
    """Shape of an argument."""
    return graph.shape_of(node.kwargs[name] if name in node.kwargs else node.args[position])  # pyright: ignore


def _fan(network: Network, node: Node) -> int:
    """Weights per first index: of one output, or of one input where the convolution is transposed."""
    if node.op == "call_module":
        module: Any = graph.module_of(network, node)
        return math.prod(module.weight.shape[1:])
    return math.prod(_operand(node, 1, "weight")[1:])


def _gathered(network: Network, node: Node) -> int:
    return math.prod(graph.shape_of(node)) * _fan(network, node)


def _scattered(network: Network, node: Node) -> int:
    return math.prod(_operand(node, 0, "input")) * _fan(network, node)


def _contracted(position: int, name: str) -> Callable[[Network, Node], int]:
    """A matrix product: as many MACs per output as the left operand has columns."""
    return lambda _, node: math.prod(graph.shape_of(node)) * _operand(node, position, name)[-1]


def _einsum(_: Network, node: Node) -> int:
    """One multiplication per combination of all indices and per operand behind the first."""
    equation, *operands = node.args
    if isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    sizes: dict[Any, int] = {}
    for labels, operand in zip(str(equation).split("->")[0].split(","), operands, strict=True):
        shape = graph.shape_of(operand)  # pyright: ignore[reportArgumentType]
        front, dots, back = labels.replace(" ", "").partition("...")
        more = range(len(front) + len(back) - len(shape), 0) if dots else ()
        for label, size in zip((*front, *more, *back), shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values()) * (len(operands) - 1)


def _attention(_: Network, node: Node) -> int:
    """Each query with each key, and each weight with its value."""
    (*heads, queries, width), keys = _operand(node, 0, "query"), _operand(node, 1, "key")[-2]
    return math.prod(heads) * queries * keys * (width + graph.shape_of(node)[-1])


MACS: dict[Any, Callable[[Network, Node], int]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear), _gathered),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, F.linear), _gathered),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _scattered),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _scattered),
    **dict.fromkeys((operator.matmul, torch.matmul, "matmul", "__matmul__"), _contracted(0, "input")),
    **dict.fromkeys((torch.bmm, "bmm", torch.mm, "mm"), _contracted(0, "input")),
    **dict.fromkeys((torch.baddbmm, "baddbmm"), _contracted(1, "batch1")),
    **dict.fromkeys((torch.addmm, "addmm"), _contracted(1, "mat1")),
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _attention,
}
"""Module type, function or method name -> its multiply-accumulates, for the example batch."""


def count_macs(network: Network, node: Node) -> int | None:
    """Multiply-accumulates of one operator of a traced network, for the whole example batch.

    A kernel counts in full at the borders, and a mask as if it were absent: what dense hardware multiplies.

    Returns:
        The count, 0 for what multiplies nothing by weights or as a matrix; None for a kind of operator that
        stands neither in `MACS` nor in `snn.convert.RULES`.
    """
    kind = graph.kind_of(network, node)
    count = MACS.get(_key(kind, MACS))
    if count is not None:
        return count(network, node)
    return 0 if _key(kind, RULES) in RULES or graph.is_module(network, node, (Quantizer,)) else None
