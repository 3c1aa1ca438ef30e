"""How a plot becomes SVG text that takes its colors from the page around it.

Matplotlib draws with placeholder colors; `to_svg` turns each into `currentColor` or a CSS variable with a
fallback, so that one file reads in light and dark. No series is told apart by color alone: each has its
marker and its dash.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from pmsm.errors import import_extra
from pmsm.study.plots.compact import compact


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
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
_COLORS = {
    INK: "currentColor",
    MUTED: "var(--muted, #5b6470)",
    GRID: "var(--grid, #e3e6ea)",
    PAPER: "var(--paper, #ffffff)",
    **{f"#0000{16 + i:02x}": f"var(--series-{i}, {s.light})" for i, s in enumerate(SERIES)},
}
WIDE = 560  # px; below it names stand above the plot instead of beside it
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "pmsm", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 12, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.size": 3, "ytick.major.size": 0,
    "lines.linewidth": 1.8, "lines.markersize": 7, "hatch.linewidth": 1.2,
    "legend.frameon": False, "legend.handlelength": 3.2, "legend.borderpad": 0,
}  # fmt: skip


def number(value: float | None) -> float:
    """A value as matplotlib takes it, NaN for what is not known."""
    return math.nan if value is None else float(value)


def color(index: int) -> str:
    """The placeholder of the color of series `index`."""
    return f"#0000{16 + index % len(SERIES):02x}"


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, matplotlib draws in the style of the page."""
    with import_extra("matplotlib", "report").rc_context(_STYLE), warnings.catch_warnings():
        # Names in any script: the browser has the glyphs that matplotlib only misses when it measures.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def empty_figure(width: float, height: float) -> Any:
    """An empty figure of `width` x `height` px, one user unit of the SVG per px."""
    figure = import_extra("matplotlib.figure", "report").Figure(figsize=(width / 72, height / 72))
    figure.set_layout_engine("constrained", w_pad=4 / 72, h_pad=5 / 72)
    return figure


def to_svg(figure: Any, name: str, title: str) -> str:
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
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label={quoteattr(title)} style="{look}">'
    )
    svg = "<svg>" + svg[svg.index(">") + 1 :].replace(' xlink:href="#', ' href="#')
    plain = compact(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", svg), prefix)
    return head + plain[plain.index(">") + 1 :]
