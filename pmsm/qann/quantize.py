"""ANN -> QANN: where the sites are, and a quantizer at each of them."""

import copy
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import PMSMError, QuantizationError
from pmsm.graph import Network, Node
from pmsm.methods.base import Method, Quantizer, Site


def quantize(
    ann: nn.Module,
    method: Method,
    example: Any,
    *,
    overrides: Mapping[str, Method] | None = None,
    skip: Iterable[str] = (),
    leaves: Iterable[type[nn.Module]] = (),
) -> Network:
    """A quantized copy of a float network: a trainable, not yet calibrated quantizer at every site.

    Sites are the activations, and the inputs of weighted layers that are not codes already; the network's own
    input stays analog. A quantizer takes the place of ReLU and stands behind any other activation. MaxPool
    moves in front of the quantizer, with which it commutes, so that every weighted layer receives codes at
    any number of timesteps.

    Args:
        ann: float network; left untouched.
        method: algorithm and settings, e.g. `PMSM(levels=9)`.
        example: a tensor, or a tuple of tensors for several inputs; one batch, batch dimension first.
        overrides: name pattern -> method of the sites it matches, e.g. {"blocks.*.attn.*": PMSM(levels=33)};
            a later pattern wins.
        skip: name patterns of sites to leave out: their signals stay float.
        leaves: module types to be kept as one opaque operator each.

    Raises:
        TraceError: the network cannot be written as a graph, or refuses the example.
        QuantizationError: NaN or Inf among the weights, no site, or a pattern that matches no site.
    """
    _refuse_bad_arguments(ann, method, example)
    refuse_bad_weights(ann, QuantizationError)
    qann = graph.trace(ann, example, leaves)
    plan = _Plan(method, dict(overrides or {}), tuple(skip))
    _place_at_activations(qann, plan)
    _move_behind_pools(qann, plan)
    _place_at_weighted_inputs(qann, plan)
    plan.refuse_unmatched()
    if not any(True for _ in graph.modules(qann, Quantizer)):
        kinds = sorted(
            {getattr(k, "__name__", str(k)) for k in (graph.kind_of(qann, n) for n in qann.graph.nodes)}
        )
        raise QuantizationError(
            f"no site found in {type(ann).__name__}: no activation and no weighted layer behind another "
            f"layer among its operators ({', '.join(kinds)}). Pass the network itself, not a single layer of "
            f"it, or name the module types that hide its layers from tracing otherwise than in leaves=."
        )
    return graph.finish(qann)


class _Plan:
    """Which method each site gets, by its name; remembers which patterns have matched."""

    def __init__(self, method: Method, overrides: dict[str, Method], skip: tuple[str, ...]):
        self.method, self.overrides, self.skip = method, overrides, skip
        self.matched: set[str] = set()
        self.seen: list[str] = []

    def at(self, name: str) -> Method | None:
        """The method for the site of that name; None where it is left out."""
        self.seen.append(name)
        fitting = [p for p in (*self.overrides, *self.skip) if fnmatchcase(name, p)]
        self.matched.update(fitting)
        if any(p in self.skip for p in fitting):
            return None
        return self.overrides[fitting[-1]] if fitting else self.method

    def refuse_unmatched(self) -> None:
        """A pattern without a site is a mistake."""
        missing = [p for p in (*self.overrides, *self.skip) if p not in self.matched]
        if missing:
            raise QuantizationError(
                f"no site matches {', '.join(map(repr, missing))}. The sites are "
                f"{', '.join(dict.fromkeys(self.seen))}; '*' matches any text."
            )


def clipped(qann: Network) -> Network:
    """The float network that the SNN tends to as T grows: each quantizer clips, and no longer rounds.

    At each site x -> min(max(x, quant_min * scale), quant_max * scale).
    """
    graph.require(qann, "clipped", QuantizationError)
    limit = copy.deepcopy(qann).eval()
    for node, quantizer in list(graph.modules(limit, Quantizer)):
        limit.set_submodule(str(node.target), Clip(quantizer))
    return graph.finish(limit)


