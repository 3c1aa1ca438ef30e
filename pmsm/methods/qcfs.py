"""QCFS, the first baseline: quantization-clip-floor-shift activation, and its binary integrate-and-fire
neuron.

Source: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural
networks",
ICLR 2022, equations 14 and 17: a = lambda * clip(floor(z L / lambda + 1/2) / L, 0, 1), threshold lambda, v(0)
= lambda / 2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pmsm.errors import SettingsError
from pmsm.methods.base import Chooser, Method, Quantizer, Site, Start, check_levels
from pmsm.methods.neuron import Neuron


@dataclass(frozen=True, repr=False)
class QCFS(Method):
    """Settings of QCFS with the IF neuron: `levels` - 1 steps between 0 and a learned clipping value lambda.

    Args:
        levels: number of codes, L + 1, at least 2.
        start: initial lambda of every site, activation units; 8 as published; "entropy" takes the rule of
            calibration.

    Raises:
        SettingsError: levels < 2, or start neither a positive number nor "entropy".
    """

    levels: int = 9
    start: float | str = 8.0
    label: ClassVar[str] = "QCFS-IF"
    exact: ClassVar[bool] = False  # binary spikes cannot say L levels in one timestep

    def __post_init__(self) -> None:
        check_levels(self.levels, "QCFS")
        if self.start != "entropy" and not (
            isinstance(self.start, int | float) and 0 < self.start < math.inf
        ):
            raise SettingsError(f"QCFS needs start > 0 or 'entropy', got {self.start!r}.")

    def quantizer(self, site: Site = Site()) -> "QCFSQuantizer":  # noqa: B008 -- Site is frozen
        """A new, uncalibrated quantizer for `site`."""
        return QCFSQuantizer(self, site)


class QCFSQuantizer(Quantizer):
    """Trainable quantizer of QCFS; `clip_value` is lambda, trained and decayed like a weight, as published.

    With scale = lambda / L this is the polar quantizer with quant_min = 0, quant_max = L; its gradient passes
    where 0 <= z < lambda only.
    """

    slack: ClassVar[float] = 0.0

    def __init__(self, method: QCFS, site: Site):
        super().__init__(site)
        self.method = method
        self.clip_value = nn.Parameter(torch.ones(()))

    def scale(self) -> Tensor:
        """lambda / L, activation units; nothing keeps it positive."""
        return self.clip_value / (self.method.levels - 1)

    def calibrate(self, choose: Chooser) -> None:
        """Set lambda to the published start, or to what `choose` finds."""
        top = self.method.levels - 1
        if isinstance(self.method.start, str):
            self.set_start(choose([(0, top)]))
        else:
            self.set_start(Start(torch.tensor(self.method.start / top), 0, top))

    def fits(self, quant_min: int, quant_max: int) -> bool:
        """Whether these are the codes 0 to L."""
        return (quant_min, quant_max) == (0, self.method.levels - 1)

    def set_start(self, start: Start) -> None:
        """Take `start` as step and bounds."""
        with torch.no_grad():
            self.clip_value.copy_(start.scale * (self.method.levels - 1))
        self._set_bounds(start.quant_min, start.quant_max)

    def _integrate_neuron(self) -> Neuron:
        """The IF neuron: threshold lambda, at most one spike per step, never negative.

        `count` rounds to the nearest, which is the published start of half a threshold.
        """
        return Neuron(self.threshold() * (self.method.levels - 1), 0, 1, cancel=False)
