"""Which rule chooses the best step for a transformer without training? The network of vit_fashion.py.

Run: .venv/bin/python recipes/vit_rules.py --data FASHION_FOLDER --checkpoint FILE
FILE is float-0.safetensors of vit_fashion.py. Steps from 512 training pictures; accuracy on the
first 1,000 test pictures at T = 1 and 8, and of the clipped, unquantized network: what clipping alone costs,
which no T brings back. One line per rule and level goes to results/vit_rules.jsonl.
"""

import argparse
import json
from pathlib import Path

import torch
from vit_fashion import Rgb

from pmsm.ann.checkpoint import load_weights
from pmsm.ann.data import fashion_mnist
from pmsm.ann.data.images import Batches
from pmsm.ann.models.vit import VisionTransformer
from pmsm.ann.train import evaluate
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.entropy import RULES
from pmsm.qann.quantize import clipped, quantize
from pmsm.snn.convert import convert
from pmsm.study.demo import accuracy_over_time, environment

RESULTS = Path(__file__).parent.parent / "results" / "vit_rules.jsonl"
TIMESTEPS, IMAGES = (1, 8), 1000


def main() -> None:
    """Every rule and level, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = fashion_mnist(options.data)
    calibration = Rgb(Batches(train_set.take(slice(0, 512)), 128))
    test = Rgb(Batches(test_set.take(slice(0, IMAGES)), 250))
    ann = VisionTransformer(28, 4, 96, 4, 3, 10)
    load_weights(options.checkpoint, ann)
    float_accuracy = evaluate(ann, test)
    for levels in (9, 33):
        for rule in RULES:
            qann = quantize(ann, PMSM(levels=levels), next(iter(calibration))[0][:2])
            calibrate(qann, calibration, rule)
            accuracy, spikes = accuracy_over_time(convert(qann), test, TIMESTEPS)
            row = {
                "recipe": "vit_rules", "network": "VisionTransformer(28, 4, 96, 4, 3, 10)",
                "data": "Fashion-MNIST", "images": IMAGES, "rule": rule, "levels": levels,
                "float_accuracy": float_accuracy, "clipped_accuracy": evaluate(clipped(qann), test),
                "timesteps": TIMESTEPS, "accuracy": accuracy, "spikes_per_neuron": spikes,
                "environment": environment(0),
            }  # fmt: skip
            print(levels, rule, accuracy, row["clipped_accuracy"], flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
