"""Where the energy goes: each operator of the spiking network beside the same operator without spikes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pmsm.study.plots.svg import INK, SERIES, WIDE, color, drawing, empty_figure, number, to_svg

MOST = 32
"""Operators that are drawn one by one, the costliest; the others are summed."""
_LOOKS = (
    ("energy_nj", "spiking network", 0, True),
    ("float_nj", "float ANN, fp32", 1, False),
    ("int8_nj", "quantized ANN, int8", 2, False),
)


def energy_per_operator(operators: Sequence[Mapping[str, Any]], *, width: int = 720) -> str:
    """nJ per sample on a log axis, one lane per operator: spiking (filled), float and 8-bit (hollow).

    Args:
        operators: `name`, `reads`, `energy_nj`, `float_nj`, `int8_nj` of each; the updates of all neurons are
            one lane, and so are those beyond the `MOST` costliest.
        width: px.
    """
    lanes = _lanes(operators)
    values = [number(lane[key]) for lane in lanes for key, *_ in _LOOKS]
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = 10 ** math.floor(math.log10(min(known))), max(known) * 1.6
    with drawing():
        figure = empty_figure(width, 30 * max(2, len(lanes)) + 50 + (22 if width >= WIDE else 62))
        axes = figure.subplots()
        for row, lane in enumerate(lanes):
            axes.text(low, 30 * row + 2, lane["name"], fontsize=11, va="center")
        for key, label, index, filled in _LOOKS:
            points = [(number(lane[key]), 30 * row + 14) for row, lane in enumerate(lanes)]
            points = [(x, y) for x, y in points if x > 0]
            x, y = [x for x, _ in points], [y for _, y in points]
            if filled:
                axes.hlines(y, low, x, color=color(index), linewidth=1.6)
            axes.plot(
                x, y, color=color(index), marker=SERIES[index].marker, linestyle="none", label=label,
                markerfacecolor=color(index) if filled else "none", markeredgewidth=1.4, clip_on=False,
            )  # fmt: skip
        axes.set(xscale="log", xlim=(low, high), ylim=(30 * len(lanes) - 6, -10), yticks=[])
        axes.set_xlabel("nJ per sample, log scale")
        axes.grid(axis="x")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", colors=INK)
        names = axes.get_legend_handles_labels()
        figure.legend(*names, loc="outside upper left", ncols=3 if width >= WIDE else 1)
        return to_svg(figure, "energy", "Energy of each operator in nJ, spiking, float and 8-bit")


def _lanes(operators: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The costliest operators in their order, then the sums of the others and of the neurons' updates."""
    neurons = [o for o in operators if o["reads"] == "neurons"]
    worth = [o for o in operators if o["reads"] != "neurons" and any(number(o[k]) > 0 for k, *_ in _LOOKS)]
    costly = sorted(worth, key=lambda o: -max(number(o[k]) for k, *_ in _LOOKS))[:MOST]
    kept = [o for o in worth if any(o is c for c in costly)]
    rest = [o for o in worth if not any(o is c for c in costly)]
    lanes: list[dict[str, Any]] = [dict(o) for o in kept]
    for name, group in ((f"{len(rest)} others", rest), ("updates of all neurons", neurons)):
        if group:
            lanes.append({"name": name} | {key: sum(number(o[key]) for o in group) for key, *_ in _LOOKS})
    return lanes
