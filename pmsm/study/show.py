"""What a checkpoint holds, told to a person or to a program; the file is checked to the last byte."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pmsm.ann import checkpoint
from pmsm.graph.values import DTYPES
from pmsm.snn.checkpoint import load
from pmsm.snn.header import FORMAT, FORMAT_VERSION, read_header
from pmsm.snn.sites import built_method

KINDS = {"qann": "quantized network", "snn": "spiking network"}


def show(path: str | Path) -> dict[str, Any]:
    """What the file at `path` holds: kind, inputs, versions, sites, operators, tensors; JSON-able.

    Of a checkpoint of training: epochs, the last of them, settings, sites, tensors.

    Raises:
        CheckpointError: a file that `pmsm.load` refuses, or a damaged checkpoint.
    """
    if _is_training(path):
        return _training(path)
    load(path)
    header = read_header(path)
    numbers = {name: prod(entry["shape"]) for name, entry in header.tensors.items()}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": header.kind,
        "name": header.name,
        "run": header.run,
        "inputs": header.inputs,
        "versions": header.versions,
        "sites": [
            {"name": site["name"], "method": _method(site["method"]), "codes": site["codes"]}
            for site in header.sites
        ],
        "operators": dict(Counter(_operators(header.modules, header.nodes)).most_common()),
        "tensors": len(numbers),
        "numbers": sum(numbers.values()),
        "bytes": sum(n * DTYPES[header.tensors[name]["dtype"]].itemsize for name, n in numbers.items()),
        "not_kept": {path: entry["held"] for path, entry in header.modules.items() if "held" in entry},
    }


def _is_training(path: str | Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == checkpoint.FORMAT
    except (OSError, SafetensorError):
        return False  # `load` says what is wrong with it


def _training(path: str | Path) -> dict[str, Any]:
    """Of a checkpoint that `pmsm.train` has left."""
    settings, epochs, tensors = checkpoint.read_training(path)
    sites = {
        name.removesuffix(".bounds"): x.tolist() for name, x in tensors.items() if name.endswith(".bounds")
    }
    return {
        "format": checkpoint.FORMAT,
        "format_version": checkpoint.FORMAT_VERSION,
        "kind": "training",
        "epochs": len(epochs),
        "last": epochs[-1] if epochs else None,
        "settings": settings,
        "sites": [{"name": name, "codes": codes} for name, codes in sites.items()],
        "tensors": len(tensors),
        "numbers": sum(x.numel() for x in tensors.values()),
        "bytes": sum(x.numel() * x.element_size() for x in tensors.values()),
    }


def _told_training(found: dict[str, Any]) -> list[str]:
    """The lines of a checkpoint of training in front of its sites."""
    last = ", ".join(f"{name} {_short(value)}" for name, value in (found["last"] or {}).items())
    settings = ", ".join(f"{name} {_short(value)}" for name, value in found["settings"].items())
    return [
        f"checkpoint of training, {found['epochs']} epochs ({found['format']} {found['format_version']})",
        *([f"last epoch: {last}"] if last else []),
        f"settings: {settings}",
        f"{found['tensors']} tensors of the network, {found['numbers']:,} numbers, {found['bytes']:,} bytes",
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def told(found: dict[str, Any]) -> str:
    """The same as text."""
    lines = _told_training(found) if found["kind"] == "training" else _told_network(found)
    lines.append(f"{len(found['sites'])} sites")
    width = max((len(site["name"]) for site in found["sites"]), default=0)
    for site in found["sites"]:
        low, high = site["codes"]
        codes = f"{low}..{high}" if high else "not calibrated"
        lines.append(f"  {site['name']:{width}s}  {codes:>14s}  {site.get('method') or ''}".rstrip())
    return "\n".join(lines)


def _told_network(found: dict[str, Any]) -> list[str]:
    """The lines of a saved network in front of its sites."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    run = "".join(f", {key} {value}" for key, value in found["run"].items())
    return [
        f"{found['name']}, {KINDS[found['kind']]}{run} ({found['format']} {found['format_version']})",
        *(f"input {i['name']}: {i['dtype']} {i['shape']}" for i in found["inputs"]),
        f"written by {versions}",
        f"{found['tensors']} tensors, {found['numbers']:,} numbers, {found['bytes']:,} bytes, hashes agree",
        "operators: " + ", ".join(f"{count} {name}" for name, count in found["operators"].items()),
        *(f"acts in training only and is not kept: {p} ({kind})" for p, kind in found["not_kept"].items()),
    ]


def _method(entry: dict[str, Any] | None) -> str | None:
    return None if entry is None else repr(built_method(entry, "a site"))


def _operators(modules: dict[str, Any], nodes: list[dict[str, Any]]) -> list[str]:
    """The name of every call; a static map counts as what it runs."""
    calls = [node for node in nodes if node["op"].startswith("call")]
    return [_class(modules[n["target"]]) if n["op"] == "call_module" else n["target"] for n in calls]


def _class(entry: dict[str, Any]) -> str:
    inner = entry.get("static", entry).get("operator", {})
    return inner.get("class") or inner.get("function") or inner.get("method") or entry["class"]
