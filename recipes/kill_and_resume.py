"""Does a run that is killed again and again end where an unbroken one ends? kill -9, resume, compare bits.

Run: .venv/bin/python recipes/kill_and_resume.py [--kills 10] [--epochs 44] [--seed 0]
A small network learns the digits in a process of its own, with dropout, augmentation, a teacher, an average
of its weights, clipped gradients and two batches per update. The process is killed at random moments spread
over the run, every second time as soon as a checkpoint is being written. Prints one line per kill and the
verdict over weights, buffers, momentum, average, random streams and history; exit status 1 if anything
differs. On a machine under load the run may end before the last kills.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pmsm.ann.data import Batches, Images, digits
from pmsm.ann.train import train

BATCH_SIZE = 64


@dataclass(frozen=True)
class Kill:
    """One kill: epochs that the checkpoint held then, and whether the next one was half written."""

    epochs: int
    while_writing: bool


class Told(Batches):
    """Batches that print a dot each, so that another process can follow the run."""

    def __iter__(self):
        for batch in super().__iter__():
            print(end=".", flush=True)
            yield batch


def main() -> None:
    """The parent, which kills, or the child, which learns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.learn:
        learn(options.learn, options.epochs)
        return
    with tempfile.TemporaryDirectory() as folder:
        kills, differing = kill_and_resume(Path(folder), options.kills, options.epochs, options.seed)
    for number, kill in enumerate(kills, start=1):
        moment = (
            "while the next checkpoint was being written" if kill.while_writing else "between two checkpoints"
        )
        print(f"kill {number:2d}: after {kill.epochs:2d} epochs, {moment}")
    written = sum(kill.while_writing for kill in kills)
    verdict = f"differs in {', '.join(differing)}" if differing else "ends bit for bit as the unbroken run"
    print(f"{len(kills)} kills, {written} of them in the middle of a write: the resumed run {verdict}.")
    sys.exit(bool(differing))


def learn(folder: Path, epochs: int) -> None:
    """Train on the digits in `folder`, from its checkpoint on if there is one."""
    torch.set_num_threads(1)
    ann, teacher = network(seed=0), network(seed=1)
    images = Images(**load_file(folder.parent / "digits"), classes=10, mean=(0.3,), std=(0.4,), name="digits")
    batches = Told(images, BATCH_SIZE, shuffle=True, augment="shift")
    train(ann, batches, epochs=epochs, lr=0.02, teacher=teacher, distill=0.5, ema=0.99, clip_norm=5.0,
          accumulate=2, checkpoint=folder / "run.ckpt", resume=True, progress=False)  # fmt: skip


def network(seed: int) -> nn.Sequential:
    """Convolutions, BatchNorm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10),
    )  # fmt: skip


def kill_and_resume(folder: Path, kills: int, epochs: int, seed: int) -> tuple[list[Kill], list[str]]:
    """The kills, fewer than asked for if the run was faster, and what differs from an unbroken run."""
    images, _ = digits()
    save_file({"images": images.images, "labels": images.labels}, folder / "digits")
    draw, per_epoch = random.Random(seed), len(Batches(images, BATCH_SIZE))
    made = []
    for number in range(kills):  # one in each part of the run but the last
        batch = int(epochs * per_epoch * (number + draw.random()) / (kills + 1))
        kill = _kill(folder / "killed", epochs, batch, per_epoch, while_writing=number % 2 == 1)
        made += [kill] if kill else []
    with redirect_stdout(None):
        for name in ("killed", "unbroken"):
            learn(folder / name, epochs)
    return made, _differing(folder / "killed" / "run.ckpt", folder / "unbroken" / "run.ckpt")


def _kill(folder: Path, epochs: int, batch: int, per_epoch: int, *, while_writing: bool) -> Kill | None:
    """Resume the run and kill it behind its `batch`-th batch; None if it came to its end first."""
    before = set(folder.glob(".run.ckpt.*"))  # half-written files of earlier kills
    command = [sys.executable, __file__, "--learn", str(folder), "--epochs", str(epochs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        already = per_epoch * len(_training(folder / "run.ckpt")["epochs"])
        child.stdout.read(max(1, batch - already))  # pyright: ignore[reportOptionalMemberAccess]
        while while_writing and child.poll() is None and set(folder.glob(".run.ckpt.*")) == before:
            pass
        child.kill()
        child.communicate()
    half_written = set(folder.glob(".run.ckpt.*")) != before
    kill = Kill(len(_training(folder / "run.ckpt")["epochs"]), half_written)
    return kill if child.returncode == -signal.SIGKILL else None


def _training(checkpoint: Path) -> dict:
    """Settings and finished epochs, without the time that they took."""
    if not checkpoint.exists():
        return {"epochs": []}
    with safe_open(checkpoint, "pt") as file:
        training = json.loads(file.metadata()["training"])
    return training | {"epochs": [row | {"seconds": 0} for row in training["epochs"]]}


def _differing(one: Path, other: Path) -> list[str]:
    """Names of the tensors that differ between two checkpoints, and "history" if that does."""
    a, b = load_file(one), load_file(other)
    names = [name for name in a.keys() | b.keys() if not _equal(a.get(name), b.get(name))]
    return sorted(names) + ["history"] * (_training(one) != _training(other))


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


if __name__ == "__main__":
    main()
