"""The spiking neuron: signed multi-spikes, soft reset, potential in units of the threshold; step by step or as a scan."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pmsm.methods.rounding import BLOCK, count, quantize


class Probe(Protocol):
    """Who wants to see spikes: called with signed counts [rows, ...], the step (from 0) and the first sample's index.

    The tensor is overwritten afterwards: copy what you keep.
    """

    def __call__(self, spikes: Tensor, t: int, row: int) -> None: ...


@dataclass
class NeuronState:
    """What a neuron remembers, and how it is run.

    Args:
        timesteps: steps that arrive at once, [timesteps * N, ...], step by step in dim 0; 1: one step per call.
        t: steps done in earlier calls.
        v: [N, ...], potential / threshold left after the last spikes; None before the first step.
        bound: [N, ...], the most negative (or, if -quant_min > quant_max, most positive) count still allowed.
    """

    timesteps: int = 1
    t: int = 0
    v: Tensor | None = None
    bound: Tensor | None = None


class Neuron(nn.Module):
    """Integrate-and-fire neuron with signed multi-spikes and soft reset.

    Each step: v += x / threshold; k = count(v); v -= k; emit threshold * k. At t=1 that is the quantizer, bit for bit.

    Args:
        threshold: scalar or channel-shaped, positive, activation units.
        quant_min, quant_max: bounds of the count at t=1.
        cancel: bound the running total instead of each step, quant_min * t <= sum of k <= quant_max * t, with at most
            max(-quant_min, quant_max) spikes per step: a rectified site may then take back what it sent too early, and
            the mean output tends to the clipped mean input. False: quant_min <= k <= quant_max at every step.

    `state` and `probe` belong to `simulate`: with state None the neuron runs a single timestep and remembers nothing.
    """

    def __init__(self, threshold: Tensor, quant_min: int, quant_max: int, *, cancel: bool = True):
        super().__init__()
        self.register_buffer("threshold", threshold)
        self.threshold: Tensor
        self.quant_min, self.quant_max, self.cancel = quant_min, quant_max, cancel
        self.state: NeuronState | None = None
        self.probe: Probe | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] input current of this step (or of all steps) -> [N, ...] its spikes times the threshold."""
        if self.state is None and self.probe is None:
            return quantize(x, self.threshold, self.quant_min, self.quant_max)
        out = torch.empty_like(x)
        if self.state is None:
            self._single_step(x, out)
        elif self.state.timesteps == 1:
            self._one_of_many(x, out, self.state)
        else:
            self._all_steps(x, out, self.state.timesteps)
        return out

    def _single_step(self, x: Tensor, out: Tensor) -> None:
        """T=1: nothing to remember."""
        for row, x_, out_ in _row_blocks(x, out):
            torch.div(x_, self.threshold, out=out_)
            self._emit(count(out_, self.quant_min, self.quant_max, out=out_), 0, row)

    def _one_of_many(self, x: Tensor, out: Tensor, state: NeuronState) -> None:
        """One step, with the state of the whole batch carried from call to call."""
        if state.v is None:
            state.v, state.bound = torch.empty_like(x), self._first_bound(x)
        bounds = () if state.bound is None else (state.bound,)
        for row, x_, out_, v, *bound in _row_blocks(x, out, state.v, *bounds):
            self._emit(self._step(x_, v, bound[0] if bound else None, out_, state.t), state.t, row)
        state.t += 1

    def _all_steps(self, x: Tensor, out: Tensor, timesteps: int) -> None:
        """A scan over all steps of a few samples at a time, whose state never leaves the cache."""
        x_steps, out_steps = (y.unflatten(0, (timesteps, -1)).transpose(0, 1) for y in (x, out))
        for row, _, x_, out_ in _row_blocks(x_steps[:, 0], x_steps, out_steps):
            v = torch.empty_like(x_[:, 0])
            bound = self._first_bound(v)
            for t in range(timesteps):
                self._emit(self._step(x_[:, t], v, bound, out_[:, t], t), t, row)

    def _emit(self, spikes: Tensor, t: int, row: int) -> None:
        if self.probe is not None:
            self.probe(spikes, t, row)
        spikes.mul_(self.threshold)

    def _step(self, x: Tensor, v: Tensor, bound: Tensor | None, out: Tensor, t: int) -> Tensor:
        """Signed counts of one step, written to `out`; `v` (undefined at t=0) and `bound` move on."""
        if t == 0:
            torch.div(x, self.threshold, out=v)
        else:
            v.add_(torch.div(x, self.threshold, out=out))
        count(v, *self._burst(), out=out)
        if bound is not None:
            lower = -self.quant_min < self.quant_max
            (torch.maximum if lower else torch.minimum)(out, bound, out=out)
            bound.sub_(out)
            if self.quant_min < 0:
                bound.add_(self.quant_min if lower else self.quant_max)
        v.sub_(out)
        return out

    def _burst(self) -> tuple[int, int]:
        """Most negative and most positive count of a single step."""
        if not self.cancel:
            return self.quant_min, self.quant_max
        burst = max(-self.quant_min, self.quant_max)
        return -burst, burst

    def _first_bound(self, like: Tensor) -> Tensor | None:
        """The bound on the running total that the bound on a single step does not imply already; None if it implies both."""
        if not self.cancel or -self.quant_min == self.quant_max:
            return None
        return torch.full_like(like, self.quant_min if -self.quant_min < self.quant_max else self.quant_max)

    def extra_repr(self) -> str:
        return f"{self.quant_min}..{self.quant_max}, cancel={self.cancel}"


def _row_blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
    """(index of the first row, then a few rows of each tensor), about `BLOCK` elements of each at a time."""
    rows = max(1, BLOCK * len(first) // max(1, first.numel())) if first.device.type == "cpu" else len(first)
    for row in range(0, len(first), rows):
        yield row, *(x[row : row + rows] for x in (first, *others))
