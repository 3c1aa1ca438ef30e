"""What decides a training run, and what it did: settings, learning rate of every step, history."""

import math
from dataclasses import MISSING, asdict, dataclass, fields

from pmsm.ann.precision import PRECISIONS
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


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least  # bool is an int as well, and no number


def _number(value: object, least: float, below: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below


def _one_of(value: object, *names: str) -> bool:
    return isinstance(value, str) and value in names


Rule = tuple[bool, str, str]
"""Whether it holds, what is needed, what to write."""


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run, as resolved; a checkpoint goes on only under the same settings.

    `batches` is the number per epoch, `teacher` the fingerprint of the network that teaches ("" for none).
    """

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
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float = 0.0
    layer_decay: float = 1.0
    distill: float = 0.0
    temperature: float = 1.0
    teacher: str = ""

    def __post_init__(self) -> None:
        rules = self._rules_of_the_schedule() | self._rules_of_the_step()
        broken = [name for name, (holds, _, _) in rules.items() if not holds]
        if broken:
            needed = ", ".join(rules[name][1] for name in broken)
            got = ", ".join(f"{name}={getattr(self, name)!r}" for name in broken)
            write = ", ".join(f"{name}={rules[name][2]}" for name in broken)
            raise TrainingError(f"train needs {needed}; got {got}. Write train(..., {write}).")

    def _rules_of_the_schedule(self) -> dict[str, Rule]:
        last = self.epochs if _whole(self.epochs, 1) else math.inf
        usual = LEARNING_RATES["adamw" if self.optimizer == "adamw" else "sgd"]
        return {
            "epochs": (_whole(self.epochs, 1), "a whole number epochs >= 1", "30"),
            "optimizer": (_one_of(self.optimizer, *LEARNING_RATES), "optimizer 'sgd' or 'adamw'", "'sgd'"),
            "lr": (_number(self.lr, 0, math.inf) and self.lr > 0, "a number 0 < lr < inf", f"{usual}"),
            "weight_decay": (
                _number(self.weight_decay, 0, math.inf), "a number 0 <= weight_decay < inf", "5e-4",
            ),
            "momentum": (_number(self.momentum, 0, 1), "a number 0 <= momentum < 1", "0.9"),
            "label_smoothing": (
                _number(self.label_smoothing, 0, 1), "a number 0 <= label_smoothing < 1", "0.1",
            ),
            "warmup_epochs": (
                _number(self.warmup_epochs, 0, math.inf) and self.warmup_epochs <= last,
                f"a number 0 <= warmup_epochs <= epochs (here {last})", "1",
            ),
            "layer_decay": (
                self.layer_decay == 1 or (_number(self.layer_decay, 0, 1) and self.layer_decay != 0),
                "a number 0 < layer_decay <= 1", "0.75",
            ),
            "seed": (_whole(self.seed, 0) and self.seed < 2**63, "a whole number 0 <= seed < 2**63", "0"),
        }  # fmt: skip

    def _rules_of_the_step(self) -> dict[str, Rule]:
        return {
            "precision": (
                _one_of(self.precision, *PRECISIONS),
                "precision 'auto', 'fp32', 'tf32', 'bf16' or 'fp16'", "'auto'",
            ),
            "channels_last": (
                isinstance(self.channels_last, bool), "channels_last True, False or 'auto'", "'auto'",
            ),
            "compile": (isinstance(self.compile, bool), "compile True or False", "False"),
            "accumulate": (_whole(self.accumulate, 1), "a whole number accumulate >= 1", "1"),
            "clip_norm": (
                self.clip_norm is None or (_number(self.clip_norm, 0, math.inf) and self.clip_norm != 0),
                "clip_norm None or a number 0 < clip_norm < inf", "1.0",
            ),
            "ema": (_number(self.ema, 0, 1), "a number 0 <= ema < 1", "0.999"),
            "distill": (
                _number(self.distill, 0, 1) or self.distill == 1, "a number 0 <= distill <= 1", "0.9",
            ),
            "temperature": (
                _number(self.temperature, 0, math.inf) and self.temperature > 0,
                "a number 0 < temperature < inf", "4.0",
            ),
        }  # fmt: skip

    @property
    def updates(self) -> int:
        """Updates of the weights per epoch."""
        return -(-self.batches // self.accumulate)

    def update_of(self, epoch: int, index: int) -> int:
        """The global number of the update that batch `index` of `epoch` is part of, from 0 on."""
        return epoch * self.updates + index // self.accumulate

    def group_size(self, index: int) -> int:
        """Batches in the update that batch `index` is part of; the last of an epoch may have fewer."""
        start = index - index % self.accumulate
        return max(1, min(self.accumulate, self.batches - start))

    def learning_rate(self, update: int) -> float:
        """Learning rate of the global update `update`."""
        warmup = round(self.warmup_epochs * self.updates)
        return learning_rate(update, self.epochs * self.updates, warmup, self.lr)


DEFAULTS = {field.name: field.default for field in fields(Settings) if field.default is not MISSING}
"""What a checkpoint means that was written before a setting existed."""


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
