"""What the labels of a set must be, whatever the set holds."""

import torch
from torch import Tensor

from pmsm.errors import DataError


def check_labels(labels: Tensor, count: int, class_count: int, *, name: str, noun: str) -> None:
    """Refuse labels that do not fit `count` samples of `class_count` classes.

    Args:
        labels: must be int64 [count], count >= 1, in [0, class_count), at least two of them different.
        name, noun: of the set, and of what it holds, for the message.

    Raises:
        DataError: they are not.
    """
    why = None
    if count == 0:
        why = f"it is empty: there are no {noun}"
    elif labels.dtype != torch.int64 or labels.shape != (count,):
        why = f"labels must be int64 [{count}], got {described(labels)}"
    elif (low := int(labels.min())) < 0 or int(labels.max()) >= class_count:
        why = f"labels must lie in [0, {class_count}), got {low} to {int(labels.max())}"
    elif low == int(labels.max()):
        why = f"all {count} {noun} are of class {low}; a classifier needs at least two classes"
    if why is not None:
        raise DataError(f"cannot use the set {name!r}: {why}.")


def described(tensor: Tensor) -> str:
    """Type and shape, as in "int64 [3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
