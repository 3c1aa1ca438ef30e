"""What BatchNorm tells of a signal without any data: a Gaussian per channel, carried on to every site."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import CalibrationError
from pmsm.graph import Network, Node
from pmsm.methods.base import Quantizer
from pmsm.qann import entropy
from pmsm.qann.quantize import moves_codes


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


def implied(qann: Network) -> dict[Quantizer, entropy.Distribution]:
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
                raise silent([quantizer.site.name])
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


def silent(names: list[str]) -> CalibrationError:
    """The refusal of sites that see nothing but zeros."""
    return CalibrationError(
        f"no signal at all reaches {', '.join(map(repr, names))}: every value is zero. Calibrate on data "
        f"that the network was made for, or remove the dead layer in front of it. A layer that a new network "
        f"starts at zero must be trained first, or start elsewhere: nn.init.normal_(layer.weight, std=0.01)."
    )
