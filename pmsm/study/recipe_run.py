"""From a recipe to one line of results: float network, quantize, calibrate, train, convert, prove."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pmsm.ann.checkpoint import load_weights, save_network
from pmsm.ann.precision import tf32
from pmsm.ann.schedule import History
from pmsm.ann.train import evaluate, train
from pmsm.errors import CheckpointError
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.verify import verify
from pmsm.study.demo import accuracy_over_time, commit, environment
from pmsm.study.findings import Watch, unwatched
from pmsm.study.recipe import Phase, Recipe, recipe_of
from pmsm.study.recipe_parts import On, Sets, Stages, calibrated, fill, float_network, load_sets

VERIFIED_BATCHES = 2
FORMAT = "pmsm-recipe"
CALIBRATED = "calibrated.safetensors"
"""In the folder of a run: the quantized network before it was trained."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """Where a recipe is run, which changes none of its settings.

    Args:
        name: of the recipe, as results know it.
        data: folder of the data, or one that holds it under the recipe's word for it.
        weights: folder of float weights.
        out: folder for checkpoints and run.json.
        results: file that the line of results is appended to; None: none is written.
        seed: of weights, order and augmentation.
        resume: go on from the checkpoints in `out`.
        smoke: two steps and a few pictures, on the CPU, and no line of results.
        device: "auto" for a GPU where there is one.
    """

    name: str
    data: Path
    out: Path
    weights: Path | None = None
    results: Path | None = None
    seed: int = 0
    resume: bool = False
    smoke: bool = False
    device: str = "auto"

    @property
    def writes(self) -> bool:
        """Whether this process is the only one, or the first of several."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def place(self) -> torch.device:
        """The device; of several processes started by torchrun, each has its own GPU."""
        wanted = self.device
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() and not self.smoke else "cpu"
        if wanted == "cuda":
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device(wanted)


def run_recipe(
    recipe: Recipe, order: Order, say: Say = lambda line: None, watch: Watch = unwatched
) -> dict[str, Any]:
    """Run it all; the line that `order.results` gets, and `order.out`/run.json as well.

    Of several processes started by torchrun all train, the first one measures, and the others return {}.

    Raises:
        PMSMError: whatever step refuses, in its own words.
    """
    start = time.perf_counter()
    if not order.writes:
        say, watch = (lambda line: None), unwatched
    recipe = recipe.smoke() if order.smoke else recipe
    sets = load_sets(recipe, order.data, smoke=order.smoke)
    say(f"{sets.name}: {len(sets.train):,} training and {len(sets.test):,} test pictures")
    run = _Run(recipe, order, sets, watch)
    with tf32(run.device, False):  # where a GPU would round what is to be compared bit for bit
        line = _steps(run, say)
    if line:
        line |= {"seconds": time.perf_counter() - start, "environment": environment(order.seed)}
        _write(line, order)
    return line


def _steps(run: "_Run", say: Say) -> dict[str, Any]:
    """Every step in turn; what a line of results says of them."""
    recipe, order, sets = run.recipe, run.order, run.sets
    ann, pretrained = run.float_network()
    float_accuracy = evaluate(ann, run.watch(run.test, "float network"))
    say(f"float network: {float_accuracy:.2f} %")
    qann, history = run.quantized_network(ann)
    qann_accuracy = evaluate(qann, run.watch(run.test, "quantized network"))
    say(f"quantized network: {qann_accuracy:.2f} %")
    if not order.writes:
        return {}
    found = run.measured(qann)
    say(", ".join(f"T={t} {a:.2f} %" for t, a in zip(recipe.timesteps, found["accuracy"], strict=True)))
    return {
        "recipe": order.name, "network": recipe.network, "method": recipe.method, "levels": recipe.levels,
        "epochs": recipe.qat.epochs if recipe.qat else 0, "lr": recipe.qat.lr if recipe.qat else None,
        "seed": order.seed, "data": sets.name, "note": recipe.note, "images": len(sets.test),
        "float_epochs": recipe.pretraining.epochs if recipe.pretraining else 0,
        "float_accuracy": float_accuracy, "qann_accuracy": qann_accuracy,
        "timesteps": list(recipe.timesteps), **found,
        "float_curve": _curve(pretrained), "curve": _curve(history),
        "training_seconds": _seconds(pretrained) + _seconds(history),
        "settings": asdict(recipe), "commit": commit(), "device": run.device_name,
    }  # fmt: skip


