"""Which rule chooses the best step without training? A pretrained ResNet-20, levels 5 to 33, T = 1 to 4.

Run: .venv/bin/python recipes/calibration_rules.py --data CIFAR10_FOLDER --weights FILE [--images 2000]
One step per site, chosen from 512 training pictures; accuracy on the first test pictures. "batchnorm" uses no
data: rule mse on the Gaussians that BatchNorm implies. One line per rule and level goes to
results/calibration_rules.jsonl.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from pmsm.ann.data import cifar10
from pmsm.ann.data.images import Batches
from pmsm.ann.models.resnet import resnet20
from pmsm.ann.train import evaluate
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.entropy import RULES
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.study.demo import accuracy_over_time, environment

RESULTS = Path(__file__).parent.parent / "results" / "calibration_rules.jsonl"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of the weights, from their README
TIMESTEPS = (1, 2, 4)


def main() -> None:
    """Every rule and level, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = (replace(images, mean=MEAN, std=STD) for images in cifar10(options.data))
    calibration = Batches(train_set.take(slice(0, 512)), 128)
    test = Batches(test_set.take(slice(0, options.images)), 250)
    ann = resnet20()
    ann.load_state_dict(load_file(options.weights), strict=True)
    base = {"recipe": "calibration_rules", "network": "resnet20", "images": options.images,
            "float_accuracy": evaluate(ann.eval(), test), "timesteps": TIMESTEPS}  # fmt: skip
    for rule in (*RULES, "batchnorm"):
        for levels in (5, 9, 17, 33):
            qann = quantize(ann, PMSM(levels=levels), next(iter(calibration))[0][:2])
            calibrate(qann, *([None, "mse"] if rule == "batchnorm" else [calibration, rule]))
            accuracy, spikes = accuracy_over_time(convert(qann), test, TIMESTEPS)
            row = {**base, "rule": rule, "levels": levels, "accuracy": accuracy, "spikes_per_neuron": spikes}
            print(rule, levels, [round(a, 2) for a in accuracy], flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


if __name__ == "__main__":
    main()
