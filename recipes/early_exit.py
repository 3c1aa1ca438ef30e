"""How many timesteps does a picture need? A pretrained ResNet-20, calibrated only, stopping when it is sure.

Run: .venv/bin/python recipes/early_exit.py --data CIFAR10_FOLDER --weights FILE [--levels 9 17]
Samples stop at their first step of softmax confidence >= `until` (simulate(..., until=...)), at the latest
after T = 8. The confidence is chosen on 5,000 training pictures, not used for calibration: the smallest of a
grid at which accuracy falls at most 0.05 pp below the full run. Accuracy, mean T and spikes on all test
pictures; one line per level goes to results/early_exit.jsonl.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pmsm.ann.data import cifar10
from pmsm.ann.data.images import Batches
from pmsm.ann.models.resnet import resnet20
from pmsm.ann.train import evaluate
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "early_exit.jsonl"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of the weights, from their README
TIMESTEPS = 8
GRID = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
CHOSEN_ON = slice(10_000, 15_000)
LOSS = 0.05  # pp below the full run that the choice allows


def main() -> None:
    """Every level, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--levels", type=int, nargs="+", default=[9, 17])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = (replace(images, mean=MEAN, std=STD) for images in cifar10(options.data))
    calibration, chosen_on = (Batches(train_set.take(part), 128) for part in (slice(0, 512), CHOSEN_ON))
    test = Batches(test_set, 250)
    ann = resnet20()
    ann.load_state_dict(load_file(options.weights), strict=True)
    float_accuracy = evaluate(ann, test)
    for levels in options.levels:
        qann = quantize(ann, PMSM(levels=levels), next(iter(calibration))[0][:2])
        snn = convert(calibrate(qann, calibration))
        seen = read_outs(snn, chosen_on)
        sweep, full = [stopped(*seen, until) for until in GRID], stopped(*seen, 2.0)
        until = next(
            u for u, row in zip(GRID, sweep, strict=True) if row["accuracy"] >= full["accuracy"] - LOSS
        )
        row = {
            "recipe": "early_exit", "network": "resnet20", "levels": levels, "images": len(test_set),
            "float_accuracy": float_accuracy, "until": until, "timesteps": TIMESTEPS,
            "chosen_on": {"images": len(chosen_on.images), "full": full, "grid": GRID, "sweep": sweep},
            **run(snn, test, until), "environment": environment(0),
        }  # fmt: skip
        print(json.dumps({key: row[key] for key in ("levels", "until", "full", "early")}), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_outs(snn: Network, batches: Batches) -> tuple[Tensor, Tensor]:
    """[T, n, classes] read-outs of the full run, and [n] labels."""
    runs = [(simulate(snn, x, TIMESTEPS, record=None).outputs, y) for x, y in batches]
    return torch.cat([outputs for outputs, _ in runs], 1), torch.cat([y for _, y in runs])


def stopped(outputs: Tensor, labels: Tensor, until: float) -> dict[str, float]:
    """Accuracy in percent and mean T if every sample stopped at its first step of confidence >= `until`."""
    sure = outputs.softmax(2).amax(2) >= until
    sure[-1] = True
    steps = sure.int().argmax(0)
    last = outputs[steps, torch.arange(len(labels))]
    right = (last.argmax(1) == labels).double().mean()
    return {"accuracy": 100 * float(right), "mean_timesteps": float(steps.double().mean()) + 1}


def run(snn: Network, batches: Batches, until: float) -> dict[str, dict[str, float]]:
    """Accuracy, mean T and spikes per neuron on the test pictures: all steps, and stopping."""
    found = {}
    for name, stop in (("full", None), ("early", until)):
        right, steps, sent, count, neurons = 0, 0, 0, 0, 0
        for x, y in batches:
            run = simulate(snn, x, TIMESTEPS, until=stop)
            right += int((run.output.argmax(1) == y).sum())
            steps, sent, count = steps + int(run.steps.sum()), sent + run.sent(), count + len(y)
            neurons = sum(spikes.neurons for spikes in run.spikes.values())
        found[name] = {"accuracy": 100 * right / count, "mean_timesteps": steps / count,
                       "spikes_per_neuron": sent / (count * neurons)}  # fmt: skip
    return found


if __name__ == "__main__":
    main()
