"""Do published weights give their published accuracy here? ResNet-20 to 56 on CIFAR-10, float32.

Run: .venv/bin/python recipes/pretrained_resnets.py --data CIFAR10_FOLDER --weights WEIGHTS_FOLDER
The folder of weights holds akamaster_resnet{20,32,44,56}_cifar10.safetensors, with the constants that
normalize the images in the metadata. Appends one line per network to results/pretrained_resnets.jsonl and
prints the table. The author of the weights kept no validation images apart (README of SOURCE).
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pmsm.ann.data import Batches, Images, cifar10
from pmsm.ann.models import CifarResNet, resnet20, resnet32, resnet44, resnet56
from pmsm.ann.train import evaluate
from pmsm.study.demo import environment

SOURCE = "akamaster/pytorch_resnet_cifar10"
# Top-1 in %: 100 minus the test errors 8.27, 7.37, 6.90 and 6.61 in the table of SOURCE's README.
PUBLISHED: dict[Callable[[], CifarResNet], float] = {
    resnet20: 91.73,
    resnet32: 92.63,
    resnet44: 93.10,
    resnet56: 93.39,
}
RESULTS = Path(__file__).parent.parent / "results" / "pretrained_resnets.jsonl"


def main() -> None:
    """Every network, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, test = cifar10(options.data)
    print(f"{test.name}, {len(test):,} images, accuracy in %\nnetwork   measured published difference")
    for build in PUBLISHED:
        row = measure(build, test, options.weights)
        difference = row["accuracy"] - row["published"]
        print(
            f"{row['network']:9s} {row['accuracy']:8.2f} {row['published']:9.2f} {difference:+10.2f}",
            flush=True,
        )
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def measure(build: Callable[[], CifarResNet], test: Images, weights: Path) -> dict:
    """One line: top-1 in percent of the published weights on the images as their author normalized them."""
    network = build()
    path = weights / f"akamaster_{build.__name__}_cifar10.safetensors"
    with safe_open(path, "pt") as file:
        mean, std = (tuple(map(float, file.metadata()[key].split(","))) for key in ("mean", "std"))
    network.load_state_dict(load_file(path), strict=True)
    return {
        "recipe": "pretrained_resnets",
        "network": build.__name__,
        "data": test.name,
        "images": len(test),
        "accuracy": evaluate(network, Batches(replace(test, mean=mean, std=std), 250)),
        "published": PUBLISHED[build],
        "source": SOURCE,
        "environment": environment(0),
    }


if __name__ == "__main__":
    main()
