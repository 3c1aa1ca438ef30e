"""Are levels chosen per site better than equal levels at equal energy? Calibrated only, T=1.

Run: .venv/bin/python recipes/allocate.py --network resnet20 --data CIFAR10_FOLDER --weights FILE
     .venv/bin/python recipes/allocate.py --network vit --data FASHION_FOLDER --weights FILE
FILE: the pretrained ResNet-20, or float-0.safetensors of vit_fashion.py. Steps from 512 training pictures,
errors from 256 of them. The budgets are the energies that --levels everywhere need; accuracy on the first
--images test pictures, energy on 256 of them. The lines that are kept: ResNet-20 with --levels 5 --candidates
3 4 5 6 7 9 13 and with --levels 7 --candidates 4 5 6 7 8 9 11 15; the transformer, each of whose sites tries
every split, with --levels 7 --candidates 3 5 7 9 13, after 4 epochs on 30,000 pictures. One line for each
budget and each way to spend it goes to results/allocate.jsonl.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from vit_fashion import Rgb

from pmsm.ann.checkpoint import load_weights
from pmsm.ann.data import cifar10, fashion_mnist
from pmsm.ann.data.images import Batches
from pmsm.ann.models.resnet import resnet20
from pmsm.ann.models.vit import VisionTransformer
from pmsm.ann.train import evaluate
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.study.allocation import allocate as allocation
from pmsm.study.allocation.allocate import CRITERIA, allocate
from pmsm.study.demo import environment
from pmsm.study.energy.measure import measure

RESULTS = Path(__file__).parent.parent / "results" / "allocate.jsonl"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of the ResNet's weights
LEVELS = (7,)


def main() -> None:
    """Every budget, equal levels first, then each criterion."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("resnet20", "vit"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--levels", type=int, nargs="*", default=LEVELS)
    parser.add_argument("--candidates", type=int, nargs="*", default=allocation.LEVELS)
    parser.add_argument("--rule", default="mse")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ann, calibration, test, few, name = load(options)
    base = {"recipe": "allocate", **name, "images": options.images, "rule": options.rule,
            "candidates": list(options.candidates),
            "float_accuracy": evaluate(ann, test), "environment": environment(0)}  # fmt: skip
    example = next(iter(calibration))[0][:2]

    def calibrated(qann: Network, batches: Any) -> Network:
        return calibrate(qann, batches, options.rule)

    def tell(method: str, levels: int | None, qann: Network, **more: Any) -> float:
        """Measure, print and keep one row; its energy in pJ."""
        found = measure(convert(qann), few)
        neurons = sum(layer.neurons for layer in found.firing)
        row = base | more | {
            "method": method, "levels": levels, "timesteps": [1], "accuracy": [evaluate(qann, test)],
            "energy_nj": [found.totals.energy_pj.mean / 1000],
            "spikes_per_neuron": [sum(layer.spikes.mean for layer in found.firing) / neurons],
        }  # fmt: skip
        print(method, levels, row["accuracy"], row["energy_nj"], more.get("seconds", ""), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return found.totals.energy_pj.mean

    for levels in options.levels:
        equal = calibrated(quantize(ann, PMSM(levels=levels), example), calibration)
        budget = tell("PMSM, calibrated only", levels, equal, budget_levels=levels, criterion="equal levels")
        for criterion in CRITERIA:
            start = time.perf_counter()
            qann, plan = allocate(
                equal,
                calibration,
                budget_pj=budget,
                criterion=criterion,
                calibrate=calibrated,
                levels=options.candidates,
            )
            seconds = time.perf_counter() - start
            tell(f"PMSM, allocated by {criterion}, energy of {levels} levels", None, qann, seconds=seconds,
                 budget_levels=levels, criterion=criterion, allotted=plan.levels)  # fmt: skip


def load(options: argparse.Namespace) -> tuple[nn.Module, Any, Any, Any, dict[str, str]]:
    """Network, batches to calibrate on, test batches, the 256 pictures of the energy, and their names."""
    if options.network == "resnet20":
        train_set, test_set = (replace(images, mean=MEAN, std=STD) for images in cifar10(options.data))
        ann: nn.Module = resnet20()
        ann.load_state_dict(load_file(options.weights), strict=True)
        name = {"network": "resnet20", "data": "CIFAR-10"}
    else:
        train_set, test_set = fashion_mnist(options.data)
        ann = VisionTransformer(28, 4, 96, 4, 3, 10)
        load_weights(options.weights, ann)
        name = {"network": "VisionTransformer(28, 4, 96, 4, 3, 10)", "data": "Fashion-MNIST"}
    parts = (
        train_set.take(slice(0, 512)),
        test_set.take(slice(0, options.images)),
        test_set.take(slice(0, 256)),
    )
    calibration, test, few = (Batches(part, 128) for part in parts)
    if options.network == "vit":
        calibration, test, few = Rgb(calibration), Rgb(test), Rgb(few)
    return ann.eval(), calibration, test, few, name


if __name__ == "__main__":
    main()
