"""Where the figures of a comparison come from: result lines, records and folders of runs, read as entries."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmsm.errors import CheckpointError, DataError
from pmsm.methods import METHODS

RECORD, RUN, EVALUATION = "record.json", "run.json", "evaluation.json"
"""In the folder of a run: what `pmsm demo` writes; what `train` and `calibrate` write, and `evaluate`."""
MEASUREMENT = "measurement-T{}.json"
"""What `pmsm measure` writes there, for each T."""

NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet44": "ResNet-44",
    "resnet56": "ResNet-56",
}
"""Names of functions that build networks, as people write them."""
DATA_OF = {"calibration_rules": "CIFAR-10"}
"""Recipes whose lines do not name their data."""


@dataclass(frozen=True)
class Entry:
    """One figure: a method on a network and a data set, after T steps.

    Args:
        levels: codes per site; None where it is not known.
        accuracy, float_accuracy: top-1, percent.
        spikes_per_neuron: sum of |k| over the T steps, mean over neurons and samples.
        energy_nj: per sample, at the prices of `technology`.
        samples: that the accuracy was measured on.
        source: recipe or folder; of a published figure its citation.
        note: what the figure leaves out.
    """

    data: str
    network: str
    method: str
    levels: int | None
    timesteps: int
    accuracy: float
    source: str
    seed: int | None = None
    samples: int | None = None
    float_accuracy: float | None = None
    spikes_per_neuron: float | None = None
    energy_nj: float | None = None
    technology: str | None = None
    published: bool = False
    note: str = ""


@dataclass(frozen=True)
class Read:
    """What was found: entries, and how many lines of each recipe told no accuracy over timesteps."""

    entries: tuple[Entry, ...]
    passed_over: Mapping[str, int]


def read_entries(sources: Iterable[str | Path]) -> Read:
    """The entries in result files (.jsonl), records (.json), folders of runs, their checkpoints, and folders
    that hold any of these.

    Raises:
        DataError: nothing there, not readable, or no entry at all.
        CheckpointError: the folder of a run that was not evaluated.
    """
    entries: list[Entry] = []
    passed_over: dict[str, int] = {}
    for source in sources:
        for name, line in _lines(Path(source)):
            found = list(entries_of(line, name))
            entries += found
            if not found:
                recipe = _recipe(line, name)
                passed_over[recipe] = passed_over.get(recipe, 0) + 1
    return Read(tuple(entries), passed_over)


def entries_of(line: Mapping[str, Any], name: str) -> Iterator[Entry]:
    """The entries of one line of results, named `name` where it names no recipe; none if it tells no accuracy
    after a number of timesteps.
    """
    if line.get("format") == "pmsm-run":
        yield from _of_record(line, name)
    elif isinstance(line.get("timesteps"), list) and isinstance(line.get("accuracy"), list):
        yield from _of_line(line, name)


def _of_record(record: Mapping[str, Any], name: str) -> Iterator[Entry]:
    """Of a record of `pmsm demo`."""
    for method in record["methods"]:
        energy = {row["timesteps"]: row for row in method.get("energy") or []}
        columns = zip(record["timesteps"], method["accuracy"], method["spikes_per_neuron"], strict=True)
        for t, accuracy, spikes in columns:
            yield Entry(
                data=_data(record["data"]["name"]), network=_network(record["network"]["name"]),
                method=method["name"], levels=_levels(method["method"]), timesteps=t, accuracy=accuracy,
                source=_recipe(record, name), seed=record.get("environment", {}).get("seed"),
                samples=record["data"]["test"], float_accuracy=record["float"]["accuracy"],
                spikes_per_neuron=spikes, energy_nj=energy.get(t, {}).get("energy_nj"),
                technology=energy.get(t, {}).get("technology"),
            )  # fmt: skip


def _of_line(line: Mapping[str, Any], name: str) -> Iterator[Entry]:
    """Of a line with lists `timesteps` and `accuracy`, and perhaps `spikes_per_neuron` and `energy_nj`."""
    steps = line["timesteps"]
    none = [None] * len(steps)
    spikes, energy = (line.get(key) or none for key in ("spikes_per_neuron", "energy_nj"))
    source = _recipe(line, name)
    for t, accuracy, sent, nj in zip(steps, line["accuracy"], spikes, energy, strict=True):
        yield Entry(
            data=_data(line.get("data") or DATA_OF.get(source, "not stated")),
            network=_network(line.get("network", "not stated")), method=_method(line),
            levels=line.get("levels") or _levels(str(line.get("method", ""))), timesteps=t, accuracy=accuracy,
            source=source, seed=line.get("seed", line.get("environment", {}).get("seed")),
            samples=line.get("images") or line.get("samples"), float_accuracy=line.get("float_accuracy"),
            spikes_per_neuron=sent, energy_nj=nj,
            technology=None if nj is None else line.get("technology", "45nm-fp32"),
        )  # fmt: skip


def _method(line: Mapping[str, Any]) -> str:
    """The method, whether it was trained, and the rule of its calibration if that is told."""
    method = str(line.get("method", "pmsm"))
    if "," in method and "(" not in method:
        return method  # a whole name
    name = method.partition("(")[0].lower()
    short = METHODS[name].label if name in METHODS else name.upper()
    trained = "after QAT" if line.get("epochs") else "calibrated only"
    rule = f", rule {line['rule']}" if "rule" in line else ""
    return f"{short}, {trained}{rule}"


def _levels(method: str) -> int | None:
    found = re.search(r"levels=(\d+)", method)
    return int(found[1]) if found else None


def _data(name: str) -> str:
    return name.removesuffix(" train").removesuffix(" test")


def _network(name: str) -> str:
    return NETWORKS.get(name, name.partition("(")[0])


def _recipe(line: Mapping[str, Any], name: str) -> str:
    return str(line.get("recipe") or line.get("benchmark") or name)


# ----------------------------------------------------------------------------------------------------------
# Files and folders
# ----------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, line) of everything in a file or folder that can hold results."""
    if path.suffix == ".safetensors":
        path = path.parent
    if path.is_dir():
        yield from _lines_of_folder(path)
    elif path.name == RUN:
        yield path.parent.name, run_line(path.parent)
    elif path.suffix == ".jsonl":
        for number, text in enumerate(_text(path).splitlines(), 1):
            yield path.stem, _object(text, f"line {number} of {str(path)!r}")
    elif path.suffix == ".json":
        yield path.parent.name if path.name == RECORD else path.stem, _object(_text(path), repr(str(path)))
    else:
        raise DataError(
            f"cannot compare {str(path)!r}: neither a folder of a run nor a file .jsonl, .json or "
            f".safetensors. Give results/*.jsonl, runs/demo or a record.json."
        )


