"""Run an SNN over T timesteps: state is opened and closed here, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.methods.base import Neuron, NeuronState, Quantizer
from pmsm.snn.temporal import Static


@dataclass
class Spikes:
    """Spikes of one layer, signed multi-spikes counted by size: a count of -3 is three negative spikes.

    Args:
        neurons: neurons per sample.
        positive, negative: [T, N], spikes of each polarity per step and sample, whole numbers >= 0.
        counts: [T, N, ...] signed counts (int16), if they were asked for.
    """

    neurons: int
    positive: Tensor
    negative: Tensor
    counts: Tensor | None = None

    @property
    def total(self) -> int:
        """Spikes of both polarities over all steps and samples."""
        return int(self.positive.sum() + self.negative.sum())


@dataclass
class Run:
    """What `simulate` returns.

    Args:
        outputs: [T, ...] (a pytree of such): the read-out after 1, 2, ... T steps, the mean over the steps so far.
        spikes: layer -> `Spikes`, in the order of execution; empty if they were not asked for.
        timesteps: T.
    """

    outputs: Any
    timesteps: int
    spikes: dict[str, Spikes] = field(default_factory=dict)

    @property
    def output(self) -> Any:
        """The read-out after the last step."""
        return pytree.tree_map(lambda x: x[-1] if isinstance(x, Tensor) else x, self.outputs)

    def spikes_per_neuron(self, timesteps: int | None = None) -> float:
        """Mean over samples and neurons of the spikes sent in the first `timesteps` steps (default: all)."""
        t = self.timesteps if timesteps is None else timesteps
        samples = next(iter(self.spikes.values())).positive.shape[1]
        sent = sum(int(s.positive[:t].sum() + s.negative[:t].sum()) for s in self.spikes.values())
        return sent / (samples * sum(s.neurons for s in self.spikes.values()))


def simulate(snn: Network, x: Any, timesteps: int = 1, *, record: str | None = "spikes") -> Run:
    """Run `snn` for T timesteps on a constant input.

    Args:
        snn: spiking network from `convert`; left as it was found, also when the run is interrupted.
        x: [N, ...] input, presented at every step; a tuple for several inputs.
        timesteps: T >= 1.
        record: "spikes" counts them per layer, step and sample; "counts" keeps every signed count as well (memory grows
            with T and network size); None records nothing.

    Returns:
        Run with the read-out after each step and the spikes.

    Raises:
        SimulationError: not a spiking network, T < 1, NaN or Inf in the input, an input that the network refuses.
    """
    inputs = x if isinstance(x, tuple | list) else (x,)
    _check(snn, inputs, timesteps, record)
    outputs, total = [], None
    with torch.no_grad(), _opened(snn, timesteps, record) as recorders:
        for t in range(1, timesteps + 1):
            y = _step(snn, inputs)
            total = y if total is None else pytree.tree_map(_add, total, y)
            outputs.append(total if t == 1 else pytree.tree_map(lambda s, t=t: _over(s, t), total))
    stacked = pytree.tree_map(lambda *ys: torch.stack(ys) if isinstance(ys[0], Tensor) else ys[0], *outputs)
    return Run(stacked, timesteps, {name: recorder.read() for name, recorder in recorders.items()})


def _add(a: Any, b: Any) -> Any:
    return a + b if isinstance(a, Tensor) else a


def _over(total: Any, t: int) -> Any:
    return total / t if isinstance(total, Tensor) else total


def _check(snn: Network, inputs: tuple[Any, ...] | list[Any], timesteps: int, record: str | None) -> None:
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise SimulationError(f"simulate needs a whole number of timesteps >= 1, got {timesteps!r}.")
    if record not in ("spikes", "counts", None):
        raise SimulationError(f"simulate needs record 'spikes', 'counts' or None, got {record!r}.")
    if not hasattr(snn, "graph") or any(True for _ in graph.modules(snn, Quantizer)):
        raise SimulationError(
            f"simulate needs a spiking network, got {type(snn).__name__}. Call snn = pmsm.convert(qann) first."
        )
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise SimulationError("the input holds NaN or Inf. Repair those samples; torch.isfinite(x) finds them.")


def _step(snn: Network, inputs: tuple[Any, ...] | list[Any]) -> Any:
    try:
        return snn(*inputs)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
        raise SimulationError(f"the network refuses an input of shape {shapes}: {error}") from error


@contextmanager
def _opened(snn: Network, timesteps: int, record: str | None) -> Iterator[dict[str, "_Recorder"]]:
    """Neurons and static maps with fresh state inside, without any outside, whatever happens inside."""
    recorders: dict[str, _Recorder] = {}
    try:
        for name, module in snn.named_modules():
            if isinstance(module, Neuron):
                module.state = NeuronState() if timesteps > 1 else None
                if record is not None:
                    recorders[name] = module.probe = _Recorder(record == "counts", module.quant_min < 0)
            elif isinstance(module, Static):
                module.state, module.opened = None, timesteps > 1
        yield {str(n.target): recorders[str(n.target)] for n, _ in graph.modules(snn, Neuron)} if record else {}
    finally:
        for module in snn.modules():
            if isinstance(module, Neuron):
                module.state = module.probe = None
            elif isinstance(module, Static):
                module.state, module.opened = None, False


class _Recorder:
    """Counts the spikes of one layer as they are sent; exact, since partial sums stay below 2**24 or are float64."""

    def __init__(self, keep: bool, signed: bool):
        self.keep, self.signed, self.neurons = keep, signed, 0
        self.positive: list[Tensor] = []
        self.negative: list[Tensor] = []
        self.counts: list[Tensor] = []

    def __call__(self, spikes: Tensor) -> None:
        self.neurons = spikes[0].numel()
        dims = tuple(range(1, spikes.dim()))
        exact = torch.float64 if self.neurons * 64 >= 2**24 else spikes.dtype
        net = spikes.sum(dims, dtype=exact)
        size = net
        if self.signed or self.positive:  # a rectified site sends its first negative spikes at t=2
            size = torch.linalg.vector_norm(spikes, ord=1, dim=dims, dtype=exact)
        self.positive.append(((size + net) / 2).long())
        self.negative.append(((size - net) / 2).long())
        if self.keep:
            self.counts.append(spikes.to(torch.int16))

    def read(self) -> Spikes:
        counts = torch.stack(self.counts) if self.keep else None
        return Spikes(self.neurons, torch.stack(self.positive), torch.stack(self.negative), counts)
