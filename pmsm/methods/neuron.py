"""The spiking neuron: signed multi-spikes, soft reset, potential in units of the threshold; step by step or
as a scan.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pmsm.errors import SettingsError
from pmsm.methods.rounding import (
    BLOCK,
    Pattern,
    channel_pattern,
    count,
    dense,
    flat_arrays,
    kernels,
    quantize,
)


class Probe(Protocol):
    """Who wants to see spikes: sums over each sample's neurons, and, with `keep`, every count."""

    keep: bool

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        """Signed counts [rows, ...] of step `t` (from 0), samples from `row` on; overwritten afterwards, so
        copy them.
        """
        ...

    def add(self, net: np.ndarray, size: np.ndarray, t: int, neurons: int) -> None:
        """Instead of counts, their sums over `neurons`: of k and of |k|, [steps, N] int64, steps from `t`
        on.
        """
        ...


@dataclass
class NeuronState:
    """What a neuron remembers, and how it is run.

    Args:
        timesteps: steps that arrive at once, [timesteps * N, ...], step by step in dim 0; 1: one step per
            call.
        t: steps done in earlier calls.
        v: [N, ...], potential / threshold left after the last spikes; None before the first step.
        bound: [N, ...], the most negative (or, if -quant_min > quant_max, most positive) count still allowed.
        sent: [N, ...], net spikes sent so far (tracking).
    """

    timesteps: int = 1
    t: int = 0
    v: Tensor | None = None
    bound: Tensor | None = None
    sent: Tensor | None = None


