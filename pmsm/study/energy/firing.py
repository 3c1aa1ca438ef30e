"""What neurons send, counted as it is sent, in sums that do not grow with the number of samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmsm.methods.neuron import Neuron, TrackingNeuron
from pmsm.methods.rounding import BLOCK

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """Mean over samples, and half the width of its 95 % interval.

    The interval is that of the normal approximation, 1.96 s / sqrt(n), for other samples of the same kind;
    NaN for a single sample.
    """

    mean: float
    half_width: float = 0.0

    def __mul__(self, factor: float) -> "Estimate":
        return Estimate(self.mean * factor, self.half_width * abs(factor))

    def __add__(self, constant: float) -> "Estimate":
        return Estimate(self.mean + constant, self.half_width)


class Moments:
    """Mean and variance of vectors that stream by.

    Whole numbers are summed exactly up to 2**53. Variances are merged batch by batch: Chan, Golub, LeVeque,
    The American Statistician 37(3), 1983.
    """

    def __init__(self) -> None:
        self.samples, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, x: Tensor) -> None:
        """[N, ...] float64."""
        n, total = len(x), x.sum(0)
        squares = (x - total / n).square().sum(0)
        if self.samples:
            apart = total / n - self.total / self.samples
            squares = squares + self.squares + apart.square() * (n * self.samples / (n + self.samples))
            total = total + self.total
        self.samples, self.total, self.squares = self.samples + n, total, squares

    def estimate(self, *index: int) -> Estimate:
        """Of one component."""
        n = self.samples
        spread = math.sqrt(float(self.squares[index]) / (n - 1) / n) if n > 1 else math.nan
        return Estimate(float(self.total[index]) / n, NORMAL_95 * spread)


class Tally:
    """The probe of one neuron layer: spikes by size, by neuron, and weighted by fan-out.

    Args:
        neuron: whose spikes they are.
        shape: [r, ...] of the neurons of one sample, which are r rows of what the probe sees.
        fans: fan-outs of shape `shape`, float64 whole numbers, one tensor per operator that is reached.

    Attributes:
        limits: most negative and most positive count of one step; burst: the larger of their sizes.
        per_neuron: [neurons] float64, sum of |k| over samples and steps.
    """

    keep = False  # where a compiled kernel tells sums only, the counts are read from what the neurons send

    def __init__(self, neuron: Neuron, shape: Sequence[int], fans: list[Tensor]):
        self.limits = _limits(neuron)
        self.burst = max(-self.limits[0], self.limits[1])
        device = neuron.threshold.device
        columns = torch.stack([torch.ones(shape, dtype=torch.float64, device=device), *fans], -1)
        # Where fan-out does not depend on a dimension, counts are summed along it before they are weighted.
        alike = [d for d in range(1, len(shape)) if bool((columns == columns.narrow(d, 0, 1)).all())]
        self.summed = [] if len(shape) < 2 or shape[0] > 1 else alike
        for dim in self.summed:
            columns = columns.narrow(dim, 0, 1)
        self.rows, self.columns = shape[0], columns.reshape(shape[0], -1, columns.shape[-1])
        self.neurons = math.prod(shape[1:])
        self.sizes = Sizes(self.burst, device)
        self.per_neuron = torch.zeros(shape, dtype=torch.float64, device=device)
        self.groups: list[dict[int, Tensor]] = []
        self.unseen: range | None = None

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        """Signed counts [rows, ...] of step `t`, rows from `row` on; (0, 0) opens a group of samples."""
        if t == 0 and row == 0:
            self.groups.append({})
        if spikes.dtype in (torch.float16, torch.bfloat16):
            spikes = spikes.float()
        self.sizes.update(spikes)
        size = spikes.abs()
        self._by_neuron(size, row)
        summed = torch.stack([self._summed(size), self._summed(size.clamp(max=1))], 1).double()
        if self.rows == 1:
            weighted = summed @ self.columns[0]
        else:
            weighted = torch.einsum("nkm,nmc->nkc", summed, self.columns[self._places(size, row)])
        parts = self.groups[-1]
        parts[row] = weighted + parts[row] if row in parts else weighted

    def add(self, net: np.ndarray, size: np.ndarray, t: int, neurons: int) -> None:
        """Sums do not tell where the spikes go: remember the steps, and see `sent`."""
        self.unseen = range(t, t + len(net))

    def sent(self, neuron: Neuron, _: Any, out: Tensor) -> None:
        """Forward hook of the neurons: [steps * rows, ...] threshold times count, exact when rounded."""
        if self.unseen is None:
            return
        steps, self.unseen = self.unseen, None
        at_once = max(1, BLOCK * len(out) // out.numel())
        for t, now in zip(steps, out.unflatten(0, (len(steps), -1)), strict=True):
            for row in range(0, len(now), at_once):
                self((now[row : row + at_once] / neuron.threshold).round_(), t, row)

    def _by_neuron(self, size: Tensor, row: int) -> None:
        if self.rows == 1:
            self.per_neuron[0] += size.sum(0, dtype=self._exact(len(size)))
        else:
            self.per_neuron.index_add_(0, self._places(size, row), size.double())

    def _summed(self, size: Tensor) -> Tensor:
        """[rows, places that differ in fan-out]."""
        if self.summed:
            size = size.sum(self.summed, dtype=self._exact(self.neurons))
        return size.reshape(len(size), -1)

    def _places(self, size: Tensor, row: int) -> Tensor:
        """Which row of its sample each row is."""
        return torch.arange(row, row + len(size), device=size.device) % self.rows

    def _exact(self, terms: int) -> torch.dtype:
        """What sums so many counts without rounding."""
        return torch.float32 if terms * self.burst < 2**24 else torch.float64

    def collect(self, samples: int) -> Tensor:
        """[N, 2, 1 + C] float64 of the samples since the last call: sums of |k| and of nonzero counts, alone
        and times each fan-out.
        """
        rows = torch.cat([parts[row] for parts in self.groups for row in sorted(parts)])
        self.groups.clear()
        return rows.view(samples, -1, *rows.shape[1:]).sum(1).cpu()


def _limits(neuron: Neuron) -> tuple[int, int]:
    """Most negative and most positive count that one step allows."""
    if isinstance(neuron, TrackingNeuron):
        return -neuron.burst, neuron.burst
    return neuron.quant_min, neuron.quant_max


class Sizes:
    """How often each whole number from -burst to burst has come by.

    Two counts make one number, where all pairs fit into the first-level cache: half as many look-ups, which
    wait less for each other.
    """

    def __init__(self, burst: int, device: torch.device):
        self.burst, self.levels = burst, 2 * burst + 1
        self.single = torch.zeros(self.levels, dtype=torch.int64, device=device)
        self.pairs = torch.zeros(self.levels**2 if self.levels <= 65 else 0, dtype=torch.int64, device=device)

    def update(self, counts: Tensor) -> None:
        """[...] whole numbers, floating dtype."""
        counts = counts.flatten()
        half = len(counts) // 2 if len(self.pairs) else 0
        if half:
            pairs = torch.add(counts[half : 2 * half], counts[:half], alpha=self.levels)
            pairs = pairs.add_(self.burst * (self.levels + 1)).to(torch.int32)
            self.pairs += torch.bincount(pairs, minlength=len(self.pairs))
        if len(counts) > 2 * half:
            left = (counts[2 * half :] + self.burst).to(torch.int32)
            self.single += torch.bincount(left, minlength=self.levels)

    def histogram(self) -> dict[int, int]:
        """Count -> how often, without those that never came."""
        times = self.single
        if len(self.pairs):
            by_pair = self.pairs.view(self.levels, self.levels)
            times = times + by_pair.sum(0) + by_pair.sum(1)
        return {k: n for k, n in enumerate(times.tolist(), -self.burst) if n}
