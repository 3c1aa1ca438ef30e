"""What decides a training run, and what it did: settings, learning rate of every step, history."""

import math
from dataclasses import asdict, dataclass

from pmsm.errors import TrainingError

# Peak of the schedule when none is given: He et al. 2016 (CIFAR) for SGD, Loshchilov & Hutter 2019 for AdamW.
LEARNING_RATES = {"sgd": 0.1, "adamw": 1e-3}


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of `step` in [0, steps): a linear rise to `peak`, then half a cosine down to 0.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts. Stateless: a resumed run
    needs nothing but its step.

    >>> [learning_rate(step, 6, 2, 1.0) for step in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run, as resolved; a checkpoint goes on only under the same settings."""

    epochs: int
    batches: int
    lr: float
    optimizer: str
    weight_decay: float
    momentum: float
    label_smoothing: float
    warmup_epochs: float
    seed: int
    precision: str
    channels_last: bool
    compile: bool

    def __post_init__(self) -> None:
        rules = {
            "a whole number epochs >= 1": isinstance(self.epochs, int) and self.epochs >= 1,
            "optimizer 'sgd' or 'adamw'": self.optimizer in LEARNING_RATES,
            "0 < lr < inf": 0 < self.lr < math.inf,
            "0 <= weight_decay < inf": 0 <= self.weight_decay < math.inf,
            "0 <= momentum < 1": 0 <= self.momentum < 1,
            "0 <= label_smoothing < 1": 0 <= self.label_smoothing < 1,
            "0 <= warmup_epochs <= epochs": 0 <= self.warmup_epochs <= self.epochs,
            "a whole number 0 <= seed < 2**63": isinstance(self.seed, int) and 0 <= self.seed < 2**63,
            "precision 'auto', 'fp32' or 'bf16'": self.precision in ("fp32", "bf16"),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise TrainingError(f"train needs {', '.join(broken)}; got {self}.")

    def learning_rate(self, step: int) -> float:
        """Learning rate of the global step `step`."""
        warmup_steps = round(self.warmup_epochs * self.batches)
        return learning_rate(step, self.epochs * self.batches, warmup_steps, self.lr)


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean loss, accuracy in percent while training and on `valid`, and its last learning rate."""

    loss: float
    accuracy: float
    valid_accuracy: float | None
    seconds: float
    lr: float


@dataclass(frozen=True)
class History:
    """What `train` did: one row per epoch, and the settings as resolved."""

    epochs: tuple[Epoch, ...]
    settings: Settings

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy in percent on `valid` after the last epoch; None without `valid`."""
        return self.epochs[-1].valid_accuracy

    def as_dict(self) -> dict:
        """The same as dicts, lists and numbers, for JSON."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs], "settings": asdict(self.settings)}
