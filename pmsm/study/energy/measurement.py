"""What was measured: counts that stay, prices that can be changed, and how both are told."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pmsm.study import grid
from pmsm.study.energy import text
from pmsm.study.energy.firing import Estimate
from pmsm.study.energy.prices import Prices, Traffic, priced_at
from pmsm.study.energy.technology import TECHNOLOGIES, Memory, Technology
from pmsm.study.energy.work import Work

if TYPE_CHECKING:
    from rich.table import Table

DENSE = {"float ANN": TECHNOLOGIES["45nm-fp32"], "int8 QANN": TECHNOLOGIES["45nm-int8"]}
"""The networks without spikes that stand beside every measurement, whatever the spikes are priced at. Codes
of fewer than 8 bits are priced as 8.
"""


@dataclass(frozen=True)
class Row:
    """One operator or layer of neurons, per sample and for all steps together.

    Args:
        name: where it is called; kind: module type, function or method.
        reads: "spikes", "analog", "analog, once" or "neurons".
        synops: accumulates if each of |k| spikes makes its own: sum of |k| times fan-out.
        events: accumulates if a count makes one, whatever its size: sum of the fan-outs of nonzero counts.
        dense: the float network's work there; work: the spiking network's that no spike causes.
        updates: neurons times steps.
        traffic: mean bytes to and from memory; energy_pj: the row, with memory if it is charged.
    """

    name: str
    kind: str
    reads: str
    synops: Estimate
    events: Estimate
    dense: Work
    work: Work
    updates: int
    traffic: Traffic
    energy_pj: Estimate

    def priced(self, prices: Prices) -> "Row":
        """The same counts at other prices."""
        accumulates = prices.accumulates(self.synops, self.events)
        fixed = prices.work_bytes(self.work, self.updates)
        each = prices.accumulate_pj + prices.memory_pj(prices.accumulate_bytes)
        work = prices.updates_pj(self.work, self.updates) if self.updates else prices.work_pj(self.work)
        return replace(
            self,
            traffic=prices.accumulate_bytes * accumulates.mean + fixed,
            energy_pj=accumulates * each + (work + prices.memory_pj(fixed)),
        )


@dataclass(frozen=True)
class Firing:
    """What one layer of neurons has sent.

    Args:
        neurons: per sample.
        spikes, events: sum of |k|, and nonzero counts, per sample and for all steps.
        histogram: signed count -> how often, over all samples, neurons and steps.
        silent, saturated: share of the counts that are 0, or as large as one step allows.
        dead: share of the neurons that never fired in any sample.
    """

    name: str
    neurons: int
    spikes: Estimate
    events: Estimate
    histogram: dict[int, int]
    silent: float
    saturated: float
    dead: float

    @property
    def sizes(self) -> dict[int, int]:
        """|k| -> how often."""
        found: dict[int, int] = {}
        for k, times in sorted(self.histogram.items(), key=lambda item: abs(item[0])):
            found[abs(k)] = found.get(abs(k), 0) + times
        return found

    @property
    def negative(self) -> float:
        """Share of the spikes that are negative."""
        spikes = sum(size * times for size, times in self.sizes.items())
        return sum(-k * times for k, times in self.histogram.items() if k < 0) / max(1, spikes)


@dataclass(frozen=True)
class Totals:
    """Sums over the rows, per sample and for all steps.

    Args:
        macs: of the float network.
        accumulates: by the convention in use.
        rate: accumulates per MAC of the float network, over the operators that read spikes: spikes per
            synapse.
        work: of operators and neurons; traffic: bytes.
        spikes_pj, work_pj, updates_pj, memory_pj: the parts of the energy: accumulates, work of operators,
            updates of neurons, and memory if it is charged.
    """

    macs: int
    synops: Estimate
    events: Estimate
    accumulates: Estimate
    rate: float
    work: Work
    updates: int
    traffic: Traffic
    energy_pj: Estimate
    spikes_pj: float
    work_pj: float
    updates_pj: float
    memory_pj: float


@dataclass(frozen=True)
class Beside:
    """A network to compare with, per sample.

    Args:
        ratio: its energy / that of the measured network; above 1 the measured network is cheaper.
        break_even: spikes per synapse at which both cost the same; 0 where the measured network is the dearer
            one without a single spike, infinite where no spike costs anything.
    """

    name: str
    technology: str
    energy_pj: Estimate
    ratio: float
    break_even: float


@dataclass(frozen=True)
class Measurement:
    """What `measure` found; printed, it is three tables and a summary.

    Args:
        rows: operators and layers of neurons, in the order of execution.
        synops, events: of all rows, per sample.
        firing: layers of neurons.
        prices: what the energies are priced at.
        others: measurements that stand beside, at the same prices.
        per_neuron: layer -> mean over samples of the spikes of each neuron, all steps.
    """

    mode: str
    timesteps: int
    samples: int
    rows: tuple[Row, ...]
    synops: Estimate
    events: Estimate
    firing: tuple[Firing, ...]
    prices: Prices
    others: tuple[tuple[str, "Measurement"], ...] = ()
    per_neuron: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def priced(
        self,
        technology: str | Technology = "45nm-fp32",
        convention: str = "unary",
        memory: str | Memory | None = None,
    ) -> "Measurement":
        """The same counts at other prices, the networks beside it too.

        Raises:
            SettingsError: an unknown name, or memory on top of figures that contain it.
        """
        prices = priced_at(technology, convention, memory)
        others = tuple((name, other.priced(technology, convention, memory)) for name, other in self.others)
        return replace(
            self, rows=tuple(row.priced(prices) for row in self.rows), prices=prices, others=others
        )

    @property
    def totals(self) -> Totals:
        """Sums over the rows."""
        prices, rows = self.prices, self.rows
        accumulates = prices.accumulates(self.synops, self.events)
        traffic = sum((row.traffic for row in rows), Traffic())
        each = prices.accumulate_pj + prices.memory_pj(prices.accumulate_bytes)
        updates_pj = sum(prices.updates_pj(row.work, row.updates) for row in rows if row.updates)
        spikes_pj = accumulates.mean * prices.accumulate_pj
        synapses = sum(row.dense.macs for row in rows if row.reads == "spikes")
        energy = sum(row.energy_pj.mean for row in rows)
        return Totals(
            macs=sum(row.dense.macs for row in rows),
            synops=self.synops,
            events=self.events,
            accumulates=accumulates,
            rate=accumulates.mean / synapses if synapses else 0.0,
            work=sum((row.work for row in rows), Work()),
            updates=sum(row.updates for row in rows),
            traffic=traffic,
            energy_pj=Estimate(energy, accumulates.half_width * each),
            spikes_pj=spikes_pj,
            work_pj=sum(prices.work_pj(row.work) for row in rows if not row.updates),
            updates_pj=updates_pj,
            memory_pj=prices.memory_pj(traffic),
        )

    @property
    def comparison(self) -> tuple[Beside, ...]:
        """The networks beside it: the float one, the 8-bit one, and those that were given."""
        dense = sum((row.dense for row in self.rows), Work())
        fixed = [
            (name, t.name, Estimate(Prices(t, memory=self.prices.memory).dense_pj(dense)))
            for name, t in DENSE.items()
        ]
        given = [(name, m.prices.technology.name, m.totals.energy_pj) for name, m in self.others]
        return tuple(self._beside(*entry) for entry in (*fixed, *given))

    def _beside(self, name: str, technology: str, energy: Estimate) -> Beside:
        totals, prices = self.totals, self.prices
        each = prices.accumulate_pj + prices.memory_pj(prices.accumulate_bytes)
        by_spikes = totals.accumulates.mean * each
        left = max(0.0, energy.mean - (totals.energy_pj.mean - by_spikes))
        break_even = totals.rate * left / by_spikes if by_spikes else math.inf if left else 0.0
        return Beside(name, technology, energy, energy.mean / totals.energy_pj.mean, break_even)

    def summary(self) -> str:
        """The sums in a few sentences, with what they leave out."""
        return text.summary(self)

    def table(self, which: str = "layers") -> "Table":
        """One of "layers", "firing", "comparison" for a rich console."""
        return grid.rich_table(text.GRIDS[which](self))

    def markdown(self) -> str:
        """The three tables and the summary."""
        return "\n\n".join([*(grid.markdown(make(self)) for make in text.GRIDS.values()), self.summary()])

    def __str__(self) -> str:
        return "\n\n".join([*(grid.plain(make(self)) for make in text.GRIDS.values()), self.summary()])

    def as_dict(self) -> dict[str, Any]:
        """Everything but `per_neuron`, in types that JSON knows; the networks beside it by their energy."""
        kept = {f: getattr(self, f) for f in ("mode", "timesteps", "samples")}
        return kept | {
            "prices": asdict(self.prices),
            "rows": [asdict(row) for row in self.rows],
            "firing": [asdict(layer) | {"negative": layer.negative} for layer in self.firing],
            "totals": asdict(self.totals),
            "comparison": [asdict(beside) for beside in self.comparison],
        }

    def as_json(self) -> str:
        """`as_dict` as text; a value that is not finite is null."""
        return json.dumps(_finite(self.as_dict()), indent=2)


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