def _lines_of_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if has_record(folder):
        yield folder.name, _object(_text(folder / RECORD), repr(str(folder / RECORD)))
    elif (folder / RUN).exists():
        yield folder.name, run_line(folder)
    else:
        inside = sorted(folder.glob("*.jsonl"))
        inside += sorted({p.parent for name in (RECORD, RUN) for p in folder.glob(f"*/{name}")})
        if not inside:
            raise DataError(
                f"nothing to compare in {str(folder)!r}: no results (*.jsonl) and no run ({RECORD}, {RUN}). "
                f"Make one: pmsm demo --out {folder}."
            )
        for path in inside:
            yield from _lines(path)


def has_record(folder: Path) -> bool:
    """Whether a folder holds the record of what is in it: one that is not older than its run."""
    record, run = folder / RECORD, folder / RUN
    return record.exists() and not (run.exists() and run.stat().st_mtime_ns > record.stat().st_mtime_ns)


def run_line(folder: Path) -> dict[str, Any]:
    """What `pmsm train`, `evaluate` and `measure` have left in the folder of a run, as one line of results.

    Raises:
        CheckpointError: the run was not evaluated.
        DataError: a file is no JSON object.
    """
    run = _object(_text(folder / RUN), repr(str(folder / RUN)))
    if isinstance(run.get("accuracy"), list):  # of a recipe, which evaluates by itself
        return run | _energy(folder, run["timesteps"])
    if not (folder / EVALUATION).exists():
        raise CheckpointError(
            f"the run in {str(folder)!r} was not evaluated. Do it: pmsm evaluate {folder}; pmsm measure "
            f"{folder}."
        )
    evaluation = _object(_text(folder / EVALUATION), repr(str(folder / EVALUATION)))
    experiment = run.get("experiment", {})
    steps = list(range(1, len(evaluation["accuracy"]) + 1))
    line = {
        "recipe": folder.name, "data": run.get("data"), "network": experiment.get("network"),
        "method": experiment.get("method", "pmsm"), "levels": experiment.get("levels"),
        "seed": experiment.get("seed"), "epochs": len(run.get("qann_curve") or []),
        "float_accuracy": run.get("float_accuracy"), "timesteps": steps, **evaluation,
    }  # fmt: skip
    return line | _energy(folder, steps)


def _energy(folder: Path, steps: list[int]) -> dict[str, Any]:
    """What `pmsm measure` has left, of one technology; nothing if it was not called."""
    paths = {t: folder / MEASUREMENT.format(t) for t in steps}
    found = {t: _object(_text(path), repr(str(path))) for t, path in paths.items() if path.exists()}
    if not found:
        return {}
    technology = next(iter(found.values()))["prices"]["technology"]["name"]
    energy = {t: m["totals"]["energy_pj"]["mean"] / 1000 for t, m in found.items()
              if m["prices"]["technology"]["name"] == technology}  # fmt: skip
    return {"technology": technology, "energy_nj": [energy.get(t) for t in steps]}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"cannot read {str(path)!r} ({cause}). Check the path.") from cause


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as cause:
        raise DataError(
            f"{where} is no JSON ({cause}). Write the file anew, or leave the line out."
        ) from cause
    if not isinstance(found, dict):
        raise DataError(f"{where} must be a JSON object, got {type(found).__name__}.")
    return found
