"""How often a network is right."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from pmsm.ann.batches import Batches, check_iterable, check_network, classes_of, logits_of, place
from pmsm.ann.workers import Workers
from pmsm.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator


def evaluate(network: nn.Module, batches: Batches, *, accelerator: "Accelerator | None" = None) -> float:
    """Top-1 accuracy in percent, in float32 and eval mode; the mode of every module is restored afterwards.

    Args:
        batches: (x, y) with x: [N, ...] and y: [N], class indices, or [N, classes], probabilities, whose
            largest counts; moved to the network's device.
        accelerator: share the batches out to its processes, each of which gets the accuracy over all of them;
            without it, a process evaluates everything itself.

    Raises:
        TrainingError: no batch, a batch that does not fit the network, or outputs that are not a number.
    """
    return accuracy(network, batches, None if accelerator is None else Workers(accelerator))


@torch.no_grad()
def accuracy(network: nn.Module, batches: Batches, workers: Workers | None) -> float:
    """The same, shared out to `workers`: whole batches in turn, so that no answer depends on their number."""
    device = check_network(network)
    check_iterable(batches, "batches")
    modes = [(module, module.training) for module in network.modules()]
    correct, seen = torch.zeros((), dtype=torch.long, device=device), 0
    network.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            for index, batch in enumerate(batches):
                if workers is not None and not workers.takes(index):
                    continue
                x, y = place(batch, index, device)
                logits = logits_of(network, x, y, index)
                if logits.isnan().any():
                    raise TrainingError(
                        f"the network answers batch {index} with NaN, so its accuracy means nothing. Weights "
                        f"or buffers are damaged; load an earlier checkpoint or train again with a lower lr."
                    )
                correct += (logits.argmax(1) == classes_of(y)).sum()
                seen += len(y)
    finally:
        for module, mode in modes:
            module.training = mode
    right, samples = (correct.item(), seen) if workers is None else workers.total(correct, seen)
    if not samples:
        raise TrainingError(
            "evaluate got no batch. Pass at least one (x, y), and a list, not a used-up iterator."
        )
    return 100 * right / samples