class Neuron(nn.Module):
    """Integrate-and-fire neuron with signed multi-spikes and soft reset.

    Each step: v += x / threshold; k = count(v); v -= k; emit threshold * k; v(0) = initial. At t=1 that is
    the quantizer, bit for bit.

    Args:
        threshold: scalar or channel-shaped, positive, activation units.
        quant_min, quant_max: bounds of the count at t=1.
        initial: scalar or channel-shaped, in [-1/2, 1/2): potential / threshold before the first step, where
            a neuron without input stays silent. Its share of the mean output fades as 1/t. None: 0.
        cancel: bound the running total instead of each step, quant_min * t <= sum of k <= quant_max * t, with
            at most max(-quant_min, quant_max) spikes per step: a rectified site may then take back what it
            sent too early, and
            the mean output tends to the clipped mean input. False: quant_min <= k <= quant_max at every step.

    `state` and `probe` belong to `simulate`: with state None the neuron runs a single timestep and remembers
    nothing.
    """

    def __init__(
        self, threshold: Tensor, quant_min: int, quant_max: int, *,
        initial: Tensor | None = None, cancel: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.register_buffer("threshold", threshold)
        self.register_buffer("initial", threshold.new_zeros(()) if initial is None else initial)
        self.threshold: Tensor
        self.initial: Tensor
        self.quant_min, self.quant_max, self.cancel = quant_min, quant_max, cancel
        self.state: NeuronState | None = None
        self.probe: Probe | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] input current of this step (or of all steps) -> [N, ...] its spikes times the
        threshold.
        """
        if self.state is None and self.probe is None:
            return quantize(x, self.threshold, self.quant_min, self.quant_max, initial=self.initial)
        x = dense(x)
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
        if self._compiled_once(x, out):
            return
        for row, x_, out_ in _row_blocks(x, out):
            torch.div(x_, self.threshold, out=out_).add_(self.initial)
            self._emit(count(out_, self.quant_min, self.quant_max, out=out_), 0, row)

    def _one_of_many(self, x: Tensor, out: Tensor, state: NeuronState) -> None:
        """One step, with the state of the whole batch carried from call to call."""
        if state.v is None:
            state.v, state.bound = torch.zeros_like(x).add_(self.initial), self._first_bound(x)
        if not self._compiled_step(x, out, state):
            bounds = () if state.bound is None else (state.bound,)
            for row, x_, out_, v, *bound in _row_blocks(x, out, state.v, *bounds):
                self._emit(self._step(x_, v, bound[0] if bound else None, out_), state.t, row)
        state.t += 1

    def _all_steps(self, x: Tensor, out: Tensor, timesteps: int) -> None:
        """A scan over all steps of a few samples at a time, whose state never leaves the cache."""
        if self._compiled_scan(x, out, timesteps):
            return
        x_steps, out_steps = (y.unflatten(0, (timesteps, -1)).transpose(0, 1) for y in (x, out))
        for row, _, x_, out_ in _row_blocks(x_steps[:, 0], x_steps, out_steps):
            v = torch.zeros_like(x_[:, 0]).add_(self.initial)
            bound = self._first_bound(v)
            for t in range(timesteps):
                self._emit(self._step(x_[:, t], v, bound, out_[:, t]), t, row)

    # The same in one pass through memory, where a kernel can serve; each returns whether it did.

    def _compiled_once(self, x: Tensor, out: Tensor) -> bool:
        laid = self._kernel_arrays(x, out)
        if laid is None:
            return False
        arrays, pattern = laid
        net, size = np.zeros((2, 1, len(x)), np.int64)
        x_, out_ = (a.reshape(len(x), -1) for a in arrays)
        limits = map(np.float32, (self.quant_min, self.quant_max))
        kernels().neuron_once(x_, out_, net[0], size[0], *pattern, *limits)
        self._add(net, size, 0, x_.shape[-1])
        return True

    def _compiled_scan(self, x: Tensor, out: Tensor, timesteps: int) -> bool:
        laid = self._kernel_arrays(x, out)
        if laid is None:
            return False
        arrays, pattern = laid
        net, size = np.zeros((2, timesteps, len(x) // timesteps), np.int64)
        first, step, side = self._bound_rule()
        x_, out_ = (a.reshape(*net.shape, -1) for a in arrays)
        limits = map(np.float32, (*self._burst(), first, step))
        kernels().neuron_scan(x_, out_, net, size, *pattern, *limits, side)
        self._add(net, size, 0, x_.shape[-1])
        return True

    def _compiled_step(self, x: Tensor, out: Tensor, state: NeuronState) -> bool:
        laid = self._kernel_arrays(x, out, state.v, *([] if state.bound is None else [state.bound]))
        if laid is None:
            return False
        arrays, pattern = laid
        net, size = np.zeros((2, 1, len(x)), np.int64)
        _, step, side = self._bound_rule()
        x_, out_, v, *bound = (a.reshape(len(x), -1) for a in arrays)
        limits = map(np.float32, (*self._burst(), step))
        bound = bound[0] if bound else np.zeros((1, 1), np.float32)
        kernels().neuron_step(x_, v, bound, out_, net[0], size[0], *pattern, *limits, side)
        self._add(net, size, state.t, x_.shape[-1])
        return True

    def _kernel_arrays(self, *tensors: Tensor | None) -> tuple[list[Any], Pattern] | None:
        inexact = self.most_spikes >= 2**13  # a kernel sums 2,048 counts in float32
        if (self.probe is not None and (self.probe.keep or inexact)) or self.threshold.dtype != torch.float32:
            return None
        first = tensors[0]
        # Samples must lie one behind the other: the kernels take [N, M].
        if first is None or first.dtype != torch.float32 or not _sample_by_sample(first):
            return None
        arrays = flat_arrays(self.threshold, *(t for t in tensors if t is not None))
        pattern = None if arrays is None else channel_pattern(first, self.threshold, self.initial)
        return None if arrays is None or pattern is None else (arrays, pattern)

    def _add(self, net: np.ndarray, size: np.ndarray, t: int, neurons: int) -> None:
        if self.probe is not None:
            self.probe.add(net, size, t, neurons)

    def _emit(self, spikes: Tensor, t: int, row: int) -> None:
        if self.probe is not None:
            self.probe(spikes, t, row)
        spikes.mul_(self.threshold)

    def _step(self, x: Tensor, v: Tensor, bound: Tensor | None, out: Tensor) -> Tensor:
        """Signed counts of one step, written to `out`; `v` and `bound` move on."""
        v.add_(torch.div(x, self.threshold, out=out))
        count(v, *self._burst(), out=out)
        if bound is not None:
            _, step, side = self._bound_rule()
            (torch.maximum if side > 0 else torch.minimum)(out, bound, out=out)
            bound.sub_(out).add_(step)
        v.sub_(out)
        return out

    def in_one_step(self, out: Tensor) -> Tensor:
        """What `forward` returned, as [N, ...] spikes of one timestep times the threshold."""
        return out

    @property
    def most_spikes(self) -> int:
        """Most spikes of one neuron in one timestep, of either sign."""
        return max(map(abs, self._burst()))

    def _burst(self) -> tuple[int, int]:
        """Most negative and most positive count of a single step."""
        if not self.cancel:
            return self.quant_min, self.quant_max
        burst = max(-self.quant_min, self.quant_max)
        return -burst, burst

    def _bound_rule(self) -> tuple[int, int, int]:
        """The bound on the running total that the bound on a single step does not imply already.

        Its first value, what it gains per step, and its side: 1 lower, -1 upper, 0 where both are implied.
        """
        side = self.cancel * ((-self.quant_min < self.quant_max) - (-self.quant_min > self.quant_max))
        limit = self.quant_min if side > 0 else self.quant_max
        return limit, limit, side

    def _first_bound(self, like: Tensor) -> Tensor | None:
        first, _, side = self._bound_rule()
        return torch.full_like(like, first) if side else None

    def extra_repr(self) -> str:
        """Bounds, and whether spikes may cancel."""
        return f"{self.quant_min}..{self.quant_max}, cancel={self.cancel}"


def _sample_by_sample(x: Tensor) -> bool:
    """Whether dimension 0 is the slowest in memory."""
    return len(x) == 1 or x.stride(0) * len(x) == x.numel()


class TrackingNeuron(Neuron):
    """Differential neuron: its spikes tell changes, so that their sum follows the code of its input.

    Each step: k = clip(count(U + initial) - sent, -burst, burst); sent += k, with U the accumulated input /
    threshold.
    Settled, `sent` is the code of the quantized network, and the neuron is silent. With
    burst >= max(-quant_min, quant_max) that is so after one step; burst = 1 is the signed ternary neuron of
    SpikeZIP-TF (ST-BIF; You et al., ICML 2024).

    What travels between neurons is k; what `forward` takes and returns are the sums so far, threshold * sent,
    which every layer behind would accumulate from k. Sums of rounded products would not be exact, products of
    sums are: once all neurons have settled, the network computes bit for bit what its quantized network does.

    Args:
        burst: most spikes per step of either sign, at least 1; default: quant_max - quant_min, any change.
    """

    def __init__(
        self, threshold: Tensor, quant_min: int, quant_max: int, *,
        initial: Tensor | None = None, burst: int | None = None,
    ):  # fmt: skip
        super().__init__(threshold, quant_min, quant_max, initial=initial)
        self.burst = quant_max - quant_min if burst is None else burst
        if type(self.burst) is not int or self.burst < 1:
            raise SettingsError(f"TrackingNeuron needs a whole number burst >= 1, got {burst!r}.")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] accumulated input current (of one step or all) -> [N, ...] threshold * net spikes so
        far.
        """
        state = self.state or NeuronState()
        out = torch.empty_like(x)
        x_steps, out_steps = (y.unflatten(0, (state.timesteps, -1)) for y in (x, out))
        for t in range(state.timesteps):
            u = x_steps[t] / self.threshold
            spikes = count(u.add_(self.initial), self.quant_min, self.quant_max)
            spikes = (spikes if state.sent is None else spikes.sub_(state.sent)).clamp_(
                -self.burst, self.burst
            )
            state.sent = spikes.clone() if state.sent is None else state.sent + spikes
            if self.probe is not None:
                self.probe(spikes, state.t + t, 0)
            torch.mul(state.sent, self.threshold, out=out_steps[t])
        state.t += state.timesteps
        return out

    def extra_repr(self) -> str:
        """Bounds and most spikes per step."""
        return f"{self.quant_min}..{self.quant_max}, burst={self.burst}"


def _row_blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
    """(index of the first row, then a few rows of each tensor), about `BLOCK` elements of each at a time."""
    rows = max(1, BLOCK * len(first) // max(1, first.numel())) if first.device.type == "cpu" else len(first)
    for row in range(0, len(first), rows):
        yield row, *(x[row : row + rows] for x in (first, *others))
