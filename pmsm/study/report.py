"""What a reader sees of a run: one self-contained HTML page, and a summary for the terminal."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmsm.errors import PMSMError, import_extra
from pmsm.files import write_atomic
from pmsm.study import plots

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

FORMAT, VERSION = "pmsm-run", 1
_VERIFY = {"max_difference": float, "codes": int, "different": int}
_SITE = {
    "name": str, "shape": [int], "scale": float, "quant_min": int, "quant_max": int, "entropy_bits": float,
    "effective_bits": float, "max_bits": float, "histogram?": {int: float}, "silent?": float,
    "saturated?": float,
}  # fmt: skip
_METHOD = {
    "name": str, "method": str, "qann_accuracy": float, "accuracy": [float], "spikes_per_neuron": [float],
    "epochs": int, "seconds": float, "verify?": _VERIFY, "sites?": [_SITE],
}  # fmt: skip
# What a record must hold. A key that ends in "?" may be missing or None; a number may be None, read as NaN.
RECORD = {
    "title": str,
    "data": {"name": str, "train": int, "test": int, "shape": [int], "classes": int},
    "network": {"name": str, "parameters": int, "sites": int, "neurons": int},
    "float": {"accuracy": float, "epochs": int, "seconds": float},
    "timesteps": [int],
    "methods": [_METHOD],
    "environment": {str: object},
    "command": str,
    "commit?": str,
    "date?": str,
}
_KINDS = {str: "a text", int: "a whole number", float: "a number"}
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


def read_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A checked copy of a run record in which every optional key exists, None where the record has none.

    Raises:
        PMSMError: the text names the first key that is missing or holds something else.
    """
    if not isinstance(record, Mapping):
        raise _malformed(f"it must be an object, got {type(record).__name__}")
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if record.get(key) != expected:
            raise _malformed(f"{key!r} must be {expected!r}, got {record.get(key)!r}")
    checked = _read(record, RECORD, "")
    steps = checked["timesteps"]
    if not steps or steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
        raise _malformed(f"'timesteps' must be positive and ascending, got {steps}")
    if not checked["methods"]:
        raise _malformed("'methods' is empty")
    for i, method in enumerate(checked["methods"]):
        for key in ("accuracy", "spikes_per_neuron"):
            found = len(method[key])
            if found != len(steps):
                raise _malformed(f"'methods[{i}].{key}' holds {found} values for {len(steps)} timesteps")
    return checked


def _read(value: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, dict):
        if not isinstance(value, Mapping):
            raise _malformed(f"{where!r} must be an object, got {type(value).__name__}")
        if int in kind:
            return {
                _code(name, where): _read(item, kind[int], f"{where}.{name}") for name, item in value.items()
            }
        if str in kind:
            return {str(name): _read(item, kind[str], f"{where}.{name}") for name, item in value.items()}
        return {key.removesuffix("?"): _read_key(value, key, inner, where) for key, inner in kind.items()}
    if isinstance(kind, list):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _malformed(f"{where!r} must be a list, got {type(value).__name__}")
        return [_read(item, kind[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is float and value is None:
        return math.nan
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind in (int, float) and isinstance(value, bool)):
        raise _malformed(f"{where!r} must be {_KINDS[kind]}, got {value!r}")
    return value


def _read_key(record: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    name = key.removesuffix("?")
    place = f"{where}.{name}" if where else name
    if key.endswith("?") and record.get(name) is None:
        return None
    if name not in record:
        raise _malformed(f"{place!r} is missing")
    return _read(record[name], kind, place)


def _code(name: Any, where: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise _malformed(f"{where!r} has the key {name!r}, which is no spike count") from None


def _malformed(what: str) -> PMSMError:
    return PMSMError(f"cannot read the run record: {what}. Write it anew: pmsm demo.")


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
