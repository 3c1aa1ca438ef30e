"""An exponential moving average of what a network learns, validated and kept in place of the raw weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

WARM = 10
"""Updates after which the average remembers as long as it is old: decay = min(decay, (1 + n) / (10 + n)), the
rule of TensorFlow's ExponentialMovingAverage. Short runs would otherwise end on their start."""


class Average:
    """average <- decay * average + (1 - decay) * value, for trained parameters and BatchNorm's statistics.

    Other buffers (bounds, masks, counters) are not averaged: they are those of the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        statistics = {
            f"{path}.{name}" if path else name: buffer
            for path, module in network.named_modules()
            if isinstance(module, _NormBase)
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
        }
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.decay = decay
        self.names = [*trained, *statistics]
        self.values: list[Tensor] = [*trained.values(), *statistics.values()]
        self.averages = [value.detach().clone() for value in self.values]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in what the network holds after `updates` updates, from 0 on."""
        weight = 1 - min(self.decay, (1 + updates) / (WARM + updates))
        torch._foreach_lerp_(self.averages, self.values, weight)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network holds the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange what the network holds with the average."""
        for value, average in zip(self.values, self.averages, strict=True):
            held = value.clone()
            value.copy_(average)
            average.copy_(held)

    @contextmanager
    def restarting(self) -> Iterator[None]:
        """What is set anew inside starts its average anew."""
        before = [value.detach().clone() for value in self.values]
        yield
        for value, old, average in zip(self.values, before, self.averages, strict=True):
            if not torch.equal(value, old):
                average.copy_(value.detach())

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, for a checkpoint."""
        return dict(zip(self.names, self.averages, strict=True))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors()` gave."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])
