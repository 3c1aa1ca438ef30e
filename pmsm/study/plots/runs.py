"""What a run looks like: accuracy over time, entropy and spike counts of each site."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pmsm.errors import import_extra
from pmsm.study.plots.svg import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDE,
    color,
    drawing,
    empty_figure,
    number,
    to_svg,
)

_ZOOM_ABOVE = 15.0  # points of accuracy between best and worst, from which a second panel shows the top
_ZOOM = 6.0  # points of accuracy in that panel
_LOG_BELOW = 0.005  # share of the rarest code, below which its bar would vanish on a linear scale


def accuracy_against_timesteps(
    timesteps: Sequence[int],
    curves: Sequence[tuple[str, Sequence[float | None]]],
    reference: float | None = None,
    *,
    width: int = 720,
) -> str:
    """Accuracy in percent over T on a log2 axis, one curve per method, the float network as a line across.

    When one method is far below the others a second panel shows the top points alone.

    Args:
        timesteps: [T], positive, ascending.
        curves: (name, [T] accuracies in percent); NaN and None leave a gap.
        reference: accuracy of the float network in percent.
        width: px; under 560 the names stand in a legend, from there on at the ends of the curves.
    """
    drawn = [(name, [number(value) for value in values]) for name, values in curves]
    windows = _windows([v for _, values in drawn for v in values] + [number(reference)])
    with drawing():
        legend = 0 if width >= WIDE else 20 * len(drawn) + 20
        figure = empty_figure(width, 190 + 110 * len(windows) + legend)
        ratios = [2.4, 1][: len(windows)]
        panels = figure.subplots(len(windows), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, window in zip(panels, windows, strict=True):
            _draw_curves(axes, timesteps, drawn, number(reference), window)
        panels[0].set_ylabel("accuracy (%)" if len(windows) == 1 else f"accuracy (%), top {_ZOOM:.0f} points")
        for axes in panels[1:]:
            axes.set_ylabel("all")
        panels[-1].set_xlabel("timesteps T")
        if width >= WIDE:
            _label_ends(panels[0], timesteps, drawn, number(reference))
        else:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=1)
        return to_svg(figure, "accuracy", "Accuracy in percent against the number of timesteps, per method")


def entropy_per_site(methods: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], *, width: int = 720) -> str:
    """Bits of entropy that each site's code keeps, one lane per method, with the most its levels could keep.

    Args:
        methods: (name, sites); of each site `name`, `entropy_bits` and `max_bits` are read. Sites of the same
            name share a row; rows follow the first method that has them.
        width: px.
    """
    rows = list(dict.fromkeys(site["name"] for _, sites in methods for site in sites))
    pitch = 12 * len(methods) + 22
    with drawing():
        columns = 2 if width >= WIDE else 1
        figure = empty_figure(width, pitch * len(rows) + 50 + 20 * math.ceil((len(methods) + 1) / columns))
        axes = figure.subplots()
        for index, (name, sites) in enumerate(methods):
            lane = {row: pitch * r + 18 + 12 * index for r, row in enumerate(rows)}
            points = [(lane[site["name"]], site) for site in sites]
            _draw_lane(axes, index, name, points, is_last=index == len(methods) - 1)
        for r, row in enumerate(rows):
            axes.text(0, pitch * r + 4, row, fontsize=11, va="center")
        bits = [
            number(site[key])
            for _, sites in methods
            for site in sites
            for key in ("entropy_bits", "max_bits")
        ]
        most = max(filter(math.isfinite, bits), default=1.0)
        axes.set(xlim=(0, 1.01 * max(most, 0.1)), ylim=(pitch * len(rows) - 4, -8), yticks=[])
        axes.set_xlabel("entropy of the code (bits)")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=columns)
        return to_svg(figure, "entropy", "Entropy of the code at each site in bits, per method")


def spike_histograms(sites: Sequence[Mapping[str, Any]], *, width: int = 720) -> str:
    """Share of every code at every site at T=1: negative hatched, silence outlined, positive solid.

    Args:
        sites: of each `name`, `quant_min`, `quant_max` and `histogram` (code -> share in [0, 1]) are read.
        width: px; as many panels of about 170 px stand side by side as fit.
    """
    columns = max(1, min(len(sites), width // 170))
    rows = math.ceil(len(sites) / columns)
    shares = [_shares(site) for site in sites]
    positive = [share for panel in shares for share in panel.values() if share > 0]
    log = min(positive, default=1.0) < _LOG_BELOW
    top = max(positive, default=1.0)
    limits = (10.0 ** (math.ceil(math.log10(min(positive))) - 1), 1.0) if log else (0.0, min(1.0, 1.15 * top))
    with drawing():
        figure = empty_figure(width, 128 * rows + 22)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, site, panel in zip(panels, sites, shares, strict=False):
            axes.set(yscale="log" if log else "linear", ylim=limits)
            axes.minorticks_off()
            _draw_histogram(axes, site, panel, limits[0])
        for axes in panels[len(sites) :]:
            axes.set_axis_off()
        figure.supylabel("share of codes" + (", log scale" if log else ""), fontsize=12)
        return to_svg(figure, "histograms", "Share of every spike count at every site at T=1")


_Curve = tuple[str, list[float]]


def _windows(values: Sequence[float]) -> list[tuple[float, float]]:
    """The ranges of accuracy to draw, the closest look first."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 100.0]
    low, high = min(finite), max(finite)
    margin = max(0.1 * (high - low), 0.3)
    whole = (max(low - margin, -2.0), high + margin)
    return [(high - _ZOOM, high + 0.1 * _ZOOM), whole] if high - low > _ZOOM_ABOVE else [whole]


