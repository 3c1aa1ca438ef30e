"""The spikes of one sample over time: a lane per neuron, positive solid, negative hollow, silence empty."""

from collections.abc import Mapping, Sequence
from typing import Any

from pmsm.errors import import_extra
from pmsm.study.plots.svg import GRID, color, drawing, empty_figure, to_svg

_ROW, _GAP, _HALF = 9.0, 26.0, 0.09  # px: a neuron, the name above each layer; half a bar, steps


def spike_raster(layers: Sequence[Mapping[str, Any]], timesteps: int, *, width: int = 720) -> str:
    """Counts of some neurons of every layer at each step; a bar is as high as |k| over the layer's largest.

    Args:
        layers: `name`, `neurons` and `counts` [neurons shown, T] of each.
        width: px.
    """
    height = sum(_ROW * len(layer["counts"]) + _GAP for layer in layers)
    with drawing():
        figure = empty_figure(width, height + 50)
        axes = figure.subplots()
        boxes: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        lines, top = [], 0.0
        for layer in layers:
            most = max((abs(k) for row in layer["counts"] for k in row), default=0) or 1
            shown = len(layer["counts"])
            told = f"{layer['name']}: {shown} of {layer['neurons']:,} neurons, at most {most} per step"
            axes.text(0.5, top + 15, told, fontsize=10.5, va="center")
            for row, counts in enumerate(layer["counts"]):
                foot = top + _GAP + _ROW * (row + 1)
                lines.append(foot)
                for t, k in enumerate(counts, 1):
                    if k:
                        boxes[k < 0].append((t, foot, (_ROW - 1) * abs(k) / most))
            top += _GAP + _ROW * shown
        axes.hlines(lines, 0.5, timesteps + 0.5, color=GRID, linewidth=0.5)
        _draw(axes, boxes[False], {"facecolor": color(0), "linewidth": 0})
        _draw(axes, boxes[True], {"facecolor": "none", "edgecolor": color(1), "linewidth": 1.2})
        axes.set(xlim=(0.5, timesteps + 0.5), ylim=(top + 4, 0), yticks=[])
        axes.set_xticks(range(1, timesteps + 1))
        axes.set_xlabel("timestep")
        axes.spines["left"].set_visible(False)
        return to_svg(figure, "raster", "Spikes of one sample over time, some neurons of each layer")


def _draw(axes: Any, boxes: Sequence[tuple[float, float, float]], look: dict[str, Any]) -> None:
    """One path for all bars of a sign: small files."""
    if not boxes:
        return
    path = import_extra("matplotlib.path", "report").Path
    patch = import_extra("matplotlib.patches", "report").PathPatch
    corners = [
        path([(t - _HALF, y), (t - _HALF, y - h), (t + _HALF, y - h), (t + _HALF, y), (0, 0)], closed=True)
        for t, y, h in boxes
    ]
    axes.add_patch(patch(path.make_compound_path(*corners), **look))
