"""How a network learns: the one call for a float or a quantized network, on one processor or on many."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    network: nn.Module, train: Batches, valid: Batches | None = None, *,
    epochs: int = 30, lr: float | None = None, optimizer: Literal["sgd", "adamw"] = "sgd",
    weight_decay: float = 5e-4, momentum: float = 0.9, label_smoothing: float = 0.0,
    warmup_epochs: float = 0.0, layer_decay: float = 1.0, accumulate: int = 1,
    clip_norm: float | None = None, ema: float = 0.0, teacher: nn.Module | None = None,
    distill: float | None = None, temperature: float | None = None, seed: int = 0,
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto",
    channels_last: bool | Literal["auto"] = "auto", compile: bool = False,
    checkpoint: str | Path | None = None, resume: bool = False, on_epoch: OnEpoch | None = None,
    accelerator: "Accelerator | None" = None, progress: bool | None = None,
) -> History:  # fmt: skip
    """Train `network` in place, with cross-entropy, and leave it in eval mode; see docs/training.md.

    Every draw from torch's generators follows `seed`, and the caller's are left as they were (NumPy's and
    Python's are the data's own affair). On the CPU a resumed run ends in the same bits as an unbroken one.

    Args:
        train, valid: batches (x, y), iterated anew in every epoch; x: [N, ...], y: [N], class indices, or
            [N, classes], probabilities. `train.set_epoch(epoch)` is called where it exists.
        lr, warmup_epochs: peak of the cosine schedule (default: `LEARNING_RATES`), epochs of the rise to it.
        layer_decay: factor of the learning rate from each numbered block to the one below it.
        optimizer: "sgd" (Nesterov, with `momentum`) or "adamw".
        weight_decay: on all parameters except those that a module names in its class attribute `no_decay`.
        accumulate: batches per update. clip_norm: largest norm of all gradients together.
        ema: decay per update of an average of the weights, which is validated and kept; 0: none.
        teacher, distill, temperature: whose softened answers make `distill` of the loss (default: 0.9, at 4).
        precision: "bf16" and "fp16" are autocast with float32 weights; "auto" takes bf16 where the processor
            multiplies it natively. Validation is always float32, without TF32.
        channels_last: memory format of 4-d inputs and weights while training; "auto" follows bf16.
        compile: train through torch.compile (needs a C++ compiler).
        checkpoint, resume: file for the whole state after every finished epoch; go on from it if it exists.
        on_epoch: called with number (from 0) and network before each epoch; may change values in place.
        accelerator: of the caller's own; default: one for how the process was started.
        progress: show a progress bar; default: if stderr is a terminal.

    Raises:
        TrainingError: settings, data, network or path cannot serve, or the loss became NaN or infinite.
        CheckpointError: the checkpoint cannot be written, is damaged, or belongs to another run.
        MissingExtraError: accelerate is not installed.
    """
    path = check_path(checkpoint, resume)
    workers, device = _placed(network, teacher, accelerator)
    settings = Settings(
        epochs=epochs, batches=_counted(train, valid), optimizer=optimizer, weight_decay=weight_decay,
        lr=LEARNING_RATES.get(str(optimizer), 0.1) if lr is None else lr, momentum=momentum, seed=seed,
        label_smoothing=label_smoothing, warmup_epochs=warmup_epochs, layer_decay=layer_decay, ema=ema,
        accumulate=accumulate, clip_norm=clip_norm, compile=compile,
        **_arithmetic(precision, channels_last, device, workers),
        **_teaching(teacher, distill, temperature, network, device),
    )  # fmt: skip
    try:
        with progress_bar(workers.is_main and progress, settings) as report:
            loop = Loop(network, train, valid, settings, device, workers, report, teacher, on_epoch)
            return loop.run(path, resume)
    finally:
        network.eval()


def _placed(network: nn.Module, teacher: object, accelerator: Any) -> tuple[Workers, torch.device]:
    """The processes of the run, and the device on which both networks now lie."""
    check_network(network)
    workers = Workers(accelerator)
    workers.move(network, teacher if isinstance(teacher, nn.Module) else None)
    return workers, check_network(network)


def _counted(train: Batches, valid: Batches | None) -> int:
    """Batches of training per epoch; refuses what cannot be read anew in each."""
    if valid is not None:
        check_reiterable(valid, "valid")
    return count_batches(train, "train")


def _arithmetic(
    precision: str, channels_last: bool | str, device: torch.device, workers: Workers
) -> dict[str, Any]:
    """The settings that "auto" stands for on this device."""
    resolved = resolve(precision, device, workers.precision)
    return {
        "precision": resolved,
        "channels_last": resolved == "bf16" if channels_last == "auto" else channels_last,
    }


def _teaching(
    teacher: nn.Module | None, distill: float | None, temperature: float | None,
    network: nn.Module, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """The settings of distillation, the fingerprint of the teacher among them."""
    if teacher is None:
        if distill is not None or temperature is not None:
            raise TrainingError(
                "distill and temperature need the network to learn from: train(qann, ..., teacher=ann)."
            )
        return {}
    check_teacher(teacher, network, device)
    return {
        "distill": DISTILL if distill is None else distill,
        "temperature": TEMPERATURE if temperature is None else temperature,
        "teacher": fingerprint(teacher),
    }
