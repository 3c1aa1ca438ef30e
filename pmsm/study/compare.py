"""Methods x levels x T in one table: what was measured, runs of several seeds together, beside what others
have published.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from pmsm.errors import DataError
from pmsm.study import grid
from pmsm.study.entries import Entry, read_entries
from pmsm.study.grid import Grid
from pmsm.study.plots.pareto import Point, accuracy_against_cost
from pmsm.study.published import PUBLISHED

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("data", "network", "method", "from", "levels", "T", "accuracy (%)", "n", "float (%)",
           "spikes/neuron", "nJ", "samples")  # fmt: skip
WORDS = 4
"""Columns of words, in front of those of numbers."""


class Spread(NamedTuple):
    """Of n runs: the median, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    def told(self, digits: int) -> str:
        """The median, and the range where there is one."""
        middle, low, high = (f"{value:,.{digits}f}" for value in self)
        return middle if low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Row:
    """One method on a network and a data set after T steps, its runs together.

    Args:
        accuracy, float_accuracy: percent.
        runs: n, of different seeds or sources.
        spikes_per_neuron: summed over the steps; energy_nj: per sample, at the prices of `technology`.
    """

    data: str
    network: str
    method: str
    levels: int | None
    timesteps: int
    accuracy: Spread
    runs: int
    float_accuracy: Spread | None
    spikes_per_neuron: Spread | None
    energy_nj: Spread | None
    technology: str | None
    samples: int | None
    sources: tuple[str, ...]
    published: bool
    note: str

    @property
    def origin(self) -> str:
        """Whether it was measured here or published elsewhere, and where."""
        kind = "published" if self.published else "measured"
        note = f" ({self.note})" if self.note else ""
        return f"{kind}: {', '.join(self.sources)}{note}"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; printed, it is a table and what it does not tell."""

    rows: tuple[Row, ...]
    passed_over: Mapping[str, int]

    def grid(self) -> Grid:
        """The table as texts."""
        return Grid(COLUMNS, WORDS, [_cells(row) for row in self.rows])

    def remarks(self) -> str:
        """How to read the table, and what is not in it."""
        skipped = ", ".join(f"{name} ({count})" for name, count in sorted(self.passed_over.items()))
        technologies = ", ".join(sorted({row.technology for row in self.rows if row.technology}))
        energy = f" nJ: per sample, priced at {technologies}." if technologies else ""
        return (
            f"Accuracy: top-1; over n runs the median (lowest to highest). Spikes per neuron: |k| summed "
            f"over the T steps.{energy} Published figures are their authors', not measured here; "
            f"networks of one name may differ."
            + (f" Without accuracy over T, left out: {skipped}." if skipped else "")
        )

    def table(self) -> "Table":
        """For a rich console."""
        return grid.rich_table(self.grid())

    def markdown(self) -> str:
        """The table and its remarks."""
        return f"{grid.markdown(self.grid())}\n\n{self.remarks()}\n"

    def csv(self) -> str:
        """A line per row, numbers in full."""
        columns = ["data", "network", "method", "levels", "timesteps", "runs", "samples", "technology"]
        spreads = ["accuracy", "float_accuracy", "spikes_per_neuron", "energy_nj"]
        head = [*columns, *(f"{name}_{part}" for name in spreads for part in Spread._fields),
                "published", "sources", "note"]  # fmt: skip
        lines = []
        for row in self.rows:
            numbers = [value for name in spreads for value in getattr(row, name) or [""] * 3]
            cells = [*(getattr(row, name) for name in columns), *numbers, row.published,
                     "; ".join(row.sources), row.note]  # fmt: skip
            lines.append(tuple("" if cell is None else str(cell) for cell in cells))
        return grid.comma_separated(Grid(tuple(head), len(head), lines))

    def as_json(self) -> str:
        """The rows as objects; a spread is {median, lowest, highest}."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            row.update({k: v._asdict() for k, v in row.items() if isinstance(v, Spread)})
        return json.dumps({"rows": rows, "passed_over": dict(self.passed_over)}, indent=1)

    def plot(self, *, width: int = 720) -> str:
        """SVG: accuracy against energy and against T, one row of panels for each data set."""
        points: dict[str, list[Point]] = {}
        for row in self.rows:
            energy = row.energy_nj.median if row.energy_nj else None
            network = row.network if row.published or self._networks(row.data) > 1 else ""
            levels = f"L={row.levels}" if row.levels else ""
            name = " ".join(filter(None, [network, row.method, levels, "(published)" * row.published]))
            points.setdefault(row.data, []).append(
                Point(name, row.timesteps, row.accuracy, energy, row.published)
            )
        return accuracy_against_cost(points, width=width)

    def _networks(self, data: str) -> int:
        return len({row.network for row in self.rows if row.data == data and not row.published})

    def __str__(self) -> str:
        return f"{grid.plain(self.grid())}\n\n{self.remarks()}"


