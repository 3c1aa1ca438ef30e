"""Do the first step and the learning rate matter? QAT of a small VGG on Fashion-MNIST, PMSM beside QCFS.

Run: .venv/bin/python recipes/insensitivity.py FASHION_MNIST_FOLDER [--seeds 0 1] [--images 20000]
     [--levels 5 9] [--factors 0.25 0.5 1 2 4] [--rates 0.333 1 3]
One float network per seed; every QAT run starts from its weights, from calibrated steps times a factor, with
the demo's learning rate times another. QCFS starts from a calibrated lambda, and once more from its own
("published", lambda = 8). Accuracy of the quantized network, which is PMSM's at T=1 and the limit of QCFS-IF
at many steps. Appends one line per run to results/insensitivity.jsonl; runs that are there are not repeated.
"""

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pmsm import graph
from pmsm.ann import data
from pmsm.ann.data.images import Batches
from pmsm.ann.models import small_vgg
from pmsm.ann.train import evaluate, train
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer, Start
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.study.demo import FLOAT_LR, QAT_LR, environment

RESULTS = Path(__file__).parent.parent / "results" / "insensitivity.jsonl"
PUBLISHED = "published"


@dataclass(frozen=True)
class Point:
    """One run of the grid: the method, and what its first step and its learning rate are multiplied by."""

    method: PMSM | QCFS
    factor: float | str
    rate: float

    def names(self) -> dict[str, Any]:
        """What a line of results says of it."""
        name = type(self.method).__name__.lower()
        return {"method": name, "levels": self.method.levels, "factor": self.factor, "rate": self.rate}


def main() -> None:
    """Every point of the grid, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--levels", type=int, nargs="+", default=[5, 9])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.333, 1.0, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--float-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = data.load(options.directory)
    train_set, test = train_set.take(slice(0, options.images)), Batches(test_set, 250)
    for seed in options.seeds:
        batches = Batches(train_set, 128, seed=seed, shuffle=True, drop_last=True)
        torch.manual_seed(seed)
        ann = small_vgg(train_set.images.shape[1], train_set.class_count)
        train(ann, batches, epochs=options.float_epochs, lr=FLOAT_LR, warmup_epochs=1, seed=seed)
        base = {"recipe": "insensitivity", "network": "small_vgg", "data": train_set.name,
                "images": len(train_set), "float_epochs": options.float_epochs, "epochs": options.epochs,
                "seed": seed, "float_accuracy": evaluate(ann, test)}  # fmt: skip
        done = known(options.results, base)
        for point in grid(options):
            if tuple(point.names().values()) in done:
                continue
            row = base | point.names() | run(ann, point, batches, test, base)
            print(json.dumps({name: row[name] for name in (*point.names(), "accuracy")}), flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(row | {"environment": environment(seed)}) + "\n")


def grid(options: argparse.Namespace) -> list[Point]:
    """The middle first: what is measured before an end is worth most."""
    factors = sorted(options.factors, key=lambda factor: max(factor, 1 / factor))
    rates = sorted(options.rates, key=lambda rate: max(rate, 1 / rate))
    points = []
    for rate, factor, levels in product(rates, factors, options.levels):
        points += [Point(PMSM(levels), factor, rate), Point(QCFS(levels, start="entropy"), factor, rate)]
    return points + [Point(QCFS(levels), PUBLISHED, r) for levels, r in product(options.levels, rates)]


def known(results: Path, base: dict[str, Any]) -> set[tuple]:
    """The points that a file holds for this float network and budget."""
    lines = results.read_text().splitlines() if results.exists() else []
    rows = [row for row in map(json.loads, lines) if base.items() <= row.items()]
    return {tuple(row[name] for name in ("method", "levels", "factor", "rate")) for row in rows}


def run(ann: nn.Module, point: Point, batches: Batches, test: Batches, base: dict) -> dict[str, Any]:
    """Accuracy before and after QAT in percent, mean loss of each epoch, seconds."""
    calibration = Batches(batches.images.take(slice(0, 1024)), 128)
    qann = calibrate(quantize(ann, point.method, next(iter(calibration))[0][:2]), calibration)
    quantizers: list[Quantizer] = [quantizer for _, quantizer in graph.modules(qann, Quantizer)]
    if isinstance(point.factor, float):
        for site in quantizers:
            site.set_start(Start(site.scale().detach() * point.factor, site.quant_min, site.quant_max))
    calibrated = evaluate(qann, test)
    history = train(
        qann, batches, epochs=base["epochs"], lr=QAT_LR * point.rate, warmup_epochs=0.5, seed=base["seed"]
    )
    return {
        "calibrated": calibrated, "accuracy": evaluate(qann, test),
        "loss": [round(epoch.loss, 4) for epoch in history.epochs],
        "seconds": sum(epoch.seconds for epoch in history.epochs),
    }  # fmt: skip


if __name__ == "__main__":
    main()
