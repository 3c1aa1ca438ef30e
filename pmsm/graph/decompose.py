"""Operators that hide others: what they are made of, so that every product and activation is in the graph."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

from pmsm.errors import TraceError
from pmsm.graph.network import Network, Node, module_of


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """softmax(query key^T * scale + mask) value; [..., L, E], [..., S, E], [..., S, V] -> [..., L, V].

    Source: the reference form in the documentation of torch.nn.functional.scaled_dot_product_attention.
    """
    if enable_gqa:
        raise TraceError("grouped-query attention (enable_gqa=True) has no written-out form here yet")
    factor = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal is not False:
        sizes = query.size(-2), key.size(-2), is_causal, query.device
        scores = scores + query.tracer.create_proxy("call_function", causal_mask, sizes, {})
    if attn_mask is not None:
        scores = _mask(scores, attn_mask)
    return torch.matmul(F.dropout(torch.softmax(scores, -1), dropout_p, training=dropout_p > 0), value)


def _mask(scores: Any, mask: Any, *, keep: bool = True) -> Any:
    """Add a float mask, or drop where a boolean one is not `keep`; which it is, is known at run time only."""
    return scores + mask.tracer.create_proxy("call_function", additive_mask, (mask, keep), {})


def causal_mask(queries: int, keys: int, is_causal: bool, device: torch.device) -> torch.Tensor:
    """[queries, keys]: each query sees the keys up to its own place, or all if not `is_causal`."""
    keep = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return additive_mask(keep.tril() if is_causal else keep)


def additive_mask(mask: torch.Tensor, keep: bool = True) -> torch.Tensor:
    """A boolean mask (`keep`: stays) as 0 and a number so low that its softmax is 0; a float mask as it is.

    Not -inf: over time a signal is summed and differenced, and differences of infinities are no numbers.
    """
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_fill(mask != keep, torch.finfo(zeros.dtype).min / 2**32)


def multihead_attention(
    module: nn.MultiheadAttention, parameter: Callable[[str], Any], call: Callable[..., Any],
    query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
    attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """`nn.MultiheadAttention` from linear maps, products and a softmax.

    Args:
        parameter: name -> proxy of a parameter of the module.
        call: (name, x) -> proxy of a submodule's result.
    """
    if module.bias_k is not None or module.add_zero_attn or key_padding_mask is not None:
        raise TraceError("nn.MultiheadAttention with add_bias_kv, add_zero_attn or key_padding_mask")
    embed, heads = module.embed_dim, module.num_heads
    if module.in_proj_weight is not None:
        weights = [parameter("in_proj_weight")[i * embed : (i + 1) * embed] for i in range(3)]
    else:
        weights = [parameter(f"{name}_proj_weight") for name in "qkv"]
    biases: list[Any] = [None] * 3
    if module.in_proj_bias is not None:
        biases = [parameter("in_proj_bias")[i * embed : (i + 1) * embed] for i in range(3)]
    signals = (query, key, value) if module.batch_first else (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (heads, embed // heads)).transpose(1, 2)
        for x, w, b in zip(signals, weights, biases, strict=True)
    )
    scores = torch.matmul(q * (embed // heads) ** -0.5, k.transpose(-2, -1))
    if attn_mask is not None:  # here True means: leave out
        scores = _mask(scores, attn_mask, keep=False)
    share = torch.softmax(scores, -1)
    if module.dropout:
        share = F.dropout(
            share, module.dropout, training=False
        )  # as a module it follows the mode of the network
    out = call("out_proj", torch.matmul(share, v).transpose(1, 2).flatten(2))
    out = out if module.batch_first else out.transpose(0, 1)
    return out, (share.mean(1) if average_attn_weights else share)


def _addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + (a * b if value == 1 else a * b * value)


def _baddbmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return (x if beta == 1 else x * beta) + (torch.bmm(a, b) if alpha == 1 else torch.bmm(a, b) * alpha)


def _addmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return (x if beta == 1 else x * beta) + (torch.matmul(a, b) if alpha == 1 else torch.matmul(a, b) * alpha)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    **dict.fromkeys((torch.addcmul, "addcmul"), _addcmul),
    **dict.fromkeys((torch.baddbmm, "baddbmm"), _baddbmm),
    **dict.fromkeys((torch.addmm, "addmm"), _addmm),
}
"""Function or method name -> the same, written in operators that the tables know."""

MODULES: dict[type[nn.Module], Callable[..., Any]] = {nn.MultiheadAttention: multihead_attention}
"""Module type -> the same, from its parameters and submodules."""


def decompose(network: Network) -> bool:
    """Replace every call in `FUNCTIONS` and `MODULES` by what it is made of; returns whether there was one.

    The parts round differently from a fused kernel: the network stays the same up to rounding only.
    """
    found = [node for node in network.graph.nodes if _parts(network, node) is not None]
    for node in found:
        before = set(network.graph.nodes)
        parts: Any = _parts(network, node)
        with network.graph.inserting_before(node):
            tracer = GraphAppendingTracer(network.graph)
            proxies: dict[Node, Any] = {n: fx.Proxy(n, tracer) for n in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), proxies.__getitem__)
            if node.op == "call_module":
                result = parts(module_of(network, node), *_access(network, node, tracer), *args, **kwargs)
            else:
                result = parts(*args, **kwargs)
        for new in set(network.graph.nodes) - before:
            new.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
            new.meta["is_wrapped"] = new.target in (additive_mask, causal_mask)  # stay calls when unpickled
        _replace(network, node, result)
    return bool(found)


def _parts(network: Network, node: Node) -> Callable[..., Any] | None:
    if node.op == "call_module":
        return MODULES.get(type(module_of(network, node)))
    return FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None


def _access(network: Network, node: Node, tracer: Any) -> tuple[Callable[[str], Any], Callable[..., Any]]:
    def parameter(name: str) -> fx.Proxy:
        return fx.Proxy(network.graph.get_attr(f"{node.target}.{name}"), tracer)

    def call(name: str, x: fx.Proxy) -> fx.Proxy:
        return fx.Proxy(network.graph.call_module(f"{node.target}.{name}", (x.node,)), tracer)

    return parameter, call


def _replace(network: Network, node: Node, result: Any) -> None:
    """Let the readers of `node` read `result`, a proxy or a tuple of proxies whose members they pick."""
    if isinstance(result, tuple):
        for reader in list(node.users):
            if len(reader.args) != 2 or not isinstance(reader.args[1], int):
                raise TraceError(
                    f"{node.name!r} is used whole: pick its members, attention, weights = module(...)."
                )
            reader.replace_all_uses_with(result[reader.args[1]].node)
            network.graph.erase_node(reader)
    else:
        node.replace_all_uses_with(result.node)
    network.graph.erase_node(node)
