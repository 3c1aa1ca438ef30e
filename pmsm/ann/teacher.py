"""Distillation: a float network's answers, softened, as targets for its quantized copy."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmsm.ann.batches import check_network, logits_of
from pmsm.errors import TrainingError


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), sample mean.

    Args:
        student, teacher: [N, classes], logits, float32.

    The square keeps the gradient's size as the temperature grows. Source: Hinton et al. 2015
    (arXiv:1503.02531), section 2.

    >>> distillation(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0]]), 4.0)
    tensor(0.)
    """
    soft = F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1), soft, reduction="batchmean", log_target=True
    )
    return temperature**2 * divergence


def check_teacher(teacher: object, network: nn.Module, device: torch.device) -> None:
    """Refuse what cannot teach `network`, which learns on `device`.

    Raises:
        TrainingError: no network, on another device, or sharing parameters with the one that learns.
    """
    try:
        where = check_network(teacher)  # pyright: ignore[reportArgumentType]  # that it may be none is checked
    except TrainingError as error:
        raise TrainingError(f"teacher: {error}") from error
    assert isinstance(teacher, nn.Module)
    if where != device:
        raise TrainingError(
            f"the teacher is on {str(where)!r} and the network learns on {str(device)!r}. Move it: "
            f"train(..., teacher=teacher.to({str(device)!r}))."
        )
    if not {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in network.parameters()):
        raise TrainingError(
            "the teacher shares parameters with the network, so it would change while it teaches. Pass a "
            "copy: train(..., teacher=copy.deepcopy(ann))."
        )


def fingerprint(network: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of all that `network` holds; a resumed run must have the same."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(data.data)
    return digest.hexdigest()[:16]


@contextmanager
def answering(teacher: nn.Module | None) -> Iterator[None]:
    """Inside, the teacher is in eval mode; the modes of its modules are restored afterwards."""
    modes = [] if teacher is None else [(module, module.training) for module in teacher.modules()]
    if teacher is not None:
        teacher.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def answer(teacher: nn.Module, x: Tensor, y: Tensor, index: int, student: Tensor) -> Tensor:
    """The teacher's logits [N, classes] for batch `index`, without a gradient.

    Raises:
        TrainingError: it refuses the batch, or has other classes than the student.
    """
    try:
        with torch.no_grad():
            logits = logits_of(teacher, x, y, index)
    except TrainingError as error:
        raise TrainingError(f"teacher: {error}") from error
    if logits.shape != student.shape:
        raise TrainingError(
            f"the teacher answers batch {index} with {tuple(logits.shape)}, the network with "
            f"{tuple(student.shape)}. Take a teacher of the same classes."
        )
    return logits.float()
