"""One training run, from its first step to its last: a pure function of network, data, settings and seed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmsm.ann.average import Average
from pmsm.ann.batches import Batches, check_finite, classes_of, logits_of, place
from pmsm.ann.checkpoint import Parts, Streams, finished_epochs, load_training, save_training
from pmsm.ann.evaluate import accuracy
from pmsm.ann.optimizer import build_optimizer
from pmsm.ann.precision import HALF, Scaler, tf32
from pmsm.ann.progress import Report
from pmsm.ann.schedule import Epoch, History, Settings
from pmsm.ann.teacher import answer, answering, distillation
from pmsm.ann.workers import Workers
from pmsm.errors import TrainingError

OnEpoch = Callable[[int, nn.Module], object]
"""Number of the epoch from 0 on, network -> anything; called before that epoch."""


@dataclass
class Sums:
    """What an epoch adds up: samples, their losses, how many were classified rightly, and labels met."""

    samples: int
    loss: float
    correct: Tensor
    labels: set[int]

    @property
    def mean(self) -> float:
        """Mean loss so far."""
        return self.loss / self.samples


class Loop:
    """What stays the same from the first step to the last.

    Args:
        device: where the network learns.
        workers: the processes that share the run.
        teacher: float network to distill from, if any.
        on_epoch: called before each epoch; it may change values in place.
    """

    def __init__(
        self, network: nn.Module, train: Batches, valid: Batches | None, settings: Settings,
        device: torch.device, workers: Workers, report: Report,
        teacher: nn.Module | None = None, on_epoch: OnEpoch | None = None,
    ) -> None:  # fmt: skip
        self.network, self.train, self.valid, self.teacher = network, train, valid, teacher
        self.settings, self.device, self.workers, self.report = settings, device, workers, report
        self.on_epoch = on_epoch
        self.optimizer = build_optimizer(network, settings)
        self.average = Average(network, settings.ema) if settings.ema else None
        self.scaler = Scaler(device, settings.precision == "fp16")
        with _memory_format(network, settings.channels_last):  # which data parallelism looks at once
            self.wrapped = workers.wrap(network)
        self.forward = torch.compile(self.wrapped) if settings.compile else self.wrapped
        self.streams = _streams(train, device)
        self.updated = True  # whether the gradients that lie there have been used

    def run(self, checkpoint: Path | None, resume: bool) -> History:
        """All epochs, or those that the checkpoint still lacks."""
        rows: list[Epoch] = []
        plain = torch.autocast(self.device.type, enabled=False)  # whatever the caller has switched on
        with (
            torch.inference_mode(False), torch.enable_grad(), plain, _fork_rng(self.device),
            answering(self.teacher),
        ):  # fmt: skip
            self.streams["torch"].manual_seed(self.settings.seed)
            if "cuda" in self.streams:
                self.streams["cuda"].manual_seed(self.settings.seed)
            if checkpoint is not None and resume and checkpoint.exists():
                rows = self.resumed(checkpoint)
            check_finite(self.network, "before training", "Initialize it, or load whole weights.")
            first = len(rows)
            self.workers.refuse_disagreement(first)
            for epoch in range(first, self.settings.epochs):
                with self.workers.contact(f"in epoch {epoch + 1}"):
                    rows.append(self.epoch(epoch, first=epoch == first))
                if checkpoint is not None and self.workers.is_main:
                    save_training(checkpoint, *self.state(), [asdict(row) for row in rows], self.parts())
            self.workers.wait()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.swap()
        return History(tuple(rows), self.settings)

    def state(self) -> tuple[nn.Module, torch.optim.Optimizer, Streams, dict]:
        """What every checkpoint holds."""
        return self.network, self.optimizer, self.streams, asdict(self.settings)

    def parts(self) -> Parts:
        """What this run's holds besides."""
        average = {} if self.average is None else {"ema": self.average}
        return average | ({"scaler": self.scaler} if self.settings.precision == "fp16" else {})

    def resumed(self, checkpoint: Path) -> list[Epoch]:
        """The epochs done, with all state as after the last of them."""
        done = finished_epochs(checkpoint) if self.on_epoch is not None else 0
        if done:
            self.prepare(done - 1)  # so that the network has the form that the checkpoint knows
        return [Epoch(**row) for row in load_training(checkpoint, *self.state(), self.parts())]

    def prepare(self, epoch: int) -> None:
        """Let the caller change the network before `epoch`."""
        if self.on_epoch is None:
            return
        before = list(self.network.parameters())
        restarting = nullcontext() if self.average is None else self.average.restarting()
        with _fork_rng(self.device), restarting:
            self.on_epoch(epoch, self.network)
        after = list(self.network.parameters())
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
            raise TrainingError(
                f"on_epoch exchanged parameters of the network before epoch {epoch + 1}, so the optimizer "
                f"would train the old ones. Change their values in place, parameter.data.copy_(...)."
            )

    def epoch(self, epoch: int, first: bool) -> Epoch:
        """Learn once from every batch, then validate; the row of the history."""
        start = time.perf_counter()
        self.prepare(epoch)
        settings = self.settings
        with (
            _memory_format(self.network, settings.channels_last), self.workers.whole_batchnorm(self.network),
            tf32(self.device, settings.precision == "tf32"),
        ):  # fmt: skip
            loss, correct = self.learn(epoch, first)
        check_finite(self.network, f"after epoch {epoch + 1}", _lower(settings))
        valid = None if self.valid is None else self.validate(epoch, self.valid)
        lr = self.settings.learning_rate(settings.update_of(epoch, settings.batches - 1))
        return Epoch(loss, correct, valid, time.perf_counter() - start, lr)

    def validate(self, epoch: int, batches: Batches) -> float:
        """Accuracy in percent, of the averaged weights where there are any."""
        averaged = nullcontext() if self.average is None else self.average.in_place()
        try:
            # Forked, so that validation draws nothing from what training draws from.
            with _fork_rng(self.device), averaged, tf32(self.device, False):
                valid = accuracy(self.network, batches, self.workers)
        except TrainingError as error:
            raise TrainingError(f"validation after epoch {epoch + 1}: {error}") from error
        self.report(valid=valid)
        return valid

    def learn(self, epoch: int, first: bool) -> tuple[float, float]:
        """One pass over the training batches: mean loss, accuracy in percent."""
        self.network.train()
        if hasattr(self.train, "set_epoch"):
            self.train.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        sums = Sums(0, 0.0, torch.zeros((), dtype=torch.long, device=self.device), set())
        share = self.workers.share if self.workers.count > 1 else None
        index = 0
        for index, batch in enumerate(self.train):
            x, y = place(batch, index, self.device, self.settings.channels_last, share)
            loss, correct = self.step(epoch, index, x, y, len(batch[1]))
            sums.loss, sums.correct = sums.loss + loss * len(y), sums.correct + correct
            sums.samples += len(y)
            if first and len(sums.labels) < 2:
                sums.labels.update(classes_of(y).unique().tolist())
            self.report(epoch=epoch, batch=index, loss=sums.mean)
        if not self.updated:  # fewer batches than train has promised
            self.update(self.settings.update_of(epoch, index))
        return self.told(sums, epoch, first)

    def told(self, sums: Sums, epoch: int, first: bool) -> tuple[float, float]:
        """Mean loss and accuracy over all processes; refuses what nothing was learned from."""
        loss, correct, samples = self.workers.total(sums.loss, sums.correct, sums.samples)
        if not samples:
            raise TrainingError(
                f"train gave no batch in epoch {epoch + 1}. Pass a list or a DataLoader, not an iterator."
            )
        labels = self.workers.ends(sums.labels) if first else set()
        if first and len(labels) < 2:
            raise TrainingError(
                f"every label is {labels.pop()}: with one class there is nothing to learn. Check how the "
                f"data set is read; if it is sorted by class and cut short, shuffle before cutting."
            )
        return loss / samples, 100 * correct / samples

    def step(self, epoch: int, index: int, x: Tensor, y: Tensor, samples: int) -> tuple[float, Tensor]:
        """Learn from one batch of `samples`, of which this process holds x and y; loss, number of right ones.

        The loss is looked at before the weights change, so that a bad one leaves them as they were.
        """
        settings, update = self.settings, self.settings.update_of(epoch, index)
        last = (index + 1) % settings.accumulate == 0 or index + 1 >= settings.batches
        rate = settings.learning_rate(update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with nullcontext() if last else self.workers.unsynchronized(self.wrapped):
            logits = self.logits(epoch, index, x, y)
            loss = self.loss(logits, x, y, index)
            value = loss.item()
            if not math.isfinite(value):
                self.refuse(value, epoch, index)
            if self.updated:
                self.optimizer.zero_grad()
            factor = self.workers.weight(len(y), samples) / settings.group_size(index)
            loss = loss if factor == 1 else loss * factor
            self.scaler.scaler.scale(loss).backward()
        self.updated = False
        if last:
            self.update(update)
        return value, (logits.argmax(1) == classes_of(y)).sum()

    def logits(self, epoch: int, index: int, x: Tensor, y: Tensor) -> Tensor:
        """[N, classes], float32: the network's answer to batch `index`."""
        with (
            self.autocast(),
            self.workers.own_draws(self.settings.seed, epoch * self.settings.batches + index),
        ):
            logits = logits_of(self.forward, x, y, index)
        if not logits.requires_grad:
            raise TrainingError(
                "the network's answer depends on no parameter that requires a gradient. Leave detach(), "
                "no_grad() and argmax() out of its forward."
            )
        return logits.float() if self.settings.precision in HALF else logits

    def loss(self, logits: Tensor, x: Tensor, y: Tensor, index: int) -> Tensor:
        """Mean cross-entropy with the labels, and with a teacher, its share of distillation."""
        settings = self.settings
        if self.teacher is None:
            return F.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        with self.autocast():
            target = answer(self.teacher, x, y, index, logits)
        soft = settings.distill * distillation(logits, target, settings.temperature)
        if settings.distill == 1:
            return soft
        hard = F.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        return (1 - settings.distill) * hard + soft

    def autocast(self) -> AbstractContextManager:
        """The arithmetic of products inside."""
        half = HALF.get(self.settings.precision)
        # No cache: inside another autocast, torch would keep the half-precision weights of the first step.
        return torch.autocast(
            self.device.type, half or torch.bfloat16, enabled=bool(half), cache_enabled=False
        )

    def update(self, update: int) -> None:
        """Change the weights by the gradients that lie there."""
        scaler = self.scaler.scaler
        if self.settings.clip_norm is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        if self.average is not None:
            self.average.update(update)
        self.updated = True

    def refuse(self, value: float, epoch: int, index: int) -> None:
        """Say where a loss of NaN or infinity comes from."""
        check_finite(self.network, f"in epoch {epoch + 1}, before batch {index}", _lower(self.settings))
        raise TrainingError(
            f"the loss is {value} in epoch {epoch + 1}, batch {index}, though batch and parameters are "
            f"finite. {_lower(self.settings)}"
        )


def _lower(settings: Settings) -> str:
    return f"Training diverged: lower lr (now {settings.lr:g}), or let it rise slowly with warmup_epochs=1."


def _streams(train: Batches, device: torch.device) -> dict[str, torch.Generator]:
    """Every generator that training draws from: torch's own, and those that a DataLoader was given."""
    streams = {"torch": torch.default_generator}
    if device.type == "cuda":
        streams["cuda"] = torch.cuda.default_generators[device.index]
    for name, owner in (("loader", train), ("sampler", getattr(train, "sampler", None))):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            streams[name] = generator
    return streams


def _fork_rng(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else [])


@contextmanager
def _memory_format(network: nn.Module, channels_last: bool) -> Iterator[None]:
    """Weights in channels_last inside; contiguous afterwards, as validation and conversion expect them."""
    if not channels_last:
        yield
        return
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
