"""How much of a signal a quantizer keeps, and the step and split that keep the most.

A code is a deterministic function of the signal, so I(X; code) = H(code): the entropy of the code is the
information that a site passes on. Entropy alone does not rank quantizers, for a badly clipped one can have
the most. What a linear reader, the next layer, gets out of the code are the effective bits

    B(scale) = - 1/2 log2(MSE / variance)        [bits], the criterion of rule "mse", the default;
    J(scale) = H(code) + B(scale)                [bits], that of rule "entropy".

Formulas of this project, after the idea of arXiv:2508.14520. Rules "percentile" and "kl" choose on the same
distribution with the same search. docs/theory.md says why "mse" is the default.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pmsm.methods.base import Start

PERCENTILE = 0.999
"""Share of the signal that the percentile rule does not clip; a usual choice of int8 calibration tools."""


class _Grid(NamedTuple):
    """How finely to search: candidates at first, on each side of the best one when refining, refinements."""

    coarse: int
    fine: int
    rounds: int


_STEP = _Grid(coarse=128, fine=24, rounds=2)
_SPLIT = _Grid(coarse=16, fine=4, rounds=1)  # enough to tell which split is the best; a ninth of the work


class Distribution(Protocol):
    """What the rules know of a signal: C independent channels, or C = 1 for a whole site."""

    variance: Tensor
    """[C], activation units squared."""
    rms: Tensor
    """[C], root of the second moment, activation units."""
    at_zero: Tensor
    """[C], mass that sits at zero exactly, as behind ReLU."""
    largest: Tensor
    """[C], bound on the absolute value beyond which no mass that matters lies, activation units."""

    def below(self, x: Tensor) -> Tensor:
        """[C, K] values -> [3, C, K]: mass, first and second moment of the signal below each of them."""
        ...


class Gaussian:
    """The signal that BatchNorm implies without any data: mean beta, standard deviation |gamma|, per channel.

    Args:
        mean, std: [C], activation units, std > 0.
        rectified: ReLU follows: all negative mass sits at zero.
        mixture: mix the channels to a single distribution, for a step shared by the site.
    """

    def __init__(self, mean: Tensor, std: Tensor, *, rectified: bool = False, mixture: bool = False):
        self.mean, self.std = mean.double()[:, None], std.double()[:, None]
        self.rectified, self.mixture = rectified, mixture
        below_zero = self._below(torch.zeros_like(self.mean))[0] * rectified
        self.at_zero = below_zero.mean(0) if mixture else below_zero[:, 0]
        infinity = torch.full_like(self.mean, math.inf)
        _, first, second = self.below(infinity)[..., 0]
        self.variance = (second - first**2).clamp_min(0)
        self.rms = second.sqrt()
        self.largest = (self.mean.abs() + 8 * self.std).amax(0 if mixture else 1).reshape(-1)

    def below(self, x: Tensor) -> Tensor:
        """[C, K] -> [3, C, K]; closed form: mass, first and second moment below `x`."""
        parts = self._below(x.expand(self.mean.shape[0], -1))
        if self.rectified:
            at_zero = self._below(torch.zeros_like(self.mean))
            at_zero[0] = 0  # the mass below zero moves to zero itself, its moments vanish
            parts = torch.where(x > 0, parts - at_zero, torch.zeros_like(parts))
        return parts.mean(1, keepdim=True) if self.mixture else parts

    def _below(self, x: Tensor) -> Tensor:
        mean, std = self.mean, self.std
        u = (x - mean) / std
        mass = torch.special.ndtr(u)
        density = torch.where(u.isinf(), 0.0, torch.exp(-0.5 * u**2) / math.sqrt(2 * math.pi))
        tail = torch.where(u.isinf(), 0.0, (x + mean) * density)
        return torch.stack([mass, mean * mass - std * density, (mean**2 + std**2) * mass - std * tail])


class Histogram:
    """A streaming histogram: memory does not depend on how much it has seen.

    Values lie in `bins` bins over [-reach, reach]; exact zeros, of which ReLU makes many, are counted apart.
    When a value falls outside, the reach doubles and neighboring bins merge. Within a bin the signal counts
    as uniform.

    Args:
        channels: C, or 1 for a whole site.
    """

    def __init__(self, channels: int = 1, bins: int = 8192):
        self.counts = torch.zeros(channels, bins, dtype=torch.float64)
        self.zeros = torch.zeros(channels, dtype=torch.float64)
        self.reach = 0.0

    def update(self, x: Tensor) -> None:
        """Count `x` [C, n], finite."""
        x = x.detach()
        top = float(x.abs().amax()) if x.numel() else 0.0
        if top > 0:
            self._reach_out(top)
        zeros = (x == 0).sum(1).to("cpu", torch.float64)
        self.zeros += zeros
        if top == 0:
            return
        channels, bins = self.counts.shape
        index = ((x.float() / self.reach + 1) * (bins / 2)).long().clamp_(0, bins - 1)
        index += torch.arange(channels, device=x.device)[:, None] * bins
        found = torch.bincount(index.flatten(), minlength=channels * bins).to("cpu", torch.float64)
        found = found.view(channels, bins)
        found[:, bins // 2] -= zeros  # they lie on the edge at which this bin begins
        self.counts += found

    def _reach_out(self, top: float) -> None:
        if self.reach == 0:
            self.reach = top * (1 + 1e-6)
        while top > self.reach:
            self.reach *= 2
            channels, bins = self.counts.shape
            merged = torch.zeros_like(self.counts)
            merged[:, bins // 4 : bins - bins // 4] = self.counts.view(channels, bins // 2, 2).sum(2)
            self.counts = merged

    @property
    def total(self) -> Tensor:
        """[C], number of values seen."""
        return self.zeros + self.counts.sum(1)

    @property
    def edges(self) -> Tensor:
        """[bins + 1], edges of the bins, activation units."""
        bins = self.counts.shape[1]
        return torch.linspace(-self.reach, self.reach, bins + 1, dtype=torch.float64)

    def finish(self) -> "Histogram":
        """Make it a `Distribution`: fix the cumulative moments of what has been seen so far."""
        edges = self.edges
        total = self.total.clamp_min(1)[:, None]
        self.at_zero = self.zeros / total[:, 0]
        self._density = self.counts / total / max(2 * self.reach / self.counts.shape[1], 1e-300)
        self._cumulative = torch.zeros(3, self.counts.shape[0], edges.numel(), dtype=torch.float64)
        for power in range(3):
            inside = self._density * (edges[1:] ** (power + 1) - edges[:-1] ** (power + 1)) / (power + 1)
            self._cumulative[power, :, 1:] = inside.cumsum(1)
        mean, second = self._cumulative[1, :, -1], self._cumulative[2, :, -1]
        self.variance = (second - mean**2).clamp_min(0)
        self.rms = second.sqrt()
        occupied = self.counts > 0
        self.largest = torch.where(occupied, torch.maximum(edges[1:].abs(), edges[:-1].abs()), 0.0).amax(1)
        return self

    def below(self, x: Tensor) -> Tensor:
        """[C, K] -> [3, C, K]: mass, first and second moment below `x`."""
        bins = self.counts.shape[1]
        if self.reach == 0:
            return torch.stack([self.at_zero[:, None] * (x > 0), torch.zeros_like(x), torch.zeros_like(x)])
        x_ = x.clamp(-self.reach, self.reach)
        index = ((x_ / self.reach + 1) * (bins / 2)).long().clamp_(0, bins - 1)
        left, density = self.edges[index], self._density.gather(1, index)
        parts = torch.stack([self._cumulative[p].gather(1, index) for p in range(3)])
        for power in range(3):
            parts[power] += density * (x_ ** (power + 1) - left ** (power + 1)) / (power + 1)
        parts[0] += self.at_zero[:, None] * (x > 0)
        return parts


def cells(signal: Distribution, scale: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """What each code of a quantizer holds, and the error it makes.

    Args:
        scale: [C, S], candidate steps, activation units.

    Returns:
        [C, S, levels] share of each code; [C, S] mean squared error, activation units squared.
    """
    channels, candidates = scale.shape
    codes = torch.arange(quant_min, quant_max + 1, dtype=torch.float64)
    edges = (codes[:-1] + 0.5) * scale[..., None]
    infinity = torch.full((channels, candidates, 1), math.inf, dtype=torch.float64)
    edges = torch.cat([-infinity, edges, infinity], 2)
    mass, first, second = (
        signal.below(edges.reshape(channels, -1)).view(3, channels, candidates, -1).diff(dim=-1)
    )
    value = codes * scale[..., None]
    error = (second - 2 * value * first + value**2 * mass).sum(-1)
    return mass.clamp_min(0), error.clamp_min(0)


def entropy_bits(shares: Tensor) -> Tensor:
    """Entropy in bits of the last dimension, whose entries are shares that sum to 1.

    >>> entropy_bits(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    tensor(1.5000)
    """
    return -torch.special.xlogy(shares, shares).sum(-1) / math.log(2)


def effective_bits(error: Tensor, variance: Tensor) -> Tensor:
    """1/2 log2(variance / MSE): bits that the reconstruction is worth on a Gaussian channel, at most 20."""
    power = torch.where(variance > 0, variance, torch.ones_like(variance))
    return -0.5 * torch.log2((error / power).clamp_min(2.0**-40))


def _entropy_rule(signal: Distribution, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    shares, error = cells(signal, scale, quant_min, quant_max)
    return entropy_bits(shares) + effective_bits(error, signal.variance[:, None])


def _mse_rule(signal: Distribution, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    error = cells(signal, scale, quant_min, quant_max)[1]
    return effective_bits(error, signal.variance[:, None])


def _percentile_rule(signal: Distribution, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The smallest step that clips at most 1 - PERCENTILE of the mass."""
    mass = signal.below(torch.cat([quant_min * scale, quant_max * scale], 1))[0]
    clipped = 1 - (mass[:, scale.shape[1] :] - mass[:, : scale.shape[1]] * (quant_min < 0))
    return torch.where(clipped <= 1 - PERCENTILE, -torch.log(scale), -1e9 * clipped)


def _kl_rule(signal: Distribution, scale: Tensor, quant_min: int, quant_max: int, bins: int = 2048) -> Tensor:
    """Minus the divergence of the signal from the density that its code implies: each cell filled uniformly.

    What is clipped counts at the outermost bin of the clipping range, and exact zeros do not count, as in the
    int8 calibration of TensorRT (Migacz, GTC 2017); `bins` equal bins over the range.
    """
    channels, candidates = scale.shape
    low, high = (quant_min - 0.5) * scale, (quant_max + 0.5) * scale
    steps = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    edges = low[..., None] + (high - low)[..., None] * steps
    below = signal.below(edges.reshape(channels, -1))[0].view(channels, candidates, -1)
    at_zero = signal.at_zero[:, None, None] * ((edges[..., :-1] <= 0) & (edges[..., 1:] > 0))
    inside = (below.diff(dim=-1) - at_zero).clamp_min(0)
    outside_low, outside_high = below[..., 0], 1 - below[..., -1]
    clipped = inside.clone()
    clipped[..., 0] += outside_low
    clipped[..., -1] += outside_high
    cell = (torch.arange(bins) * (quant_max - quant_min + 1)) // bins
    cell = cell.expand(channels, candidates, bins)
    held = torch.zeros(channels, candidates, quant_max - quant_min + 1, dtype=torch.float64)
    held.scatter_add_(2, cell, inside)
    size = torch.bincount(cell[0, 0], minlength=held.shape[2]).double()
    implied = (held / size).gather(2, cell).clamp_min(1e-12)
    return -(torch.special.xlogy(clipped, clipped) - torch.special.xlogy(clipped, implied)).sum(-1)


RULES: dict[str, Callable[[Distribution, Tensor, int, int], Tensor]] = {
    "entropy": _entropy_rule,
    "mse": _mse_rule,
    "percentile": _percentile_rule,
    "kl": _kl_rule,
}
"""Rule -> criterion to be maximized: (distribution, steps [C, S], quant_min, quant_max) -> [C, S]."""


def choose(signal: Distribution, splits: list[tuple[int, int]], rule: str = "mse") -> Start:
    """The step, and the split among `splits`, that maximize the criterion of `rule`.

    Args:
        signal: C channels; each gets its own step, all share one split (the best sum over channels).
        splits: candidate (quant_min, quant_max), quant_min <= 0 < quant_max.

    Returns:
        Start with scale [C], activation units. A channel without any signal gets the median step of the
        others.

    Source: formulas of this project; the steps of rule "mse" for a Gaussian are those of Max, IRE Trans.
    1960.
    """
    alive = signal.rms > 0
    criterion = RULES[rule]
    if len(splits) > 1:
        worth = [float(_search(signal, criterion, *split, _SPLIT)[1][alive].sum()) for split in splits]
        splits = [splits[worth.index(max(worth))]]
    quant_min, quant_max = splits[0]
    scale, _ = _search(signal, criterion, quant_min, quant_max, _STEP)
    if bool(alive.any()) and not bool(alive.all()):
        scale = torch.where(alive, scale, scale[alive].median())
    return Start(scale, quant_min, quant_max)


def _search(
    signal: Distribution, criterion: Callable[..., Tensor], quant_min: int, quant_max: int, grid: _Grid
) -> tuple[Tensor, Tensor]:
    """Best step per channel and its criterion: a logarithmic grid, then finer ones around the best."""
    rms = torch.where(signal.rms > 0, signal.rms, torch.ones_like(signal.rms))
    reach = max(-quant_min, quant_max)
    low = 0.1 * rms / reach
    high = torch.maximum(signal.largest, 2.5 * rms) / reach
    span = torch.linspace(0, 1, grid.coarse, dtype=torch.float64)
    best = value = torch.empty(0)
    for round_ in range(grid.rounds + 1):
        scale = low[:, None] * (high / low)[:, None] ** span
        values = criterion(signal, scale, quant_min, quant_max)
        index = values.argmax(1, keepdim=True)
        best, value = scale.gather(1, index)[:, 0], values.gather(1, index)[:, 0]
        if round_ < grid.rounds:
            low = scale.gather(1, (index - 1).clamp_min(0))[:, 0]
            high = scale.gather(1, (index + 1).clamp_max(scale.shape[1] - 1))[:, 0]
            span = torch.linspace(0, 1, 2 * grid.fine + 1, dtype=torch.float64)
    return best, value
