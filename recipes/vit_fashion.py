"""A small vision transformer on Fashion-MNIST: float, quantization-aware training, spiking over T.

Run: .venv/bin/python recipes/vit_fashion.py --data FASHION_FOLDER [--seed 0] [--levels 9]
Four blocks of width 96 over 49 patches and a class token (VisionTransformer, grey values in three equal
channels); AdamW, shifts as augmentation. One line per method goes to
results/vit_fashion.jsonl. Checkpoints lie in --out; the same command goes on from them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pmsm.ann.data import fashion_mnist
from pmsm.ann.data.images import Batches
from pmsm.ann.models.vit import VisionTransformer
from pmsm.ann.train import evaluate, train
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.verify import verify
from pmsm.study.demo import accuracy_over_time, environment

RESULTS = Path(__file__).parent.parent / "results" / "vit_fashion.jsonl"
TIMESTEPS = (1, 2, 4, 8, 16, 32)


@dataclass
class Rgb:
    """Batches of grey pictures as three equal channels."""

    batches: Batches

    def set_epoch(self, epoch: int) -> None:
        """As `Batches`."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            yield x.expand(-1, 3, -1, -1), y


def main() -> None:
    """Train in float, then each method from there, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=8, help="of the float network")
    parser.add_argument("--qat-epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    parser.add_argument("--out", type=Path, default=Path("runs/vit_fashion"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = fashion_mnist(options.data)
    test_set = test_set.take(slice(0, options.images))
    shuffled = Batches(train_set, 128, seed=options.seed, shuffle=True, augment="shift", drop_last=True)
    calibration, test = Rgb(Batches(train_set.take(slice(0, 512)), 128)), Rgb(Batches(test_set, 250))
    settings = {
        "optimizer": "adamw", "weight_decay": 0.05, "warmup_epochs": 0.5,
        "seed": options.seed, "resume": True,
    }  # fmt: skip
    torch.manual_seed(options.seed)
    ann = VisionTransformer(28, 4, 96, 4, 3, 10)
    checkpoint = options.out / f"float-{options.seed}.safetensors"
    train(ann, Rgb(shuffled), epochs=options.epochs, checkpoint=checkpoint, **settings)
    base = {
        "recipe": "vit_fashion", "network": "VisionTransformer(28, 4, 96, 4, 3, 10)",
        "data": "Fashion-MNIST", "images": len(test_set), "seed": options.seed, "levels": options.levels,
        "float_epochs": options.epochs, "float_accuracy": evaluate(ann, test), "timesteps": TIMESTEPS,
    }  # fmt: skip
    for epochs in (options.qat_epochs, 0):
        qann = quantize(ann, PMSM(levels=options.levels), next(iter(calibration))[0][:2])
        calibrate(qann, calibration)
        if epochs:
            name = f"pmsm-{options.levels}-{options.seed}.safetensors"
            train(qann, Rgb(shuffled), epochs=epochs, lr=3e-4, checkpoint=options.out / name, **settings)
        snn = convert(qann)
        found = verify(qann, snn, Rgb(Batches(test_set.take(slice(0, 500)), 250)))
        accuracy, spikes = accuracy_over_time(snn, test, TIMESTEPS)
        row = {**base, "epochs": epochs, "qann_accuracy": evaluate(qann, test), "accuracy": accuracy,
               "spikes_per_neuron": spikes, "codes_compared": found.codes, "codes_different": found.different,
               "environment": environment(options.seed)}  # fmt: skip
        print(epochs, base["float_accuracy"], [round(a, 2) for a in accuracy], flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
