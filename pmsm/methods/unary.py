"""Multi-spikes for binary hardware: a count of k is sent as |k| micro-steps of one spike of its sign."""

import torch
from torch import Tensor

from pmsm.methods.neuron import Neuron


def repeat(x: Tensor, micro_steps: int) -> Tensor:
    """[N, ...] -> [M * N, ...]: the same in each of M micro-steps, one behind the other in dim 0."""
    return x.repeat(micro_steps, *[1] * (x.dim() - 1))


def collapse(x: Tensor, micro_steps: int) -> Tensor:
    """[M * N, ...] -> [N, ...]: the mean over the micro-steps, summed in float64; what is no number (a
    comparison, an index) is taken from the last.
    """
    by_step = x.unflatten(0, (micro_steps, -1))
    if not x.is_floating_point():
        return by_step[-1]
    return by_step.sum(0, dtype=torch.float64).div_(micro_steps).to(x.dtype)


class UnaryNeuron(Neuron):
    """A neuron whose spikes are binary, -1, 0 or 1 in each of M micro-steps of a timestep.

    It listens for M micro-steps, integrates the mean of what arrived, and sends its count k in the next M:
    the sign of k in the first |k| of them, then nothing. A spike weighs M * threshold, and the mean over the
    micro-steps is threshold * k: affine layers in between, bias included, see an ordinary current, M times
    as often.

    Args:
        neuron: whose threshold, bounds and rule to take.
        micro_steps: M, at least the largest count.
    """

    def __init__(self, neuron: Neuron, micro_steps: int):
        super().__init__(
            neuron.threshold,
            neuron.quant_min,
            neuron.quant_max,
            initial=neuron.initial,
            cancel=neuron.cancel,
        )
        self.micro_steps = micro_steps

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[M * N, ...] input current -> [M * N, ...] spikes (-1, 0, 1) times M * threshold."""
        counts = (super().forward(collapse(x, self.micro_steps)) / self.threshold).round()
        index = torch.arange(1, self.micro_steps + 1, device=x.device).view(-1, *[1] * x.dim())
        spikes = counts.sign() * (counts.abs() >= index)
        return (spikes * (self.micro_steps * self.threshold)).flatten(0, 1)

    def in_one_step(self, out: Tensor) -> Tensor:
        """See `Neuron`."""
        return collapse(out, self.micro_steps)

    def extra_repr(self) -> str:
        """That of the neuron, and M."""
        return f"{super().extra_repr()}, micro_steps={self.micro_steps}"
