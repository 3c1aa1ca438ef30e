"""Does a trained network cost less with signed spikes at T=1 than QCFS-IF over many steps? Measured energy.

Run: .venv/bin/python recipes/energy.py --network small_vgg --data FASHION_FOLDER [--seed 0]
     .venv/bin/python recipes/energy.py --network resnet20 --data CIFAR10_FOLDER --weights FOLDER
         --images 1000
The small VGG (five convolutions, two MaxPools) trains in float, and every method from these weights with the
same data, epochs and learning rate. QCFS-IF starts as published (lambda = 8) and, as the strongest rival that
we know how to train, from a calibrated lambda. ResNet-20 has pretrained weights, in FOLDER, and is calibrated
only. Accuracy on the first --images test pictures at every T up to the largest of `STEPS`, energy on
`PRICED` of them at `STEPS` and at the smallest T at which QCFS-IF is at most a point below PMSM's T=1. One
line per method goes to results/energy.jsonl; checkpoints lie in --out, and the same command goes on from
them.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pretrained import network, pictures
from torch import nn

from pmsm.ann.data import fashion_mnist
from pmsm.ann.data.images import Batches
from pmsm.ann.models import small_vgg
from pmsm.ann.train import evaluate, train
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS, Method
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.verify import verify
from pmsm.study.demo import WITHIN, accuracy_over_time, environment
from pmsm.study.energy.measure import measure
from pmsm.study.energy.measurement import Measurement
from pmsm.study.energy.technology import CONVENTIONS
from pmsm.study.energy.work import Work

RESULTS = Path(__file__).parent.parent / "results" / "energy.jsonl"
STEPS = (1, 2, 4, 8, 16, 32)
PRICED, CALIBRATED = 256, 1024
TECHNOLOGIES = ("45nm-fp32", "45nm-int8")
DENSE_AT = ("45nm-fp32", "45nm-fp16", "45nm-int8", "45nm-int8-acc32")
MEMORY_AT = (None, "sram-8k", "dram")
FLOAT_EPOCHS, QAT_EPOCHS, FLOAT_LR, QAT_LR = 5, 3, 0.1, 0.02
RIVAL = "QCFS-IF"
METHODS: dict[str, Method] = {
    "PMSM, 5 levels": PMSM(5),
    "PMSM, 9 levels": PMSM(9),
    f"{RIVAL}, 5 levels": QCFS(5),
    f"{RIVAL}, 9 levels": QCFS(9),
    f"{RIVAL}, 9 levels, calibrated start": QCFS(9, start="entropy"),
}
"""Each from the same float weights; PMSM first, for the others are set beside it."""
UNTRAINED: dict[str, Method] = {
    "PMSM, 5 levels": PMSM(5),
    "PMSM, 9 levels": PMSM(9),
    "PMSM, 17 levels": PMSM(17),
    f"{RIVAL}, 17 levels, calibrated start": QCFS(17, start="entropy"),
}
"""The same without training, where no step is learned and only a calibrated one makes sense."""


@dataclass(frozen=True)
class Task:
    """A network, its data, and what is known of it before it is quantized."""

    ann: nn.Module
    train: Batches | None
    calibration: Batches
    test: Batches
    priced: Batches
    names: dict[str, Any]


def main() -> None:
    """Every method in turn, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("small_vgg", "resnet20"), default="small_vgg")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="folder of ResNet-20's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--methods", default="", help="only those that begin so")
    parser.add_argument("--out", type=Path, default=Path("runs/energy"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = pretrained(options) if options.network == "resnet20" else trained(options)
    base = {"recipe": "energy", **task.names, "seed": options.seed, "images": options.images,
            "float_accuracy": evaluate(task.ann, task.test), "priced": PRICED,
            "environment": environment(options.seed)}  # fmt: skip
    print(f"float {base['float_accuracy']:.2f} %", flush=True)
    goals: dict[str, float] = {}
    for name, method in (METHODS if task.train else UNTRAINED).items():
        if not name.startswith(options.methods):
            continue
        qann = quantized(task, name, method, options)
        row = base | {"method": name, "levels": method.levels, "epochs": task.names["qat_epochs"]}
        row |= accuracies(qann, method, task) if method.exact else over_time(qann, task, goals)
        if method.exact:
            goals[name] = row["accuracy"][0] - WITHIN
        row |= energies(qann, row["timesteps"], task)
        print(name, [f"T={t} {a:.2f} %" for t, a in zip(row["timesteps"], row["accuracy"], strict=True)])
        print("   nJ:", [round(nj) for nj in row["energy_nj"]], "beside", row["beside_nj"], flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def trained(options: argparse.Namespace) -> Task:
    """The small VGG, trained in float on Fashion-MNIST."""
    train_set, test_set = fashion_mnist(options.data)
    batches = Batches(train_set, 128, seed=options.seed, shuffle=True, augment="shift", drop_last=True)
    torch.manual_seed(options.seed)
    ann = small_vgg()
    learn(ann, batches, FLOAT_EPOCHS, FLOAT_LR, "float", options)
    names = {"network": "small_vgg", "data": "Fashion-MNIST",
             "float_epochs": FLOAT_EPOCHS, "qat_epochs": QAT_EPOCHS}  # fmt: skip
    return Task(ann.eval(), batches, *_parts(train_set, test_set, options.images), names)


def pretrained(options: argparse.Namespace) -> Task:
    """ResNet-20 with the weights of others."""
    train_set, test_set = pictures(options.data, options.weights)
    names = {"network": "resnet20", "data": "CIFAR-10", "float_epochs": None, "qat_epochs": 0}
    return Task(
        network("resnet20", options.weights), None, *_parts(train_set, test_set, options.images), names
    )


def _parts(train_set: Any, test_set: Any, images: int) -> tuple[Batches, Batches, Batches]:
    """To calibrate on, to test on, and to price."""
    return (
        Batches(train_set.take(slice(0, CALIBRATED)), 128),
        Batches(test_set.take(slice(0, images)), 250),
        Batches(test_set.take(slice(0, PRICED)), 64),
    )


def learn(
    network: nn.Module, batches: Batches, epochs: int, lr: float, name: str, options: argparse.Namespace
) -> None:
    """Train with a checkpoint of that name and seed."""
    train(network, batches, epochs=epochs, lr=lr, warmup_epochs=0.5, seed=options.seed, resume=True,
          checkpoint=options.out / f"{name}-{options.seed}.safetensors")  # fmt: skip


def quantized(task: Task, name: str, method: Method, options: argparse.Namespace) -> Network:
    """Calibrated, and trained where the network is."""
    qann = calibrate(quantize(task.ann, method, next(iter(task.calibration))[0][:2]), task.calibration)
    if task.train is not None:
        learn(qann, task.train, QAT_EPOCHS, QAT_LR, name.replace(", ", "-").replace(" ", "_"), options)
    return qann.eval()


def accuracies(qann: Network, method: Method, task: Task) -> dict[str, Any]:
    """Of a method that is exact at T=1: that is all it needs."""
    snn = convert(qann)
    found = verify(qann, snn, task.priced)
    accuracy, spikes = accuracy_over_time(snn, task.test, (1,))
    return {"timesteps": [1], "accuracy": accuracy, "spikes_per_neuron": spikes,
            "qann_accuracy": evaluate(qann, task.test),
            "codes_compared": found.codes, "codes_different": found.different}  # fmt: skip


def over_time(qann: Network, task: Task, goals: dict[str, float]) -> dict[str, Any]:
    """Of a rate code: at `STEPS`, and at the first T that reaches each of `goals`."""
    every = tuple(range(1, max(STEPS) + 1))
    accuracy, spikes = accuracy_over_time(convert(qann), task.test, every)
    reached = {name: next((t for t, a in zip(every, accuracy, strict=True) if a >= goal), None)
               for name, goal in goals.items()}  # fmt: skip
    steps = sorted({*STEPS, *filter(None, reached.values())})
    return {"timesteps": steps, "accuracy": [accuracy[t - 1] for t in steps],
            "spikes_per_neuron": [spikes[t - 1] for t in steps], "within_a_point": reached,
            "accuracy_by_step": accuracy, "qann_accuracy": evaluate(qann, task.test)}  # fmt: skip


def energies(qann: Network, timesteps: list[int], task: Task) -> dict[str, Any]:
    """nJ per picture by technology and convention, a value per T, and the networks without spikes."""
    snn = convert(qann)
    measured = [measure(snn, task.priced, t) for t in timesteps]
    table = {
        technology: {
            convention: [m.priced(technology, convention).totals.energy_pj.mean / 1000 for m in measured]
            for convention in CONVENTIONS
        }
        for technology in TECHNOLOGIES
    }
    return {"energy_nj": table[TECHNOLOGIES[0]]["unary"], "energies_nj": table,
            "half_width_nj": [m.totals.energy_pj.half_width / 1000 for m in measured],
            "dense_over_this": _dense_over(measured[0]), "beside_nj": _beside(measured[0]),
            "macs": measured[0].totals.macs,
            "synops": [m.synops.mean for m in measured], "parts_pj": [_shares(m) for m in measured],
            "neurons": sum(layer.neurons for layer in measured[0].firing)}  # fmt: skip


def _beside(measured: Measurement) -> dict[str, float]:
    return {other.name: other.energy_pj.mean / 1000 for other in measured.comparison}


def _dense_over(measured: Measurement) -> dict[str, float]:
    """What the network without spikes needs over what this one needs, both at the same prices, unary."""
    dense = sum((row.dense for row in measured.rows), Work())
    found = {}
    for technology in DENSE_AT:
        for memory in MEMORY_AT:
            needed = measured.priced(technology, memory=memory)
            ratio = needed.prices.dense_pj(dense) / needed.totals.energy_pj.mean
            found[technology + (f", {memory}" if memory else "")] = ratio
    return found


def _shares(measured: Measurement) -> dict[str, float]:
    """What the energy is made of, at the default prices."""
    totals = measured.totals
    return {"spikes": totals.spikes_pj, "work": totals.work_pj, "neurons": totals.updates_pj}


if __name__ == "__main__":
    main()
