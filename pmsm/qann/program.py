"""A rounded network as a list of operations on whole numbers: what the integer forms and the exports read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import QuantizationError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron
from pmsm.qann.align import SITES, is_sum
from pmsm.qann.units import AVERAGES, LAYERS, InputGrid, Units, per_input, refuse_other, window

INT32 = 2**31 - 1


@dataclass(frozen=True)
class Operation:
    """One operation on whole numbers; per sample, all shapes without the batch.

    Args:
        kind: what it does, see `KINDS`.
        name: of its result; unique.
        inputs: names of what it reads.
        shape: of its result.
        arrays: whole numbers that it holds.
        settings: numbers and pairs that it holds.
        largest: what its result cannot exceed in one timestep, either sign.
        path: the module or call that it came from.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    largest: int = 0
    path: str = ""


KINDS = {
    "input": "floor(x / step + 1/2), clipped to -127..127; step",
    "conv": "sum of weight * x over channels and window, plus bias; weight [O, I / groups, kh, kw] int8, "
    "bias [O] int32; stride, padding, dilation, groups",
    "linear": "weight @ x + bias; weight [O, I] int8, bias [O] int32",
    "sum": "sum of worth[i] * inputs[i] per channel; worth [inputs, C] int32",
    "maxpool": "largest of each window; kernel, stride, padding. Over time: of the sums so far, less what "
    "was sent before",
    "sumpool": "sum of each window; kernel, stride, padding",
    "move": "index [shape] int32 into the inputs, flattened and laid end to end; -1 is zero",
    "neuron": "v += x; k = clip(floor(v / threshold + 1/2), least, most); with side 1 or -1 the sum of all k "
    "stays at or above t * quant_min, or at or below t * quant_max; v -= k * threshold. threshold [C] and "
    "start [C] int32, v = start at first; quant_min, quant_max, least, most, side",
}
"""Kind of operation -> what it computes from whole numbers alone."""


@dataclass(frozen=True)
class Program:
    """A network on whole numbers.

    Args:
        operations: in the order of execution; the last one's result is the output.
        output_unit: [outputs], what one count of the output is worth.
    """

    operations: tuple[Operation, ...]
    output_unit: np.ndarray


def compile_program(network: Network) -> Program:
    """The program of a network from `quantize_weights`, or of what `convert` made of it in integrate mode.

    Raises:
        QuantizationError: operators without an integer form, weights that are not the whole multiples which
            `quantize_weights` made them, several inputs, sums beyond int32.
    """
    refuse_other(network, QuantizationError)
    if graph.input_count(network) != 1:
        raise QuantizationError(
            f"integer networks take one input, this one takes {graph.input_count(network)}."
        )
    units, compiler = Units(network), _Compiler(network)
    for node in network.graph.nodes:
        if node in units.signals and node.op != "output":
            compiler.add(node, units)
        units.pass_on(node)
    last = next(iter(reversed(network.graph.nodes))).all_input_nodes
    if len(last) != 1 or last[0].name != compiler.operations[-1].name:
        raise QuantizationError("integer networks return one tensor, the result of their last operator.")
    unit = units.channels(last[0]).numpy()
    return Program(tuple(compiler.operations), unit)


