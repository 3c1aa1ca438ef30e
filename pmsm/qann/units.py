"""What one count is worth in every tensor of a network whose numbers are all whole multiples of a unit."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import PMSMError, QuantizationError
from pmsm.graph import Network, Node
from pmsm.methods.neuron import TrackingNeuron
from pmsm.qann.align import DENOMINATORS, SITES, is_sum, site_behind, steps
from pmsm.qann.quantize import moves_codes

LAYERS = (nn.Conv2d, nn.Linear)
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)

_NEAR = 1e-6  # relative: steps are float32, whose own rounding is 6e-8


class InputGrid(nn.Module):
    """The network's input as whole multiples of `step` from -127 to 127: 8 bits, as a converter delivers.

    step * clip(floor(x / step + 1/2), -127, 127). A power of two as step makes the division exact on every
    machine.
    """

    largest: ClassVar[int] = 127

    def __init__(self, step: float):
        super().__init__()
        self.step = step

    def counts(self, x: Tensor) -> Tensor:
        """[...] analog -> [...] whole numbers."""
        return (x / self.step + 0.5).floor().clamp(-self.largest, self.largest)

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        return self.counts(x) * self.step

    def extra_repr(self) -> str:
        """The step."""
        return f"step={self.step}"


class WholeConv2d(nn.Conv2d):
    """A convolution whose weights are whole multiples of a unit per output channel, beside those numbers.

    Buffers: `weight_codes` int8, shaped as the weights; `bias_codes` [O] int32; `unit` [O] float64. They
    stand for weight * step of the input channel = weight_codes * unit, and bias = bias_codes * unit.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, padding_mode: Any = "zeros",
    ):  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )
        _hold_codes(self)


