"""Does the start of the step matter? QAT on Fashion-MNIST from steps x1/4 to x4 of the entropy rule's, PMSM
and QCFS.

Run: .venv/bin/python recipes/step_start.py FASHION_MNIST_FOLDER [--levels 9] [--seeds 0 1] [--images 60000]
Appends one line per run to results/step_start.jsonl. One float network per seed; every QAT run starts from
its weights, with the budget of the demo. `published` is QCFS from its own start, lambda = 8.
"""

import argparse
import json
from pathlib import Path

import torch

from pmsm import graph
from pmsm.ann import data
from pmsm.ann.data.images import Batches
from pmsm.ann.models.small import SmallResNet
from pmsm.ann.train import evaluate, train
from pmsm.methods import PMSM, QCFS, Method
from pmsm.methods.base import Quantizer, Start
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.study.demo import FLOAT_LR, QAT_LR, environment

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
RESULTS = Path(__file__).parent.parent / "results" / "step_start.jsonl"


def main() -> None:
    """Every method and factor, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--levels", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--float-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = data.load(options.directory)
    train_set = train_set.take(slice(0, options.images))
    for seed in options.seeds:
        batches = Batches(train_set, 128, seed=seed, shuffle=True, drop_last=True)
        test = Batches(test_set, 250)
        torch.manual_seed(seed)
        ann = SmallResNet(train_set.images.shape[1], train_set.class_count)
        train(ann, batches, epochs=options.float_epochs, lr=FLOAT_LR, warmup_epochs=1, seed=seed)
        base = {
            "recipe": "step_start",
            "data": train_set.name,
            "images": len(train_set),
            "levels": options.levels,
            "float_epochs": options.float_epochs,
            "epochs": options.epochs,
            "seed": seed,
            "float_accuracy": evaluate(ann, test),
            "environment": environment(seed),
        }
        runs: list[tuple[Method, float | str]] = [(PMSM(options.levels), f) for f in FACTORS]
        runs += [(QCFS(options.levels, start="entropy"), f) for f in FACTORS] + [
            (QCFS(options.levels), "published")
        ]
        for method, factor in runs:
            row = base | _run(ann, method, factor, batches, test, options.epochs, seed)
            shown = ("method", "factor", "calibrated", "accuracy", "float_accuracy")
            print(json.dumps({key: row[key] for key in shown}), flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _run(ann, method: Method, factor, batches: Batches, test: Batches, epochs: int, seed: int) -> dict:
    calibration = Batches(batches.images.take(slice(0, 1024)), 128)
    qann = calibrate(quantize(ann, method, next(iter(calibration))[0][:2]), calibration)
    quantizers: list[Quantizer] = [q for _, q in graph.modules(qann, Quantizer)]
    if factor != "published":
        for q in quantizers:
            q.set_start(Start(q.scale().detach() * factor, q.quant_min, q.quant_max))
    before, calibrated = [float(q.scale().detach()) for q in quantizers], evaluate(qann, test)
    history = train(qann, batches, epochs=epochs, lr=QAT_LR, warmup_epochs=min(1, epochs / 4), seed=seed)
    return {
        "method": repr(method), "factor": factor, "calibrated": calibrated, "accuracy": evaluate(qann, test),
        "steps_before": before, "steps_after": [float(q.scale().detach()) for q in quantizers],
        "loss": [e.loss for e in history.epochs], "seconds": sum(e.seconds for e in history.epochs),
    }  # fmt: skip


if __name__ == "__main__":
    main()
