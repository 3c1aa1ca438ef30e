"""How many codes a step needs, where spikes cost and codes do not.

What a neuron sends is |x| / step: a budget of spikes or energy is spent on the step. More codes at the same
step only clip less: behind ReLU, where calibration keeps the mean of each channel, they hardly make one spike
more, elsewhere a few percent, which the search then makes up for.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pmsm.methods.base import Quantizer
from pmsm.qann import entropy

CLIPPED = 0.02
"""Codes are added until clipping makes up at most this share of a site's error."""


class Widened(NamedTuple):
    """Codes for a step, and what the code gains over that with which the step was calibrated.

    Args:
        entropy_bits, effective_bits: more than before.
    """

    quant_min: int
    quant_max: int
    entropy_bits: float
    effective_bits: float


def widened(signal: entropy.Distribution, quantizer: Quantizer, bounds: Iterable[tuple[int, int]]) -> Widened:
    """The fewest codes among `bounds`, (quant_min, quant_max), that leave at most `CLIPPED` of the error to
    clipping; those of `quantizer` are among them.
    """
    scale = quantizer.scale().detach().double().cpu().reshape(-1, 1)
    own = (quantizer.quant_min, quantizer.quant_max)
    fitting = sorted({own} | {b for b in bounds if b[0] <= own[0] and b[1] >= own[1]}, key=_levels)
    found = {pair: _kept(signal, scale, *pair) for pair in fitting}
    least = min(error for _, error in found.values())
    pair = next(pair for pair in fitting if found[pair][1] <= least * (1 + CLIPPED))
    (bits, error), (wide_bits, wide_error) = found[own], found[pair]
    gain = entropy.effective_bits(torch.tensor(wide_error), torch.tensor(error)) if error > 0 else 0.0
    return Widened(*pair, wide_bits - bits, float(gain))


def _levels(bounds: tuple[int, int]) -> int:
    return bounds[1] - bounds[0] + 1


def _kept(signal: entropy.Distribution, scale: Tensor, low: int, high: int) -> tuple[float, float]:
    """Entropy of the code of a whole site, and its squared error, mean over channels."""
    shares, error = entropy.cells(signal, scale, low, high)
    return float(entropy.entropy_bits(shares[:, 0].mean(0))), float(error.mean())
