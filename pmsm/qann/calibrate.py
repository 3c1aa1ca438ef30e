"""Which step, split and initial potential each site starts with: chosen from data as they stream by, or from
BatchNorm without data.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import CalibrationError, SettingsError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.methods.rounding import count
from pmsm.qann import entropy
from pmsm.qann.quantize import moves_codes


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
    sample = _Sample(qann)
    found = _implied(qann) if batches is None else _observed(qann, batches, sample)
    _refuse_silent(found)
    for quantizer, distribution in found.items():

        def choose(splits: list[tuple[int, int]], distribution=distribution, quantizer=quantizer):
            start = entropy.choose(distribution, splits, rule)
            return start._replace(scale=start.scale.float().reshape(quantizer.scale().shape))

        quantizer.calibrate(choose)
    if sample.batches:
        _match_means(qann, sample.inputs())
    return qann


# ----------------------------------------------------------------------------------------------------------
# With data
# ----------------------------------------------------------------------------------------------------------


def _observed(
    qann: Network, batches: Iterable[Any] | Tensor, sample: "_Sample"
) -> dict[Quantizer, entropy.Distribution]:
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
    _refuse_none(seen, "to calibrate on", "calibrate")
    return {quantizer: histogram.finish() for quantizer, histogram in histograms.items()}


def _refuse_none(seen: int, purpose: str, verb: str) -> None:
    if seen == 0:
        raise CalibrationError(
            f"there is no batch {purpose}. Pass at least one: pmsm.{verb}(qann, [x]) with x a batch."
        )


def _observer(quantizer: Quantizer, histogram: entropy.Histogram):
    def observe(x: Tensor) -> None:
        """Count the signal in front of the site, per channel or as a whole."""
        values = _by_channel(quantizer, x, histogram.zeros.numel())
        if not bool(torch.isfinite(values).all()):
            raise CalibrationError(
                f"NaN or Inf arrives at site {quantizer.site.name!r}, though the batch itself is finite: "
                f"activations overflow in front of it. Check the weights there, and the normalization of the "
                f"inputs."
            )
        histogram.update(values)

    return observe


def _by_channel(quantizer: Quantizer, x: Tensor, channels: int) -> Tensor:
    """A site's signal [N, ...] as [channels, n]; as [1, n] where its channels are not told apart."""
    dim = quantizer.site.channel_dim
    return x.reshape(1, -1) if channels == 1 or dim is None else x.movedim(dim, 0).flatten(1)


def _refuse_silent(found: dict[Quantizer, entropy.Distribution]) -> None:
    silent = [q.site.name for q, distribution in found.items() if not bool((distribution.rms > 0).any())]
    if silent:
        raise _silent(silent)


def _silent(names: list[str]) -> CalibrationError:
    return CalibrationError(
        f"no signal at all reaches {', '.join(map(repr, names))}: every value is zero. Calibrate on data "
        f"that the network was made for, or remove the dead layer in front of it. A layer that a new network "
        f"starts at zero must be trained first, or start elsewhere: nn.init.normal_(layer.weight, std=0.01)."
    )


# ----------------------------------------------------------------------------------------------------------
# The potential to start with
# ----------------------------------------------------------------------------------------------------------

LARGEST_INITIAL = 127 / 256
"""Below 1/2, so that a neuron without any input stays silent."""

_SAMPLE_BYTES = 1 << 28  # of the largest signal in the network, for all samples together
_VALUES = 1 << 14  # per channel, from which its mean is taken


