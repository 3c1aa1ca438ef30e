"""Which step, split and initial potential each site starts with: chosen from data as they stream by, or from
BatchNorm without data.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import CalibrationError, SettingsError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.qann import entropy
from pmsm.qann.implied import implied, silent
from pmsm.qann.kept import refuse_none
from pmsm.qann.potential import Sample, by_channel, match_means


def calibrate(qann: Network, batches: Iterable[Any] | Tensor | None = None, rule: str = "mse") -> Network:
    """Choose step and split of every site, by what the float network sends through it; then the potentials
    that its neurons start with, so that on average they send at T=1 what the float network sends.

    Args:
        qann: quantized network; filled in place, what training had learned of its steps is forgotten.
        batches: inputs, batch dimension first: one tensor, or an iterable of tensors or of (input, label)
            pairs. They stream by: memory does not depend on their number. None: use the Gaussian that
            BatchNorm implies.
        rule: "mse", the bits that the reconstruction is worth; "entropy", those and the entropy of the code;
            "percentile" or "kl". docs/theory.md compares them.

    Returns:
        `qann`, in evaluation mode.

    Raises:
        CalibrationError: no batches, NaN or Inf, a site without any signal, or no batches and a site without
        BatchNorm.
        SettingsError: unknown rule.
    """
    if rule not in entropy.RULES:
        raise SettingsError(
            f"calibrate needs a rule out of {', '.join(map(repr, entropy.RULES))}, got {rule!r}."
        )
    graph.require(qann, "calibrate", CalibrationError)
    qann.eval()
    sample = Sample(qann)
    found = implied(qann) if batches is None else observed(qann, batches, sample)
    _refuse_silent(found)
    for quantizer, distribution in found.items():

        def choose(splits: list[tuple[int, int]], distribution=distribution, quantizer=quantizer):
            start = entropy.choose(distribution, splits, rule)
            return start._replace(scale=start.scale.float().reshape(quantizer.scale().shape))

        quantizer.calibrate(choose)
    if sample.batches:
        match_means(qann, sample.inputs())
    return qann


def observed(
    qann: Network, batches: Iterable[Any] | Tensor, sample: Sample
) -> dict[Quantizer, entropy.Distribution]:
    """What the float network sends through each site, per channel where the site has a step for each.

    Args:
        sample: keeps the first inputs.

    Raises:
        CalibrationError: no batches, or NaN or Inf.
    """
    histograms: dict[Quantizer, entropy.Histogram] = {}
    for _, quantizer in graph.modules(qann, Quantizer):
        channels = quantizer.scale().numel()
        histograms[quantizer] = entropy.Histogram(channels, bins=8192 if channels == 1 else 1024)
        quantizer.observer = _observer(quantizer, histograms[quantizer])
    seen = 0
    try:
        with torch.no_grad():
            for inputs in graph.batches_of(qann, batches):
                graph.run(qann, inputs, CalibrationError, f"batch {seen} ")
                sample.keep(inputs)
                seen += 1
    finally:
        for quantizer in histograms:
            quantizer.observer = None
    refuse_none(seen, "to calibrate on", "calibrate")
    return {quantizer: histogram.finish() for quantizer, histogram in histograms.items()}


def _observer(quantizer: Quantizer, histogram: entropy.Histogram):
    def observe(x: Tensor) -> None:
        """Count the signal in front of the site, per channel or as a whole."""
        values = by_channel(quantizer, x, histogram.zeros.numel())
        if not bool(torch.isfinite(values).all()):
            raise CalibrationError(
                f"NaN or Inf arrives at site {quantizer.site.name!r}, though the batch itself is finite: "
                f"activations overflow in front of it. Check the weights there, and the normalization of the "
                f"inputs."
            )
        histogram.update(values)

    return observe


def _refuse_silent(found: dict[Quantizer, entropy.Distribution]) -> None:
    names = [q.site.name for q, distribution in found.items() if not bool((distribution.rms > 0).any())]
    if names:
        raise silent(names)