def _draw_curves(
    axes: Any,
    timesteps: Sequence[int],
    curves: Sequence[_Curve],
    reference: float,
    window: tuple[float, float],
) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(timesteps, [str(t) for t in timesteps])
    axes.minorticks_off()
    axes.set(xlim=(timesteps[0] / 1.12, timesteps[-1] * 1.12), ylim=window)
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=5 if window[1] - window[0] < 2 * _ZOOM else 4)
    if math.isfinite(reference):
        label = f"float {reference:.1f}"
        axes.axhline(reference, color=INK, linewidth=1.0, linestyle=(0, (1, 2)), label=label)
    for index, (name, values) in enumerate(curves):
        style = SERIES[index % len(SERIES)]
        axes.plot(
            timesteps, values, color=color(index), marker=style.marker, linestyle=style.dash, label=name,
            markeredgecolor=PAPER, markeredgewidth=1.0, zorder=3 + index / 100,
        )  # fmt: skip


def _label_ends(axes: Any, timesteps: Sequence[int], curves: Sequence[_Curve], reference: float) -> None:
    """Names beside the ends of their curves, pushed apart to at least one line of text."""
    low, high = axes.get_ylim()
    right = (timesteps[-1] / timesteps[0] * 1.25) ** 0.09  # 9 % of the panel's width
    ends = [(reference, "float", INK, "")]
    for index, (name, values) in enumerate(curves):
        last = [value for value in values if math.isfinite(value)][-1:]
        ends += [(value, name, color(index), SERIES[index % len(SERIES)].marker) for value in last]
    ends = sorted((end for end in ends if math.isfinite(end[0])), key=lambda end: end[0])
    heights = [min(max(end[0], low), high) for end in ends]
    places = _spread(heights, 18 / 220 * (high - low))  # 18 px of the panel's about 220
    for (_, name, ink, marker), height, place in zip(ends, heights, places, strict=True):
        line = [timesteps[-1] * right**0.2, timesteps[-1] * right**0.8]
        axes.plot(
            line, [height, place], color=ink, marker=marker, markevery=[1], linewidth=1.0, clip_on=False
        )
        axes.text(timesteps[-1] * right, place, name, va="center")


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The ascending `values`, neighbors at least `gap` apart, each moved as little as its neighbors allow."""
    groups: list[tuple[float, int]] = []  # (center, size): the values that one touching stack of labels holds
    for value in values:
        center, size = value, 1
        while groups and center - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            below, count = groups.pop()
            center, size = (center * size + below * count) / (size + count), size + count
        groups.append((center, size))
    return [center + gap * (i - (size - 1) / 2) for center, size in groups for i in range(size)]


def _draw_lane(
    axes: Any, index: int, name: str, points: Sequence[tuple[float, Mapping[str, Any]]], *, is_last: bool
) -> None:
    ink, style = color(index), SERIES[index % len(SERIES)]
    places = [place for place, _ in points]
    bits = [number(site["entropy_bits"]) for _, site in points]
    most = [number(site["max_bits"]) for _, site in points]
    axes.hlines(places, 0, bits, color=ink, linewidth=1.6)
    axes.plot(bits, places, color=ink, marker=style.marker, linestyle="none", label=name, clip_on=False)
    label = "most these levels can hold" if is_last else None
    axes.plot(most, places, color=INK, marker="|", markersize=9, linestyle="none", label=label, clip_on=False)
    for place, value in zip(places, bits, strict=True):
        if math.isfinite(value):
            axes.annotate(
                f"{value:.2f}", (1, place), xycoords=("axes fraction", "data"), xytext=(10, 0),
                textcoords="offset points", va="center", fontsize=10, color=MUTED, annotation_clip=False,
            )  # fmt: skip


def _shares(site: Mapping[str, Any]) -> dict[int, float]:
    shares = {int(code): number(share) for code, share in site["histogram"].items()}
    return {code: share for code, share in sorted(shares.items()) if math.isfinite(share)}


def _draw_histogram(axes: Any, site: Mapping[str, Any], shares: Mapping[int, float], floor: float) -> None:
    path = import_extra("matplotlib.path", "report").Path
    patch = import_extra("matplotlib.patches", "report").PathPatch
    looks = (
        (lambda code: code < 0, {"facecolor": color(1), "hatch": "////", "edgecolor": PAPER}),
        (lambda code: code == 0, {"facecolor": "none", "edgecolor": INK, "linewidth": 1.2}),
        (lambda code: code > 0, {"facecolor": color(0)}),
    )
    for belongs, look in looks:  # one path per sign, not one per bar: small files at 33 levels
        bars = [(code, share) for code, share in shares.items() if belongs(code) and share > floor]
        boxes = [path([(c - 0.4, floor), (c - 0.4, s), (c + 0.4, s), (c + 0.4, floor), (0, 0)], closed=True)
                 for c, s in bars]  # fmt: skip
        if boxes:
            axes.add_patch(patch(path.make_compound_path(*boxes), **({"linewidth": 0} | look)))
    low, high = site["quant_min"], site["quant_max"]
    axes.set_xlim(low - 0.8, high + 0.8)
    axes.set_xticks(sorted({low, 0, high}))
    axes.locator_params(axis="y", **({"numticks": 5} if axes.get_yscale() == "log" else {"nbins": 4}))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    axes.grid(axis="y")
    name = site["name"] if len(site["name"]) <= 22 else "\N{HORIZONTAL ELLIPSIS}" + site["name"][-21:]
    axes.set_title(name, fontsize=11, loc="left")