FORMATS: dict[str, Callable[[Comparison], str]] = {
    ".md": Comparison.markdown, ".csv": Comparison.csv, ".json": Comparison.as_json,
    ".svg": Comparison.plot, ".txt": lambda found: f"{found}\n",
}  # fmt: skip
"""Suffix of a file -> what is written there."""


def compare(
    sources: Iterable[str | Path | Entry],
    *,
    published: bool = True,
    timesteps: Iterable[int] | None = None,
    data: Iterable[str] | None = None,
) -> Comparison:
    """One table of methods x levels x T, from results, records and runs.

    Args:
        sources: files of results (.jsonl), records (.json), folders of runs or their checkpoints, folders
            that hold any of these, or entries. A line counts if it has lists `timesteps` and `accuracy`.
        published: set what others have published on the same data beside it; without sources, all of it.
        timesteps: only these T; data: only these sets.

    Raises:
        DataError: a source that cannot be read, or nothing to compare.
        CheckpointError: a run that was not evaluated.
    """
    given = list(sources)
    read = read_entries(s for s in given if not isinstance(s, Entry))
    entries = [*read.entries, *(s for s in given if isinstance(s, Entry))]
    sets, steps = _only(data), _only(timesteps)
    if published:
        present = {entry.data for entry in entries}
        entries += [entry for entry in PUBLISHED if not given or entry.data in present]
    entries = [
        e for e in entries if (sets is None or e.data in sets) and (steps is None or e.timesteps in steps)
    ]
    if not entries:
        raise DataError(
            "there is nothing to compare: no line tells an accuracy after a number of timesteps"
            + (f" for data={sorted(sets)}" * bool(sets) if sets else "")
            + (f" for T={sorted(steps)}" if steps else "")
            + ". Give results/*.jsonl or the folders of finished runs."
        )
    return Comparison(tuple(_pooled(entries)), read.passed_over)


def _only(wanted: Iterable[Any] | None) -> set[Any] | None:
    return None if wanted is None else set(wanted)


def _pooled(entries: Iterable[Entry]) -> list[Row]:
    """Runs of one kind together; of one source and seed the last counts, for it replaced the others."""
    groups: dict[tuple, dict[tuple, Entry]] = {}
    for e in entries:
        kind = (e.data, e.network, e.method, e.levels, e.timesteps, e.samples, e.technology, e.published)
        groups.setdefault(kind, {})[e.source, e.seed] = e
    rows = [_row(list(runs.values())) for runs in groups.values()]
    return sorted(rows, key=_order)


def _row(runs: list[Entry]) -> Row:
    first = runs[0]
    found = {name: _spread(getattr(e, name) for e in runs)
             for name in ("accuracy", "float_accuracy", "spikes_per_neuron", "energy_nj")}  # fmt: skip
    accuracy = found.pop("accuracy")
    assert accuracy is not None
    return Row(
        data=first.data, network=first.network, method=first.method, levels=first.levels,
        timesteps=first.timesteps, accuracy=accuracy, runs=len(runs), technology=first.technology,
        samples=first.samples, sources=tuple(dict.fromkeys(e.source for e in runs)),
        published=first.published, note=first.note, **found,
    )  # fmt: skip


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def _order(row: Row) -> tuple:
    return (row.data, row.network.lower(), row.published, row.method, row.levels or 0, row.timesteps)


def _cells(row: Row) -> tuple[str, ...]:
    def told(spread: Spread | None, digits: int) -> str:
        return "" if spread is None else spread.told(digits)

    return (
        row.data, row.network, row.method, row.origin, str(row.levels or ""), str(row.timesteps),
        row.accuracy.told(2), "" if row.published else str(row.runs), told(row.float_accuracy, 2),
        told(row.spikes_per_neuron, 2), told(row.energy_nj, 1), f"{row.samples:,}" if row.samples else "",
    )  # fmt: skip
