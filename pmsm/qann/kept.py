"""What each site of a calibrated or trained network passes on, counted on data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import CalibrationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.qann import entropy


@dataclass(frozen=True)
class Kept:
    """What one site passes on, counted on data.

    Args:
        site: its name.
        shape: shape of its signal, one sample.
        scale: the step (mean over channels), activation units.
        quant_min, quant_max: its most negative and most positive code.
        histogram: code -> share of the values that got it.
        entropy_bits: entropy of the code, at most log2(levels).
        effective_bits: 1/2 log2(variance / MSE) of the value against its code.
    """

    site: str
    shape: tuple[int, ...]
    scale: float
    quant_min: int
    quant_max: int
    histogram: dict[int, float]
    entropy_bits: float
    effective_bits: float


def kept(qann: Network, batches: Iterable[Any] | Tensor) -> list[Kept]:
    """Count the codes of every site on `batches` (as for `calibrate`), in the order of execution.

    The signal in front of a site is that of the quantized network itself, so errors made in earlier layers
    are in it.

    Raises:
        CalibrationError: a site has no step yet, no batch, or a batch that does not fit.
    """
    graph.require(qann, "kept", CalibrationError)
    meters = {quantizer: _Meter(quantizer) for _, quantizer in graph.modules(qann, Quantizer)}
    handles = [quantizer.register_forward_hook(meter) for quantizer, meter in meters.items()]
    qann.eval()
    seen = 0
    try:
        with torch.no_grad():
            for inputs in graph.batches_of(qann, batches):
                graph.run(qann, inputs, CalibrationError, f"batch {seen} ")
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    refuse_none(seen, "to count codes on", "kept")
    return [meter.read() for meter in meters.values()]


class _Meter:
    """Forward hook that counts codes and sums the moments of signal and error."""

    def __init__(self, quantizer: Quantizer):
        self.quantizer = quantizer
        self.codes = torch.zeros(max(quantizer.levels, 1), dtype=torch.int64)
        self.sums = torch.zeros(4, dtype=torch.float64)  # n, sum x, sum x^2, sum of squared errors

    def __call__(self, quantizer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        x = args[0].relu() if self.quantizer.sees_rectified else args[0]
        codes = (out / self.quantizer.scale()).round().long() - self.quantizer.quant_min
        self.codes += torch.bincount(codes.flatten(), minlength=self.codes.numel()).cpu()
        x, error = x.double(), (x - out).double()
        self.sums += torch.tensor([x.numel(), x.sum(), (x * x).sum(), (error * error).sum()]).double()

    def read(self) -> Kept:
        """What has been counted so far."""
        quantizer, shares = self.quantizer, self.codes / self.codes.sum().clamp_min(1)
        n, total, squares, errors = (float(s) for s in self.sums)
        variance = torch.tensor(max(squares / n - (total / n) ** 2, 0.0))
        return Kept(
            site=quantizer.site.name,
            shape=quantizer.site.shape[1:],
            scale=float(quantizer.scale().detach().mean()),
            quant_min=quantizer.quant_min,
            quant_max=quantizer.quant_max,
            histogram={quantizer.quant_min + i: float(share) for i, share in enumerate(shares)},
            entropy_bits=float(entropy.entropy_bits(shares)),
            effective_bits=float(entropy.effective_bits(torch.tensor(errors / n), variance)),
        )


def refuse_none(seen: int, purpose: str, verb: str) -> None:
    """Refuse batches that turned out to be none.

    Args:
        purpose: completes "there is no batch".
        verb: of `pmsm`, that needs one.

    Raises:
        CalibrationError: `seen` is 0.
    """
    if seen == 0:
        raise CalibrationError(
            f"there is no batch {purpose}. Pass at least one: pmsm.{verb}(qann, [x]) with x a batch."
        )
