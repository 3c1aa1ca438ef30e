"""Where the batch lies: whether samples stay apart in dimension 0 wherever something happens to them."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from pmsm.graph.network import Network, Node, call_of, module_of, shape_of, signals
from pmsm.graph.operators import MOVING_CALLS


def keeps_batch_first(network: Network) -> bool:
    """Whether the batch is dimension 0 for every operator that is more than a move, and of every output, as
    far as the calls can tell.

    Between two such operators it may move and come back, as where attention splits q, k and v.
    """
    carriers, at = signals(network), {}
    for node in network.graph.nodes:
        if node not in carriers:
            continue
        if node.op == "placeholder":
            at[node] = 0
            continue
        before = {at[signal] for signal in node.all_input_nodes if signal in at}
        if node.op == "output":
            return before <= {0}
        if before == {0} and not _moves_first(network, node):
            at[node] = 0
        else:
            at[node] = _moved(network, node, before.pop()) if len(before) == 1 else None
            if at[node] is None:
                return False
    return True


def _moved(network: Network, node: Node, batch: int) -> int | None:
    """The dimension in which a mere move leaves the batch that was in `batch`; None: no mere move."""
    source = node.all_input_nodes[0]
    rank, call = len(shape_of(source)), call_of(node)
    if node.op == "call_module":
        return batch if isinstance(module_of(network, node), nn.Dropout | nn.Identity) else None
    if len(node.all_input_nodes) > 1:
        return None
    if call in (torch.permute, "permute"):
        order: Any = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return [d % rank for d in order].index(batch) if _numbers(order) else None
    dims: Any = node.args[1:]
    if call in _SWAPS and len(dims) == 2 and _numbers(dims):
        i, j = (d % rank for d in dims)
        return {i: j, j: i}.get(batch, batch)
    if call in (torch.unbind, "unbind", torch.select, "select"):
        along: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return _without(batch, along % rank) if isinstance(along, int) else None
    if call in (torch.chunk, "chunk", torch.split, "split"):
        along: Any = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        return batch if isinstance(along, int) and along % rank != batch else None
    if call is operator.getitem:
        return _indexed(batch, node.args[1]) if rank else batch  # of a tuple: one of its tensors
    return batch if call in ("contiguous", "clone", torch.clone, "detach") else None


def _indexed(batch: int, index: Any) -> int | None:
    """Where the batch is behind x[index]."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, int | slice) for part in index):
        return None
    if batch < len(index) and index[batch] != slice(None):
        return None
    return batch - sum(isinstance(part, int) for part in index[:batch])


def _without(batch: int, removed: int) -> int | None:
    return None if removed == batch else batch - (removed < batch)


def _numbers(dims: Any) -> bool:
    return all(isinstance(d, int) for d in dims)


_SWAPS = {torch.transpose, "transpose", torch.swapaxes, "swapaxes"}
_DIMENSION_AT: dict[Any, int] = {
    **dict.fromkeys(
        (torch.cat, torch.stack, torch.unbind, "unbind", torch.mean, "mean", torch.sum, "sum"), 1
    ),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze", torch.squeeze, "squeeze", torch.flip, "flip"), 1),
    **dict.fromkeys((torch.narrow, "narrow", torch.select, "select", torch.cumsum, "cumsum"), 1),
    **dict.fromkeys((torch.index_select, "index_select"), 1),
    **dict.fromkeys(
        (torch.softmax, "softmax", torch.amax, "amax", torch.amin, "amin", torch.prod, "prod"), 1
    ),
    **dict.fromkeys((torch.chunk, "chunk", torch.split, "split", "split_with_sizes", torch.roll, "roll"), 2),
    **dict.fromkeys((torch.repeat_interleave, "repeat_interleave"), 2),
    **dict.fromkeys((torch.max, "max", torch.min, "min", torch.var, "var", torch.std, "std"), 1),
    **dict.fromkeys((torch.any, "any", torch.all, "all", torch.argsort, "argsort"), 1),
    **dict.fromkeys((torch.argmax, "argmax", torch.argmin, "argmin", torch.gather, "gather"), 1),
    **dict.fromkeys((F.log_softmax, torch.log_softmax), 1),
    **dict.fromkeys((torch.norm, "norm", torch.linalg.norm, torch.linalg.vector_norm, F.normalize), 2),
}
"""Call -> position of the argument that says along which dimension it works; without it, along all or the
first.
"""

_PAIRS = {torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.movedim, "movedim"}
_KEEP = {
    torch.flatten, "flatten", torch.unflatten, "unflatten", torch.reshape, "reshape", "view", "view_as",
    "contiguous", "detach", "clone", torch.clone, "expand_as", "expand",
}  # fmt: skip
"""Calls that keep the order of the elements in memory: dimension 0 stays the slowest."""


def _moves_first(network: Network, node: Node) -> bool:
    """Whether a call moves, splits, joins or mixes dimension 0 of its signal; in doubt, it does."""
    if node.op in ("placeholder", "output"):
        return False
    rank = len(shape_of(node.all_input_nodes[0]))
    if node.op == "call_module":
        module = module_of(network, node)
        dim = getattr(module, "dim", getattr(module, "start_dim", None))
        return isinstance(dim, int) and _touches_first(dim, rank)
    call = call_of(node)
    if call in _DIMENSION_AT:
        at = _DIMENSION_AT[call]
        given = node.args[at] if len(node.args) > at else None
        return _touches_first(
            node.kwargs.get("dim", node.kwargs.get("dims", given)), rank or len(shape_of(node))
        )
    if call in _PAIRS:
        return _touches_first([*node.args[1:], *node.kwargs.values()], rank)
    if call in (torch.permute, "permute"):
        order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return not order or bool(order[0] != 0)
    if call is operator.getitem and rank:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return index[0] is not Ellipsis and bool(index[0] != slice(None))
    if call is torch.einsum:
        operands, _, result = str(node.args[0]).replace(" ", "").partition("->")
        return any(not result or result[0] != letters[0] for letters in operands.split(","))
    return call in MOVING_CALLS - _KEEP - {operator.getitem, ".mT"} or (call == ".mT" and rank < 3)


def _touches_first(dims: Any, rank: int) -> bool:
    """Whether dimension 0 is among `dims`, or may be."""
    listed = pytree.tree_leaves(dims)
    return not listed or any(not isinstance(d, int) or d == 0 or d <= -rank for d in listed)
