"""What each number of levels would do at each site: information, error at the output, spikes and energy."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import QuantizationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer, Start
from pmsm.qann import entropy
from pmsm.qann.calibrate import observed
from pmsm.qann.kept import kept
from pmsm.qann.potential import Sample, match_means
from pmsm.snn.convert import convert
from pmsm.study.allocation.search import Choice
from pmsm.study.allocation.widen import widened
from pmsm.study.energy.measure import measure
from pmsm.study.energy.operators import OPS
from pmsm.study.energy.plan import plan
from pmsm.study.energy.technology import Technology

COUNTED = 64
"""Samples on which spikes are counted."""

Calibrate = Callable[[Network, Any], Network]


@dataclass(frozen=True)
class Candidate:
    """A site with the step of calibration at some number of levels, while all other sites have as many.

    Args:
        quantizer: calibrated; it may have more codes, see `wide`.
        entropy_bits: of its code; effective_bits: 1/2 log2(variance / MSE), what the code is worth.
        spikes: mean sum of |k| of the site, per sample.
        energy_pj: of the accumulates that these spikes cause.
    """

    quantizer: Quantizer
    entropy_bits: float
    effective_bits: float
    spikes: float
    energy_pj: float


@dataclass(frozen=True)
class Candidates:
    """Every site with every number of levels.

    Args:
        sites: site -> levels of the calibration -> candidate.
        neurons: site -> neurons per sample.
        errors: levels -> error at the output with so many everywhere.
        fixed_pj: energy that does not depend on the levels, per sample.
    """

    sites: dict[str, dict[int, Candidate]]
    neurons: dict[str, int]
    errors: dict[int, float]
    fixed_pj: float


def quantizers(network: Network) -> dict[str, Quantizer]:
    """Site -> its quantizer, in the order of execution."""
    return {str(node.target): module for node, module in graph.modules(network, Quantizer)}  # pyright: ignore


def with_levels(qann: Network, levels: Choice) -> Network:
    """A copy whose sites have so many levels, not calibrated.

    Raises:
        QuantizationError: a site whose method fixes its bounds, or is not exact at T=1.
    """
    changed = copy.deepcopy(qann)
    for name, quantizer in quantizers(changed).items():
        method: Any = quantizer.method  # pyright: ignore[reportAttributeAccessIssue]
        if not method.exact or isinstance(getattr(method, "split", ""), tuple):
            raise QuantizationError(
                f"cannot change the levels of site {name!r}: {method!r} "
                + ("fixes its bounds" if method.exact else "does not send its levels in one timestep")
                + ". Quantize with pmsm.PMSM(levels=9) there, quantize(..., overrides={...})."
            )
        like = quantizer.bounds.device, next(quantizer.parameters()).dtype
        changed.set_submodule(name, replace(method, levels=levels[name]).quantizer(quantizer.site).to(*like))
    return graph.finish(changed).eval()


def with_quantizers(qann: Network, chosen: Mapping[str, Quantizer], inputs: tuple[Any, ...]) -> Network:
    """A copy with these quantizers, whose potentials keep the mean of every channel over `inputs`."""
    changed = copy.deepcopy(qann)
    for name, quantizer in chosen.items():
        changed.set_submodule(name, copy.deepcopy(quantizer))
    changed = graph.finish(changed).eval()
    match_means(changed, inputs)
    return changed


def observe(qann: Network, batches: Any) -> tuple[dict[str, entropy.Distribution], tuple[Any, ...]]:
    """Site -> what the float network sends there; and the first inputs, as one batch."""
    network, sample = copy.deepcopy(qann), Sample(qann)
    found = observed(network, batches, sample)
    signals = {name: found[quantizer] for name, quantizer in quantizers(network).items()}
    return signals, sample.inputs()


def wide(found: Candidates, signals: Mapping[str, entropy.Distribution]) -> Candidates:
    """The same steps, and as many codes, up to the most levels of `found`, as clip next to nothing."""
    sites = {
        name: {level: _wide(candidate, each, signals[name]) for level, candidate in each.items()}
        for name, each in found.sites.items()
    }
    return replace(found, sites=sites)


def _wide(candidate: Candidate, each: Mapping[int, Candidate], signal: entropy.Distribution) -> Candidate:
    bounds = {(c.quantizer.quant_min, c.quantizer.quant_max): c.quantizer for c in each.values()}
    found = widened(signal, candidate.quantizer, bounds)
    quantizer = copy.deepcopy(bounds[found.quant_min, found.quant_max])
    step = candidate.quantizer.scale().detach()
    quantizer.set_start(Start(step, found.quant_min, found.quant_max))
    return replace(
        candidate, quantizer=quantizer, entropy_bits=candidate.entropy_bits + found.entropy_bits,
        effective_bits=candidate.effective_bits + found.effective_bits,
    )  # fmt: skip


def candidates(
    qann: Network,
    batches: Any,
    levels: Sequence[int],
    technology: Technology,
    calibrate: Calibrate,
    output: "Output",
    tick: Callable[[], None],
) -> Candidates:
    """Calibrate every site at each of `levels`, and count what it keeps and what it costs."""
    few = first_samples(qann, batches, COUNTED)
    sites: dict[str, dict[int, Candidate]] = {name: {} for name in quantizers(qann)}
    neurons: dict[str, int] = {}
    fans: dict[str, Tensor] = {}
    errors: dict[int, float] = {}
    fixed_pj = 0.0
    for level in levels:
        network = calibrate(with_levels(qann, dict.fromkeys(sites, level)), batches)
        snn = convert(network)
        counted = measure(snn, few, technology=technology)
        if not fans:
            planned = plan(snn, tuple(x[:1] for x in next(graph.batches_of(qann, few))), 1, 1, OPS).fans
            none = torch.zeros((), dtype=torch.float64)  # the right operand of a product is read for free
            fans = {name: sum((fan for _, fan in found), none) for name, found in planned.items()}
        errors[level] = output.error_of(network)
        totals = counted.totals
        fixed_pj = totals.energy_pj.mean - totals.spikes_pj
        found = {site.site: site for site in kept(network, batches)}
        for name, quantizer in quantizers(network).items():
            sent = counted.per_neuron[name]
            neurons[name] = sent.numel()
            synops = float((sent * fans[name].cpu()).sum())
            site = found[quantizer.site.name]
            sites[name][level] = Candidate(
                quantizer, site.entropy_bits, site.effective_bits, float(sent.sum()),
                synops * technology.ac_pj,
            )  # fmt: skip
        tick()
    return Candidates(sites, neurons, errors, fixed_pj)


def first_samples(qann: Network, batches: Any, samples: int) -> list[Any]:
    """The first batches, until there are so many samples."""
    taken, seen = [], 0
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        taken.append(batch)
        seen += len(next(graph.batches_of(qann, [batch]))[0])
        if seen >= samples:
            break
    return taken


class Output:
    """How far from the float network's output quantized ones are, on `samples` samples.

    The error is the mean squared distance over the variance of the float network's output.
    """

    def __init__(self, qann: Network, batches: Any, samples: int):
        self.network = copy.deepcopy(qann).eval()
        self.batches = list(graph.batches_of(qann, first_samples(qann, batches, samples)))
        self.float = [self._run(self.network, inputs, only=()) for inputs in self.batches]
        everything = torch.cat([x.double() for x in self.float])
        self.power = max(float(everything.var(0, correction=0).mean()), 1e-30)

    def error_of(self, network: Network) -> float:
        """Of a calibrated network."""
        return self._error(network, tuple(quantizers(network)))

    def error_of_one(self, site: str, quantizer: Quantizer) -> float:
        """Of one site with that quantizer, all others float; without the start of its potentials, which makes
        up for errors of other sites.
        """
        alone = copy.deepcopy(quantizer)
        alone.initial.zero_()
        self.network.set_submodule(site, alone)
        return self._error(self.network, (site,))

    def _error(self, network: Network, only: tuple[str, ...]) -> float:
        squares = numbers = 0.0
        for inputs, reference in zip(self.batches, self.float, strict=True):
            difference = self._run(network, inputs, only=only).double() - reference
            squares, numbers = squares + float(difference.square().sum()), numbers + difference.numel()
        return squares / numbers / self.power

    @torch.no_grad()
    def _run(self, network: Network, inputs: tuple[Any, ...], only: tuple[str, ...]) -> Tensor:
        """The output with quantizers at some sites, flat where it is several tensors."""
        sites = quantizers(network)
        for name, quantizer in sites.items():
            quantizer.observer = None if name in only else _let_pass
        try:
            found = list(_tensors(network(*inputs)))
        finally:
            for quantizer in sites.values():
                quantizer.observer = None
        return torch.cat([x.flatten(1) for x in found], 1)


def _let_pass(x: Tensor) -> None:
    """The observer of a site that stays float."""


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from _tensors(tuple(found.values()))
    elif isinstance(found, tuple | list):
        for each in found:
            yield from _tensors(each)
