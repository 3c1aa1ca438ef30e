"""What a run looks like: three plots as SVG text that takes its colors from the page around it.

Matplotlib draws with placeholder colors; `_svg` turns each into `currentColor` or a CSS variable with a
fallback, so that one file reads in light and dark. No series is told apart by color alone: each has its
marker and its dash.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from pmsm.errors import import_extra


class Series(NamedTuple):
    """How one method is drawn everywhere: its color on light and on dark paper, its marker and its dash."""

    light: str
    dark: str
    marker: str
    dash: Any


# Okabe and Ito, "Color Universal Design" (2008): distinct under the common kinds of color blindness.
SERIES = (
    Series("#0072b2", "#56b4e9", "o", "-"),
    Series("#d55e00", "#f0823c", "s", (0, (6, 2))),
    Series("#009e73", "#2fc79b", "^", (0, (2, 1.5))),
    Series("#b3608c", "#d98fb8", "D", (0, (8, 2, 2, 2))),
    Series("#a87400", "#e69f00", "v", (0, (4, 1, 1, 1, 1, 1))),
    Series("#5c6670", "#aab4be", "P", (0, (1, 1))),
)
_INK, _MUTED, _GRID, _PAPER = "#000001", "#000002", "#000003", "#000004"
_COLORS = {
    _INK: "currentColor",
    _MUTED: "var(--muted, #5b6470)",
    _GRID: "var(--grid, #e3e6ea)",
    _PAPER: "var(--paper, #ffffff)",
    **{f"#0000{16 + i:02x}": f"var(--series-{i}, {s.light})" for i, s in enumerate(SERIES)},
}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "pmsm", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 12, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _MUTED,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "grid.color": _GRID, "grid.linewidth": 0.8, "xtick.color": _MUTED, "ytick.color": _MUTED,
    "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "xtick.major.size": 3, "ytick.major.size": 0,
    "lines.linewidth": 1.8, "lines.markersize": 7, "hatch.linewidth": 1.2,
    "legend.frameon": False, "legend.handlelength": 3.2, "legend.borderpad": 0,
}  # fmt: skip
_WIDE = 560  # px; below it names stand above the plot instead of beside it
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
    drawn = [(name, [_number(value) for value in values]) for name, values in curves]
    windows = _windows([v for _, values in drawn for v in values] + [_number(reference)])
    with _drawing():
        legend = 0 if width >= _WIDE else 20 * len(drawn) + 20
        figure = _figure(width, 190 + 110 * len(windows) + legend)
        ratios = [2.4, 1][: len(windows)]
        panels = figure.subplots(len(windows), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, window in zip(panels, windows, strict=True):
            _draw_curves(axes, timesteps, drawn, _number(reference), window)
        panels[0].set_ylabel("accuracy (%)" if len(windows) == 1 else f"accuracy (%), top {_ZOOM:.0f} points")
        for axes in panels[1:]:
            axes.set_ylabel("all")
        panels[-1].set_xlabel("timesteps T")
        if width >= _WIDE:
            _label_ends(panels[0], timesteps, drawn, _number(reference))
        else:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=1)
        return _svg(figure, "accuracy", "Accuracy in percent against the number of timesteps, per method")


def entropy_per_site(methods: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], *, width: int = 720) -> str:
    """Bits of entropy that each site's code keeps, one lane per method, with the most its levels could keep.

    Args:
        methods: (name, sites); of each site `name`, `entropy_bits` and `max_bits` are read. Sites of the same
            name share a row; rows follow the first method that has them.
        width: px.
    """
    rows = list(dict.fromkeys(site["name"] for _, sites in methods for site in sites))
    pitch = 12 * len(methods) + 22
    with _drawing():
        columns = 2 if width >= _WIDE else 1
        figure = _figure(width, pitch * len(rows) + 50 + 20 * math.ceil((len(methods) + 1) / columns))
        axes = figure.subplots()
        for index, (name, sites) in enumerate(methods):
            lane = {row: pitch * r + 18 + 12 * index for r, row in enumerate(rows)}
            points = [(lane[site["name"]], site) for site in sites]
            _draw_lane(axes, index, name, points, is_last=index == len(methods) - 1)
        for r, row in enumerate(rows):
            axes.text(0, pitch * r + 4, row, fontsize=11, va="center")
        bits = [
            _number(site[key])
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
        return _svg(figure, "entropy", "Entropy of the code at each site in bits, per method")


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
    with _drawing():
        figure = _figure(width, 128 * rows + 22)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, site, panel in zip(panels, sites, shares, strict=False):
            axes.set(yscale="log" if log else "linear", ylim=limits)
            axes.minorticks_off()
            _draw_histogram(axes, site, panel, limits[0])
        for axes in panels[len(sites) :]:
            axes.set_axis_off()
        figure.supylabel("share of codes" + (", log scale" if log else ""), fontsize=12)
        return _svg(figure, "histograms", "Share of every spike count at every site at T=1")


_Curve = tuple[str, list[float]]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


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
        axes.axhline(reference, color=_INK, linewidth=1.0, linestyle=(0, (1, 2)), label=label)
    for index, (name, values) in enumerate(curves):
        style = SERIES[index % len(SERIES)]
        axes.plot(
            timesteps, values, color=_series(index), marker=style.marker, linestyle=style.dash, label=name,
            markeredgecolor=_PAPER, markeredgewidth=1.0, zorder=3 + index / 100,
        )  # fmt: skip


def _label_ends(axes: Any, timesteps: Sequence[int], curves: Sequence[_Curve], reference: float) -> None:
    """Names beside the ends of their curves, pushed apart to at least one line of text."""
    low, high = axes.get_ylim()
    right = (timesteps[-1] / timesteps[0] * 1.25) ** 0.09  # 9 % of the panel's width
    ends = [(reference, "float", _INK, "")]
    for index, (name, values) in enumerate(curves):
        last = [value for value in values if math.isfinite(value)][-1:]
        ends += [(value, name, _series(index), SERIES[index % len(SERIES)].marker) for value in last]
    ends = sorted((end for end in ends if math.isfinite(end[0])), key=lambda end: end[0])
    heights = [min(max(end[0], low), high) for end in ends]
    places = _spread(heights, 18 / 220 * (high - low))  # 18 px of the panel's about 220
    for (_, name, color, marker), height, place in zip(ends, heights, places, strict=True):
        line = [timesteps[-1] * right**0.2, timesteps[-1] * right**0.8]
        axes.plot(
            line, [height, place], color=color, marker=marker, markevery=[1], linewidth=1.0, clip_on=False
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
    color, style = _series(index), SERIES[index % len(SERIES)]
    places = [place for place, _ in points]
    bits = [_number(site["entropy_bits"]) for _, site in points]
    most = [_number(site["max_bits"]) for _, site in points]
    axes.hlines(places, 0, bits, color=color, linewidth=1.6)
    axes.plot(bits, places, color=color, marker=style.marker, linestyle="none", label=name, clip_on=False)
    label = "most these levels can hold" if is_last else None
    axes.plot(
        most, places, color=_INK, marker="|", markersize=9, linestyle="none", label=label, clip_on=False
    )
    for place, value in zip(places, bits, strict=True):
        if math.isfinite(value):
            axes.annotate(
                f"{value:.2f}", (1, place), xycoords=("axes fraction", "data"), xytext=(10, 0),
                textcoords="offset points", va="center", fontsize=10, color=_MUTED, annotation_clip=False,
            )  # fmt: skip


def _shares(site: Mapping[str, Any]) -> dict[int, float]:
    shares = {int(code): _number(share) for code, share in site["histogram"].items()}
    return {code: share for code, share in sorted(shares.items()) if math.isfinite(share)}


def _draw_histogram(axes: Any, site: Mapping[str, Any], shares: Mapping[int, float], floor: float) -> None:
    path = import_extra("matplotlib.path", "report").Path
    patch = import_extra("matplotlib.patches", "report").PathPatch
    looks = (
        (lambda code: code < 0, {"facecolor": _series(1), "hatch": "////", "edgecolor": _PAPER}),
        (lambda code: code == 0, {"facecolor": "none", "edgecolor": _INK, "linewidth": 1.2}),
        (lambda code: code > 0, {"facecolor": _series(0)}),
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


def _series(index: int) -> str:
    return f"#0000{16 + index % len(SERIES):02x}"


@contextmanager
def _drawing() -> Iterator[None]:
    with import_extra("matplotlib", "report").rc_context(_STYLE), warnings.catch_warnings():
        # Names in any script: the browser has the glyphs that matplotlib only misses when it measures.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def _figure(width: float, height: float) -> Any:
    """An empty figure of `width` x `height` px, one user unit of the SVG per px."""
    figure = import_extra("matplotlib.figure", "report").Figure(figsize=(width / 72, height / 72))
    figure.set_layout_engine("constrained", w_pad=4 / 72, h_pad=5 / 72)
    return figure


def _svg(figure: Any, name: str, title: str) -> str:
    """The figure as one <svg>: fluid width, the page's font and colors, ids that do not clash on one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    width, height = (72 * inches for inches in figure.get_size_inches())
    prefix = f"{name}-{width:.0f}-"
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # matplotlib < 3.11
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"#0000[01][0-9a-f]", lambda match: _COLORS.get(match[0], match[0]), svg)
    svg = re.sub(r'fill="(var\([^"]*)"', r'style="fill: \1"', svg)  # variables belong into styles
    look = f"width: 100%; max-width: {width:.0f}px; height: auto; font-family: var(--font, sans-serif)"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {spaces} viewBox="0 0 {width:g} {height:g}" role="img" aria-label={quoteattr(title)}'
    return f'{head} style="{look}">' + svg[svg.index(">") + 1 :]
