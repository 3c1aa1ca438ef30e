"""What stands at an activation: the site, a method's settings, and its trainable quantizer."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pmsm.errors import CalibrationError, CheckpointError, ConversionError, SettingsError
from pmsm.methods.neuron import Neuron, TrackingNeuron
from pmsm.methods.rounding import quantize


@dataclass(frozen=True)
class Site:
    """One call site at which a quantizer stands.

    Args:
        name: name of the module in the traced network.
        shape: shape of the signal for the example batch, batch dimension first.
        channel_dim: dimension of `shape` that counts channels; None where the signal has none.
        rectified: the float network applies ReLU here; the quantizer takes its place.
    """

    name: str = "site"
    shape: tuple[int, ...] = ()
    channel_dim: int | None = 1
    rectified: bool = True

    @property
    def neurons(self) -> int:
        """Neurons per sample."""
        return int(torch.Size(self.shape[1:]).numel())

    def scale_shape(self, per_channel: bool) -> tuple[int, ...]:
        """Shape of what a site or a channel has one of: a scalar, or 1 in every dimension but the
        channel's.
        """
        if not per_channel or self.channel_dim is None:
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


MAX_LEVELS = 2**15
"""Counts must fit into 16 bits with sign."""


def check_levels(levels: object, method: str) -> None:
    """Refuse what is no number of codes.

    Raises:
        SettingsError: not a whole number from 2 to `MAX_LEVELS`.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise SettingsError(
            f"{method} needs a whole number of levels >= 2, got {levels!r}. Write {method}(levels=9)."
        )
    if levels > MAX_LEVELS:
        raise SettingsError(f"{method} takes at most {MAX_LEVELS} levels, got {levels}.")


@dataclass(frozen=True, repr=False)
class Method:
    """A conversion method: algorithm and settings in one; its type is the algorithm.

    `exact` says whether the method promises that the SNN equals its QANN at T=1; `mode` and `burst` are those
    of its own neuron, as in `convert`; `label` is what tables call it.
    """

    exact: ClassVar[bool] = True
    label: ClassVar[str] = ""
    mode: ClassVar[str] = "integrate"
    burst: ClassVar[int | None] = None

    def __repr__(self) -> str:
        """As one would write it: what differs from the defaults, and the levels."""
        shown = [f.name for f in fields(self) if f.name == "levels" or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def quantizer(self, site: Site = Site()) -> "Quantizer":
        """A new, uncalibrated quantizer for `site`."""
        raise NotImplementedError


class Quantizer(nn.Module):
    """Base of the trainable quantizers: `scale * count(x / scale)` at one site.

    Until `calibrate` has set a start, the forward pass is refused. While an `observer` is set, the site lets
    the float signal pass and shows it to the observer: that is how calibration sees the float network.

    `initial`, scalar or one per channel, in [-1/2, 1/2), is the potential / threshold that the neurons start
    with; calibration sets it where the method `starts_anywhere`.

    A subclass holds the parameters, and defines `scale`, `calibrate`, `set_start` and
    `_integrate_neuron`.
    """

    slack: ClassVar[float] = 0.5
    """How far beyond the outermost codes the gradient passes, in steps."""

    starts_anywhere: ClassVar[bool] = False
    """Whether calibration may choose the potential that the neurons start with."""

    def __init__(self, site: Site):
        super().__init__()
        self.site = site
        self.register_buffer("initial", torch.zeros(site.scale_shape(self.starts_anywhere)))
        self.initial: Tensor
        self.observer: Callable[[Tensor], None] | None = None
        self.register_buffer("bounds", torch.zeros(2, dtype=torch.int64))
        self.bounds: Tensor
        self.quant_min, self.quant_max = 0, 0  # `bounds` as Python numbers; 0, 0 until calibrated

    def scale(self) -> Tensor:
        """The step, positive, in activation units, as used by the forward pass."""
        raise NotImplementedError

    def calibrate(self, choose: Chooser) -> None:
        """Set step and bounds: ask `choose` for the best among this method's splits, or follow the method's
        own rule.
        """
        raise NotImplementedError

    def set_start(self, start: Start) -> None:
        """Take `start` as step and bounds, and forget what training had learned of them."""
        raise NotImplementedError

    def neuron(self, mode: str = "integrate", burst: int | None = None) -> Neuron:
        """The spiking neuron of this quantizer.

        Args:
            mode: "integrate", a rate code that every method has its own neuron for; "tracking", a
                differential code that settles on the codes of the quantizer, whatever the method.
            burst: most spikes per step in tracking mode; default: enough to settle in one step.
        """
        if mode == "tracking":
            return TrackingNeuron(
                self.threshold(), self.quant_min, self.quant_max, initial=self.initial.clone(), burst=burst
            )
        if mode != "integrate" or burst is not None:
            raise SettingsError(
                f"the modes are 'integrate' and 'tracking' (with burst), got {mode!r}, burst={burst}."
            )
        return self._integrate_neuron()

    def _integrate_neuron(self) -> Neuron:
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

    def forward(self, x: Tensor) -> Tensor:
        """[...] activation -> [...] whole multiples of the step."""
        if self.observer is not None:
            return self._observe(x)
        if not self.calibrated:
            raise CalibrationError(
                f"site {self.site.name!r} has no step yet. Call pmsm.calibrate(qann, batches) first, "
                f"or pmsm.calibrate(qann) when every site stands behind BatchNorm."
            )
        return quantize(x, self.scale(), self.quant_min, self.quant_max, self.slack, self.initial)

    def _observe(self, x: Tensor) -> Tensor:
        rectified = x.relu() if self.site.rectified else x
        assert self.observer is not None
        self.observer(rectified if self.sees_rectified else x)
        return rectified

    def fits(self, quant_min: int, quant_max: int) -> bool:
        """Whether the method, as it is set, could have chosen these bounds."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        bounds = state_dict.get(f"{prefix}bounds")
        if bounds is not None and bool(bounds.any()) and not self.fits(*bounds.tolist()):
            raise CheckpointError(
                f"site {self.site.name!r} has codes {bounds[0]}..{bounds[1]} in the checkpoint, which {self} "
                f"does not use. Quantize with the method that the checkpoint was made with, or start anew."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._read_bounds()

    def _set_bounds(self, quant_min: int, quant_max: int) -> None:
        self.bounds.copy_(torch.tensor([quant_min, quant_max]))
        self._read_bounds()

    def _read_bounds(self) -> None:
        self.quant_min, self.quant_max = self.bounds.tolist()

    def threshold(self) -> Tensor:
        """The step as the threshold of a neuron: detached, positive, activation units.

        Raises:
            ConversionError: not calibrated, or a step that is not positive and finite.
        """
        threshold = self.scale().detach().clone()
        if not self.calibrated or not bool(((threshold > 0) & threshold.isfinite()).all()):
            raise ConversionError(
                f"site {self.site.name!r} has no positive step (smallest: "
                f"{threshold.min().item():.4g}, bounds {self.quant_min}..{self.quant_max}). Calibrate first, "
                f"pmsm.calibrate(qann, batches); a learned step that turned negative needs a smaller "
                f"learning rate."
            )
        return threshold

    def extra_repr(self) -> str:
        """Bounds and site."""
        return f"{self.quant_min}..{self.quant_max}, site={self.site.name!r}"