def load_recipe_run(folder: Path, row: dict[str, Any]) -> tuple[Recipe, Sets, Network]:
    """Recipe, data and quantized network of a finished run, whose run.json holds `row`; on the CPU.

    Raises:
        PMSMError: the data is gone, or the checkpoint does not fit.
    """
    recipe, smoke = recipe_of(row["settings"]), row["smoke"]
    sets = load_sets(recipe, Path(row["folder"]), smoke=smoke)
    order = Order(row["recipe"], Path(row["folder"]), folder, seed=row["seed"], smoke=smoke, device="cpu")
    run = _Run(recipe, order, sets)
    qann = run.quantized(float_network(recipe, sets, order.seed).eval())
    load_weights(folder / "qann.safetensors", qann)
    return recipe, sets, qann.eval()


class _Run:
    """One recipe on its data: each step once."""

    def __init__(self, recipe: Recipe, order: Order, sets: Sets, watch: Watch = unwatched) -> None:
        self.recipe, self.order, self.sets, self.device = recipe, order, sets, order.place
        self.watch = watch
        self.test = sets.tested(recipe)
        self.calibration = On(sets.calibration(recipe), self.device)

    @property
    def device_name(self) -> str:
        """What it runs on."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def float_network(self) -> tuple[nn.Module, History | None]:
        """The float network, trained or loaded, and how it was trained."""
        recipe, order = self.recipe, self.order
        ann = float_network(recipe, self.sets, order.seed)
        fill(recipe, ann, order.weights)
        ann.to(self.device)
        history = None if recipe.pretraining is None else self.learn(ann, "float", recipe.pretraining)
        return ann.eval(), history

    def quantized(self, ann: nn.Module) -> Network:
        """`ann` with the method's quantizers, not calibrated."""
        example = next(iter(self.calibration))[0][:2]
        return quantize(ann, self.recipe.build_method(), example)

    def quantized_network(self, ann: nn.Module) -> tuple[Network, History | None]:
        """The quantized network, calibrated and trained, and how."""
        recipe = self.recipe
        qann = calibrated(recipe, self.quantized(ann), self.watch(self.calibration, "calibrate"))
        if self.order.writes:
            save_network(self.order.out / CALIBRATED, qann)  # what a report tells of before training
        if recipe.qat is None:
            return qann, None
        arguments: dict[str, Any] = {}
        if recipe.distill:
            arguments |= {"teacher": ann, "distill": recipe.distill, "temperature": recipe.temperature}
        if recipe.progressive:
            arguments["on_epoch"] = Stages(recipe, self.calibration)
        return qann, self.learn(qann, "qann", recipe.qat, **arguments)

    def learn(self, network: nn.Module, name: str, phase: Phase, **arguments: Any) -> History:
        """Train, with a checkpoint of that name."""
        order = self.order
        return train(
            network, self.sets.batches(phase, order.seed), seed=order.seed, resume=order.resume,
            checkpoint=order.out / f"{name}.safetensors", **phase.arguments(), **arguments,
        )  # fmt: skip

    def measured(self, qann: Network) -> dict[str, Any]:
        """Accuracy and spikes over T on the whole test set, and the proof on some of it."""
        snn = convert(qann)
        test = On(self.test, self.device)
        some = [batch for batch, _ in zip(test, range(VERIFIED_BATCHES), strict=False)]
        found = verify(qann, snn, some) if self.recipe.build_method().exact else None
        accuracy, spikes = accuracy_over_time(snn, self.watch(test, "spiking network"), self.recipe.timesteps)
        return {
            "accuracy": accuracy, "spikes_per_neuron": spikes,
            "codes_compared": found and found.codes, "codes_different": found and found.different,
        }  # fmt: skip


def _curve(history: History | None) -> list[float]:
    """Mean loss of each epoch."""
    return [] if history is None else [round(epoch.loss, 4) for epoch in history.epochs]


def _seconds(history: History | None) -> float:
    return 0.0 if history is None else sum(epoch.seconds for epoch in history.epochs)


def _write(line: dict[str, Any], order: Order) -> None:
    """run.json in the folder of the run, and the line of results."""
    same = {name: line[name] for name in ("network", "method", "levels", "seed")}  # as runs without a recipe
    row = {"format": FORMAT, "version": 1, "folder": str(order.data), "smoke": order.smoke,
           "weights_folder": None if order.weights is None else str(order.weights),
           "experiment": same, "qann_curve": line["curve"], **line}  # fmt: skip
    write_atomic(order.out / "run.json", json.dumps(row, indent=1), CheckpointError)
    if order.results is None or order.smoke:
        return
    try:
        order.results.parent.mkdir(parents=True, exist_ok=True)
        with order.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as cause:
        raise CheckpointError(
            f"cannot append to {str(order.results)!r}: {cause.strerror}. The run is whole in "
            f"{str(order.out / 'run.json')!r}; repeat with --resume and another --results FILE."
        ) from cause
