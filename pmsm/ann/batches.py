"""What batches, labels, a network and its checkpoint must be to train; every refusal names the culprit."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from pathlib import Path

import torch
from torch import Tensor, nn

from pmsm.errors import PMSMError, TrainingError

Batches = Iterable[tuple[Tensor, Tensor]]
ROW_SUM = 1e-2
"""Most that a row of soft labels may miss 1 by: what a hundred classes lose in bfloat16."""


def check_iterable(batches: Batches, name: str) -> None:
    """Refuse what gives no batches at all; `name` is the argument it came in.

    Raises:
        TrainingError: `batches` is a tensor, a path, a number, or anything else that cannot be iterated.
    """
    kind = type(batches)
    if isinstance(batches, Tensor | str) or not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        raise TrainingError(
            f"{name} is {_described(batches)}, which gives no batches. Pass pairs of tensors, such as "
            f"[(x, y)] or DataLoader(dataset, batch_size=128)."
        )


def check_reiterable(batches: Batches, name: str) -> None:
    """Refuse what does not give batches anew in every epoch; `name` is the argument it came in.

    Raises:
        TrainingError: `batches` cannot be iterated, is empty, or is a generator, a zip, a map or another
            one-shot iterator.
    """
    check_iterable(batches, name)
    if isinstance(batches, Iterator):
        raise TrainingError(
            f"{name} is a one-shot {type(batches).__name__}: after the first epoch it would be empty. "
            f"Pass something that starts anew each time: list({name}), or a DataLoader."
        )
    if length_hint(batches, 1) == 0:
        raise TrainingError(
            f"{name} is empty. Check the path and the split it was read from; with drop_last=True, take a "
            f"batch_size no larger than the data set."
        )


def count_batches(batches: Batches, name: str) -> int:
    """Number of batches per epoch, which the learning rate's schedule needs beforehand.

    Raises:
        TrainingError: `check_reiterable` refuses `batches`, or it has no length.
    """
    check_reiterable(batches, name)
    try:
        return len(batches)  # pyright: ignore[reportArgumentType]  # the answer to that is the TypeError
    except TypeError as error:
        raise TrainingError(
            f"{name} ({type(batches).__name__}) has no len(), but the learning rate's schedule needs the "
            f"number of batches. Give its dataset a __len__, or pass list({name})."
        ) from error


def check_path(checkpoint: str | Path | None, resume: bool) -> Path | None:
    """Path of the checkpoint; what cannot be one is refused now, not after the first epoch.

    Raises:
        TrainingError: `checkpoint` is a folder, a device or no path, or `resume` has nothing to resume from.
    """
    if not isinstance(resume, bool):
        raise TrainingError(f"train needs resume True or False, got {resume!r}. Write resume=True.")
    if checkpoint is None and resume:
        raise TrainingError("resume=True needs the file to resume from: train(..., checkpoint='run.ckpt').")
    if checkpoint is None:
        return None
    reason = "it is a folder or a device"
    try:
        if stat.S_ISREG(os.stat(Path(checkpoint)).st_mode):
            return Path(checkpoint)
    except FileNotFoundError:
        return Path(checkpoint)
    except (TypeError, ValueError, OSError) as error:
        reason = str(error)
    raise TrainingError(
        f"checkpoint={checkpoint!r} cannot be a file: {reason}. Name one: train(..., checkpoint='run.ckpt')."
    )


def check_network(network: nn.Module) -> torch.device:
    """Device of the network's parameters.

    Raises:
        TrainingError: it is no module, has no parameters, or some of them have no values yet.
    """
    if not isinstance(network, nn.Module):
        raise TrainingError(
            f"the network is {_described(network)}, not a torch.nn.Module. Build one first, such as "
            f"SmallResNet(1, 10), and pass that."
        )
    parameters = dict(network.named_parameters())
    if not parameters:
        raise TrainingError(
            f"{type(network).__name__} has no parameters: there is nothing to train or evaluate."
        )
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            raise TrainingError(
                f"parameter {name!r} has no shape yet. Run the network on one batch first: network(x)."
            )
        if parameter.is_meta:
            raise TrainingError(
                f"parameter {name!r} has no values, it is on the meta device. Materialize the network and "
                f"load its weights: network.to_empty(device='cpu').load_state_dict(weights)."
            )
    return next(iter(parameters.values())).device


def check_finite(network: nn.Module, when: str, remedy: str) -> None:
    """Refuse parameters that hold NaN or infinity; `when` and `remedy` complete the message.

    Raises:
        TrainingError: names the first such parameter.
    """
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise TrainingError(f"parameter {name!r} holds NaN or infinity {when}. {remedy}")


Share = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""x, y, index of the batch -> the rows of both that this process takes."""


