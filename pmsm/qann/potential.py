"""The potential that each neuron starts with, so that its channel keeps its mean at T=1."""

from typing import Any

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import CalibrationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.methods.rounding import count

LARGEST_INITIAL = 127 / 256
"""Below 1/2, so that a neuron without any input stays silent."""

_SAMPLE_BYTES = 1 << 28  # of the largest signal in the network, for all samples together
_VALUES = 1 << 14  # per channel, from which its mean is taken


class Sample:
    """The first inputs that stream by, as many as pass through the network in one batch."""

    def __init__(self, qann: Network):
        largest = max(quantizer.site.neurons for _, quantizer in graph.modules(qann, Quantizer))
        self.room = max(1, _SAMPLE_BYTES // (4 * largest))
        self.batches: list[tuple[Any, ...]] = []

    def keep(self, inputs: tuple[Any, ...]) -> None:
        """Keep a batch while there is room and it can stand in one batch with the first."""
        if self.room > 0 and all(map(_stackable, inputs, self.batches[0] if self.batches else inputs)):
            self.batches.append(tuple(x[: self.room] for x in inputs))
            self.room -= len(inputs[0])
        elif not self.batches:
            self.batches.append(inputs)
            self.room = 0

    def inputs(self) -> tuple[Any, ...]:
        """All of them as one batch."""
        if len(self.batches) == 1:
            return self.batches[0]
        return tuple(torch.cat(parts) for parts in zip(*self.batches, strict=True))


def _stackable(x: Any, first: Any) -> bool:
    return (
        isinstance(x, Tensor) and isinstance(first, Tensor) and x.dim() > 0 and x.shape[1:] == first.shape[1:]
    )


@torch.no_grad()
def match_means(qann: Network, inputs: tuple[Any, ...]) -> None:
    """Let every channel send at T=1, on average over `inputs`, what the float network sends.

    Rounding and clipping move the mean of a channel, and every layer passes that on. In the order of
    execution, each initial potential is chosen with all earlier ones in place, so it makes up for its own
    site and for what has come so far. For T > 1 its share fades as 1/T, as rounding's own does.

    Formula of this project; potentials and biases have been corrected layer by layer by Li et al., "A free
    lunch from ANN", ICML 2021.
    """
    sites = [quantizer for _, quantizer in graph.modules(qann, Quantizer)]
    if any(quantizer.site.rectified and not quantizer.sees_rectified for quantizer in sites):
        return  # negative values where the float network has none: the means cannot be compared
    sites = [quantizer for quantizer in sites if quantizer.starts_anywhere]
    wanted: dict[Quantizer, Tensor] = {}
    for quantizer in sites:
        quantizer.observer = lambda x, q=quantizer: wanted.update({q: _few(q, x).mean(1)})
    try:
        graph.run(qann, inputs, CalibrationError, "the first batches ")
    finally:
        for quantizer in sites:
            quantizer.observer = None

    def choose(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, Quantizer)
        initial = _initial_potential(quantizer, _few(quantizer, args[0]), wanted[quantizer])
        quantizer.initial.copy_(initial.reshape(quantizer.initial.shape))

    hooks = [quantizer.register_forward_pre_hook(choose) for quantizer in sites]
    try:
        graph.run(qann, inputs, CalibrationError, "the first batches ")
    finally:
        for hook in hooks:
            hook.remove()


def _few(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Of a site's signal [N, ...] about `_VALUES` values of each channel, [C, n], float32."""
    channels = quantizer.initial.numel()
    rows = max(1, -(-_VALUES * len(x) * channels // max(1, x.numel())))
    return by_channel(quantizer, x[:rows], channels).float()


def _initial_potential(quantizer: Quantizer, x: Tensor, wanted: Tensor) -> Tensor:
    """[C], the potential nearest to zero with which the codes of `x` [C, n] have the mean `wanted` [C]."""
    scale = quantizer.scale().float().reshape(-1, 1)
    u, wanted = x / scale, wanted / scale[:, 0]

    def mean(initial: Tensor) -> Tensor:
        return count(u + initial[:, None], quantizer.quant_min, quantizer.quant_max).mean(1)

    zero = torch.zeros_like(wanted)
    missing = wanted - mean(zero)  # monotone in the potential: halve the interval that holds the answer
    low, high = LARGEST_INITIAL * (missing < 0), LARGEST_INITIAL * (missing > 0)
    low, high = -low, high.to(low.dtype)
    for _ in range(8):
        middle = (low + high) / 2
        above = mean(middle) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(missing == 0, zero, (low + high) / 2)


def by_channel(quantizer: Quantizer, x: Tensor, channels: int) -> Tensor:
    """A site's signal [N, ...] as [channels, n]; as [1, n] where its channels are not told apart."""
    dim = quantizer.site.channel_dim
    return x.reshape(1, -1) if channels == 1 or dim is None else x.movedim(dim, 0).flatten(1)