class _Compiler:
    def __init__(self, network: Network):
        self.network = network
        self.operations: list[Operation] = []
        self.largest: dict[str, int] = {}

    def add(self, node: Node, units: Units) -> None:
        """The operation of one node; nothing for what changes nothing."""
        inputs = tuple(source.name for source in node.all_input_nodes if source in units.signals)
        bound = max((self.largest[name] for name in inputs), default=0)
        module = graph.module_of(self.network, node) if node.op == "call_module" else None
        arrays: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        if node.op == "placeholder":
            self.largest[node.name] = 0
            return
        elif isinstance(module, InputGrid):
            kind, largest, settings = "input", module.largest, {"step": module.step}
            inputs = ()
        elif isinstance(module, LAYERS):
            kind = "linear" if isinstance(module, torch.nn.Linear) else "conv"
            arrays = _codes(self.network, node, units)
            weights = np.abs(arrays["weight"].astype(np.int64)).reshape(len(arrays["weight"]), -1).sum(1)
            largest = int((weights * bound + np.abs(arrays["bias"].astype(np.int64))).max())
            settings = _geometry(module) if isinstance(module, torch.nn.Conv2d) else {}
        elif isinstance(module, SITES):
            kind = "neuron"
            arrays, settings = _neuron(module, units.threshold(node))
            largest = settings["burst"]
        elif is_sum(node):
            kind, arrays = "sum", {"worth": _whole(units.sum(node)[1])}
            branches: Any = node.args
            inputs = tuple(branch.name for branch in branches)
            rows = np.abs(arrays["worth"].astype(np.int64)).max(1)
            largest = sum(int(row) * self.largest[name] for row, name in zip(rows, inputs, strict=True))
        elif isinstance(module, (torch.nn.MaxPool2d, *AVERAGES)):
            kind = "sumpool" if isinstance(module, AVERAGES) else "maxpool"
            settings = dict(zip(("kernel", "stride", "padding"), window(self.network, node), strict=True))
            largest = bound * (int(np.prod(settings["kernel"])) if kind == "sumpool" else 1)
        else:
            kind, largest, arrays = "move", bound, {"index": self._index(node, units)}
        if largest > INT32:
            raise QuantizationError(
                f"{graph.operator_name(self.network, node)!r} can reach {largest}, beyond int32. Round its "
                f"weights coarser, pmsm.quantize_weights(qann, bits=4), or use fewer levels."
            )
        self.largest[node.name] = largest
        path = graph.operator_name(self.network, node)
        self.operations.append(
            Operation(kind, node.name, inputs, graph.shape_of(node)[1:], arrays, settings, largest, path)
        )

    def _index(self, node: Node, units: Units) -> np.ndarray:
        """[shape], where each value comes from in the inputs laid end to end; -1 for zero."""
        values, first = dict(units.values), 1
        for source in node.all_input_nodes:
            if source in units.signals:
                shape = graph.shape_of(source)[1:]
                size = int(np.prod(shape))
                values[source] = torch.arange(first, first + size, dtype=torch.float64).reshape(1, *shape)
                first += size
        moved = graph.apply(self.network, node, values)
        if not isinstance(moved, Tensor) or tuple(moved.shape) != (1, *graph.shape_of(node)[1:]):
            raise QuantizationError(
                f"{graph.operator_name(self.network, node)!r} returns several tensors or mixes samples, "
                f"which has no integer form here."
            )
        return (moved[0].long() - 1).to(torch.int32).numpy()


def _codes(network: Network, node: Node, units: Units) -> dict[str, np.ndarray]:
    """Weights and biases of a layer as the whole numbers that `quantize_weights` gave it."""
    layer: Any = graph.module_of(network, node)
    if not hasattr(layer, "weight_codes"):
        raise QuantizationError(
            f"the weights of {str(node.target)!r} are not whole numbers. Round them first: "
            f"qann = pmsm.quantize_weights(qann)."
        )
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    expected = layer.weight_codes * layer.unit.reshape(shape) / per_input(units.read(node), layer)
    same = torch.allclose(expected, layer.weight.double(), rtol=1e-5, atol=0)
    if not same or not torch.allclose(layer.bias_codes * layer.unit, layer.bias.double(), rtol=1e-5, atol=0):
        raise QuantizationError(
            f"the weights of {str(node.target)!r}, or the steps in front of it, have changed since they were "
            f"rounded. Train first and round last: pmsm.quantize_weights(trained)."
        )
    return {"weight": layer.weight_codes.numpy(), "bias": layer.bias_codes.numpy()}


def _geometry(layer: torch.nn.Conv2d) -> dict[str, Any]:
    return {
        "stride": tuple(layer.stride),
        "padding": tuple(layer.padding),
        "dilation": tuple(layer.dilation),
        "groups": layer.groups,
    }


def _neuron(site: Any, thresholds: Tensor) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    neuron: Neuron = site.neuron() if isinstance(site, Quantizer) else site
    initial = neuron.initial.detach().double().reshape(-1)
    arrays = {"threshold": _whole(thresholds), "start": _whole((initial * thresholds).round())}
    _, _, side = neuron._bound_rule()
    least, most = neuron._burst()
    return arrays, {
        "quant_min": neuron.quant_min,
        "quant_max": neuron.quant_max,
        "least": least,
        "most": most,
        "side": side,
        "burst": max(-least, most),
    }


def _whole(values: Tensor) -> np.ndarray:
    if bool((values.abs() > INT32).any()):
        raise QuantizationError(
            f"a threshold of {float(values.abs().max()):.3g} units is beyond int32: the weights in front of "
            f"it are next to nothing beside its step. Remove dead channels."
        )
    return values.to(torch.int32).numpy()