def place(
    batch: object, index: int, device: torch.device, channels_last: bool = False, share: Share | None = None
) -> tuple[Tensor, Tensor]:
    """Batch `index` (or this process's `share` of it) on the device, checked.

    Returns:
        x: [N, ...], finite; y: [N], class indices as int64, or [N, classes], probabilities as float32.

    Raises:
        TrainingError: `batch` is no pair of such tensors.
    """
    if not (
        isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
    ):
        raise TrainingError(
            f"batch {index} is {_described(batch)}, not a pair of tensors (x, y). Pass pairs, such as "
            f"[(torch.as_tensor(x), torch.as_tensor(y))] or DataLoader(dataset, batch_size=128)."
        )
    x, y = batch
    for name, tensor in (("x", x), ("y", y)):
        if remedy := _unfit(tensor):
            raise TrainingError(f"batch {index} cannot be read: {name} {remedy.format(name)}.")
    _refuse_misshapen(x, y, index)
    x, y = (x, y) if share is None else share(x, y, index)
    four = channels_last and x.dim() == 4
    x = x.to(device, non_blocking=True, memory_format=torch.channels_last if four else torch.preserve_format)
    if not x.isfinite().all():
        raise TrainingError(
            f"batch {index} holds NaN or infinity in x. Find it with torch.isfinite(x), and clean the data "
            f"or its normalization (a standard deviation of 0?)."
        )
    kind = torch.float32 if y.is_floating_point() else torch.long
    return x, y.to(device, kind, non_blocking=True)


def _refuse_misshapen(x: Tensor, y: Tensor, index: int) -> None:
    soft = y.is_floating_point() and y.dim() == 2
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool) and y.dim() == 1
    if not (soft or whole) or x.dim() < 2 or len(x) != len(y) or y.numel() == 0:
        raise TrainingError(
            f"batch {index} has x {tuple(x.shape)} and y {tuple(y.shape)} of {y.dtype}; needed are "
            f"x [N, ...] and y [N] of whole numbers, or y [N, classes] of floats, N >= 1. For class "
            f"indices of another type pass y.long(), for one-hot labels y.argmax(1); single samples go "
            f"through DataLoader(dataset, batch_size=128)."
        )
    if soft and not (bool((y >= 0).all()) and bool(((y.float().sum(1) - 1).abs() < ROW_SUM).all())):
        raise TrainingError(
            f"batch {index} has soft labels y [N, classes] whose rows are not probabilities: each must be "
            f">= 0 and sum to 1. Write y.clamp(min=0) / y.clamp(min=0).sum(1, keepdim=True); logits go "
            f"through y.softmax(1)."
        )


def classes_of(y: Tensor) -> Tensor:
    """[N] class indices: `y` itself, or the likeliest class of each row of soft labels."""
    return y if y.dim() == 1 else y.argmax(1)


def _described(value: object) -> str:
    """What was given instead: "a tuple (Tensor, ndarray)", "an int", "the class ReLU", "None"."""
    if value is None or isinstance(value, type):
        return "None" if value is None else f"the class {value.__name__}"
    kind = type(value).__name__
    parts = ", ".join(type(part).__name__ for part in value[:4]) if isinstance(value, tuple | list) else ""
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}" + (f" ({parts})" if parts else "")


def _unfit(tensor: Tensor) -> str:
    """Why a tensor is no plain array of numbers, and what to write; "" if it is one."""
    if tensor.is_meta:
        return "has no values, it is on the meta device: pass real data, torch.randn({}.shape)"
    if tensor.is_nested:
        return "is a nested tensor: pad it to one size, {}.to_padded_tensor(0)"
    if tensor.layout != torch.strided:
        return "is a sparse tensor: write it out, {}.to_dense()"
    return "is a quantized tensor: pass its values, {}.dequantize()" if tensor.is_quantized else ""


def logits_of(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, index: int) -> Tensor:
    """The network's answer [N, classes] to batch `index`, checked against the labels [N] or [N, classes].

    Raises:
        TrainingError: the network cannot take the batch, answers no floats [N, classes], or a label is
            outside them.
    """
    try:
        logits = forward(x)
    except (torch.OutOfMemoryError, PMSMError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError) as error:
        raise _refusal(error, x, index) from error
    fits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(y)
    if not fits or not logits.is_floating_point():
        answer = type(logits).__name__
        if isinstance(logits, Tensor):
            answer = f"{tuple(logits.shape)} of {logits.dtype}"
        raise TrainingError(
            f"the network answers batch {index} of shape {tuple(x.shape)} with {answer}; needed are logits "
            f"[N, classes], floats. Wrap it in a module that returns them alone."
        )
    _refuse_unknown_classes(y, logits.shape[1], index)
    return logits


def _refuse_unknown_classes(y: Tensor, classes: int, index: int) -> None:
    if y.dim() == 2:
        if y.shape[1] != classes:
            raise TrainingError(
                f"batch {index} has soft labels of {y.shape[1]} classes, but the network has {classes} "
                f"logits. Build it with num_classes={y.shape[1]}."
            )
        return
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or high >= classes:
        remedy = (
            "Leave out the samples without a class, x[y >= 0] and y[y >= 0]"
            if low < 0
            else f"Build it with num_classes={high + 1}"
        )
        raise TrainingError(
            f"batch {index} has labels from {low} to {high}, but the network has {classes} logits (classes 0 "
            f"to {classes - 1}). {remedy}, or number the labels from 0."
        )


def _refusal(error: Exception, x: Tensor, index: int) -> TrainingError:
    reason = str(error).strip().split("\n")[0]
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return TrainingError(
            f"torch.compile failed on batch {index} of shape {tuple(x.shape)}: {reason}. "
            f"Train with compile=False, or install a C++ compiler (g++) if that is what is missing."
        )
    return TrainingError(
        f"the network cannot take batch {index} of shape {tuple(x.shape)} and {x.dtype}: {reason}. "
        f"Feed it the shape and type it was built for (floats: x.float()), or build it for these."
    )