class Clip(nn.Module):
    """min(max(x, low), high), with the bounds of a quantizer; activation units."""

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        threshold = quantizer.threshold()
        self.register_buffer("low", threshold * quantizer.quant_min)
        self.register_buffer("high", threshold * quantizer.quant_max)
        self.low: Tensor
        self.high: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def _refuse_bad_arguments(ann: Any, method: Any, example: Any) -> None:
    if not isinstance(method, Method):
        raise QuantizationError(f"quantize needs a method such as pmsm.PMSM(levels=9), got {method!r}.")
    if not isinstance(ann, nn.Module) or any(isinstance(module, Quantizer) for module in ann.modules()):
        raise QuantizationError(
            f"quantize needs a float network, got {type(ann).__name__}, which is none or is quantized "
            f"already. Pass the nn.Module that was trained."
        )
    tensors = [
        x for x in (example if isinstance(example, tuple | list) else [example]) if isinstance(x, Tensor)
    ]
    if not tensors or any(x.numel() == 0 for x in tensors):
        raise QuantizationError(
            "quantize needs an example: one real batch, or a tuple of inputs, batch dimension first, not "
            "empty."
        )


def refuse_bad_weights(ann: nn.Module, refuse: type[PMSMError]) -> None:
    """Refuse a network whose parameters and buffers hold no values, or NaN or Inf; `start` of an uncalibrated
    site is none.
    """
    tensors = [(n, t) for n, t in (*ann.named_parameters(), *ann.named_buffers()) if t.is_floating_point()]
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise refuse(
            f"{type(ann).__name__} has no values in {', '.join(empty)}: on the meta device. Materialize "
            f"it and load its weights, ann.to_empty(device='cpu').load_state_dict(weights)."
        )
    if bad := [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]:
        raise refuse(
            f"{type(ann).__name__} holds NaN or Inf in {', '.join(bad)}. Load sound weights, or train again "
            f"with a smaller learning rate."
        )


# ----------------------------------------------------------------------------------------------------------
# Where the sites are
# ----------------------------------------------------------------------------------------------------------


def _place_at_activations(qann: Network, plan: _Plan) -> None:
    """A quantizer in place of ReLU, behind any other activation; none where nothing weighted reads it."""
    wanted = _read_by_weighted(qann) & graph.signals(qann)
    for node in list(qann.graph.nodes):
        if not graph.is_module(qann, node, graph.ACTIVATIONS) or node not in wanted:
            continue
        if not graph.is_module(qann, node, graph.RELU):
            _insert(qann, plan, node, rectified=False)
        elif method := plan.at(str(node.target)):
            site = _site(qann, node, str(node.target), rectified=True)
            qann.set_submodule(str(node.target), _quantizer(qann, method, site))


def _move_behind_pools(qann: Network, plan: _Plan) -> None:
    """Let every MaxPool read what its quantizers would have read, and put one quantizer behind it."""
    for node in list(qann.graph.nodes):
        if not graph.is_module(qann, node, graph.MAXPOOLS):
            continue
        if getattr(graph.module_of(qann, node), "return_indices", False):
            raise QuantizationError(
                f"{str(node.target)!r} returns indices, which spikes cannot carry. Use return_indices=False, "
                f"or keep the module around it as one operator, leaves=[ThatModule]."
            )
        region, sources = _codes_into(qann, node)
        if not sources:
            continue
        closed = all(reader in region for n in (*region - {node}, *sources) for reader in n.users)
        rectified = [graph.module_of(qann, source).site.rectified for source in sources]  # pyright: ignore
        if closed:
            for source in sources:
                _unplace(qann, source, keep_relu=not all(rectified))
        elif (source := node.all_input_nodes[0]) in sources:  # other readers keep their quantizer
            rectified = [graph.module_of(qann, source).site.rectified]  # pyright: ignore
            node.replace_input_with(source, source.all_input_nodes[0])
        else:
            rectified = [False]
        _insert(qann, plan, node, rectified=all(rectified))