class WholeLinear(nn.Linear):
    """As `WholeConv2d`, for a matrix."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        _hold_codes(self)


WHOLE_LAYERS = (WholeConv2d, WholeLinear)


def _hold_codes(layer: Any) -> None:
    layer.register_buffer("weight_codes", torch.zeros_like(layer.weight, dtype=torch.int8))
    layer.register_buffer("bias_codes", torch.zeros(len(layer.weight), dtype=torch.int32))
    layer.register_buffer("unit", torch.ones(len(layer.weight), dtype=torch.float64))


def whole_layer(layer: Any) -> Any:
    """A layer with the parameters of `layer`, and room for codes."""
    if isinstance(layer, nn.Linear):
        whole: Any = WholeLinear(layer.in_features, layer.out_features)
    else:
        whole = WholeConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups,
        )  # fmt: skip
    whole.weight = layer.weight
    for name, child in layer.named_children():
        whole.add_module(name, child)
    return whole.to(layer.weight.device).train(layer.training)


class Units:
    """Walks through a network in its order: what is read, then `pass_on`, node by node.

    A unit is kept as a tensor [1, C, ...] shaped like one sample of the signal, activation units; 0 where the
    signal is always zero (padding).
    """

    def __init__(self, network: Network):
        self.network = network
        self.signals = graph.signals(network)
        self.values: dict[Node, Any] = {}

    def read(self, node: Node) -> Tensor:
        """[input channels] of a layer, activation units."""
        return self.channels(node.all_input_nodes[0])

    def channels(self, node: Node) -> Tensor:
        """[C], the unit of each channel of a signal; 1 where it is always zero."""
        unit = self._arriving(node)
        return torch.where(unit == 0, torch.ones_like(unit), unit)

    def _arriving(self, node: Node) -> Tensor:
        """[C], the unit of each channel of a signal; 0 where it is always zero."""
        values = self.values[node]
        flat = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
        unit = flat.amax(2)[0]
        if not bool(((flat == unit[None, :, None]) | (flat == 0)).all()):
            raise QuantizationError(
                f"{graph.operator_name(self.network, node)!r} mixes channels of different steps into one, so "
                f"its counts have no common unit. Use one step per site, PMSM(levels=9, per_channel=False)."
            )
        return unit

    def pass_on(self, node: Node) -> None:
        """Learn the unit of what `node` returns."""
        if node.op == "output":
            return
        if node.op == "placeholder":
            self._set(node, torch.ones(1))
        elif graph.is_module(self.network, node, (InputGrid,)):
            grid: Any = graph.module_of(self.network, node)
            self._set(node, torch.tensor([grid.step]))
        elif graph.is_module(self.network, node, LAYERS):
            unit = getattr(graph.module_of(self.network, node), "unit", None)
            self._set(node, torch.ones(graph.shape_of(node)[1]).double() if unit is None else unit)
        elif graph.is_module(self.network, node, SITES):
            self._set(node, steps(graph.module_of(self.network, node)))
        elif is_sum(node):
            self._set(node, self.sum(node)[0])
        elif graph.is_module(self.network, node, AVERAGES):
            count = 1
            for size in window(self.network, node)[0]:
                count *= size
            self._set(node, self.channels(node.all_input_nodes[0]) / count)
        else:
            self.values[node] = graph.apply(self.network, node, self.values)

    def threshold(self, node: Node) -> Tensor:
        """[C], float64 whole numbers: units of what a site sums up in one threshold of its own."""
        unit = self.channels(node.all_input_nodes[0])
        step = steps(graph.module_of(self.network, node)).expand(len(unit))
        whole = (step / unit).round()
        if bool(((step / unit - whole).abs() > _NEAR * whole).any()) or bool((whole < 1).any()):
            raise QuantizationError(
                f"the threshold of {graph.operator_name(self.network, node)!r} is no whole multiple of what "
                f"arrives there. Round the network first, qann = pmsm.quantize_weights(qann), and leave it "
                f"as it is afterwards; where layers are concatenated or moved in front of a site, put an "
                f"activation behind each layer."
            )
        return whole

    def sum(self, node: Node) -> tuple[Tensor, Tensor]:
        """The unit [C] of a sum, and what one count of each branch is worth in it, [branches, C] whole
        numbers.
        """
        site = site_behind(self.network, node)
        if site is None:
            raise QuantizationError(
                f"no site codes the sum {graph.operator_name(self.network, node)!r}, so its branches have no "
                f"common unit. Sums with a site behind them have an integer form."
            )
        branches = torch.stack([self._arriving(source) for source in node.args])  # pyright: ignore
        step = steps(site).expand(branches.shape[1])
        arrives = branches != 0
        branches = torch.where(arrives, branches, step)
        parts = torch.ones_like(step)
        worth = branches / step
        for row in worth:
            parts = parts * torch.where(is_whole(1 / row), (1 / row).round(), torch.ones_like(row))
        odd = next((q for q in DENOMINATORS if bool(is_whole(worth * parts * q).all())), None)
        if odd is None:
            raise QuantizationError(
                f"the branches of the sum {graph.operator_name(self.network, node)!r} have no common unit. "
                f"Round the network first, qann = pmsm.quantize_weights(qann), and leave it as it is "
                f"afterwards."
            )
        return step / (parts * odd), (worth * parts * odd).round() * arrives

    def _set(self, node: Node, unit: Tensor) -> None:
        shape = graph.shape_of(node)[1:]
        unit = unit.double().expand(shape[0]) if unit.numel() == 1 else unit.double()
        self.values[node] = unit.reshape(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)


def window(network: Network, node: Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding of a pool."""
    pool: Any = graph.module_of(network, node)
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        before, after = graph.shape_of(node.all_input_nodes[0])[2:], graph.shape_of(node)[2:]
        kernel = (before[0] // after[0], before[1] // after[1])
        return kernel, kernel, (0, 0)
    stride = pool.kernel_size if pool.stride is None else pool.stride
    return _pair(pool.kernel_size), _pair(stride), _pair(pool.padding)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def per_input(unit: Tensor, layer: Any) -> Tensor:
    """[in channels] -> shaped to go with the weights [O, in channels / groups, ...]."""
    groups = getattr(layer, "groups", 1)
    by_group = unit.view(groups, 1, -1).expand(groups, len(layer.weight) // groups, -1)
    return by_group.reshape(len(layer.weight), -1, *[1] * (layer.weight.dim() - 2))


def refuse_other(network: Network, refuse: type[PMSMError]) -> None:
    """Refuse a network with operators that have no integer form, naming all of them and why."""
    signals, calls, reasons = graph.signals(network), set(), []
    for node in network.graph.nodes:
        if node not in signals or node.op in ("placeholder", "output"):
            continue
        reason = _refusal(network, node)
        if graph.is_module(network, node, LAYERS):
            if str(node.target) in calls:
                reason = "is called twice, and each call would need weights of its own"
            calls.add(str(node.target))
        if reason:
            reasons.append(f"{graph.operator_name(network, node)!r} {reason}")
    if reasons:
        raise refuse(
            f"no integer form: {'; '.join(reasons)}. Integers serve Conv2d, Linear, BatchNorm behind them, "
            f"ReLU and its sites, sums, MaxPool2d, average pools and moves; pmsm.simulate runs everything "
            f"that converts, in floating point."
        )


def _refusal(network: Network, node: Node) -> str:
    """Why an operator has no integer form; "" where it has one."""
    module: Any = graph.module_of(network, node) if node.op == "call_module" else None
    if isinstance(module, TrackingNeuron):
        return "is a tracking neuron; convert with mode='integrate'"
    if isinstance(module, nn.Conv2d):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return "" if plain else "pads with other values than zeros, or by name"
    if isinstance(module, nn.Linear):
        return "" if len(graph.shape_of(node)) == 2 else "is a Linear layer on more than [N, features]"
    if isinstance(module, nn.MaxPool2d):
        plain = module.dilation in (1, (1, 1)) and not module.ceil_mode
        return "" if plain else "is a MaxPool with dilation or ceil_mode"
    if isinstance(module, nn.AvgPool2d):
        plain = not module.ceil_mode and module.divisor_override is None
        even = module.count_include_pad or not any(_pair(module.padding))
        return "" if plain and even else "is an average over windows of different sizes"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        before, after = graph.shape_of(node.all_input_nodes[0])[2:], graph.shape_of(node)[2:]
        even = all(b % a == 0 for b, a in zip(before, after, strict=True))
        return "" if even else "is an average over windows of different sizes"
    if isinstance(module, (*SITES, InputGrid)) or is_sum(node) or moves_codes(network, node):
        return ""
    if isinstance(module, graph.BATCHNORMS):
        return "is a BatchNorm with no layer in front into which it could be folded"
    kind = type(module).__name__ if module is not None else str(graph.call_of(node))
    return f"({kind}) is no whole-number map: softmax, normalizations, products and the like need floats"


def is_whole(x: Tensor) -> Tensor:
    """Where a positive number is whole up to the rounding of float32 steps."""
    return (x.round() >= 1) & ((x - x.round()).abs() <= _NEAR * x.round().clamp(min=1))
