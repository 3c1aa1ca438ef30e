"""The record of the run in a folder: everything that its report shows, measured anew on its test samples."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmsm.ann.checkpoint import load_weights
from pmsm.ann.train import evaluate
from pmsm.errors import CheckpointError, DataError
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.methods import METHODS, Method
from pmsm.qann.calibrate import calibrate
from pmsm.qann.kept import kept
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.study.allocation.curves import quantizers
from pmsm.study.demo import commit, environment, site_row, verified
from pmsm.study.entries import EVALUATION, RECORD, RUN, has_record
from pmsm.study.experiment import (
    Experiment,
    Source,
    evaluate_over_time,
    float_network,
    load_experiment,
    prove,
    quantized,
)
from pmsm.study.findings import Watch, energy_of, operators_of, raster_of, unwatched
from pmsm.study.recipe import recipe_of
from pmsm.study.recipe_parts import build_network
from pmsm.study.recipe_run import CALIBRATED
from pmsm.study.recipe_run import FORMAT as RECIPE_FORMAT
from pmsm.study.record import FORMAT, VERSION

TIMESTEPS, ENERGY_SAMPLES = (1, 2, 4, 8), 64
"""Steps at which a network for images is looked at; samples on which energy is counted."""


def record_of_run(folder: Path, watch: Watch = unwatched) -> dict[str, Any]:
    """The record of a folder: read where there is one that is not older than the run, else made of the run.

    Of `pmsm train` it holds the network before training as well, calibrated only, if the float checkpoint is
    there.

    Raises:
        CheckpointError: no run in the folder, or a damaged one.
        PMSMError: whatever step refuses, in its own words.
    """
    if has_record(folder):
        try:
            return json.loads((folder / RECORD).read_text())
        except (OSError, ValueError) as cause:
            raise DataError(
                f"cannot read {str(folder / RECORD)!r} ({cause}). Write it anew: pmsm demo --out {folder}."
            ) from cause
    experiment, source, qann = load_experiment(folder)
    run = json.loads((folder / RUN).read_text())
    return _Recorder(folder, experiment, source, run, watch).record(qann)


class _Recorder:
    """One run."""

    def __init__(
        self, folder: Path, experiment: Experiment, source: Source, run: dict[str, Any], watch: Watch
    ):
        self.folder, self.experiment, self.source, self.run = folder, experiment, source, run
        self.watch, self.stream = watch, source.events is not None
        last = experiment.timesteps if self.stream else TIMESTEPS[-1]
        self.timesteps = sorted({t for t in (*TIMESTEPS, last) if t <= last})
        make: Any = METHODS[experiment.method]
        self.method: Method = make(levels=experiment.levels)
        self.recipe = recipe_of(run["settings"]) if run.get("format") == RECIPE_FORMAT else None
        self.epochs = int(run.get("epochs") or len(run.get("qann_curve") or []))

    def record(self, qann: Network) -> dict[str, Any]:
        """The record; the evaluation is left in the folder as well."""
        label = self.method.label
        name = f"{label}, after QAT" if self.epochs else f"{label}, calibrated only"
        rows = [self._method(qann, name, self.epochs)]
        if self.epochs and (before := self._before()) is not None:
            rows.insert(0, self._method(before, f"{label}, calibrated only", 0))
        x, y = next(iter(self.source.test))
        sites = rows[-1]["sites"]
        test = sum(len(labels) for _, labels in self.source.test)
        samples = getattr(self.source.train, "samples", None)  # events come in windows, of whole batches
        train = len(self.source.train) * self.experiment.batch_size if samples is None else len(samples)
        sample = x[:, :1] if self.stream else x[:1]
        return {
            "format": FORMAT, "version": VERSION,
            "title": f"{self.source.name}: {self.experiment.network}, from float to spikes",
            "data": {"name": self.source.name, "train": train, "test": test,
                     "shape": list(x.shape[2:] if self.stream else x.shape[1:]),
                     "classes": self.source.classes},
            "network": {"name": self.experiment.network, "sites": len(sites),
                        "parameters": _float_parameters(qann),
                        "neurons": sum(prod(s["shape"]) for s in sites)},
            "float": {"accuracy": self.run["float_accuracy"], "seconds": None,
                      "epochs": self.run.get("float_epochs") or len(self.run.get("float_curve") or [])},
            "timesteps": self.timesteps, "methods": rows,
            "operators": self._operators(),
            "raster": raster_of(convert(qann), sample, f"first test sample, label {int(y[0])}",
                                stream=self.stream),
            "environment": environment(self.experiment.seed), "command": self._command(),
            "commit": commit(), "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }  # fmt: skip

    def _method(self, qann: Network, name: str, epochs: int) -> dict[str, Any]:
        source = replace(self.source, test=self.watch(self.source.test, f"{name}: accuracy"))
        over_time = evaluate_over_time(qann, source, self.timesteps[-1])
        if epochs == self.epochs:
            write_atomic(self.folder / EVALUATION, json.dumps(over_time), DataError)
        found = prove(qann, self.source) if self.method.exact else None
        return {
            "name": name, "method": repr(self.method), "epochs": epochs, "seconds": None,
            "qann_accuracy": evaluate(qann, self.watch(self.source.valid, f"{name}: quantized")),
            "accuracy": [over_time["accuracy"][t - 1] for t in self.timesteps],
            "spikes_per_neuron": [over_time["spikes_per_neuron"][t - 1] for t in self.timesteps],
            "verify": verified(found),
            "sites": [site_row(s) for s in kept(qann, self.watch(self.source.calibration, f"{name}: codes"))],
            "energy": energy_of(convert(qann), self._priced(), [1] if self.stream else self.timesteps,
                                stream=self.stream),
        }  # fmt: skip

    def _before(self) -> Network | None:
        """The network as it was before it was trained with its quantizers."""
        if self.recipe is not None:
            if not (self.folder / CALIBRATED).exists():
                return None
            before = quantize(self._float(), self.recipe.build_method(), next(iter(self.source.valid))[0][:2])
            load_weights(self.folder / CALIBRATED, before)
            return before.eval()
        path = self.folder / "float.safetensors"
        if not path.exists():
            return None
        ann = float_network(self.experiment, self.source)
        load_weights(path, ann)
        return calibrate(quantized(self.experiment, self.source, ann.eval()), self.source.calibration)

    def _priced(self) -> list[Tensor]:
        """The first test samples, `ENERGY_SAMPLES` of them."""
        x, _ = next(iter(self.source.test))
        return [x[:, :ENERGY_SAMPLES] if self.stream else x[:ENERGY_SAMPLES]]

    def _operators(self) -> list[dict[str, Any]]:
        return operators_of(self._float(), next(iter(self.source.valid))[0][:2], self.method)

    def _float(self) -> nn.Module:
        """The float network, with random weights."""
        if self.recipe is None:
            return float_network(self.experiment, self.source)
        source, seed = self.source, self.experiment.seed
        return build_network(self.recipe, source.channels, source.classes, seed).eval()

    def _command(self) -> str:
        """What makes this run again."""
        e, run, after = self.experiment, self.run, f"--out {self.folder}\npmsm report {self.folder}"
        if self.recipe is not None:
            weights = f"--weights {run['weights_folder']} " * bool(run.get("weights_folder"))
            return (
                f"pmsm train recipes/{run.get('recipe')}.py --data {run.get('folder', 'DIR')} {weights}"
                f"--method {e.method} --levels {e.levels} --seed {e.seed} {after}"
            )
        options = f"--data {e.data} " * bool(e.data) + f"--method {e.method} --levels {e.levels}"
        if not self.epochs:
            return f"pmsm calibrate --model {e.network} {options} {after}"
        return (
            f"pmsm train --model {e.network} {options} --timesteps {e.timesteps} --epochs {e.epochs} "
            f"--batch-size {e.batch_size} --seed {e.seed} {after}"
        )


def _float_parameters(qann: Network) -> int:
    """Without the steps."""
    steps = {id(p) for quantizer in quantizers(qann).values() for p in quantizer.parameters()}
    return sum(p.numel() for p in qann.parameters() if id(p) not in steps)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Leave the record in the folder, for `pmsm compare` and for a report without another run.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_atomic(folder / RECORD, json.dumps(record, indent=1), CheckpointError)
