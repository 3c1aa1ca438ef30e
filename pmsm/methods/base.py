"""What stands at an activation: a method's settings, its trainable quantizer, and the neuron that it becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pmsm.errors import CalibrationError, ConversionError
from pmsm.methods.rounding import blocks, count_, quantize


@dataclass(frozen=True)
class Site:
    """One call site at which a quantizer stands.

    Args:
        name: name of the module in the traced network.
        shape: shape of the signal for the example batch, batch dimension first.
        channel_dim: dimension of `shape` that counts channels.
        rectified: the float network applies ReLU here; the quantizer takes its place.
    """

    name: str = "site"
    shape: tuple[int, ...] = ()
    channel_dim: int = 1
    rectified: bool = True

    @property
    def neurons(self) -> int:
        """Neurons per sample."""
        return int(torch.Size(self.shape[1:]).numel())

    def scale_shape(self, per_channel: bool) -> tuple[int, ...]:
        """Shape of the step: a scalar, or 1 in every dimension but the channel's."""
        if not per_channel:
            return ()
        return tuple(
            size if i == self.channel_dim % len(self.shape) else 1 for i, size in enumerate(self.shape)
        )


class Start(NamedTuple):
    """What calibration found for one site: step [scale shape], activation units, and the two bounds."""

    scale: Tensor
    quant_min: int
    quant_max: int


class Chooser(Protocol):
    """How calibration finds a step: given the candidate (quant_min, quant_max), the best one and its step."""

    def __call__(self, splits: list[tuple[int, int]]) -> Start: ...


@dataclass(frozen=True)
class Method:
    """A conversion method: algorithm and settings in one; its type is the algorithm.

    `exact` says whether the method promises that the SNN equals its QANN at T=1.
    """

    exact: ClassVar[bool] = True

    def quantizer(self, site: Site = Site()) -> "Quantizer":  # noqa: B008 -- Site is frozen
        """A new, uncalibrated quantizer for `site`."""
        raise NotImplementedError


