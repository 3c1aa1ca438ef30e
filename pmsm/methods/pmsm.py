"""Polarity Multi-Spike Mapping: a signed quantizer with a learned positive step, and its multi-spike neuron.

Idea: arXiv:2508.14520. Only its abstract is public; every formula here is this project's own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pmsm.errors import SettingsError
from pmsm.methods.base import Chooser, Method, Quantizer, Site, Start, check_levels
from pmsm.methods.neuron import Neuron

SPLITS = ("entropy", "rectified", "leaky", "symmetric")


@dataclass(frozen=True, repr=False)
class PMSM(Method):
    """Settings of Polarity Multi-Spike Mapping.

    Args:
        levels: number of codes per site, at least 2; 5, 9, 17 and 33 are the usual choices.
        split: how the codes are shared out below and above zero.
            "entropy": by the bits that are kept of the signal that the float network transmits: behind ReLU
            there is nothing below zero, elsewhere the split with the best criterion of calibration wins.
            "rectified", "leaky", "symmetric": no codes below zero, about one for every three above, as many
            as above. The last two replace ReLU by the signed quantizer, so that the negative values behind
            BatchNorm survive; the network must then be trained. A pair (quant_min, quant_max) sets the split
            by hand.
        per_channel: one step for each channel, where the signal has channels, or one for the site.

    Raises:
        SettingsError: levels < 2, an unknown split, or a pair that is not quant_min <= 0 < quant_max.
    """

    levels: int = 9
    split: str | tuple[int, int] = "entropy"
    per_channel: bool = True
    label: ClassVar[str] = "PMSM"

    def __post_init__(self) -> None:
        check_levels(self.levels, "PMSM")
        if isinstance(self.split, str):
            if self.split not in SPLITS:
                raise SettingsError(f"PMSM needs split in {SPLITS} or a pair, got {self.split!r}.")
            return
        if not isinstance(self.split, tuple) or [type(bound) for bound in self.split] != [int, int]:
            raise SettingsError(
                f"PMSM needs split in {SPLITS} or a pair of whole numbers, got {self.split!r}."
            )
        quant_min, quant_max = self.split
        if not quant_min <= 0 < quant_max:
            raise SettingsError(f"PMSM needs quant_min <= 0 < quant_max, got {quant_min} and {quant_max}.")
        if quant_max - quant_min + 1 != self.levels:
            raise SettingsError(
                f"PMSM needs quant_max - quant_min + 1 == levels, got {quant_min}..{quant_max} and "
                f"{self.levels} levels. Write PMSM(levels={quant_max - quant_min + 1}, split=({quant_min}, "
                f"{quant_max}))."
            )

    def quantizer(self, site: Site = Site()) -> "PMSMQuantizer":  # noqa: B008 -- Site is frozen
        """A new, uncalibrated quantizer for `site`."""
        return PMSMQuantizer(self, site)

    def splits(self, rectified: bool) -> list[tuple[int, int]]:
        """Candidate (quant_min, quant_max) for a site behind ReLU, or behind anything else.

        >>> (
        ...     PMSM(levels=5).splits(rectified=True),
        ...     PMSM(levels=5, split="symmetric").splits(rectified=True),
        ... )
        ([(0, 4)], [(-2, 2)])
        """
        top = self.levels - 1
        if not isinstance(self.split, str):
            return [self.split]
        below = {"rectified": 0, "leaky": top // 4, "symmetric": top // 2}
        if self.split in below:
            return [(-below[self.split], top - below[self.split])]
        return [(0, top)] if rectified else [(-n, top - n) for n in range(top)]


class PMSMQuantizer(Quantizer):
    """Trainable quantizer of PMSM: `scale = start * exp(rho)`, positive by construction.

    The gradient of `rho` is scale * d/dscale: the change of the loss per relative change of the step. It does
    not depend on the units of the activation and takes no further factor; that of LSQ (Esser et al. 2020), 1
    / sqrt(elements * largest count), made the step a hundred times too slow to leave a bad start
    (docs/theory.md).
    """

    no_decay: ClassVar[tuple[str, ...]] = ("rho",)
    starts_anywhere: ClassVar[bool] = True

    def __init__(self, method: PMSM, site: Site):
        super().__init__(site)
        self.method = method
        shape = site.scale_shape(method.per_channel)
        self.register_buffer("start", torch.ones(shape))
        self.start: Tensor
        self.rho = nn.Parameter(torch.zeros(shape))

    @property
    def sees_rectified(self) -> bool:
        """Whether negative values are dropped before they are coded."""
        split = self.method.split
        without_negative = split in ("entropy", "rectified") if isinstance(split, str) else split[0] == 0
        return self.site.rectified and without_negative

    def scale(self) -> Tensor:
        """The step, positive, in activation units."""
        return self.start * self.rho.exp()

    def calibrate(self, choose: Chooser) -> None:
        """Set step and bounds to the best that `choose` finds among the splits of the method."""
        self.set_start(choose(self.method.splits(self.sees_rectified)))

    def fits(self, quant_min: int, quant_max: int) -> bool:
        """Whether the split is one of the method's."""
        return (quant_min, quant_max) in self.method.splits(self.sees_rectified)

    def set_start(self, start: Start) -> None:
        """Take `start` as step and bounds, and forget what training had learned of them."""
        with torch.no_grad():
            self.start.copy_(start.scale)
            self.rho.zero_()
            self.initial.zero_()
        self._set_bounds(start.quant_min, start.quant_max)

    def _integrate_neuron(self) -> Neuron:
        """The neuron with threshold = scale; over several timesteps it bounds its running total."""
        return Neuron(self.threshold(), self.quant_min, self.quant_max, initial=self.initial.clone())
