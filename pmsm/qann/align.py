"""Which steps of a residual network become whole ratios of each other, so that sums need no products."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import QuantizationError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer, Start
from pmsm.methods.neuron import Neuron
from pmsm.qann.quantize import moves_codes

BYTE = 254
"""Largest span of a branch of a sum, in its own steps, that 8 bits hold with one to spare at either end."""


@dataclass(frozen=True)
class Residual:
    """One code that joins a sum.

    Args:
        target: the site that codes the sum.
        source: the site whose codes join it, moved but unchanged.
        channels: [C of the sum], the channel of `source` that arrives in each channel of the sum; -1 for
            none.
    """

    target: Quantizer
    source: Quantizer
    channels: Tensor


SITES = (Quantizer, Neuron)
ODD_PARTS = range(31, 0, -2)
FINE = 63
"""Parts of a threshold where the branches are not to be added in 8 bits: steps move by a part at most."""
POWER = 4
"""Of the mean by which joined channels share a profile: near the largest step, for clipping a channel costs
more than coding it coarsely. Chosen on training images without their labels: recipes/align_steps.py."""

DENOMINATORS = (*reversed(ODD_PARTS), FINE)


def align(network: Network, *, bytes_: bool = True, power: float = POWER) -> Network:
    """Let every residual code count for p / q thresholds of the site that codes the sum; q odd, p and q
    whole.

    The other branch may then be rounded to whole multiples of 1 / q thresholds without any effect:
    floor(a + p k / q + 1/2) = floor((round(q a) + p k) / q + 1/2), as long as q a is never half a whole
    number, and the sum is one of small integers. The q is the largest odd one with which the branch fits
    8 bits. Sites that are joined by sums get one profile of steps over their channels, the power mean of
    theirs, and each keeps its mean step up to about half of 1 / q.

    Args:
        bytes_: False keeps each channel's own step, up to 1 / 63 of a threshold: ratios of 63rds per
            channel, whose sums 8 bits do not hold.
        power: of the mean of joined steps, above 0.

    Changes the steps of `network` and returns it. Formula of this project.
    """
    found = list(residuals(network))
    if bytes_:
        _share_profiles(found, power)
    aligned: set[Quantizer] = set()
    for residual in reversed(found):
        if residual.source not in aligned and residual.source is not residual.target:
            _snap(residual, bytes_)
            aligned.add(residual.source)
    return network


def residuals(network: Network) -> Iterator[Residual]:
    """Every code that joins a sum which a site codes, in the order of execution."""
    for node in network.graph.nodes:
        if not is_sum(node):
            continue
        target = site_behind(network, node)
        if not isinstance(target, Quantizer):
            continue
        for leaf in node.all_input_nodes:
            path = _path_to_site(network, leaf)
            if path is None:
                continue
            source = graph.module_of(network, path[0])
            channels = _channels(network, path)
            if isinstance(source, Quantizer) and channels is not None:
                yield Residual(target, source, channels)


def is_sum(node: Node) -> bool:
    """Whether the node adds two signals."""
    plain = not node.kwargs and len(node.all_input_nodes) == 2 == len(node.args)
    return node.op in ("call_function", "call_method") and node.target in graph.ADDITIONS and plain


def site_behind(network: Network, node: Node) -> Quantizer | Neuron | None:
    """The first site that a layer or a sum reaches through sums, pools and operators that change nothing."""
    waiting = list(node.users)
    while waiting:
        reader = waiting.pop(0)
        if graph.is_module(network, reader, SITES):
            return graph.module_of(network, reader)  # pyright: ignore[reportReturnType]
        through = (*graph.MAXPOOLS, *graph.AVGPOOLS, torch.nn.Identity, graph.TrainingOnly)
        if is_sum(reader) or graph.is_module(network, reader, through):
            waiting += reader.users
    return None


def steps(site: Any) -> Tensor:
    """[C] or [1], float64: the step or threshold of each channel, activation units."""
    step = site.threshold() if isinstance(site, Quantizer) else site.threshold
    return step.detach().double().reshape(-1)


def set_steps(quantizer: Quantizer, new: Tensor) -> None:
    """Give a site other steps, [C] or [1]; its initial potential and its bounds stay."""
    initial = quantizer.initial.clone()
    scale = new.to(quantizer.scale().dtype).reshape(quantizer.scale().shape)
    quantizer.set_start(Start(scale, quantizer.quant_min, quantizer.quant_max))
    quantizer.initial.copy_(initial)


def ratio(residual: Residual) -> Tensor:
    """[channels that carry a code], steps of the source in thresholds of the target."""
    carried = residual.channels >= 0
    source, target = steps(residual.source), steps(residual.target)
    above = source if source.numel() == 1 else source[residual.channels[carried]]
    return above / (target if target.numel() == 1 else target[carried])


def fraction(source: Quantizer, target: Quantizer, ratio: float) -> tuple[int, int] | None:
    """(p, q): the largest odd q with which a code p / q near `ratio` leaves the other branch 8 bits."""
    for q in ODD_PARTS:
        p = max(1, round(ratio * q))
        span = q * (target.quant_max - target.quant_min + 1) + p * (source.quant_max - source.quant_min)
        if span <= BYTE:
            return p, q
    return None


def _snap(residual: Residual, bytes_: bool) -> None:
    carried = residual.channels >= 0
    source, target = steps(residual.source), steps(residual.target)
    if source.numel() == 1 and target.numel() > 1:
        raise QuantizationError(
            f"site {residual.source.site.name!r} has one step and joins a sum that site "
            f"{residual.target.site.name!r} codes with one per channel. Give both the same per_channel=."
        )
    found = fraction(residual.source, residual.target, float(ratio(residual).log().mean().exp()))
    if bytes_ and found is not None:
        worth = torch.tensor(found[0] / found[1], dtype=torch.float64)
    else:
        worth = (ratio(residual) * FINE).round().clamp(min=1) / FINE
    if source.numel() == 1:
        set_steps(residual.source, target * worth.flatten()[:1])
        return
    source[residual.channels[carried]] = (target if target.numel() == 1 else target[carried]) * worth
    set_steps(residual.source, source)


def _share_profiles(found: list[Residual], power: float) -> None:
    """One profile over the channels for all that are joined: a power mean of step / the site's mean step."""
    sites = list(dict.fromkeys(q for r in found for q in (r.target, r.source) if steps(q).numel() > 1))
    first, total = {}, 0
    for quantizer in sites:
        first[quantizer], total = total, total + steps(quantizer).numel()
    joined = torch.arange(total)
    for residual in found:
        if residual.source not in first or residual.target not in first:
            continue
        carried = (residual.channels >= 0).nonzero().flatten()
        for channel in carried.tolist():
            a = joined[first[residual.target] + channel]
            b = joined[first[residual.source] + int(residual.channels[channel])]
            joined[joined == b] = a.clone()
    if not sites:
        return
    every = torch.cat([steps(quantizer) for quantizer in sites])
    means = torch.cat([steps(q).log().mean().exp().expand(steps(q).numel()) for q in sites])
    profile = torch.zeros(total, dtype=torch.float64).index_add(0, joined, (every / means) ** power)
    profile = (profile / torch.bincount(joined, minlength=total).clamp(min=1)) ** (1 / power)
    new = means * profile[joined]
    for quantizer in sites:
        set_steps(quantizer, new[first[quantizer] : first[quantizer] + steps(quantizer).numel()])


def _path_to_site(network: Network, node: Node) -> list[Node] | None:
    """The operators from a site to `node`, the site first; None where anything but moves lies between."""
    path = [node]
    while not graph.is_module(network, path[0], (Quantizer,)):
        if not moves_codes(network, path[0]) or len(path[0].all_input_nodes) != 1:
            return None
        path.insert(0, path[0].all_input_nodes[0])
    return path


def _channels(network: Network, path: list[Node]) -> Tensor | None:
    """Which channel of the site arrives in each channel at the end of `path`."""
    shape = graph.shape_of(path[0])
    if len(shape) < 2:
        return None
    numbers = torch.arange(1, shape[1] + 1, dtype=torch.float32).reshape(1, -1, *[1] * (len(shape) - 2))
    values = {path[0]: numbers.expand(1, *shape[1:])}
    for node in path[1:]:
        values[node] = graph.apply(network, node, values)
    arrived = values[path[-1]].flatten(2) if values[path[-1]].dim() > 2 else values[path[-1]].unsqueeze(2)
    channels = arrived.amax(2)[0]
    alike = ((arrived == channels[None, :, None]) | (arrived == 0)).all()
    return channels.long() - 1 if bool(alike) else None
