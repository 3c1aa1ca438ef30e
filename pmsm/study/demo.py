"""The whole path on real images: train, quantize, calibrate, convert, prove, and put the baselines beside
it.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pmsm
from pmsm.ann import data
from pmsm.ann.data.images import Batches, Images
from pmsm.ann.models.small import SmallResNet
from pmsm.ann.train import evaluate, train
from pmsm.errors import PMSMError
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS, Method
from pmsm.qann.calibrate import calibrate
from pmsm.qann.kept import Kept, kept
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import Verification, verify
from pmsm.study.findings import Watch, energy_of, operators_of, raster_of, unwatched
from pmsm.study.report import write_report

TIMESTEPS = (1, 2, 4, 8, 16, 32)
CALIBRATION_IMAGES = 1024
VERIFIED_IMAGES = 256
ENERGY_IMAGES = 64
WITHIN = 1.0
"""Points of accuracy within which a baseline counts as equally good."""


@dataclass(frozen=True)
class Budget:
    """How long a data set trains: epochs of the float network, batch size, augmentation."""

    epochs: int
    batch_size: int
    augment: str


BUDGETS = {"digits": Budget(20, 64, "shift")}
DEFAULT_BUDGET = Budget(6, 128, "none")
COLOR_BUDGET = Budget(12, 128, "crop-flip")
QAT_SHARE, QAT_LR, FLOAT_LR = 0.5, 0.02, 0.1
"""QAT starts from the float weights, with half its epochs and a fifth of its learning rate: for every method
alike.
"""


@dataclass(frozen=True)
class Demo:
    """Settings of one demo run.

    Args:
        directory: folder of a data set, None for scikit-learn's digits.
        levels: codes per site, for every method.
        epochs: epochs of the float network; None: what `BUDGETS` says.
        out: folder for checkpoints, record.json and report.html.
        seed: of weights, order and augmentation.
        resume: go on from the checkpoints in `out`.
    """

    directory: Path | None = None
    levels: int = 9
    epochs: int | None = None
    out: Path = Path("runs/demo")
    seed: int = 0
    resume: bool = False


Say = Callable[[str], None]


def run_demo(
    demo: Demo, command: str = "pmsm demo", say: Say = lambda line: None, watch: Watch = unwatched
) -> dict[str, Any]:
    """Run the whole path; returns the record that `record.json` and `report.html` in `demo.out` hold as well.

    Raises:
        PMSMError: whatever step refuses, in its own words.
    """
    methods = [
        ("PMSM, calibrated only", PMSM(demo.levels), False),
        ("PMSM, after QAT", PMSM(demo.levels), True),
        ("QCFS-IF, after QAT", QCFS(demo.levels), True),
    ]
    train_set, test_set = data.load(demo.directory)
    budget = _budget(train_set, demo.epochs)
    name = train_set.name.removesuffix(" train")
    say(f"{name}: {len(train_set):,} training images, {len(test_set):,} test images")
    torch.manual_seed(demo.seed)
    ann = SmallResNet(train_set.images.shape[1], train_set.class_count)
    runner = _Runner(demo, budget, train_set, test_set, say, watch)
    float_row = runner.train_float(ann)
    rows = [runner.method(ann, *method) for method in methods]
    set_beside(rows[1], rows[2])
    record = {
        "format": "pmsm-run",
        "version": 1,
        "title": f"{name}: from a float network to an exact spiking network",
        "data": {
            "name": name, "train": len(train_set), "test": len(test_set),
            "shape": list(train_set.images.shape[1:]), "classes": train_set.class_count,
        },
        "network": {
            "name": "SmallResNet", "parameters": sum(p.numel() for p in ann.parameters()),
            "sites": len(rows[0]["sites"]), "neurons": sum(_product(s["shape"]) for s in rows[0]["sites"]),
        },
        "float": float_row,
        "timesteps": list(TIMESTEPS),
        "methods": rows,
        "operators": operators_of(ann, next(iter(runner.calibration))[0][:2], methods[1][1]),
        "raster": runner.raster,
        "environment": environment(demo.seed),
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_atomic(demo.out / "record.json", json.dumps(record, indent=1), PMSMError)
    write_report(record, demo.out / "report.html")
    return record


class _Runner:
    """One data set, one budget: trains a network, and measures what each method makes of it."""

    def __init__(
        self, demo: Demo, budget: Budget, train_set: Images, test_set: Images, say: Say, watch: Watch
    ):
        self.demo, self.budget, self.say, self.watch = demo, budget, say, watch
        shuffled = {"seed": demo.seed, "shuffle": True, "drop_last": True}
        self.train = Batches(train_set, budget.batch_size, augment=budget.augment, **shuffled)  # pyright: ignore
        self.calibration = Batches(train_set.take(slice(0, CALIBRATION_IMAGES)), 128)
        self.test = Batches(test_set, 250)
        self.verified = Batches(test_set.take(slice(0, VERIFIED_IMAGES)), 128)
        self.priced = Batches(test_set.take(slice(0, ENERGY_IMAGES)), ENERGY_IMAGES)
        self.raster: dict[str, Any] | None = None

    def train_float(self, ann: nn.Module) -> dict[str, Any]:
        """Train the float network; its row of the record."""
        seconds = self._train(ann, "float", self.budget.epochs, FLOAT_LR)
        accuracy = evaluate(ann, self.test)
        self.say(f"float network: {accuracy:.2f} % after {self.budget.epochs} epochs, {seconds:.0f} s")
        return {"accuracy": accuracy, "epochs": self.budget.epochs, "seconds": seconds}

    def method(self, ann: nn.Module, name: str, method: Method, trained: bool) -> dict[str, Any]:
        """Quantize, calibrate, train, convert, prove, measure; its row of the record."""
        start = time.perf_counter()
        example = next(iter(self.calibration))[0][:2]
        qann = calibrate(quantize(ann, method, example), self.calibration)
        epochs = max(1, round(self.budget.epochs * QAT_SHARE)) if trained else 0
        if trained:
            self._train(qann, name.split(",")[0].lower().replace("-", "_"), epochs, QAT_LR)
        seconds = time.perf_counter() - start
        snn = convert(qann)
        found = verify(qann, snn, self.verified) if method.exact else None
        accuracy, spikes = accuracy_over_time(snn, self.watch(self.test, name), TIMESTEPS)
        self.say(f"{name}: {accuracy[0]:.2f} % at T=1, {accuracy[-1]:.2f} % at T={TIMESTEPS[-1]}"
                 + (f"; {found}" if found else "; T=1 is not promised to be exact"))  # fmt: skip
        if method.exact and trained:
            self.raster = raster_of(snn, next(iter(self.priced))[0][:1], "first test image")
        return {
            "name": name,
            "method": repr(method),
            "qann_accuracy": evaluate(qann, self.test),
            "accuracy": accuracy,
            "spikes_per_neuron": spikes,
            "epochs": epochs,
            "seconds": seconds,
            "verify": verified(found),
            "sites": [site_row(site) for site in kept(qann, self.calibration)],
            "energy": energy_of(snn, self.priced, TIMESTEPS),
        }

    def _train(self, network: nn.Module, name: str, epochs: int, lr: float) -> float:
        """Train with a checkpoint of that name; seconds."""
        history = train(
            network,
            self.train,
            self.test,
            epochs=epochs,
            lr=lr,
            warmup_epochs=min(1, epochs / 4),
            seed=self.demo.seed,
            checkpoint=self.demo.out / f"{name}.safetensors",
            resume=self.demo.resume,
        )
        return sum(epoch.seconds for epoch in history.epochs)


def set_beside(own: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Add the energy of a baseline to what stands beside `own` at T=1: at the smallest T at which it is at
    most `WITHIN` points less accurate; nothing where there is none.
    """
    first = own["energy"][0]
    for accuracy, energy in zip(baseline["accuracy"], baseline["energy"], strict=True):
        if accuracy >= own["accuracy"][0] - WITHIN:
            first["beside"].append({
                "name": f"{baseline['name']}, T={energy['timesteps']}", "technology": energy["technology"],
                "energy_nj": energy["energy_nj"], "ratio": energy["energy_nj"] / first["energy_nj"],
                "break_even": None,
            })  # fmt: skip
            return


