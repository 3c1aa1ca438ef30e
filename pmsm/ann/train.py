"""How a network learns: the one call for a float or a quantized network, on one processor or on many."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from pmsm.ann.batches import Batches, check_network, check_path, check_reiterable, count_batches
from pmsm.ann.evaluate import evaluate
from pmsm.ann.loop import Loop, OnEpoch
from pmsm.ann.precision import resolve
from pmsm.ann.progress import progress_bar
from pmsm.ann.schedule import LEARNING_RATES, History, Settings
from pmsm.ann.teacher import check_teacher, fingerprint
from pmsm.ann.workers import Workers
from pmsm.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["evaluate", "train"]

DISTILL, TEMPERATURE = 0.9, 4.0
"""Share and temperature of distillation when none are given, of the size that Hinton et al. 2015 used."""


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
    layer_decay: float = 1.0,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema: float = 0.0,
    teacher: nn.Module | None = None,
    distill: float | None = None,
    temperature: float | None = None,
    seed: int = 0,
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    compile: bool = False,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool | None = None,
) -> History:
    """Train `network` in place, with cross-entropy, and leave it in eval mode.

    Every draw from torch's generators follows `seed`, and the caller's are left as they were (NumPy's and
    Python's are the data's own affair). On the CPU a resumed run ends in the same bits as an unbroken one.
    Started by `torchrun` or `accelerate launch`, processes share each batch; docs/training.md has the rest.

    Args:
        train, valid: batches (x, y), iterated anew in every epoch, such as a list or a DataLoader;
            x: [N, ...], y: [N], class indices, or [N, classes], probabilities. `train.set_epoch(epoch)` is
            called where it exists.
        lr, warmup_epochs: peak of the cosine schedule (default: `LEARNING_RATES`), epochs of the rise to it.
        layer_decay: factor of the learning rate from each numbered block to the one below it.
        optimizer: "sgd" (Nesterov, with `momentum`) or "adamw".
        weight_decay: on all parameters except those that a module names in its class attribute `no_decay`.
        accumulate: batches per update. clip_norm: largest norm of all gradients together.
        ema: decay per update of an average of the weights, which is validated and kept; 0: none.
        teacher, distill, temperature: network whose answers, softened, make `distill` of the loss (default:
            0.9, at temperature 4).
        precision: "bf16" and "fp16" are autocast with float32 weights; "auto" takes bf16 where the processor
            multiplies it natively (AMX or AVX512 on CPUs). Validation is always float32, without TF32.
        channels_last: memory format of 4-d inputs and weights while training; "auto" follows bf16. On CPUs
            torch 2.13 sums BatchNorm's variance less exactly in it (2e-4 relative, below bf16's rounding).
        compile: train through torch.compile (needs a C++ compiler).
        checkpoint, resume: file for the whole state after every finished epoch; go on from it if it exists.
        on_epoch: called with number (from 0) and network before each epoch, and before resuming with that of
            the last finished one; it may change values in place, such as the levels of a quantized network.
        accelerator: of the caller's own; default: one for how the process was started.
        progress: show a progress bar; default: if stderr is a terminal.

    Raises:
        TrainingError: settings, data, network or path cannot serve, or the loss became NaN or infinite.
        CheckpointError: the checkpoint cannot be written, is damaged, or belongs to another run.
        MissingExtraError: accelerate is not installed.
    """
    path = check_path(checkpoint, resume)
    check_network(network)
    workers = Workers(accelerator)
    workers.move(network, teacher if isinstance(teacher, nn.Module) else None)
    device = check_network(network)
    resolved = resolve(precision, device, workers.precision)
    if valid is not None:
        check_reiterable(valid, "valid")
    distill, temperature = _distilled(teacher, distill, temperature)
    settings = Settings(
        epochs=epochs, batches=count_batches(train, "train"),
        lr=LEARNING_RATES.get(str(optimizer), 0.1) if lr is None else lr, optimizer=optimizer,
        weight_decay=weight_decay, momentum=momentum, label_smoothing=label_smoothing,
        warmup_epochs=warmup_epochs, seed=seed, precision=resolved, compile=compile,
        channels_last=resolved == "bf16" if channels_last == "auto" else channels_last,
        accumulate=accumulate, clip_norm=clip_norm, ema=ema, layer_decay=layer_decay, distill=distill,
        temperature=temperature, teacher=_taught_by(teacher, network, device),
    )  # fmt: skip
    show = workers.is_main and (sys.stderr.isatty() if progress is None else progress)
    try:
        with progress_bar(show, settings) as report:
            loop = Loop(network, train, valid, settings, device, workers, report, teacher, on_epoch)
            return loop.run(path, resume)
    finally:
        network.eval()


def _distilled(
    teacher: nn.Module | None, distill: float | None, temperature: float | None
) -> tuple[float, float]:
    """Share and temperature of distillation; 0 and 1 without a teacher."""
    if teacher is None:
        if distill is not None or temperature is not None:
            raise TrainingError(
                "distill and temperature need the network to learn from: train(qann, ..., teacher=ann)."
            )
        return 0.0, 1.0
    return DISTILL if distill is None else distill, TEMPERATURE if temperature is None else temperature


def _taught_by(teacher: nn.Module | None, network: nn.Module, device: torch.device) -> str:
    if teacher is None:
        return ""
    check_teacher(teacher, network, device)
    return fingerprint(teacher)
