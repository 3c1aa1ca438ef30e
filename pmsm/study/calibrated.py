"""A trained network of the user's, quantized and calibrated into the folder of a run: no training."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from pmsm.ann.checkpoint import FORMAT, load_weights, save_network
from pmsm.ann.train import evaluate
from pmsm.errors import CheckpointError
from pmsm.files import write_atomic
from pmsm.qann.calibrate import calibrate
from pmsm.study.entries import RUN
from pmsm.study.experiment import Experiment, Say, float_network, load_source, quantized
from pmsm.study.findings import Watch, unwatched

CHECKPOINT = "qann.safetensors"


def run_calibration(
    experiment: Experiment,
    out: Path,
    *,
    weights: Path | None = None,
    rule: str | None = None,
    say: Say = lambda line: None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Quantize the network of `experiment` and calibrate it; the row that `out`/run.json holds as well.

    Args:
        experiment: its network is trained already, or `weights` make it so; its epochs do not matter.
        weights: a safetensors file with the state dict of the float network.
        rule: of calibration; None: the default one.

    Raises:
        PMSMError: whatever step refuses, in its own words.
        CheckpointError: the weights cannot be read, or are those of another network.
    """
    source = load_source(experiment)
    ann = float_network(experiment, source)
    if weights is not None:
        load_float(weights, ann)
    float_accuracy = evaluate(ann.eval(), watch(source.valid, "float network"))
    say(f"{source.name}: float network {float_accuracy:.2f} %")
    chosen = {} if rule is None else {"rule": rule}
    qann = calibrate(quantized(experiment, source, ann), watch(source.calibration, "calibrate"), **chosen)
    qann_accuracy = evaluate(qann, watch(source.valid, "quantized network"))
    say(f"quantized network, calibrated only: {qann_accuracy:.2f} %")
    row = {
        "format": "pmsm-experiment", "version": 1, "experiment": asdict(experiment), "data": source.name,
        "float_accuracy": float_accuracy, "float_curve": [], "qann_accuracy": qann_accuracy, "qann_curve": [],
    } | chosen  # fmt: skip
    save_network(out / CHECKPOINT, qann)
    write_atomic(out / RUN, json.dumps(row, indent=1), CheckpointError)
    return row


def load_float(path: Path, ann: nn.Module) -> None:
    """Fill a float network from a safetensors file: its state dict, or a checkpoint of `pmsm train`.

    Counters of BatchNorm may be missing.

    Raises:
        CheckpointError: not readable, or of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            trained_here = (file.metadata() or {}).get("format") == FORMAT
            state = {} if trained_here else {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as cause:
        raise CheckpointError(
            f"cannot read weights from {str(path)!r} ({cause}). Write them with "
            f"safetensors.torch.save_file(ann.state_dict(), path)."
        ) from cause
    if trained_here:
        load_weights(path, ann)
        return
    wanted = ann.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing, unknown = wanted.keys() - state.keys() - counters, state.keys() - wanted.keys()
    odd = {name for name in state.keys() & wanted.keys() if state[name].shape != wanted[name].shape}
    if missing or unknown or odd:
        told = [f"{what} {', '.join(sorted(names)[:3])}" for what, names in
                (("missing", missing), ("unknown", unknown), ("of another shape", odd)) if names]  # fmt: skip
        raise CheckpointError(
            f"the weights in {str(path)!r} are not those of {type(ann).__name__}: {'; '.join(told)}. Name "
            f"the network that they were trained for, --model package.module:function."
        )
    ann.load_state_dict(state, strict=False)
