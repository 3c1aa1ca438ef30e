"""What an allocation is, as people read it."""

import json
from dataclasses import asdict, dataclass

from pmsm.study import grid
from pmsm.study.grid import Grid

UNITS = {"budget_pj": "pJ per sample", "spikes": "spikes per neuron", "bits": "bits per neuron"}
"""Budget -> what it is counted in."""


@dataclass(frozen=True)
class Allotted:
    """What one site gets.

    Args:
        levels: number of its codes; step_of: its step is that of calibration at so many levels.
        entropy_bits: of its code; effective_bits: 1/2 log2(variance / MSE).
        spikes: per neuron and sample.
        share: of the cost that the levels decide.
    """

    site: str
    neurons: int
    levels: int
    step_of: int
    entropy_bits: float
    effective_bits: float
    spikes: float
    share: float


@dataclass(frozen=True)
class Uniform:
    """The same number of levels everywhere, for comparison."""

    levels: int
    cost: float
    error: float


@dataclass(frozen=True)
class Allocation:
    """The levels of every site, what they cost, and what they are worth beside uniform levels.

    Args:
        sites: in the order of execution.
        budget: as given; cost: in the same unit, of the network that was returned.
        error: mean squared distance from the output of the float network over its variance.
        uniform: the same for equal levels everywhere, by rising levels.
        criterion: "output" or "entropy"; unit: of budget and cost.
    """

    sites: tuple[Allotted, ...]
    budget: float
    cost: float
    error: float
    uniform: tuple[Uniform, ...]
    criterion: str
    unit: str

    @property
    def levels(self) -> dict[str, int]:
        """Site -> levels."""
        return {site.site: site.levels for site in self.sites}

    def grid(self) -> Grid:
        """A line per site."""
        columns = (
            "site",
            "neurons",
            "levels",
            "step of",
            "entropy (bits)",
            "effective (bits)",
            "spikes/neuron",
            "cost",
        )
        rows = [
            (s.site, f"{s.neurons:,}", f"{s.levels}", f"{s.step_of}", f"{s.entropy_bits:.2f}",
             f"{s.effective_bits:.2f}", f"{s.spikes:.3f}", f"{s.share:.1%}")
            for s in self.sites
        ]  # fmt: skip
        return Grid(columns, 1, rows)

    def summary(self) -> str:
        """Cost, error, and what uniform levels would give."""
        beside = [u for u in self.uniform if u.cost <= self.budget][-1:]
        beside += [u for u in self.uniform if u.cost > self.budget][:1]
        told = "; ".join(f"{u.levels} levels {_amount(u.cost)} with error {u.error:.4f}" for u in beside)
        return (
            f"Budget {_amount(self.budget)} {self.unit}, used {_amount(self.cost)}; criterion "
            f"{self.criterion}. Error of the output (mean squared distance from the float network over its "
            f"variance) {self.error:.4f}. The same levels everywhere: {told}."
        )

    def markdown(self) -> str:
        """Table and summary."""
        return f"{grid.markdown(self.grid())}\n\n{self.summary()}\n"

    def as_json(self) -> str:
        """Everything, as text."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        return f"{grid.plain(self.grid())}\n\n{self.summary()}"


def _amount(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3f}"
