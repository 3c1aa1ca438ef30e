"""Prove that an SNN equals its QANN at T=1: every code of every layer, and the read-out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import VerificationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron

TIE = 1e-3
"""How near to a boundary, in steps, rounding of another kernel or of folded weights may decide the code."""


@dataclass(frozen=True)
class Layer:
    """One site.

    Args:
        codes, different: codes compared, and codes that differ.
        ties: those that differ by one because the potential lies within `TIE` of the boundary of two codes.
        whole: whether all signals are whole multiples of the threshold, in bounds.
    """

    name: str
    codes: int
    different: int
    ties: int
    whole: bool


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        layers: one entry per site, in the order of execution.
        max_difference: largest absolute difference of the read-outs.
        samples: number of samples compared.
    """

    layers: tuple[Layer, ...]
    max_difference: float
    samples: int

    @property
    def codes(self) -> int:
        """Codes compared."""
        return sum(layer.codes for layer in self.layers)

    @property
    def different(self) -> int:
        """Codes that differ."""
        return sum(layer.different for layer in self.layers)

    @property
    def ties(self) -> int:
        """Of the codes that differ, those that lie on the boundary of two codes."""
        return sum(layer.ties for layer in self.layers)

    @property
    def first(self) -> str | None:
        """The first layer that differs, or whose signal is not made of codes."""
        return next((layer.name for layer in self.layers if layer.different or not layer.whole), None)

    @property
    def exact(self) -> bool:
        """Whether nothing differs at all."""
        return self.first is None and self.max_difference == 0

    def __str__(self) -> str:
        ties = f" ({self.ties:,} of them ties)" if self.different else ""
        return (
            f"T=1: max |SNN - QANN| = {self.max_difference:g}, {self.codes:,} codes compared, "
            f"{self.different:,} differ{ties}"
        )


def verify(qann: Network, snn: Network, batches: Iterable[Any] | Tensor) -> Verification:
    """Compare QANN and SNN at T=1 and refuse any difference.

    Args:
        qann: quantized network; compared in evaluation mode, its mode is restored.
        snn: its conversion.
        batches: a tensor [N, ...], or an iterable of tensors or (input, label) pairs.

    Raises:
        VerificationError: a code or the read-out differs, or a signal is no whole multiple of its threshold
        within
            bounds. The text names the first layer that differs; the exception carries the report as `report`.
    """
    report = compare(qann, snn, batches)
    if not report.exact:
        bad = report.first or "the read-out"
        error = VerificationError(
            f"the SNN is not its QANN: {report}; the first difference is at {bad!r}. Convert again from this "
            f"very QANN, snn = pmsm.convert(qann); if fold=True was used, equality holds up to rounding "
            f"only; a method with exact=False does not promise it."
        )
        error.report = report  # pyright: ignore[reportAttributeAccessIssue]
        raise error
    return report


def compare(qann: Network, snn: Network, batches: Iterable[Any] | Tensor) -> Verification:
    """The report of `verify`, without the verdict.

    Raises:
        VerificationError: not two forms of one network, no batch, or a batch that does not fit.
    """
    graph.require(qann, "verify", VerificationError)
    graph.require(snn, "verify", VerificationError)
    training = qann.training
    sites = {str(node.target): quantizer for node, quantizer in graph.modules(qann, Quantizer)}
    neurons = {str(node.target): neuron for node, neuron in graph.modules(snn, Neuron)}
    if not sites or any(True for _ in graph.modules(snn, Quantizer)):
        raise VerificationError(
            "verify compares a quantized network with its conversion: verify(qann, snn, x)."
        )
    if list(sites) != list(neurons):
        missing = sorted(set(sites) ^ set(neurons))
        raise VerificationError(
            f"not the same network: only one of the two has {', '.join(map(repr, missing))}."
        )
    rows = {name: [0, 0, 0, True] for name in sites}
    largest, samples = 0.0, 0
    qann.eval()
    try:
        with torch.no_grad():
            for inputs in graph.batches_of(qann, batches):
                if len(inputs[0]) == 0:
                    continue
                wanted, codes = _coded(qann, sites, inputs)
                got, spikes = _coded(snn, neurons, inputs)
                for name, row in rows.items():
                    _compare_layer(row, codes[name], spikes[name], sites[name])
                largest = max(largest, _distance(wanted, got))
                samples += len(inputs[0])
    finally:
        qann.train(training)
    if samples == 0:
        raise VerificationError(
            "there is nothing to compare: no batch. Pass at least one, verify(qann, snn, x)."
        )
    return Verification(tuple(Layer(name, *row) for name, row in rows.items()), largest, samples)


def _coded(network: Network, sites: dict[str, Any], inputs: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """Output, and per site: codes (int32), whether the signal is exactly codes times step, what arrived."""
    found: dict[str, Any] = {}

    def hook(name: str, step: Tensor):
        """What records the site `name`."""

        def record(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            """Keep the codes of what the site gave, and what had arrived."""
            out = module.in_one_step(out) if isinstance(module, Neuron) else out
            codes = (out.double() / step.double()).round()
            whole = torch.equal((codes * step.double()).to(out.dtype), out)
            found[name] = codes.to(torch.int32), whole, args[0]

        return record

    handles = [
        site.register_forward_hook(
            hook(name, site.scale() if isinstance(site, Quantizer) else site.threshold)
        )
        for name, site in sites.items()
    ]
    try:
        return graph.run(network, inputs, VerificationError, "the batch "), found
    finally:
        for handle in handles:
            handle.remove()


def _compare_layer(row: list[Any], wanted: tuple[Any, ...], got: tuple[Any, ...], site: Quantizer) -> None:
    codes, spikes = wanted[0], got[0]
    differs = codes != spikes
    row[0] += codes.numel()
    row[1] += int(differs.sum())
    if bool(differs.any()):
        u = (wanted[2] / site.scale() + site.initial)[differs]
        near = (u - u.floor() - 0.5).abs() < TIE
        row[2] += int((near & ((codes - spikes)[differs].abs() == 1)).sum())
    bounded = site.quant_min <= int(spikes.min()) and int(spikes.max()) <= site.quant_max
    row[3] = row[3] and wanted[1] and got[1] and bounded


def _distance(wanted: Any, got: Any) -> float:
    """Largest absolute difference over a pytree of tensors; NaN anywhere counts as infinite."""
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True)
    worst = [(a.double() - b.double()).abs().max() for a, b in pairs if isinstance(a, Tensor) and a.numel()]
    largest = max((float(d) for d in worst), default=0.0)
    return largest if largest == largest else float("inf")
