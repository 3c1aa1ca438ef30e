"""A network that was quantized elsewhere: its architecture, its weights, and the steps that it learned."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import CheckpointError, QuantizationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer, Start
from pmsm.methods.pmsm import PMSM
from pmsm.qann.quantize import moves_codes, quantize


class Step(NamedTuple):
    """What one quantizer learned elsewhere: step, scalar or one per channel, and its smallest and largest
    code.
    """

    scale: Tensor | float
    quant_min: int
    quant_max: int


def adopt(ann: nn.Module, example: Any, steps: Mapping[str, Step], *, skip: Iterable[str] = ()) -> Network:
    """The quantized network that `ann` becomes with steps that were learned elsewhere, calibrated.

    It computes scale * clip(floor(x / scale + 1/2), quant_min, quant_max) at each site: what the other
    library computes, up to the last bit of its own arithmetic and to how it rounds ties.

    Args:
        ann: the float architecture with the weights of the other network, ReLU or identity where its
            quantizers stood.
        example: as for `quantize`.
        steps: name of a site, or of the activation in whose place or behind which it stands -> its step. A
            site behind a MaxPool takes that of the activation in front of the pool.
        skip: name patterns of sites to leave out, as for `quantize`.

    Raises:
        QuantizationError: sites without a step, or steps without a site (all are listed); a step that is not
            positive, or fits no site.
    """
    scout = quantize(ann, PMSM(levels=2), example, skip=skip)
    in_front = _activations_in_front_of_pools(ann, example)
    names: dict[str, str] = {}
    for _, quantizer in graph.modules(scout, Quantizer):
        site = quantizer.site.name
        known = (site, site.removesuffix("_site"), in_front.get(site.removesuffix("_site"), ""))
        names[site] = next((name for name in known if name in steps), "")
    missing = [site for site, name in names.items() if not name]
    unused = [name for name in steps if name not in names.values()]
    if missing or unused:
        raise QuantizationError(
            f"sites without a step: {', '.join(map(repr, missing)) or 'none'}; steps without a site: "
            f"{', '.join(map(repr, unused)) or 'none'}. Name each step after its site, or leave sites out by "
            f"skip=[pattern]."
        )
    methods = {site: _method(steps[name], name) for site, name in names.items()}
    qann = quantize(ann, PMSM(levels=2), example, overrides=methods, skip=skip)
    for _, quantizer in graph.modules(qann, Quantizer):
        _set(quantizer, steps[names[quantizer.site.name]])
    return qann


def read_qcfs(state: Mapping[str, Tensor], levels: int) -> tuple[dict[str, Tensor], dict[str, Step]]:
    """(weights, steps) of a checkpoint in the layout of QCFS: `<activation>.thresh` holds lambda.

    Args:
        state: its state dict, `torch.load(path, weights_only=True)`.
        levels: L + 1; the checkpoint does not tell.

    Step lambda / L, codes 0 to L. Source: github.com/putshua/ANN_SNN_QCFS, Models/layer.py, class IF.
    """
    weights, found = _split(state, "thresh")
    return weights, {name: Step(value / (levels - 1), 0, levels - 1) for name, value in found.items()}


def read_spikezip(
    state: Mapping[str, Tensor], bounds: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Tensor], dict[str, Step]]:
    """(weights, steps) of a checkpoint in the layout of SpikeZIP-TF: `<quantizer>.s` holds the step.

    Args:
        state: its state dict.
        bounds: quantizer -> (quant_min, quant_max); the checkpoint does not tell, and versions of the code
            differ: with `level`, -level // 2 or -level // 2 + 1 to level // 2 - 1 where it is symmetric.

    Raises:
        CheckpointError: steps without bounds.
    """
    weights, found = _split(state, "s")
    if missing := [name for name in found if name not in bounds]:
        raise CheckpointError(f"bounds has no entry for {', '.join(map(repr, missing))}.")
    return weights, {name: Step(value, *bounds[name]) for name, value in found.items()}


@torch.no_grad()
def read_brevitas(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Step]]:
    """(weights, steps) of a network of Brevitas modules, calibrated or trained, in evaluation mode.

    Weights are the rounded ones, `layer.quant_weight().value`; a step stands under the path of each QuantReLU
    or QuantIdentity. Brevitas rounds ties to even.

    Raises:
        CheckpointError: no such module, a zero point other than 0, a number of bits that is not whole.
    """
    weights, steps = dict(network.state_dict()), {}
    for path, module in network.named_modules():
        layer: Any = module
        if callable(getattr(layer, "quant_weight", None)):
            weights[f"{path}.weight"] = layer.quant_weight().value
        proxy: Any = getattr(layer, "act_quant", None)
        if not callable(getattr(proxy, "scale", None)) or (value := proxy.scale()) is None:
            continue
        bits, zero = float(proxy.bit_width()), proxy.zero_point()
        if bool((zero != 0).any()) or bits != round(bits):
            raise CheckpointError(
                f"{path!r} has the zero point {float(zero.abs().max()):.4g} and {bits:.4g} bits; a site has "
                f"zero point 0 and whole bits. Train with a symmetric quantizer."
            )
        top = 2 ** (round(bits) - proxy.is_signed) - 1
        steps[path] = Step(value, (proxy.is_narrow_range - top - 1) * proxy.is_signed, top)
    if not steps:
        raise CheckpointError("no module has an activation quantizer of Brevitas (QuantReLU, QuantIdentity).")
    inner = ("act_quant.", "weight_quant.", "bias_quant.", "input_quant.", "output_quant.")
    return {key: w for key, w in weights.items() if not any(part in key for part in inner)}, steps


def _split(state: Mapping[str, Tensor], last: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The other entries, and path -> value of those that are called `last`."""
    found = {key.rpartition(".")[0]: value for key, value in state.items() if key.rpartition(".")[2] == last}
    if not found:
        raise CheckpointError(
            f"no entry ends in '.{last}'; the first are {', '.join(map(repr, list(state)[:5]))}. Is this the "
            f"state dict of a quantized network in that layout?"
        )
    return {key: value for key, value in state.items() if key.rpartition(".")[2] != last}, found


