"""What accuracy costs: against energy and against timesteps, measured beside published."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pmsm.study.plots.svg import INK, MUTED, PAPER, SERIES, WIDE, color, drawing, empty_figure, to_svg

_REACH = 30.0  # points of accuracy under the best that are drawn; what lies below is counted in the corner


class Point(NamedTuple):
    """One row of a comparison.

    Args:
        name: of its series.
        accuracy: (median, lowest, highest), percent.
        energy_nj: None where it was not measured.
    """

    name: str
    timesteps: int
    accuracy: Sequence[float]
    energy_nj: float | None
    published: bool


def accuracy_against_cost(points: Mapping[str, Sequence[Point]], *, width: int = 720) -> str:
    """Accuracy against energy and against T, for each data set; what nothing measured beats is connected.

    Measured points are filled, published ones hollow: their energy is not known here.

    Args:
        points: data set -> its points.
        width: px; under 560 the two panels stand below each other.
    """
    names = {data: list(dict.fromkeys(p.name for p in found)) for data, found in points.items()}
    columns = 2 if width >= WIDE else 1
    shown = {data: 1 + any(p.energy_nj for p in found) for data, found in points.items()}
    heights = [
        250 * (1 if columns == 2 else shown[data]) + 19 * math.ceil(len(names[data]) / columns) + 36
        for data in points
    ]
    with drawing():
        figure = empty_figure(width, sum(heights))
        parts = figure.subfigures(len(points), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (data, found) in zip(parts, points.items(), strict=True):
            grid = (1, shown[data]) if columns == 2 else (shown[data], 1)
            panels = part.subplots(*grid, squeeze=False).ravel()
            part.suptitle(data, x=0.01, ha="left", fontweight="bold", fontsize=12)
            _draw_data_set(panels, found, names[data])
            handles = panels[-1].get_legend_handles_labels()
            part.legend(*handles, loc="outside lower left", ncols=columns, fontsize=10.5)
        return to_svg(figure, "pareto", "Accuracy in percent against energy and against timesteps")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) that no other point beats in both, by rising cost.

    >>> front([(3, 90), (1, 80), (2, 95), (4, 94)])
    [(1, 80), (2, 95)]
    """
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def _draw_data_set(panels: Sequence[Any], points: Sequence[Point], names: Sequence[str]) -> None:
    """Against energy where it was measured, and against T in the last panel."""
    best = max(p.accuracy[0] for p in points)
    low = min(p.accuracy[1] for p in points if p.accuracy[1] >= best - _REACH or p.accuracy[0] == best)
    low = max(low, best - _REACH)
    margin = max(0.06 * (best - low), 0.4)
    costs: list[Callable[[Point], float | None]] = [lambda p: p.energy_nj, lambda p: p.timesteps]
    for axes, cost in zip(panels, costs[-len(panels) :], strict=True):
        shown = [(x, p) for p in points if (x := cost(p))]
        axes.set(ylim=(low - margin, max(p.accuracy[2] for p in points) + margin), xscale="log")
        axes.grid(axis="y")
        edge = front([(x, p.accuracy[0]) for x, p in shown if not p.published and p.accuracy[0] >= low])
        if edge:
            axes.plot(
                *zip(*edge, strict=True),
                color=MUTED,
                linewidth=1.0,
                drawstyle="steps-post",
                label="best measured",
            )
        for index, name in enumerate(names):
            _draw_series(axes, index, name, [(x, p) for x, p in shown if p.name == name])
        if hidden := sum(p.accuracy[0] < low for _, p in shown):
            axes.annotate(
                f"{hidden} below",
                (0.98, 0.02),
                xycoords="axes fraction",
                ha="right",
                fontsize=10,
                color=MUTED,
            )
    panels[0].set_ylabel("accuracy (%)")
    _label_steps(panels[-1], sorted({p.timesteps for p in points}))
    if len(panels) == 2:
        panels[0].set_xlabel("nJ per sample")
        panels[0].xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _draw_series(axes: Any, index: int, name: str, points: Sequence[tuple[float, Point]]) -> None:
    style = SERIES[index % len(SERIES)]
    marker = SERIES[(index + index // len(SERIES)) % len(SERIES)].marker  # a pair of its own for 36 series
    ordered = sorted(points, key=lambda pair: pair[0])
    published = any(p.published for _, p in points)
    x, y = [x for x, _ in ordered], [p.accuracy[0] for _, p in ordered]
    ink = color(index)
    look = {"markerfacecolor": "none", "markeredgecolor": ink, "linestyle": (0, (1, 2))} if published else {
        "markeredgecolor": PAPER, "linestyle": style.dash}  # fmt: skip
    axes.plot(x, y, color=ink, marker=marker, label=name, linewidth=1.2, markeredgewidth=1.2, **look)
    low, high = [p.accuracy[1] for _, p in ordered], [p.accuracy[2] for _, p in ordered]
    axes.vlines(x, low, high, color=ink, linewidth=1.0)
    for place, p in ordered:
        if p.energy_nj == place:  # against T it would only repeat the axis
            axes.annotate(
                f"T={p.timesteps}", (place, p.accuracy[0]), xytext=(5, -9), textcoords="offset points",
                fontsize=9, color=INK,
            )  # fmt: skip


def _label_steps(axes: Any, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(t) for t in steps])
    axes.minorticks_off()
    axes.set_xlim(steps[0] / 1.2, steps[-1] * 1.2)
    axes.set_xlabel("timesteps T (latency)")
