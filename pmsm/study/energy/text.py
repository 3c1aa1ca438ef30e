"""How a measurement is told: three tables and a summary."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Union

from pmsm.study.energy.firing import Estimate
from pmsm.study.energy.technology import CONVENTIONS
from pmsm.study.grid import Grid

if TYPE_CHECKING:
    from pmsm.study.energy.measurement import Firing, Measurement, Row, Totals

LEFT_OUT = (
    "Left out: routing and addressing of spikes, control, clocks, leakage, the sum of the read-out over the "
    "steps; in the networks without spikes also biases, and the activations whose place neurons take."
)
SIZES = 3
"""Sizes of counts that the table of firing shows one by one."""


def layers(m: "Measurement") -> Grid:
    """A line per operator and layer of neurons, and the sums."""

    def cells(row: Union["Row", "Totals"], macs: int) -> tuple[str, ...]:
        """All columns from the MACs on."""
        work = row.work
        other = work.multiplies + work.adds + work.comparisons + work.functions
        return (
            _whole(macs), _number(row.synops.mean), _interval(row.synops), _number(row.events.mean),
            _whole(work.macs), _whole(other), _whole(row.updates), _scaled(row.traffic.total / 1024),
            _scaled(row.energy_pj.mean / 1000),
        )  # fmt: skip

    columns = ("operator", "kind", "reads", "MACs", "SOPs", "±", "events", "MACs left", "other", "updates",
               "KiB", "nJ")  # fmt: skip
    rows = [(row.name, row.kind, row.reads, *cells(row, row.dense.macs)) for row in m.rows]
    return Grid(columns, 3, [*rows, ("total", "", "", *cells(m.totals, m.totals.macs))])


def firing(m: "Measurement") -> Grid:
    """A line per layer of neurons."""
    sizes = tuple(f"{size}" for size in range(1, SIZES + 1))
    columns = ("neurons", "number", "spikes", "±", "per neuron", "negative", "silent", *sizes,
               f"{SIZES + 1}+", "saturated", "dead")  # fmt: skip
    return Grid(columns, 1, [_fired(layer) for layer in m.firing])


def _fired(layer: "Firing") -> tuple[str, ...]:
    sizes, counts = layer.sizes, sum(layer.histogram.values())
    shares = [sizes.get(size, 0) / counts for size in range(1, SIZES + 1)]
    larger = sum(times for size, times in sizes.items() if size > SIZES) / counts
    return (
        layer.name,
        _whole(layer.neurons),
        _number(layer.spikes.mean),
        _interval(layer.spikes),
        f"{layer.spikes.mean / layer.neurons:.3f}",
        *map(_percent, (layer.negative, layer.silent, *shares, larger, layer.saturated, layer.dead)),
    )


def comparison(m: "Measurement") -> Grid:
    """A line for the network itself, then one for each that stands beside it."""
    columns = ("network", "priced at", "nJ", "±", "nJ / this", "break-even rate")
    own = m.totals.energy_pj
    rows = [("this", m.prices.technology.name, _scaled(own.mean / 1000), _interval(own * 1e-3), "1.00", "")]
    for b in m.comparison:
        energy = b.energy_pj * 1e-3
        rows.append(
            (
                b.name,
                b.technology,
                _scaled(energy.mean),
                _interval(energy),
                f"{b.ratio:.2f}",
                _rate(b.break_even),
            )
        )
    return Grid(columns, 2, rows)


GRIDS: dict[str, Callable[["Measurement"], Grid]] = {
    "layers": layers, "firing": firing, "comparison": comparison
}  # fmt: skip
"""Name -> table of a measurement."""


def summary(m: "Measurement") -> str:
    """The sums in a few sentences: energy, every ratio, prices, and what is left out."""
    t, prices = m.totals, m.prices
    ratios = ", ".join(f"{b.name} at {b.technology} {b.ratio:.2f}" for b in m.comparison)
    parts = {"spikes": t.spikes_pj, "other work": t.work_pj, "neurons": t.updates_pj, "memory": t.memory_pj}
    shares = ", ".join(f"{pj / t.energy_pj.mean:.1%} {name}" for name, pj in parts.items() if pj)
    memory = (
        f"Memory at {prices.memory.pj_per_byte:g} pJ per byte ({prices.memory.source}), as if nothing were "
        f"reused, in all networks."
        if prices.memory
        else "Memory is not charged."
    )
    return (
        f"Mode {m.mode}, T={m.timesteps}, {m.samples} samples: "
        f"{_scaled(t.energy_pj.mean / 1000)} nJ per sample ({shares}); {t.rate:.3f} accumulates per synapse. "
        f"Energy of the others / this: {ratios}. "
        f"Convention {prices.convention}: {CONVENTIONS[prices.convention]}. "
        f"Prices {prices.technology.name}: {prices.technology.source}. {memory} {LEFT_OUT}"
    )


def _whole(x: int) -> str:
    return f"{x:,}" if x else ""


def _number(x: float) -> str:
    """A mean of whole numbers: without decimals where it is whole."""
    return _whole(int(x)) if x == int(x) else f"{x:,.1f}"


def _interval(estimate: Estimate) -> str:
    """Half the 95 % interval; nothing where there is none, or a single sample."""
    return _scaled(estimate.half_width) if estimate.half_width > 0 else ""


def _scaled(x: float) -> str:
    """Three digits at least."""
    if not x or math.isnan(x):
        return ""
    digits = max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:,.{digits}f}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _rate(rate: float) -> str:
    return "never" if rate == 0 else "always" if math.isinf(rate) else f"{rate:.3f}"
