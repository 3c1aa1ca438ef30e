"""Quantization-aware training of a pretrained ResNet on CIFAR-10, and what the spiking network does with T.

Run: .venv/bin/python recipes/cifar_resnet.py --data CIFAR10_FOLDER --weights FOLDER [--levels 9] [--epochs 6]
The folder of weights holds akamaster_resnet{20,32,44,56}_cifar10.safetensors. With --epochs 0 the network is
calibrated only. SGD from a hundredth, crop and flip, all 10,000 test images; one line per run goes to
results/cifar_resnet.jsonl. A checkpoint after each epoch lies in --out; the same command goes on from it.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from pmsm.ann.data import cifar10
from pmsm.ann.data.images import Batches
from pmsm.ann.models import CifarResNet, resnet20, resnet32, resnet44, resnet56
from pmsm.ann.train import evaluate, train
from pmsm.methods import METHODS
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.verify import verify
from pmsm.study.demo import accuracy_over_time, environment

RESULTS = Path(__file__).parent.parent / "results" / "cifar_resnet.jsonl"
NETWORKS: dict[str, Callable[[], CifarResNet]] = {
    build.__name__: build for build in (resnet20, resnet32, resnet44, resnet56)
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of the weights, from their README
TIMESTEPS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    """One network, one method, one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--method", choices=METHODS, default="pmsm")
    parser.add_argument("--levels", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=max(TIMESTEPS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar_resnet"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    row = run(options)
    print(row["method"], [round(a, 2) for a in row["accuracy"]], flush=True)
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run(options: argparse.Namespace) -> dict:
    """Load, quantize, calibrate, train, convert, prove, measure; the line."""
    train_set, test_set = (replace(images, mean=MEAN, std=STD) for images in cifar10(options.data))
    calibration, test = Batches(train_set.take(slice(0, 512)), 128), Batches(test_set, 250)
    ann = NETWORKS[options.network]()
    ann.load_state_dict(load_file(options.weights / f"akamaster_{options.network}_cifar10.safetensors"))
    torch.manual_seed(options.seed)
    method = METHODS[options.method](levels=options.levels)
    qann = calibrate(quantize(ann.eval(), method, next(iter(calibration))[0][:2]), calibration)
    name = f"{options.network}-{options.method}-{options.levels}-{options.seed}"
    history = None
    if options.epochs:
        history = train(
            qann,
            Batches(train_set, 128, seed=options.seed, shuffle=True, augment="crop-flip", drop_last=True),
            epochs=options.epochs,
            lr=options.lr,
            weight_decay=1e-4,  # that of the weights
            warmup_epochs=0.5,
            seed=options.seed,
            checkpoint=options.out / f"{name}.safetensors",
            resume=True,
        )
    snn = convert(qann)
    found = verify(qann, snn, Batches(test_set.take(slice(0, 500)), 250)) if method.exact else None
    timesteps = [t for t in TIMESTEPS if t <= options.timesteps]
    accuracy, spikes = accuracy_over_time(snn, test, tuple(timesteps))
    return {
        "recipe": "cifar_resnet", "network": options.network, "method": options.method,
        "levels": options.levels, "epochs": options.epochs, "lr": options.lr, "seed": options.seed,
        "data": "CIFAR-10", "images": len(test_set), "float_accuracy": evaluate(ann, test),
        "qann_accuracy": evaluate(qann, test), "timesteps": timesteps, "accuracy": accuracy,
        "spikes_per_neuron": spikes, "codes_compared": found.codes if found else None,
        "codes_different": found.different if found else None,
        "curve": [round(epoch.loss, 4) for epoch in history.epochs] if history else [],
        "seconds": sum(epoch.seconds for epoch in history.epochs) if history else 0,
        "environment": environment(options.seed),
    }  # fmt: skip


if __name__ == "__main__":
    main()