class _Sample:
    """The first inputs that stream by, as many as pass through the network in one batch."""

    def __init__(self, qann: Network):
        largest = max(quantizer.site.neurons for _, quantizer in graph.modules(qann, Quantizer))
        self.room = max(1, _SAMPLE_BYTES // (4 * largest))
        self.batches: list[tuple[Any, ...]] = []

    def keep(self, inputs: tuple[Any, ...]) -> None:
        """Keep a batch while there is room and it can stand in one batch with the first."""
        if self.room > 0 and all(map(_stackable, inputs, self.batches[0] if self.batches else inputs)):
            self.batches.append(tuple(x[: self.room] for x in inputs))
            self.room -= len(inputs[0])
        elif not self.batches:
            self.batches.append(inputs)
            self.room = 0

    def inputs(self) -> tuple[Any, ...]:
        """All of them as one batch."""
        if len(self.batches) == 1:
            return self.batches[0]
        return tuple(torch.cat(parts) for parts in zip(*self.batches, strict=True))


def _stackable(x: Any, first: Any) -> bool:
    return (
        isinstance(x, Tensor) and isinstance(first, Tensor) and x.dim() > 0 and x.shape[1:] == first.shape[1:]
    )


@torch.no_grad()
def _match_means(qann: Network, inputs: tuple[Any, ...]) -> None:
    """Let every channel send at T=1, on average over `inputs`, what the float network sends.

    Rounding and clipping move the mean of a channel, and every layer passes that on. In the order of
    execution, each initial potential is chosen with all earlier ones in place, so it makes up for its own
    site and for what has come so far. For T > 1 its share fades as 1/T, as rounding's own does.

    Formula of this project; potentials and biases have been corrected layer by layer by Li et al., "A free
    lunch from ANN", ICML 2021.
    """
    sites = [quantizer for _, quantizer in graph.modules(qann, Quantizer)]
    if any(quantizer.site.rectified and not quantizer.sees_rectified for quantizer in sites):
        return  # negative values where the float network has none: the means cannot be compared
    sites = [quantizer for quantizer in sites if quantizer.starts_anywhere]
    wanted: dict[Quantizer, Tensor] = {}
    for quantizer in sites:
        quantizer.observer = lambda x, q=quantizer: wanted.update({q: _few(q, x).mean(1)})
    try:
        graph.run(qann, inputs, CalibrationError, "the first batches ")
    finally:
        for quantizer in sites:
            quantizer.observer = None

    def choose(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, Quantizer)
        initial = _initial_potential(quantizer, _few(quantizer, args[0]), wanted[quantizer])
        quantizer.initial.copy_(initial.reshape(quantizer.initial.shape))

    hooks = [quantizer.register_forward_pre_hook(choose) for quantizer in sites]
    try:
        graph.run(qann, inputs, CalibrationError, "the first batches ")
    finally:
        for hook in hooks:
            hook.remove()


def _few(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Of a site's signal [N, ...] about `_VALUES` values of each channel, [C, n], float32."""
    channels = quantizer.initial.numel()
    rows = max(1, -(-_VALUES * len(x) * channels // max(1, x.numel())))
    return _by_channel(quantizer, x[:rows], channels).float()


def _initial_potential(quantizer: Quantizer, x: Tensor, wanted: Tensor) -> Tensor:
    """[C], the potential nearest to zero with which the codes of `x` [C, n] have the mean `wanted` [C]."""
    scale = quantizer.scale().float().reshape(-1, 1)
    u, wanted = x / scale, wanted / scale[:, 0]

    def mean(initial: Tensor) -> Tensor:
        return count(u + initial[:, None], quantizer.quant_min, quantizer.quant_max).mean(1)

    zero = torch.zeros_like(wanted)
    missing = wanted - mean(zero)  # monotone in the potential: halve the interval that holds the answer
    low, high = LARGEST_INITIAL * (missing < 0), LARGEST_INITIAL * (missing > 0)
    low, high = -low, high.to(low.dtype)
    for _ in range(8):
        middle = (low + high) / 2
        above = mean(middle) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(missing == 0, zero, (low + high) / 2)


# ----------------------------------------------------------------------------------------------------------
# Without data
# ----------------------------------------------------------------------------------------------------------


@dataclass
class _Moments:
    """[1, ...] mean and variance, shaped as the signal of one sample, if every BatchNorm does what it was
    trained to do.
    """

    mean: Tensor
    variance: Tensor

    def per_channel(self, channel_dim: int | None) -> tuple[Tensor, Tensor]:
        """[C] mean and variance over one sample's positions."""
        mean, variance = (
            x.reshape(1, -1) if channel_dim is None else x.movedim(channel_dim, 0).flatten(1)
            for x in (self.mean, self.variance)
        )
        return mean.mean(1), variance.mean(1) + mean.var(1, correction=0)


def _implied(qann: Network) -> dict[Quantizer, entropy.Distribution]:
    """For each quantizer the Gaussians, one per channel, that BatchNorm implies in front of it."""
    known: dict[Node, _Moments] = {}
    found: dict[Quantizer, entropy.Distribution] = {}
    for node in qann.graph.nodes:
        moments = _moments(qann, node, known)
        if moments is not None:
            known[node] = moments
        if graph.is_module(qann, node, (Quantizer,)) and node.all_input_nodes[0] in known:
            quantizer: Any = graph.module_of(qann, node)
            mean, variance = known[node.all_input_nodes[0]].per_channel(quantizer.site.channel_dim)
            if not bool((mean.abs() + variance).any()):
                raise _silent([quantizer.site.name])
            single = quantizer.scale().numel() == 1
            found[quantizer] = _gaussian(mean, variance, rectified=quantizer.sees_rectified, mixture=single)
    missing = [q.site.name for _, q in graph.modules(qann, Quantizer) if q not in found]
    if missing:
        raise CalibrationError(
            f"without data there is no step for {', '.join(map(repr, missing))}: no BatchNorm in front tells "
            f"the distribution. Pass data, pmsm.calibrate(qann, batches)."
        )
    return found


def _gaussian(mean: Tensor, variance: Tensor, *, rectified: bool, mixture: bool = False) -> entropy.Gaussian:
    return entropy.Gaussian(mean, variance.sqrt().clamp_min(1e-6), rectified=rectified, mixture=mixture)


def _moments(qann: Network, node: Node, known: dict[Node, _Moments]) -> _Moments | None:
    """Moments behind `node`, from those in front of it; None where nothing is known."""
    if graph.is_module(qann, node, graph.BATCHNORMS):
        return _behind_batchnorm(graph.module_of(qann, node), graph.shape_of(node))
    inputs = [known[n] for n in node.all_input_nodes if n in known]
    if not inputs or len(inputs) < len(node.all_input_nodes):
        return None
    if node.op == "call_function" and node.target in graph.ADDITIONS:
        if len(inputs) != len(node.args) or node.kwargs:  # a constant, a signal added to itself, a factor
            return None
        return _Moments(sum(i.mean for i in inputs), sum(i.variance for i in inputs))  # pyright: ignore
    if graph.is_module(qann, node, (Quantizer, *graph.RELU)):
        module: Any = graph.module_of(qann, node)
        return _rectified(inputs[0]) if getattr(module, "sees_rectified", True) else inputs[0]
    if moves_codes(qann, node) or graph.is_module(qann, node, (*graph.MAXPOOLS, *graph.AVGPOOLS)):
        mean, variance = (
            graph.apply(qann, node, {n: getattr(known[n], part) for n in node.all_input_nodes})
            for part in ("mean", "variance")
        )
        return _Moments(mean, variance) if isinstance(mean, Tensor) else None
    return None


def _behind_batchnorm(norm: Any, shape: tuple[int, ...]) -> _Moments:
    """Mean beta, variance gamma^2."""
    zeros = torch.zeros(1, *shape[1:], dtype=torch.float64)
    if not norm.affine:
        return _Moments(zeros, zeros + 1)
    per_channel = (1, -1, *[1] * (len(shape) - 2))
    mean, gain = (x.detach().double().cpu().view(per_channel) for x in (norm.bias, norm.weight))
    return _Moments(zeros + mean, zeros + gain**2)


def _rectified(signal: _Moments) -> _Moments:
    shape = signal.mean.shape
    gaussian = _gaussian(signal.mean.flatten(), signal.variance.flatten(), rectified=True)
    mean = (gaussian.rms**2 - gaussian.variance).clamp_min(0).sqrt()
    return _Moments(mean.view(shape), gaussian.variance.view(shape))


# ----------------------------------------------------------------------------------------------------------
# What a calibrated or trained network keeps
# ----------------------------------------------------------------------------------------------------------


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
    _refuse_none(seen, "to count codes on", "kept")
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
