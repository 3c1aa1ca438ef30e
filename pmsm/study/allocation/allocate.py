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
    quantizers,
    with_levels,
)
from pmsm.study.allocation.plan import UNITS, Allocation, Allotted, Uniform
from pmsm.study.allocation.search import Choice, choose, refine, total
from pmsm.study.energy.measure import measure
from pmsm.study.energy.technology import TECHNOLOGIES, Technology, chosen

LEVELS = (3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 21, 25, 33)
CRITERIA = ("output", "entropy")
ROUNDS = 2
"""Passes over the sites that trade error against cost; one more spends what is left."""
_ROUNDING = 1e-9  # of sums in another order: a budget that equal levels just keep is kept
ATTEMPTS = 4
"""How often the search is repeated with less, where calibration in the end costs more than predicted."""


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
    """Choose the levels of every site under one budget, at T=1.

    "output" minimizes the squared error at the network's output. A first choice takes the errors of the sites
    to add up, each worth its effective bits: error_s(L) = error_s(L0) * 4^(b_s(L0) - b_s(L)), measured once
    per site with all other sites float, at a number of levels L0 near the budget. From there, or from uniform
    levels if they are better, one site after the other goes up or down where that lowers the measured error
    of the whole network. "entropy" maximizes the sum of the entropies of the codes: the information that the
    sites keep, each taken by itself.

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
    search = _Search(
        qann, data, name, criterion, sorted(set(levels)), technology, calibrate, samples, progress
    )
    return search.run(budget)


def _budget(**budgets: float | None) -> tuple[str, float]:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1 or not all(0 < value < math.inf for value in given.values()):
        raise SettingsError(
            f"allocate needs exactly one positive budget, got {given or 'none'}. Write allocate(qann, "
            f"batches, budget_pj=2e6), spikes=0.8 or bits=3.0."
        )
    return next(iter(given.items()))


class _Search:
    """One network, one kind of budget."""

    def __init__(
        self, qann: Network, data: Any, unit: str, criterion: str, levels: Sequence[int],
        technology: str | Technology, calibrate: Calibrate, samples: int,
        progress: Callable[[int, int], None],
    ):  # fmt: skip
        self.qann, self.data, self.unit, self.criterion = qann, data, unit, criterion
        self.levels, self.calibrate = levels, calibrate
        self.technology: Technology = chosen(TECHNOLOGIES, technology, Technology)
        count = len(quantizers(qann))
        self.done, self.steps, self.progress = 0, len(levels) * 2 + count * (2 + ROUNDS), progress
        self.found = candidates(qann, data, levels, self.technology, calibrate, self._tick)
        self.cost = _costs(self.found, unit)
        self.fixed = self.found.fixed_pj if unit == "budget_pj" else 0.0
        self.output = Output(qann, data, self.found, samples)
        self.uniform = [self._uniform(level) for level in levels]

    def run(self, budget: float) -> tuple[Network, Allocation]:
        """Search, calibrate, and search with less as long as the result costs too much."""
        self._refuse_too_little(budget)
        target = budget * (1 + _ROUNDING)
        for _ in range(ATTEMPTS):
            choice = self._choice(target - self.fixed)
            network = self.calibrate(with_levels(self.qann, choice), self.data)
            spent = self._spent(network, choice)
            if spent <= budget * (1 + _ROUNDING):
                return network, self._plan(choice, budget, spent)
            target = self.fixed + (target - self.fixed) * 0.995 * (budget - self.fixed) / (spent - self.fixed)
        raise SettingsError(
            f"cannot keep a budget of {budget:,.6g} {UNITS[self.unit]}: calibrated, the network still needs "
            f"{spent:,.6g}. Give a little more."  # pyright: ignore[reportPossiblyUnbound]
        )

    def _choice(self, budget: float) -> Choice:
        """The levels of every site, for a budget without the fixed part."""
        sites = self.found.sites
        if self.criterion == "entropy":
            loss = {name: {n: -c.entropy_bits for n, c in each.items()} for name, each in sites.items()}
            return choose(loss, self.cost, budget)
        fitting = [u for u in self.uniform if u.cost - self.fixed <= budget]
        near = fitting[-1].levels if fitting else self.levels[0]
        loss: dict[str, dict[int, float]] = {}
        for name, each in sites.items():
            alone, at = self.output.error_of_one(name, near), each[near].effective_bits
            loss[name] = {n: alone * 4.0 ** (at - c.effective_bits) for n, c in each.items()}
            self._tick()
        starts = [choose(loss, self.cost, budget), *(dict.fromkeys(sites, u.levels) for u in fitting[-1:])]
        start = min(starts, key=self.output.error)
        for price, rounds in (
            (self._price_of_error(near), ROUNDS),
            (0.0, 1),
        ):  # trade, then spend what is left
            start = refine(
                start, self.output.error, self.cost, budget, price, rounds=rounds, moved=self._tick
            )
        return start

    def _price_of_error(self, near: int) -> float:
        """Error per cost along the uniform levels, around `near`."""
        at = self.levels.index(near)
        low, high = self.uniform[max(at - 1, 0)], self.uniform[min(at + 1, len(self.uniform) - 1)]
        more = high.cost - low.cost
        return max((low.error - high.error) / more, 0.0) if more > 0 else 0.0

    def _uniform(self, level: int) -> Uniform:
        choice = dict.fromkeys(self.found.sites, level)
        error = self.output.error(choice)
        self._tick()
        return Uniform(level, total(self.cost, choice) + self.fixed, error)

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

    def _plan(self, choice: Choice, budget: float, spent: float) -> Allocation:
        everything = total(self.cost, choice)
        rows = []
        for name, level in choice.items():
            site, neurons = self.found.sites[name][level], self.found.neurons[name]
            share = self.cost[name][level] / everything
            rows.append(Allotted(name, neurons, level, site.entropy_bits, site.effective_bits,
                                 site.spikes / neurons, share))  # fmt: skip
        return Allocation(tuple(rows), budget, spent, self.output.error(choice), tuple(self.uniform),
                          self.criterion, UNITS[self.unit])  # fmt: skip

    def _refuse_too_little(self, budget: float) -> None:
        least = self.fixed + sum(min(costs.values()) for costs in self.cost.values())
        if budget < least:
            raise SettingsError(
                f"a budget of {budget:,.6g} {UNITS[self.unit]} cannot be kept: with {self.levels[0]} levels "
                f"everywhere the network needs {least:,.6g}. Give more, or fewer levels=."
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