class Quantizer(nn.Module):
    """Base of the trainable quantizers: `scale * count(x / scale)` at one site.

    Until `calibrate` has set a start, the forward pass is refused. While an `observer` is set, the site lets the float
    signal pass and shows it to the observer: that is how calibration sees the float network.

    A subclass holds the parameters, and defines `scale`, `calibrate`, `set_start` and `neuron`.
    """

    slack: ClassVar[float] = 0.5
    """How far beyond the outermost codes the gradient passes, in steps."""

    def __init__(self, site: Site):
        super().__init__()
        self.site = site
        self.observer: Callable[[Tensor], None] | None = None
        self.register_buffer("bounds", torch.zeros(2, dtype=torch.int64))
        self.quant_min, self.quant_max = 0, 0  # `bounds` as Python numbers; 0, 0 until calibrated
        self.register_load_state_dict_post_hook(lambda module, _: module._read_bounds())

    def scale(self) -> Tensor:
        """The step, positive, in activation units, as used by the forward pass."""
        raise NotImplementedError

    def calibrate(self, choose: Chooser) -> None:
        """Set step and bounds: ask `choose` for the best among this method's splits, or follow the method's own rule."""
        raise NotImplementedError

    def set_start(self, start: Start) -> None:
        """Take `start` as step and bounds, and forget what training had learned of them."""
        raise NotImplementedError

    def neuron(self, mode: str = "integrate") -> "Neuron":
        """The spiking neuron of this quantizer."""
        raise NotImplementedError

    @property
    def sees_rectified(self) -> bool:
        """Whether the signal to be coded is ReLU of what arrives."""
        return self.site.rectified

    @property
    def calibrated(self) -> bool:
        """Whether the site has a step."""
        return self.quant_max > 0

    @property
    def levels(self) -> int:
        """Number of codes in use."""
        return self.quant_max - self.quant_min + 1

    def gradient_factor(self, x: Tensor) -> float:
        """Factor on the gradient of the step, for an input of this size."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        """[...] activation -> [...] whole multiples of the step."""
        if self.observer is not None:
            return self._observe(x)
        if not self.calibrated:
            raise CalibrationError(
                f"site {self.site.name!r} has no step yet. Call pmsm.calibrate(qann, batches) first, "
                f"or pmsm.calibrate(qann) when every site stands behind BatchNorm."
            )
        return quantize(
            x, self.scale(), self.quant_min, self.quant_max, self.slack, self.gradient_factor(x)
        )

    def _observe(self, x: Tensor) -> Tensor:
        rectified = x.relu() if self.site.rectified else x
        assert self.observer is not None
        self.observer(rectified if self.sees_rectified else x)
        return rectified

    def _set_bounds(self, quant_min: int, quant_max: int) -> None:
        self.bounds.copy_(torch.tensor([quant_min, quant_max]))
        self._read_bounds()

    def _read_bounds(self) -> None:
        self.quant_min, self.quant_max = (int(b) for b in self.bounds)

    def _threshold(self) -> Tensor:
        threshold = self.scale().detach().clone()
        if not self.calibrated or not bool((threshold > 0).all()):
            raise ConversionError(
                f"site {self.site.name!r} has no positive step (smallest: {threshold.min().item():.4g}, bounds "
                f"{self.quant_min}..{self.quant_max}). Calibrate first, pmsm.calibrate(qann, batches); a learned step "
                f"that turned negative needs a smaller learning rate."
            )
        return threshold

    def extra_repr(self) -> str:
        return f"{self.quant_min}..{self.quant_max}, site={self.site.name!r}"


@dataclass
class NeuronState:
    """What a neuron remembers between timesteps.

    Args:
        v: [...], potential / threshold left after the last spikes.
        floor: [...], the most negative count still allowed, or None where no bound can bind.
        ceiling: [...], the most positive count still allowed, or None.
    """

    v: Tensor | None = None
    floor: Tensor | None = None
    ceiling: Tensor | None = None


class Neuron(nn.Module):
    """Integrate-and-fire neuron with signed multi-spikes and soft reset, potential in units of the threshold.

    Each step: v += x / threshold; k = count(v); v -= k; emit threshold * k. At t=1 that is the quantizer, bit for bit.

    Args:
        threshold: scalar or channel-shaped, positive, activation units.
        quant_min, quant_max: bounds of the count at t=1.
        cancel: bound the running total instead of each step, quant_min * t <= sum of k <= quant_max * t, with at most
            max(-quant_min, quant_max) spikes per step: a rectified site may then take back what it sent too early, and
            the mean output tends to the clipped mean input. False: quant_min <= k <= quant_max at every step.

    `state` and `probe` belong to `simulate`: with state None the neuron runs a single timestep and remembers nothing.
    `probe`, if set, is called with the spike counts [...] of each step, before they are scaled.
    """

    def __init__(self, threshold: Tensor, quant_min: int, quant_max: int, *, cancel: bool = True):
        super().__init__()
        self.register_buffer("threshold", threshold)
        self.threshold: Tensor
        self.quant_min, self.quant_max, self.cancel = quant_min, quant_max, cancel
        self.state: NeuronState | None = None
        self.probe: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[...] input current of this step -> [...] spikes of this step, times the threshold."""
        if self.state is not None and self.state.v is not None:
            spikes = self._later_step(x, self.state)
        elif self.state is None and self.probe is None:
            return quantize(x, self.threshold, self.quant_min, self.quant_max)
        else:
            spikes = self._first_step(x)
        if self.probe is not None:
            self.probe(spikes)
        for spikes_ in blocks(self.threshold, spikes):
            spikes_[0].mul_(self.threshold)
        return spikes

    def _first_step(self, x: Tensor) -> Tensor:
        spikes = torch.empty_like(x)
        v = torch.empty_like(x) if self.state is not None else None
        for tensors in blocks(self.threshold, x, spikes, *([v] if v is not None else [])):
            u = torch.div(tensors[0], self.threshold, out=None if v is None else tensors[2])
            count_(tensors[1].copy_(u), self.quant_min, self.quant_max)
            if v is not None:
                u.sub_(tensors[1])
        if self.state is not None:
            self.state.v = v
            self._open_bounds(self.state, spikes)
        return spikes

    def _open_bounds(self, state: NeuronState, spikes: Tensor) -> None:
        """Bounds on the running total that the per-step burst limit does not already imply."""
        if self.cancel and -self.quant_min < self.quant_max:
            state.floor = (2 * self.quant_min) - spikes
        if self.cancel and -self.quant_min > self.quant_max:
            state.ceiling = (2 * self.quant_max) - spikes

    def _later_step(self, x: Tensor, state: NeuronState) -> Tensor:
        burst = max(-self.quant_min, self.quant_max)
        low, high = (-burst, burst) if self.cancel else (self.quant_min, self.quant_max)
        spikes, bound = torch.empty_like(x), state.floor if state.floor is not None else state.ceiling
        step = self.quant_min if state.floor is not None else self.quant_max
        clip = torch.maximum if state.floor is not None else torch.minimum
        assert state.v is not None
        for tensors in blocks(self.threshold, x, state.v, spikes, *([bound] if bound is not None else [])):
            x_, v_, spikes_ = tensors[:3]
            torch.div(x_, self.threshold, out=spikes_)
            v_.add_(spikes_)
            count_(spikes_.copy_(v_), low, high)
            if bound is not None:
                clip(spikes_, tensors[3], out=spikes_)
                tensors[3].sub_(spikes_).add_(step)
            v_.sub_(spikes_)
        return spikes

    def extra_repr(self) -> str:
        return f"{self.quant_min}..{self.quant_max}, cancel={self.cancel}"
