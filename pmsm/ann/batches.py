"""What a batch, a label and a network must be to learn from each other; every refusal names the batch."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from pmsm.errors import TrainingError

Batches = Iterable[tuple[Tensor, Tensor]]


def check_reiterable(batches: Batches, name: str) -> None:
    """Refuse an iterator that is used up after one epoch; `name` is the argument it came in.

    Raises:
        TrainingError: `batches` is a generator, a zip, a map or another one-shot iterator.
    """
    if isinstance(batches, Iterator):
        raise TrainingError(
            f"{name} is a one-shot {type(batches).__name__}: after the first epoch it would be empty. "
            f"Pass something that starts anew each time: list({name}), or a DataLoader."
        )


def count_batches(batches: Batches, name: str) -> int:
    """Number of batches per epoch, which the learning rate's schedule needs beforehand.

    Raises:
        TrainingError: `batches` is one-shot, has no length, or is empty.
    """
    check_reiterable(batches, name)
    try:
        number = len(batches)  # pyright: ignore[reportArgumentType]  # the answer to that is the TypeError
    except TypeError as error:
        raise TrainingError(
            f"{name} ({type(batches).__name__}) has no len(), but the learning rate's schedule needs the "
            f"number of batches. Give its dataset a __len__, or pass list({name})."
        ) from error
    if number == 0:
        raise TrainingError(
            f"{name} is empty. Check the path and the split it was read from; with drop_last=True, take a "
            f"batch_size no larger than the data set."
        )
    return number


def check_network(network: nn.Module) -> torch.device:
    """Device of the network's parameters.

    Raises:
        TrainingError: it has none.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise TrainingError(
            f"{type(network).__name__} has no parameters: there is nothing to train or evaluate."
        )
    return parameter.device


def check_finite(network: nn.Module, when: str, remedy: str) -> None:
    """Refuse parameters that hold NaN or infinity; `when` and `remedy` complete the message.

    Raises:
        TrainingError: names the first such parameter.
    """
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise TrainingError(f"parameter {name!r} holds NaN or infinity {when}. {remedy}")


def place(
    batch: object, index: int, device: torch.device, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Batch `index` on the device, checked: x: [N, ...], finite; y: [N], class indices as int64.

    Raises:
        TrainingError: `batch` is no pair of such tensors.
    """
    if not (
        isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
    ):
        raise TrainingError(
            f"batch {index} is a {type(batch).__name__}, not a pair of tensors (x, y). Pass batches, such as "
            f"DataLoader(dataset, batch_size=128) gives."
        )
    x, y = batch
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.dim() != 1 or x.dim() < 2 or len(x) != len(y) or len(y) == 0 or not whole:
        raise TrainingError(
            f"batch {index} has x {tuple(x.shape)} and y {tuple(y.shape)} of {y.dtype}; needed are "
            f"x [N, ...] and y [N] of whole numbers, N >= 1. For one-hot labels pass y.argmax(1)."
        )
    four = channels_last and x.dim() == 4
    x = x.to(device, non_blocking=True, memory_format=torch.channels_last if four else torch.preserve_format)
    if not x.isfinite().all():
        raise TrainingError(
            f"batch {index} holds NaN or infinity in x. Find it with torch.isfinite(x), and clean the data "
            f"or its normalization (a standard deviation of 0?)."
        )
    return x, y.to(device, torch.long, non_blocking=True)


def logits_of(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, index: int) -> Tensor:
    """The network's answer [N, classes] to batch `index`, checked against the labels.

    Raises:
        TrainingError: the network cannot take the batch, answers no [N, classes], or a label is outside them.
    """
    try:
        logits = forward(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise _refusal(error, x, index) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(y):
        answer = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrainingError(
            f"the network answers batch {index} of shape {tuple(x.shape)} with {answer}; needed are logits "
            f"[N, classes]. Wrap it in a module that returns them alone."
        )
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise TrainingError(
            f"batch {index} has labels from {low} to {high}, but the network has {logits.shape[1]} logits "
            f"(classes 0 to {logits.shape[1] - 1}). Build it with num_classes={high + 1}, or number "
            f"the labels from 0."
        )
    return logits


def _refusal(error: Exception, x: Tensor, index: int) -> TrainingError:
    reason = str(error).strip().split("\n")[0]
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return TrainingError(
            f"torch.compile failed on batch {index} of shape {tuple(x.shape)}: {reason}. "
            f"Train with compile=False, or install a C++ compiler (g++) if that is what is missing."
        )
    return TrainingError(
        f"the network cannot take batch {index} of shape {tuple(x.shape)} and {x.dtype}: {reason}. "
        f"Feed it the shape it was built for, or build it for this shape."
    )
