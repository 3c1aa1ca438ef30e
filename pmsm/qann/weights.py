"""Which integers the weights, biases and potentials of a quantized network become."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import QuantizationError, SettingsError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.qann.align import align, is_sum, site_behind, steps
from pmsm.qann.potential import Sample, match_means
from pmsm.qann.units import LAYERS, InputGrid, Units, per_input, refuse_other, whole_layer

CLIPPINGS = 25
"""How many weight steps are tried per output channel, from the one that clips nothing down to 0.6 of it."""

FINEST = 2**14
"""Most weight units in a threshold: so close to a boundary, float32 still tells on which side of it."""

LARGEST_BIAS = 2**30


@torch.no_grad()
def quantize_weights(
    qann: Network,
    batches: Iterable[Any] | Tensor | None = None,
    *,
    bits: int = 8,
    aligned: bool = True,
    input_step: float = 2.0**-5,
) -> Network:
    """A copy of a calibrated or trained QANN of which every number is a whole multiple of a known unit.

    BatchNorm is folded, and the step of each channel that a layer reads is folded into its weights, so that a
    layer multiplies plain spike counts: w'[o, i] = w[o, i] * step[i], kept as round(w' / unit[o]) in `bits`
    bits. The unit of an output channel is chosen by the error of w', among those of which the threshold
    behind the layer is an odd multiple: then thresholds are whole numbers as well, and no potential lies
    halfway between two counts, so the rounding of ties is never asked for. Biases and initial potentials are
    whole multiples of the same unit.

    The result is a QANN like any other (`evaluate`, `convert`, `verify`, `simulate`), and what `integer`,
    `export_onnx` and `export_npz` compute exactly. Train before: the integers do not follow training.

    Args:
        qann: convolutions in two dimensions, Linear, BatchNorm, ReLU, sums, MaxPool, average pools, moves.
        batches: as for `calibrate`; if given, initial potentials are chosen anew behind the rounded weights.
        bits: of a weight with its sign, from 2 to 8.
        aligned: let residual codes count for whole fractions of a threshold, see `align`, so that 8-bit
            kernels can add them exactly; steps of the channels of one stage become alike. False keeps them.
        input_step: the input is rounded to whole multiples of this, from -127 to 127 of them; a power of two,
            or else engines may disagree on ties. 2**-5 holds inputs up to 3.97.

    Raises:
        QuantizationError: operators with no integer form (all are listed), a layer that is called twice.
        SettingsError: bits or input_step out of range.
    """
    graph.require(qann, "quantize_weights", QuantizationError)
    if bits not in range(2, 9) or not 0 < input_step < math.inf:
        raise SettingsError(
            f"quantize_weights needs bits from 2 to 8 and input_step > 0, got {bits!r} and {input_step!r}."
        )
    network = graph.fold_batchnorm(qann)
    refuse_other(network, QuantizationError)
    for _, quantizer in graph.modules(network, Quantizer):
        quantizer.threshold()
    for node in [node for node in network.graph.nodes if node.op == "placeholder"]:
        graph.insert_after(network, node, f"{node.name}_grid", InputGrid(input_step))
    graph.finish(network)
    align(network, bytes_=aligned)
    units = Units(network)
    for node in network.graph.nodes:
        if graph.is_module(network, node, LAYERS):
            _round_layer(network, node, units.read(node), bits)
        units.pass_on(node)
    if batches is not None:
        sample = Sample(network)
        for inputs in graph.batches_of(network, batches):
            sample.keep(inputs)
        match_means(network, sample.inputs())
    _round_potentials(network)
    return network


def _round_layer(network: Network, node: Node, unit: Tensor, bits: int) -> None:
    """Put a layer of whole numbers in the place of another.

    Args:
        unit: [in channels], activation units of one count.
    """
    layer: Any = graph.module_of(network, node)
    reads = per_input(unit, layer)
    folded = layer.weight.double() * reads
    rows = folded.flatten(1)
    site = site_behind(network, node)
    threshold = None if site is None else _spread(steps(site), len(rows))
    step = best_step(rows, 2 ** (bits - 1) - 1, threshold)
    codes = (rows / step[:, None]).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    bias = torch.zeros_like(step) if layer.bias is None else layer.bias.double()
    bias_codes = (bias / step).round()
    if bool((bias_codes.abs() > LARGEST_BIAS).any()):
        raise QuantizationError(
            f"the bias of {str(node.target)!r} is {float((bias / step).abs().max()):.3g} units of its "
            f"weights, more than int32 holds. Its weights are next to nothing: remove dead channels."
        )
    rounded = (codes * step[:, None]).view_as(folded)
    whole = whole_layer(layer)
    whole.weight.copy_(rounded / reads)
    whole.bias = nn.Parameter((bias_codes * step).to(layer.weight.dtype))
    whole.weight_codes.copy_(codes.view_as(folded))
    whole.bias_codes.copy_(bias_codes)
    whole.unit.copy_(step)
    network.set_submodule(str(node.target), whole)


def best_step(rows: Tensor, largest: int, threshold: Tensor | None) -> Tensor:
    """[O], the step of each row of weights [O, K] with the smallest error after rounding and clipping.

    Args:
        largest: largest code of either sign.
        threshold: [O]; if given, only its odd fractions are candidates.
    """
    widest = rows.abs().amax(1).clamp(min=1e-12) / largest
    if threshold is not None:
        widest = torch.maximum(widest, threshold / FINEST)  # weights that are next to nothing
    best, least = widest, torch.full_like(widest, torch.inf)
    for clipping in torch.linspace(1.0, 0.6, CLIPPINGS).tolist():
        step = widest * clipping
        if threshold is not None:
            odd = 2 * ((threshold / step - 1) / 2).round().clamp(min=0) + 1
            step = threshold / odd
        codes = (rows / step[:, None]).round().clamp(-largest, largest)
        error = (codes * step[:, None] - rows).square().sum(1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def _round_potentials(network: Network) -> None:
    """Initial potentials become whole multiples of the unit of what the site sums up."""
    units = Units(network)
    for node in network.graph.nodes:
        if graph.is_module(network, node, (Quantizer,)):
            site: Any = graph.module_of(network, node)
            thresholds = units.threshold(node)
            if bool((site.initial != 0).any()):
                initial = _spread(site.initial.double(), len(thresholds))
                grid = _layer_worth(network, node, units) / thresholds
                whole = (initial / grid).round() * grid
                whole = whole.clamp(min=-0.5, max=0.5 - 1e-6)
                site.initial.copy_(whole.reshape(site.initial.shape))
        units.pass_on(node)


def _layer_worth(network: Network, node: Node, units: Units) -> Tensor:
    """[C], units that one unit of the first layer in front of a site is worth: its bias can bring the
    potential along.
    """
    source = node.all_input_nodes[0]
    while graph.is_module(network, source, graph.MAXPOOLS):
        source = source.all_input_nodes[0]
    if is_sum(source):
        for branch, worth in zip(source.all_input_nodes, units.sum(source)[1], strict=True):
            if graph.is_module(network, branch, LAYERS):
                return worth
    return torch.ones((), dtype=torch.float64)


def _spread(values: Tensor, channels: int) -> Tensor:
    """Scalar or one per channel -> [channels]."""
    return values.detach().reshape(-1).expand(channels) if values.numel() == 1 else values.reshape(-1)