def accuracy_over_time(
    snn: Network, batches: Iterable[tuple[Tensor, Tensor]], timesteps: tuple[int, ...]
) -> tuple[list[float], list[float]]:
    """Top-1 in percent, and spikes per neuron and sample summed over the steps, at each of `timesteps`: one
    run.
    """
    right, sent, neurons, samples = [0] * len(timesteps), [0] * len(timesteps), 0, 0
    for x, y in batches:
        run = simulate(snn, x, max(timesteps))
        neurons, samples = sum(s.neurons for s in run.spikes.values()), samples + len(x)
        for i, t in enumerate(timesteps):
            right[i] += int((run.outputs[t - 1].argmax(1) == y).sum())
            sent[i] += sum(int(s.positive[:t].sum() + s.negative[:t].sum()) for s in run.spikes.values())
    return [100 * r / samples for r in right], [s / (samples * neurons) for s in sent]


def site_row(site: Kept) -> dict[str, Any]:
    """One site as the record holds it."""
    row = asdict(site)
    levels = site.quant_max - site.quant_min + 1
    ends = site.histogram[site.quant_max] + (site.histogram[site.quant_min] if site.quant_min < 0 else 0)
    row.update(
        name=row.pop("site"),
        shape=list(site.shape),
        histogram={str(code): share for code, share in site.histogram.items()},
        max_bits=log2(levels),
        silent=site.histogram[0],
        saturated=ends,
    )
    return row


def environment(seed: int) -> dict[str, Any]:
    """Versions and machine, for whoever wants to reproduce a run."""
    return {
        "pmsm": pmsm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _budget(train_set: Images, epochs: int | None) -> Budget:
    color = train_set.images.shape[1] == 3
    small = len(train_set) < 5000
    budget = BUDGETS["digits"] if small else COLOR_BUDGET if color else DEFAULT_BUDGET
    return Budget(epochs, budget.batch_size, budget.augment) if epochs is not None else budget


def verified(found: Verification | None) -> Mapping[str, Any] | None:
    """A verification as the record holds it."""
    if found is None:
        return None
    return {"max_difference": found.max_difference, "codes": found.codes, "different": found.different}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """Short hash of the checkout this file lies in; None where it is installed otherwise."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    inside = "site-packages" not in here.parts and found.returncode == 0
    return found.stdout.strip() if inside else None


def _product(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