def _codes_into(qann: Network, pool: Node) -> tuple[set[Node], list[Node]]:
    """The operators between a pool and the quantizers whose codes reach it unchanged, and those quantizers.

    No quantizers where any signal on the way is not a code.
    """
    region, sources, waiting = {pool}, [], list(pool.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in region or node in sources:
            continue
        if graph.is_module(qann, node, (Quantizer,)):
            sources.append(node)
        elif moves_codes(qann, node):
            region.add(node)
            waiting += node.all_input_nodes
        else:
            return region, []
    return region, sources


def _unplace(qann: Network, node: Node, *, keep_relu: bool) -> None:
    """Take a quantizer out again; where it had taken the place of a ReLU that nothing else applies, put that
    back.
    """
    rectified = graph.module_of(qann, node).site.rectified  # pyright: ignore[reportAttributeAccessIssue]
    if rectified and keep_relu:
        qann.set_submodule(str(node.target), nn.ReLU())
    else:
        graph.remove(qann, node)


def _place_at_weighted_inputs(qann: Network, plan: _Plan) -> None:
    """A quantizer wherever a layer or product would read something that is neither a code nor the input."""
    signals, coded, analog = graph.signals(qann), _coded(qann), _analog(qann)
    readers: dict[Node, list[Node]] = {}
    for node in qann.graph.nodes:
        for source in operands(qann, node, signals):
            if source not in coded and source not in analog:
                readers.setdefault(source, []).append(node)
    for source, nodes in readers.items():
        _insert(qann, plan, source, rectified=False, readers=nodes)


def operands(network: Network, node: Node, signals: set[Node]) -> list[Node]:
    """The signals that the node multiplies by weights or by each other as matrices: they must be codes."""
    product = node.op in ("call_function", "call_method") and (
        node.target in graph.WEIGHTED_CALLS or node.target in graph.MATRIX_PRODUCTS
    )
    if graph.is_module(network, node, graph.WEIGHTED) or product:
        return [n for n in dict.fromkeys(node.all_input_nodes) if n in signals]
    return []


def moves_codes(network: Network, node: Node) -> bool:
    """Whether the node only moves, repeats or drops values, so that codes stay codes."""
    if graph.is_module(network, node, (nn.Upsample,)):
        return getattr(graph.module_of(network, node), "mode", "") == "nearest"
    if node.target is F.interpolate:
        return (node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")) == "nearest"
    if node.target in graph.PADDING_CALLS:
        return not node.kwargs.get("value") and not (len(node.args) > 3 and node.args[3])
    return graph.is_module(network, node, graph.MOVES) or (
        node.op in ("call_function", "call_method") and graph.call_of(node) in graph.MOVING_CALLS
    )


def _coded(qann: Network) -> set[Node]:
    """Nodes whose values are codes, or means of codes: average pools are linear and join the weights behind
    them.
    """
    signals, coded = graph.signals(qann), set()
    for node in qann.graph.nodes:
        passes = (
            moves_codes(qann, node)
            or graph.is_module(qann, node, graph.AVGPOOLS)  # a MaxPool of codes has its own site by now
            or (node.op in ("call_function", "call_method") and node.target in graph.MEAN_CALLS)
        )
        if graph.is_module(qann, node, (Quantizer,)):
            coded.add(node)
        elif passes and all(n in coded for n in node.all_input_nodes if n in signals):
            coded.add(node)
    return coded


def _analog(qann: Network) -> set[Node]:
    """The network's input and what is made of it in front of the first weighted layer and the first site."""
    signals, analog = graph.signals(qann), set()
    for node in qann.graph.nodes:
        stops = bool(operands(qann, node, signals)) or graph.is_module(
            qann, node, (*graph.ACTIVATIONS, Quantizer)
        )
        if node.op == "placeholder" or (
            not stops and node in signals and all(n in analog for n in node.all_input_nodes if n in signals)
        ):
            analog.add(node)
    return analog


def _read_by_weighted(qann: Network) -> set[Node]:
    """Nodes on which the input of some weighted layer depends."""
    signals, read = graph.signals(qann), set()
    for node in reversed(qann.graph.nodes):
        if any(operands(qann, reader, signals) or reader in read for reader in node.users):
            read.add(node)
    return read


# ----------------------------------------------------------------------------------------------------------
# One site
# ----------------------------------------------------------------------------------------------------------


def _site(qann: Network, node: Node, name: str, *, rectified: bool) -> Site:
    return Site(name, graph.shape_of(node), graph.channel_dim(qann, node), rectified)


def _quantizer(qann: Network, method: Method, site: Site) -> Quantizer:
    like = next((p for p in qann.parameters() if p.is_floating_point()), torch.empty(0))
    largest = round(1 / torch.finfo(like.dtype).eps)  # from here on, v + 1/2 is rounded
    if getattr(method, "levels", 2) - 1 > largest:
        raise QuantizationError(
            f"{method!r} has more levels than {like.dtype} counts exactly, {largest + 1} at most. Quantize "
            f"ann.float(), or take fewer levels."
        )
    return method.quantizer(site).to(like.device, like.dtype).eval()


def _insert(
    qann: Network, plan: _Plan, node: Node, *, rectified: bool, readers: list[Node] | None = None
) -> None:
    """Put a quantizer behind `node`, unless the plan leaves it out."""
    name = graph.free_name(qann, f"{graph.operator_name(qann, node)}_site")
    if method := plan.at(name):
        site = _site(qann, node, name, rectified=rectified)
        graph.insert_after(qann, node, name, _quantizer(qann, method, site), readers)
    elif rectified:  # the ReLU that the quantizer would have applied
        graph.insert_after(qann, node, name, nn.ReLU(), readers)
