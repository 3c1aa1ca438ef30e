"""Which rule chooses the best step without training? Pretrained ResNets, levels 5 to 33, over T.

Run: .venv/bin/python recipes/calibration_rules.py --data CIFAR10_FOLDER --weights FOLDER
     [--network resnet20] [--rules mse entropy percentile kl batchnorm] [--levels 5 9 17 33] [--timesteps 4]
Steps and initial potentials
from 1,024 training pictures, accuracy on all test pictures. "batchnorm" uses no data: rule mse on the
Gaussians that BatchNorm implies. One line per rule and level goes to results/calibration_rules.jsonl.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pretrained import NETWORKS, arguments, network, pictures
from torch import nn

from pmsm.ann.data.images import Batches
from pmsm.ann.train import evaluate
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.entropy import RULES
from pmsm.qann.quantize import clipped, quantize
from pmsm.snn.convert import convert
from pmsm.study.demo import accuracy_over_time, environment

RESULTS = Path(__file__).parent.parent / "results" / "calibration_rules.jsonl"
TIMESTEPS = (1, 2, 4, 8, 16, 32)
CALIBRATION = 1024


def main() -> None:
    """Every rule and level, one line each."""
    parser = arguments(__doc__, RESULTS)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--rules", nargs="+", choices=[*RULES, "batchnorm"], default=[*RULES, "batchnorm"])
    parser.add_argument("--levels", type=int, nargs="+", default=[5, 9, 17, 33])
    parser.add_argument("--timesteps", type=int, default=max(TIMESTEPS))
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = pictures(options.data, options.weights)
    calibration = Batches(train_set.take(slice(0, CALIBRATION)), 128)
    test = Batches(test_set.take(slice(0, options.images)), 250)
    ann = network(options.network, options.weights)
    base = {"recipe": "calibration_rules", "network": options.network, "images": options.images,
            "calibrated_on": CALIBRATION, "float_accuracy": evaluate(ann, test)}  # fmt: skip
    timesteps = tuple(t for t in TIMESTEPS if t <= options.timesteps)
    for levels in options.levels:
        for rule in options.rules:
            row = (
                base
                | {"rule": rule, "levels": levels}
                | measured(ann, levels, rule, calibration, test, timesteps)
            )
            print(options.network, rule, levels, [round(a, 2) for a in row["accuracy"]], flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


def measured(
    ann: nn.Module, levels: int, rule: str, calibration: Batches, test: Batches, timesteps: tuple[int, ...]
) -> dict[str, Any]:
    """Accuracy in percent and spikes per neuron at each of `timesteps`, and the accuracy they tend to."""
    qann = quantize(ann, PMSM(levels=levels), next(iter(calibration))[0][:2])
    calibrate(qann, *([None, "mse"] if rule == "batchnorm" else [calibration, rule]))
    accuracy, spikes = accuracy_over_time(convert(qann), test, timesteps)
    return {
        "timesteps": timesteps,
        "accuracy": accuracy,
        "clipped_accuracy": evaluate(clipped(qann), test),
        "spikes_per_neuron": spikes,
    }


if __name__ == "__main__":
    main()
