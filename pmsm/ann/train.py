"""How a network learns: one loop, float or quantized; a pure function of network, data, settings and seed."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmsm.ann.batches import (
    Batches,
    check_finite,
    check_iterable,
    check_network,
    check_path,
    check_reiterable,
    count_batches,
    logits_of,
    place,
)
from pmsm.ann.checkpoint import load_training, save_training
from pmsm.ann.progress import Report, progress_bar
from pmsm.ann.schedule import LEARNING_RATES, Epoch, History, Settings
from pmsm.errors import TrainingError


def train(
    network: nn.Module,
    train: Batches,
    valid: Batches | None = None,
    *,
    epochs: int = 30,
    lr: float | None = None,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    label_smoothing: float = 0.0,
    warmup_epochs: float = 0.0,
    seed: int = 0,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    compile: bool = False,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> History:
    """Train `network` in place on its own device, with cross-entropy, and leave it in eval mode.

    Every draw from torch's generators follows `seed`, and the caller's are left as they were (NumPy's and
    Python's are the data's own affair). On the CPU a resumed run ends in the same bits as an unbroken one.

    Args:
        train, valid: batches (x, y), iterated anew in every epoch, such as a list or a DataLoader;
            x: [N, ...], y: [N], class indices. `train.set_epoch(epoch)` is called where it exists.
        lr, warmup_epochs: peak of the cosine schedule (default: `LEARNING_RATES`), epochs of the rise to it.
        optimizer: "sgd" (Nesterov, with `momentum`) or "adamw".
        weight_decay: on all parameters except those that a module names in its class attribute `no_decay`.
        precision: "bf16" is autocast with float32 weights; "auto" takes it where the processor multiplies
            bfloat16 natively (AMX or AVX512 on CPUs). Validation is always float32.
        channels_last: memory format of 4-d inputs and weights while training; "auto" follows bf16. On CPUs
            torch 2.13 sums BatchNorm's variance less exactly in it (2e-4 relative, below bf16's rounding).
        compile: train through torch.compile (needs a C++ compiler).
        checkpoint, resume: file for the whole state after every finished epoch; go on from it if it exists.
        progress: show a progress bar; default: if stderr is a terminal.

    Raises:
        TrainingError: settings, data, network or path cannot serve, or the loss became NaN or infinite.
        CheckpointError: the checkpoint cannot be written, is damaged, or belongs to another run.
    """
    path = check_path(checkpoint, resume)
    device = check_network(network)
    resolved = _precision(precision, device)
    if valid is not None:
        check_reiterable(valid, "valid")
    settings = Settings(
        epochs=epochs, batches=count_batches(train, "train"),
        lr=LEARNING_RATES.get(str(optimizer), 0.1) if lr is None else lr, optimizer=optimizer,
        weight_decay=weight_decay, momentum=momentum, label_smoothing=label_smoothing,
        warmup_epochs=warmup_epochs, seed=seed, precision=resolved, compile=compile,
        channels_last=resolved == "bf16" if channels_last == "auto" else channels_last,
    )  # fmt: skip
    try:
        with progress_bar(sys.stderr.isatty() if progress is None else progress, settings) as report:
            return _Loop(network, train, valid, settings, device, report).run(path, resume)
    finally:
        network.eval()


@torch.no_grad()
def evaluate(network: nn.Module, batches: Batches) -> float:
    """Top-1 accuracy in percent, in float32 and eval mode; the mode of every module is restored afterwards.

    Args:
        batches: (x, y) with x: [N, ...] and y: [N], class indices; moved to the network's device.

    Raises:
        TrainingError: no batch, a batch that does not fit the network, or outputs that are not a number.
    """
    device = check_network(network)
    check_iterable(batches, "batches")
    modes = [(module, module.training) for module in network.modules()]
    correct, seen = torch.zeros((), dtype=torch.long, device=device), 0
    network.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            for index, batch in enumerate(batches):
                x, y = place(batch, index, device)
                logits = logits_of(network, x, y, index)
                if logits.isnan().any():
                    raise TrainingError(
                        f"the network answers batch {index} with NaN, so its accuracy means nothing. Weights "
                        f"or buffers are damaged; load an earlier checkpoint or train again with a lower lr."
                    )
                correct += (logits.argmax(1) == y).sum()
                seen += len(y)
    finally:
        for module, mode in modes:
            module.training = mode
    if not seen:
        raise TrainingError(
            "evaluate got no batch. Pass at least one (x, y), and a list, not a used-up iterator."
        )
    return 100 * correct.item() / seen


class _Loop:
    """One run: what stays the same from its first step to its last."""

    def __init__(
        self,
        network: nn.Module,
        train: Batches,
        valid: Batches | None,
        settings: Settings,
        device: torch.device,
        report: Report,
    ) -> None:
        self.network, self.train, self.valid = network, train, valid
        self.settings, self.device, self.report = settings, device, report
        self.forward = torch.compile(network) if settings.compile else network
        self.optimizer = _optimizer(network, settings)
        self.streams = _streams(train, device)

    def run(self, checkpoint: Path | None, resume: bool) -> History:
        """All epochs, or those that the checkpoint still lacks."""
        state = (self.network, self.optimizer, self.streams, asdict(self.settings))
        rows: list[Epoch] = []
        plain = torch.autocast(self.device.type, enabled=False)  # whatever the caller has switched on
        with torch.inference_mode(False), torch.enable_grad(), plain, _fork_rng(self.device):
            self.streams["torch"].manual_seed(self.settings.seed)
            if "cuda" in self.streams:
                self.streams["cuda"].manual_seed(self.settings.seed)
            if checkpoint is not None and resume and checkpoint.exists():
                rows = [Epoch(**row) for row in load_training(checkpoint, *state)]
            check_finite(self.network, "before training", "Initialize it, or load whole weights.")
            first = len(rows)
            for epoch in range(first, self.settings.epochs):
                rows.append(self.epoch(epoch, first=epoch == first))
                if checkpoint is not None:
                    save_training(checkpoint, *state, [asdict(row) for row in rows])
        self.optimizer.zero_grad()
        return History(tuple(rows), self.settings)

    def epoch(self, epoch: int, first: bool) -> Epoch:
        """Learn once from every batch, then validate; the row of the history."""
        start = time.perf_counter()
        with _memory_format(self.network, self.settings.channels_last):
            loss, accuracy = self.learn(epoch, first)
        check_finite(self.network, f"after epoch {epoch + 1}", _lower(self.settings))
        valid_accuracy = None
        if self.valid is not None:
            try:
                with _fork_rng(self.device):  # so that validation draws nothing from what training draws from
                    valid_accuracy = evaluate(self.network, self.valid)
            except TrainingError as error:
                raise TrainingError(f"validation after epoch {epoch + 1}: {error}") from error
            self.report(valid=valid_accuracy)
        lr = self.optimizer.param_groups[0]["lr"]
        return Epoch(loss, accuracy, valid_accuracy, time.perf_counter() - start, lr)

    def learn(self, epoch: int, first: bool) -> tuple[float, float]:
        """One pass over the training batches: mean loss, accuracy in percent."""
        self.network.train()
        if hasattr(self.train, "set_epoch"):
            self.train.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        loss, correct, seen = 0.0, torch.zeros((), dtype=torch.long, device=self.device), 0
        labels: set[int] = set()
        for index, batch in enumerate(self.train):
            x, y = place(batch, index, self.device, self.settings.channels_last)
            step_loss, step_correct = self.step(epoch, index, x, y)
            loss, correct, seen = loss + step_loss * len(y), correct + step_correct, seen + len(y)
            if first and len(labels) < 2:
                labels.update(y.unique().tolist())
            self.report(epoch=epoch, batch=index, loss=loss / seen)
        if not seen:
            raise TrainingError(
                f"train gave no batch in epoch {epoch + 1}. Pass a list or a DataLoader, not an iterator."
            )
        if first and len(labels) < 2:
            raise TrainingError(
                f"every label is {labels.pop()}: with one class there is nothing to learn. Check how the "
                f"data set is read; if it is sorted by class and cut short, shuffle before cutting."
            )
        return loss / seen, 100 * correct.item() / seen

    def step(self, epoch: int, index: int, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        """One update; the loss is looked at before it, so that a bad one leaves the weights as they were."""
        rate = self.settings.learning_rate(epoch * self.settings.batches + index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        half = self.settings.precision == "bf16"
        # No cache: inside another autocast, torch would keep the bfloat16 weights of the first step for ever.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            logits = logits_of(self.forward, x, y, index)
        if not logits.requires_grad:
            raise TrainingError(
                "the network's answer depends on no parameter that requires a gradient. Leave detach(), "
                "no_grad() and argmax() out of its forward."
            )
        logits = logits.float() if half else logits
        loss = F.cross_entropy(logits, y, label_smoothing=self.settings.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            where = f"in epoch {epoch + 1}, before batch {index}"
            check_finite(self.network, where, _lower(self.settings))
            raise TrainingError(
                f"the loss is {value} in epoch {epoch + 1}, batch {index}, though batch and parameters are "
                f"finite. {_lower(self.settings)}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value, (logits.argmax(1) == y).sum()


def _lower(settings: Settings) -> str:
    return f"Training diverged: lower lr (now {settings.lr:g}), or let it rise slowly with warmup_epochs=1."


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    exempt = {
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in getattr(module, "no_decay", ())
    }
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError(
            f"no parameter of {type(network).__name__} requires a gradient. Thaw some: "
            f"network.requires_grad_(True)."
        )
    if any(parameter.is_inference() for parameter in trained):
        raise TrainingError(
            f"{type(network).__name__} was built inside torch.inference_mode(), so it cannot learn. Build or "
            f"load it outside."
        )
    groups = [
        {"params": [p for p in trained if p not in exempt], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p in exempt], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


def _precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": bf16 where the processor multiplies it natively, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = device.type == "cpu"
        native = on_cpu and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16" if native else "fp32"


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
