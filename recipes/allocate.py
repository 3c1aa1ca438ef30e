"""Are levels chosen per site better than equal levels at equal energy? Calibrated only, T=1.

Run: .venv/bin/python recipes/allocate.py --network resnet20 --data CIFAR10_FOLDER --weights FOLDER
     .venv/bin/python recipes/allocate.py --network vit --data FASHION_FOLDER --weights FILE
FOLDER: of the pretrained ResNet-20. FILE: float-0.safetensors of vit_fashion.py, of which two epochs are
enough (--epochs 2 --qat-epochs 0). Steps from 512 training pictures, errors from 256 of them; test pictures
are looked at in the end alone. The budgets are the energies that --levels everywhere need. At each of them:
equal levels; "equal steps", which are those of equal levels, but with as many codes as clip next to
nothing; and what `allocate` chooses by each of --criteria. Accuracy on the first --images test pictures,
with the standard error of its difference to equal levels picture by picture; energy on 256 of them. One
line each goes to results/allocate.jsonl. The lines that are kept: both criteria; ResNet-20 with
--candidates 3 4 5 6 7 8 9 11 13 17, the transformer, each of whose sites tries every split, with
--candidates 3 5 7 9 13 17.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from pretrained import network, pictures
from torch import Tensor, nn
from vit_fashion import Rgb

from pmsm.ann.checkpoint import load_weights
from pmsm.ann.data import fashion_mnist
from pmsm.ann.data.images import Batches
from pmsm.ann.models.vit import VisionTransformer
from pmsm.ann.train import evaluate
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.study.allocation import allocate as allocation
from pmsm.study.allocation.allocate import CRITERIA, Search
from pmsm.study.allocation.curves import COUNTED, first_samples
from pmsm.study.demo import environment
from pmsm.study.energy.measure import measure

RESULTS = Path(__file__).parent.parent / "results" / "allocate.jsonl"
LEVELS = (5, 7, 9)


def main() -> None:
    """Every budget, equal levels first, then each criterion."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("resnet20", "vit"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--levels", type=int, nargs="*", default=LEVELS)
    parser.add_argument("--candidates", type=int, nargs="*", default=allocation.LEVELS)
    parser.add_argument("--criteria", nargs="*", default=["output"], choices=CRITERIA)
    parser.add_argument("--rule", default="mse")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ann, calibration, test, few, name = load(options)
    base = {"recipe": "allocate", **name, "images": options.images, "rule": options.rule,
            "candidates": list(options.candidates),
            "float_accuracy": evaluate(ann, test), "environment": environment(0)}  # fmt: skip
    study = _Study(ann, calibration, test, few, base, options)
    for levels in options.levels:
        study.equal(levels)
    for criterion in options.criteria:
        start = time.perf_counter()
        search = study.search(criterion)
        seconds = time.perf_counter() - start
        for levels in options.levels:
            study.spend(search, levels, criterion, seconds)


class _Study:
    """One network: what each way to spend the energy of equal levels is worth."""

    def __init__(
        self, ann: nn.Module, calibration: Any, test: Any, few: Any, base: dict, options: argparse.Namespace
    ):
        self.ann, self.calibration, self.test, self.few = ann, calibration, test, few
        self.base, self.options = base, options
        self.budget: dict[int, float] = {}
        self.right: dict[int, Tensor] = {}

    def calibrated(self, qann: Network, batches: Any) -> Network:
        return calibrate(qann, batches, self.options.rule)

    def quantized(self, levels: int) -> Network:
        return quantize(self.ann, PMSM(levels=levels), next(iter(self.calibration))[0][:2])

    def equal(self, levels: int) -> None:
        """Equal levels; their energy on the calibration pictures is the budget."""
        qann = self.calibrated(self.quantized(levels), self.calibration)
        first = first_samples(qann, self.calibration, COUNTED)  # on which a search counts as well
        self.budget[levels] = measure(convert(qann), first).totals.energy_pj.mean
        self.tell("PMSM, calibrated only", levels, qann, "equal levels")

    def search(self, criterion: str) -> Search:
        """The curves of every site, for all budgets."""
        options = self.options
        return Search(
            self.quantized(options.levels[0]), list(self.calibration), "budget_pj", criterion,
            sorted(options.candidates), "45nm-fp32", self.calibrated, 256, lambda done, of: None,
        )  # fmt: skip

    def spend(self, search: Search, levels: int, criterion: str, seconds: float) -> None:
        """The budget of equal levels, on steps as of these everywhere and as the search chooses."""
        budget = self.budget[levels]
        if criterion == self.options.criteria[0] and levels in search.levels:
            qann, plan = search.built(dict.fromkeys(search.found.sites, levels), budget)
            self.tell(f"PMSM, steps of {levels} levels, more codes", levels, qann, "equal steps",
                      allotted=plan.levels)  # fmt: skip
        start = time.perf_counter()
        qann, plan = search.run(budget)
        seconds += time.perf_counter() - start
        self.tell(f"PMSM, allocated by {criterion}, energy of {levels} levels", levels, qann, criterion,
                  seconds=seconds, allotted=plan.levels, steps_of={s.site: s.step_of for s in plan.sites},
                  error=plan.error)  # fmt: skip

    def tell(self, method: str, levels: int, qann: Network, criterion: str, **more: Any) -> None:
        """One line of results."""
        found = measure(convert(qann), self.few)
        neurons = sum(layer.neurons for layer in found.firing)
        right = answers(qann, self.test)
        gained = right.double() - self.right.setdefault(levels, right).double()
        row = self.base | more | {
            "method": method, "levels": None if "allotted" in more else levels, "timesteps": [1],
            "budget_levels": levels, "criterion": criterion, "accuracy": [100 * float(right.double().mean())],
            "gained": 100 * float(gained.mean()),
            "standard_error": 100 * float(gained.std()) / len(right) ** 0.5,
            "energy_nj": [found.totals.energy_pj.mean / 1000],
            "spikes_per_neuron": [sum(layer.spikes.mean for layer in found.firing) / neurons],
        }  # fmt: skip
        print(method, levels, row["accuracy"], row["gained"], row["standard_error"], row["energy_nj"],
              more.get("seconds", ""), flush=True)  # fmt: skip
        with self.options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


@torch.no_grad()
def answers(qann: Network, test: Any) -> Tensor:
    """[N], which of the test pictures are told right."""
    return torch.cat([qann(x).argmax(1) == y for x, y in test])


def load(options: argparse.Namespace) -> tuple[nn.Module, Any, Any, Any, dict[str, str]]:
    """Network, batches to calibrate on, test batches, the 256 pictures of the energy, and their names."""
    if options.network == "resnet20":
        train_set, test_set = pictures(options.data, options.weights)
        ann: nn.Module = network("resnet20", options.weights)
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
