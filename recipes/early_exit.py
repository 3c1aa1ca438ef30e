"""How many timesteps does a picture need? A pretrained ResNet-20, calibrated only, stopping when it is sure.

Run: .venv/bin/python recipes/early_exit.py --data CIFAR10_FOLDER --weights FOLDER [--levels 9 17 33]
Samples stop at their first step of softmax confidence >= `until` (simulate(..., until=...)), at the latest
after T = 8. The confidence needs no labels: for each tenth of the test pictures it is the largest of a grid
with which the other nine tenths stop after at most 1.3 steps on average, and is reported on that tenth. One
line per level goes to results/early_exit.jsonl.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pretrained import arguments, network, pictures
from torch import Tensor

from pmsm.ann.data.images import Batches, Images
from pmsm.ann.train import evaluate
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "early_exit.jsonl"
TIMESTEPS = 8
GRID = tuple(percent / 100 for percent in range(50, 100))
FOLDS = 10
BUDGET = 1.3  # steps on average


def main() -> None:
    """Every level, one line each."""
    parser = arguments(__doc__, RESULTS)
    parser.add_argument("--levels", type=int, nargs="+", default=[9, 17, 33])
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = pictures(options.data, options.weights)
    calibration, test = Batches(train_set.take(slice(0, 1024)), 128), Batches(test_set, 250)
    ann = network("resnet20", options.weights)
    float_accuracy = evaluate(ann, test)
    for levels in options.levels:
        qann = quantize(ann, PMSM(levels=levels), next(iter(calibration))[0][:2])
        snn = convert(calibrate(qann, calibration))
        row = {
            "recipe": "early_exit", "network": "resnet20", "levels": levels, "images": len(test_set),
            "float_accuracy": float_accuracy, "timesteps": TIMESTEPS, "grid": GRID, **compare(snn, test_set),
            "environment": environment(0),
        }  # fmt: skip
        print(json.dumps({key: row[key] for key in ("levels", "until", "full", "early")}), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def compare(snn: Network, images: Images) -> dict[str, Any]:
    """All steps against stopping, each fold with the confidence that the others chose."""
    size = len(images) // FOLDS
    folds = [Batches(images.take(slice(i * size, (i + 1) * size)), 250) for i in range(FOLDS)]
    full = [run(snn, fold, None) for fold in folds]
    chosen = [choose(joined([*full[:i], *full[i + 1 :]])) for i in range(FOLDS)]
    early = joined([run(snn, fold, until) for fold, until in zip(folds, chosen, strict=True)])
    whole = joined(full)
    return {
        "until": chosen,
        "sweep": [stopped(whole, until) for until in GRID],
        "full": whole.summary(),
        "early": early.summary(),
        "at_t1": stopped(whole, 0.0)["accuracy"],
    }


def choose(seen: "Part") -> float:
    """The largest confidence of the grid with which `seen` stops within the budget."""
    return max((until for until in GRID if stopped(seen, until)["mean_timesteps"] <= BUDGET), default=0.0)


@dataclass
class Part:
    """What a run over some pictures gave: [T, n, classes] read-outs, [n] labels, steps, spikes per neuron."""

    outputs: Tensor
    labels: Tensor
    steps: Tensor
    spikes_per_neuron: Tensor

    @property
    def accuracy(self) -> float:
        """Top-1 in percent of the last read-outs."""
        return 100 * float((self.outputs[-1].argmax(1) == self.labels).double().mean())

    def summary(self) -> dict[str, float]:
        """Its three means."""
        return {
            "accuracy": self.accuracy,
            "mean_timesteps": float(self.steps.double().mean()),
            "spikes_per_neuron": float(self.spikes_per_neuron.mean()),
        }


def joined(parts: list[Part]) -> Part:
    """All of them as one."""
    outputs = torch.cat([part.outputs for part in parts], 1)
    others = zip(*((part.labels, part.steps, part.spikes_per_neuron) for part in parts), strict=True)
    return Part(outputs, *map(torch.cat, others))


def run(snn: Network, batches: Batches, until: float | None) -> Part:
    """Every picture, stopping where it is sure."""
    outputs, labels, steps, sent, neurons = [], [], [], 0, 1
    for x, y in batches:
        run = simulate(snn, x, TIMESTEPS, until=until)
        outputs.append(torch.cat([run.outputs, run.output.expand(TIMESTEPS - run.timesteps, -1, -1)]))
        labels.append(y)
        steps.append(run.steps)
        sent, neurons = sent + run.sent(), sum(spikes.neurons for spikes in run.spikes.values())
    count = len(batches.images)
    mean = torch.full((count,), sent / (count * neurons), dtype=torch.float64)
    return Part(torch.cat(outputs, 1), torch.cat(labels), torch.cat(steps), mean)


def stopped(full: Part, until: float) -> dict[str, float]:
    """Accuracy in percent and mean T if every sample stopped at its first step of confidence >= `until`."""
    sure = full.outputs.softmax(2).amax(2) >= until
    sure[-1] = True
    steps = sure.int().argmax(0)
    last = full.outputs[steps, torch.arange(len(full.labels))]
    right = (last.argmax(1) == full.labels).double().mean()
    return {"accuracy": 100 * float(right), "mean_timesteps": float(steps.double().mean()) + 1}


if __name__ == "__main__":
    main()
