"""ST-BIF, the second baseline: one signed spike per neuron and step, until the sum of the spikes is the code
of a quantized network.

Source: You et al., "SpikeZIP-TF: Conversion is all you need for transformer-based SNN", ICML 2024,
arXiv:2406.03470: the ternary neuron remembers what it has sent and sends at most one spike towards the code
of the current that has arrived. Its quantizer is trained with LSQ there; here it is that of PMSM with one
step per site, so that the two neurons are compared on one kind of quantized network.
"""

from dataclasses import dataclass
from typing import ClassVar

from pmsm.methods.base import Site
from pmsm.methods.pmsm import PMSM, PMSMQuantizer


@dataclass(frozen=True, repr=False)
class STBIF(PMSM):
    """Settings of the signed ternary neuron: that of PMSM in tracking mode, one spike per step.

    The network says at step T what has arrived by then; it settles on its quantized network after as many
    steps as the longest way of counts takes.

    Args:
        levels, split: as in `PMSM`.
        per_channel: as in `PMSM`; one step for the site is published.

    Raises:
        SettingsError: as `PMSM`.
    """

    per_channel: bool = False
    exact: ClassVar[bool] = False
    label: ClassVar[str] = "ST-BIF"
    mode: ClassVar[str] = "tracking"
    burst: ClassVar[int | None] = 1

    def quantizer(self, site: Site = Site()) -> "STBIFQuantizer":  # noqa: B008 -- Site is frozen
        """A new, uncalibrated quantizer for `site`."""
        return STBIFQuantizer(self, site)


class STBIFQuantizer(PMSMQuantizer):
    """As PMSM's; the potential starts where the published one does, at half a threshold below the first
    spike.
    """

    starts_anywhere: ClassVar[bool] = False
