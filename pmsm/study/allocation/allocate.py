"""Levels per site under a budget: many where the output needs them and they cost little, few elsewhere."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from pmsm import graph
from pmsm.errors import QuantizationError, SettingsError
from pmsm.graph import Network
from pmsm.methods.base import check_levels
from pmsm.qann import calibrate as calibration
from pmsm.snn.convert import convert
from pmsm.study.allocation.curves import (
    COUNTED,
    Calibrate,
    Candidates,
    Output,
    candidates,
    first_samples,
    observe,
    quantizers,
    wide,
    with_quantizers,
)
from pmsm.study.allocation.plan import UNITS, Allocation, Allotted, Uniform
from pmsm.study.allocation.search import Choice, choose, total
from pmsm.study.energy.measure import measure
from pmsm.study.energy.technology import TECHNOLOGIES, Technology, chosen

LEVELS = (3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 21, 25, 33)
CRITERIA = ("output", "entropy")
_ROUNDING = 1e-9  # of sums in another order: a budget that equal levels just keep is kept
ATTEMPTS, UNUSED = 4, 0.01
"""How often the search is repeated, where calibration in the end costs more than predicted, or leaves more
than this share of the budget.
"""


def allocate(
    qann: Network,
    batches: Iterable[Any] | Tensor,
    *,
    budget_pj: float | None = None,
    spikes: float | None = None,
    bits: float | None = None,
    levels: Sequence[int] = LEVELS,
    criterion: str = "output",
    technology: str | Technology = "45nm-fp32",
    calibrate: Calibrate = calibration.calibrate,
    samples: int = 256,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Network, Allocation]:
    """Choose step and levels of every site under one budget, at T=1.

    A candidate of a site is the step that calibration gives it at some number of levels. Energy and spikes
    are spent on steps alone, for a neuron sends abs(x) / step: under these budgets a site gets as many codes
    with its step as leave next to nothing to clipping, up to the most of `levels`. Under a budget of bits it
    gets those that its step was calibrated for.

    "output" minimizes the squared error at the network's output, taken to be the sum of what the sites cause,
    each worth its effective bits b: error_s = g_s * 4^-b_s. The sensitivity g_s is measured, site by
    site with all others float, as the geometric mean over the three uniform levels nearest to the budget.
    Where the error of the whole network is then not below that of the most uniform levels that the budget
    allows, these are the answer. "entropy" maximizes the sum of the entropies of the codes: the information
    that the sites keep, each taken by itself; on a ResNet-20 it gains less or nothing (docs/study.md).

    Args:
        qann: from `quantize`, calibrated or not; left alone. Steps that training has learned are given up.
        batches: as for `calibrate`; read several times, and the first of them kept in memory.
        budget_pj: energy per sample as `measure` counts it, convention "unary", all of it.
        spikes: mean of |k| over all neurons. bits: mean of log2(levels) over all neurons.
        levels: the candidates.
        calibrate: calibrates a candidate, (network, batches) -> network; for another rule
            functools.partial(pmsm.calibrate, rule="entropy").
        samples: on which the error is measured.
        progress: called with the steps done and their number, for "output".

    Returns:
        A calibrated network, and the plan: levels of each site, cost, error, beside uniform levels.

    Raises:
        SettingsError: not exactly one budget, one that cannot be kept, or an unknown criterion or technology.
        QuantizationError: no quantized network, or a site whose levels cannot be changed.
        CalibrationError, ConversionError, MeasurementError: as those verbs say.
    """
    name, budget = _budget(budget_pj=budget_pj, spikes=spikes, bits=bits)
    if criterion not in CRITERIA:
        raise SettingsError(f"allocate needs a criterion out of {', '.join(CRITERIA)}, got {criterion!r}.")
    for level in levels:
        check_levels(level, "allocate")
    graph.require(qann, "allocate", QuantizationError)
    if not quantizers(qann):
        raise QuantizationError(
            "allocate needs a quantized network. Call pmsm.quantize(ann, method, x) first."
        )
    data = batches if isinstance(batches, Tensor) else list(batches)
    levels = sorted(set(levels))
    return Search(qann, data, name, criterion, levels, technology, calibrate, samples, progress).run(budget)


def _budget(**budgets: float | None) -> tuple[str, float]:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1 or not all(0 < value < math.inf for value in given.values()):
        raise SettingsError(
            f"allocate needs exactly one positive budget, got {given or 'none'}. Write allocate(qann, "
            f"batches, budget_pj=2e6), spikes=0.8 or bits=3.0."
        )
    return next(iter(given.items()))


class Search:
    """One network and one kind of budget, of which several can be spent; arguments as those of `allocate`."""

    def __init__(
        self, qann: Network, data: Any, unit: str, criterion: str, levels: Sequence[int],
        technology: str | Technology, calibrate: Calibrate, samples: int,
        progress: Callable[[int, int], None],
    ):  # fmt: skip
        self.qann, self.data, self.unit, self.criterion = qann, data, unit, criterion
        self.levels = levels
        self.technology: Technology = chosen(TECHNOLOGIES, technology, Technology)
        count = len(quantizers(qann))
        self.done, self.steps, self.progress = 0, len(levels) + count, progress
        self.output = Output(qann, data, samples)
        self.found = candidates(qann, data, levels, self.technology, calibrate, self.output, self._tick)
        signals, self.inputs = observe(qann, data)
        if unit != "bits":  # codes cost nothing, spikes do
            self.found = wide(self.found, signals)
        self.cost = _costs(self.found, unit)
        self.fixed = self.found.fixed_pj if unit == "budget_pj" else 0.0
        self.uniform = [self._uniform(level) for level in levels]
        self.least = self.fixed + sum(min(costs.values()) for costs in self.cost.values())
        self.sensitivity: dict[tuple[str, int], float] = {}

    def run(self, budget: float) -> tuple[Network, Allocation]:
        """Search, calibrate, and search with more or less until the result costs what it may; equal levels
        where they are better.
        """
        self._refuse_too_little(budget)
        allowed = budget * (1 + _ROUNDING)
        best, spent = self._searched(budget, allowed)
        fitting = [u for u in self.uniform if u.cost <= allowed]
        if self.criterion == "output" and fitting and (best is None or best[1].error >= fitting[-1].error):
            equal = self.built(dict.fromkeys(self.found.sites, fitting[-1].levels), budget)
            best = equal if equal[1].cost <= allowed else best
        if best is None:
            raise SettingsError(
                f"cannot keep a budget of {budget:,.6g} {UNITS[self.unit]}: calibrated, the network still "
                f"needs {spent:,.6g}. Give a little more."
            )
        return best

    def _searched(self, budget: float, allowed: float) -> tuple[tuple[Network, Allocation] | None, float]:
        """The dearest result that is allowed, if any, and what the last one cost."""
        target, best, spent, last = allowed, None, math.inf, None
        for _ in range(ATTEMPTS):
            choice = self._choice(target - self.fixed)
            if choice == last:
                break
            last, found = choice, self.built(choice, budget)
            spent = found[1].cost
            if spent <= allowed and (best is None or spent > best[1].cost):
                best = found
            if allowed * (1 - UNUSED) <= spent <= allowed:
                break
            margin = 0.998 if spent > allowed else 1.0
            factor = margin * (allowed - self.fixed) / (spent - self.fixed)
            target = self.fixed + (target - self.fixed) * factor
            if target < self.least:
                break
        return best, spent

    def built(self, choice: Choice, budget: float) -> tuple[Network, Allocation]:
        """The network with these levels, calibrated, and its plan."""
        chosen = {name: self.found.sites[name][level].quantizer for name, level in choice.items()}
        network = with_quantizers(self.qann, chosen, self.inputs)
        spent, error = self._spent(network, choice), self.output.error_of(network)
        return network, self._plan(choice, budget, spent, error)

    def _choice(self, budget: float) -> Choice:
        """The levels of every site, for a budget without the fixed part."""
        if self.criterion == "entropy":
            sites = self.found.sites
            loss = {name: {n: -c.entropy_bits for n, c in each.items()} for name, each in sites.items()}
            return choose(loss, self.cost, budget)
        fitting = [u for u in self.uniform if u.cost - self.fixed <= budget]
        near = self.levels.index(fitting[-1].levels) if fitting else 0
        return choose(self._losses(near), self.cost, budget)

    def _losses(self, near: int) -> dict[str, dict[int, float]]:
        """Site -> levels -> predicted share of the error at the output."""
        start = min(max(near - 1, 0), max(len(self.levels) - 3, 0))
        return {
            name: {n: self._sensitivity(name, start) * 4.0**-c.effective_bits for n, c in each.items()}
            for name, each in self.found.sites.items()
        }

    def _sensitivity(self, name: str, start: int) -> float:
        """What the error of a site is worth at the output, by three candidates from the one at `start`."""
        if (name, start) not in self.sensitivity:
            each = [self.found.sites[name][n] for n in self.levels[start : start + 3]]
            found = [self.output.error_of_one(name, c.quantizer) * 4.0**c.effective_bits for c in each]
            logarithm = sum(math.log(max(g, 1e-30)) for g in found) / len(found)
            self.sensitivity[name, start] = math.exp(logarithm)
            self._tick()
        return self.sensitivity[name, start]

    def _uniform(self, level: int) -> Uniform:
        choice = dict.fromkeys(self.found.sites, level)
        return Uniform(level, total(self.cost, choice) + self.fixed, self.found.errors[level])

    def _spent(self, network: Network, choice: Choice) -> float:
        """What the calibrated network costs, in the unit of the budget."""
        if self.unit == "bits":
            return total(self.cost, choice)
        found = measure(
            convert(network), first_samples(self.qann, self.data, COUNTED), technology=self.technology
        )
        if self.unit == "budget_pj":
            return found.totals.energy_pj.mean
        return sum(layer.spikes.mean for layer in found.firing) / sum(layer.neurons for layer in found.firing)

    def _plan(self, choice: Choice, budget: float, spent: float, error: float) -> Allocation:
        everything = total(self.cost, choice)
        rows = []
        for name, level in choice.items():
            site, neurons = self.found.sites[name][level], self.found.neurons[name]
            share = self.cost[name][level] / everything
            rows.append(Allotted(name, neurons, site.quantizer.levels, level, site.entropy_bits,
                                 site.effective_bits, site.spikes / neurons, share))  # fmt: skip
        return Allocation(tuple(rows), budget, spent, error, tuple(self.uniform),
                          self.criterion, UNITS[self.unit])  # fmt: skip

    def _refuse_too_little(self, budget: float) -> None:
        if budget < self.least:
            raise SettingsError(
                f"a budget of {budget:,.6g} {UNITS[self.unit]} cannot be kept: with {self.levels[0]} levels "
                f"everywhere the network needs {self.least:,.6g}. Give more, or fewer levels=."
            )

    def _tick(self) -> None:
        self.done += 1
        self.progress(min(self.done, self.steps), self.steps)


def _costs(found: Candidates, unit: str) -> dict[str, dict[int, float]]:
    """Site -> levels -> cost, in the unit of the budget."""
    neurons = sum(found.neurons.values())
    return {
        name: {
            level: candidate.energy_pj if unit == "budget_pj" else candidate.spikes / neurons
            if unit == "spikes" else found.neurons[name] * math.log2(level) / neurons
            for level, candidate in each.items()
        }
        for name, each in found.sites.items()
    }  # fmt: skip