def _activations_in_front_of_pools(ann: nn.Module, example: Any) -> dict[str, str]:
    """Name of a MaxPool -> name of the activation whose codes it would pool."""
    network, found = graph.trace(ann, example), {}
    for node in network.graph.nodes:
        if graph.is_module(network, node, graph.MAXPOOLS):
            source = node.all_input_nodes[0]
            while moves_codes(network, source) or graph.is_module(network, source, graph.MAXPOOLS):
                source = source.all_input_nodes[0]
            found[graph.operator_name(network, node)] = graph.operator_name(network, source)
    return found


def _method(step: Step, name: str) -> PMSM:
    scale = torch.as_tensor(step.scale)
    if not bool(((scale > 0) & scale.isfinite()).all()) or not step.quant_min <= 0 < step.quant_max:
        raise QuantizationError(
            f"the step of {name!r} must be positive and quant_min <= 0 < quant_max, got {step.quant_min} to "
            f"{step.quant_max} and a smallest step of {float(scale.min()):.4g}."
        )
    split = (step.quant_min, step.quant_max)
    return PMSM(step.quant_max - step.quant_min + 1, split, per_channel=scale.numel() > 1)


def _set(quantizer: Quantizer, step: Step) -> None:
    scale = torch.as_tensor(step.scale, dtype=quantizer.scale().dtype).detach()
    if scale.numel() != quantizer.scale().numel():
        raise QuantizationError(
            f"site {quantizer.site.name!r} has {quantizer.scale().numel()} channels, its step has "
            f"{scale.numel()} values."
        )
    quantizer.set_start(Start(scale.reshape(quantizer.scale().shape), step.quant_min, step.quant_max))
