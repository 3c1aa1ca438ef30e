"""What a reader sees of a run: one self-contained HTML page, and a summary for the terminal."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmsm.errors import import_extra
from pmsm.files import write_atomic
from pmsm.study import plots
from pmsm.study.record import read_record

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_DASH = "\N{EN DASH}"
_WIDTHS = {"wide": 720, "narrow": 350}  # px; the page shows the one that fits


def write_report(record: Mapping[str, Any], path: str | Path) -> Path:
    """Write the run `record` as one HTML file that loads nothing: no script, no font, no image.

    Args:
        record: what `pmsm demo` writes to record.json; `RECORD` lists its keys.
        path: the HTML file; equal records give equal bytes.

    Returns:
        The path written.

    Raises:
        PMSMError: the record is malformed (the text names the key), or the file cannot be written.
    """
    record = read_record(record)
    methods = record["methods"]
    featured = _featured(methods)
    page = _template().render(
        record=record,
        featured=featured,
        verdict=_verdict(featured["verify"]),
        at_one=dict(zip(record["timesteps"], featured["accuracy"], strict=True)).get(1, math.nan),
        noise=_noise(record["float"]["accuracy"], record["data"]["test"]),
        gain=_gain(methods, featured),
        fates=_fates(record["operators"] or []),
        energy=(featured["energy"] or [None])[0],
        palette=plots.SERIES,
        charts=_charts(record, featured),
    )
    path = Path(path)
    write_atomic(path, page)
    return path


def summary(record: Mapping[str, Any]) -> "Group":
    """The run for the terminal: accuracy and spikes per neuron, methods down, timesteps across.

    Raises:
        PMSMError: the record is malformed; the text names the key.
    """
    record = read_record(record)
    group = import_extra("rich.console", "report").Group
    steps = [f"T={t}" for t in record["timesteps"]]
    accuracy = _table("accuracy (%)", ["(Q)ANN", *steps])
    accuracy.add_row(*_cells("float network", [record["float"]["accuracy"]], 1))
    spikes = _table("spikes per neuron (sum of |k| over the T steps)", steps)
    for method in record["methods"]:
        accuracy.add_row(*_cells(method["name"], [method["qann_accuracy"], *method["accuracy"]], 1))
        spikes.add_row(*_cells(method["name"], method["spikes_per_neuron"], 2))
    return group(accuracy, spikes)


def _featured(methods: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The method the page leads with: the first trained PMSM, else the first PMSM, else the first."""
    own = [method for method in methods if method["method"].startswith("PMSM")]
    return next((method for method in own if method["epochs"]), (own or methods)[0])


def _verdict(verify: Mapping[str, Any] | None) -> str:
    """yes | no | nothing | unclaimed: what the comparison with the QANN at T=1 showed."""
    if verify is None:
        return "unclaimed"
    if verify["codes"] == 0:
        return "nothing"
    return "yes" if verify["different"] == 0 and verify["max_difference"] == 0 else "no"


def _noise(accuracy: float, samples: int) -> float | None:
    """Half the width of the 95 % interval of an accuracy in percent, from `samples` independent answers."""
    if not math.isfinite(accuracy) or samples < 1:
        return None
    share = accuracy / 100
    return 196 * math.sqrt(max(share * (1 - share), 0.0) / samples)


def _gain(methods: Sequence[Mapping[str, Any]], featured: Mapping[str, Any]) -> float | None:
    """Mean bits per site that training added to the code of the same method, None without such a pair."""
    for method in methods:
        same = method["method"] == featured["method"] and not method["epochs"] and featured["epochs"]
        before = {site["name"]: site["entropy_bits"] for site in method["sites"] or []}
        gains = [
            site["entropy_bits"] - before[site["name"]]
            for site in (featured["sites"] or [] if same else [])
            if math.isfinite(site["entropy_bits"] - before.get(site["name"], math.nan))
        ]
        if gains:
            return sum(gains) / len(gains)
    return None


_FATES = {
    "site": "spiking neurons", "linear": "linear, on spikes at every step",
    "analog": "linear, on analog values",
    "static map": "nonlinear map, of the mean so far", "folded": "folded into the weights",
    "passes": "only moves values", "replaced": "replaced by what its rule makes",
    "unsupported": "without a rule",
}  # fmt: skip


def _fates(operators: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """What became of the operators, and which they are."""
    groups = [(told, [o for o in operators if o["fate"] == fate]) for fate, told in _FATES.items()]
    return [(told, group) for told, group in groups if group]


def _charts(record: Mapping[str, Any], featured: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The SVG of each plot, wide and narrow; a plot for which the record has nothing is left out."""
    methods, steps = record["methods"], record["timesteps"]
    curves = [(method["name"], method["accuracy"]) for method in methods]
    sites = [(method["name"], method["sites"] or []) for method in methods]
    counted = [site for site in featured["sites"] or [] if site["histogram"]]
    reference = record["float"]["accuracy"]
    charts = {
        "accuracy": lambda width: plots.accuracy_against_timesteps(steps, curves, reference, width=width)
    }
    if any(found for _, found in sites):
        charts["entropy"] = lambda width: plots.entropy_per_site(sites, width=width)
    if counted:
        charts["histograms"] = lambda width: plots.spike_histograms(counted, width=width)
    if operators := (featured["energy"] or [{}])[0].get("operators"):
        charts["energy"] = lambda width: plots.energy_per_operator(operators, width=width)
    if raster := record["raster"]:
        steps_shown = raster["timesteps"]
        charts["raster"] = lambda width: plots.spike_raster(raster["layers"], steps_shown, width=width)
    return {name: {form: draw(width) for form, width in _WIDTHS.items()} for name, draw in charts.items()}


def _template() -> Any:
    jinja2 = import_extra("jinja2", "report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _text, "whole": lambda value: _text(value, 0), "percent": _percent}
    return environment.from_string(files("pmsm.study").joinpath("report.html.jinja").read_text("utf-8"))


def _text(value: float | None, digits: int = 1) -> str:
    """`value` with thousands separated, or a dash for what is not known."""
    return _DASH if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _percent(share: float | None) -> str:
    return _text(None if share is None else 100 * share)


def _table(title: str, columns: Sequence[str]) -> "Table":
    table = import_extra("rich.table", "report").Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=import_extra("rich.box", "report").SIMPLE_HEAD,
    )
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cells(name: str, values: Sequence[float | None], digits: int) -> list[Any]:
    # Text, not str: a name may hold what rich would read as markup.
    return [import_extra("rich.text", "report").Text(name), *(_text(value, digits) for value in values)]
