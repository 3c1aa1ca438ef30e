"""Run an SNN over T timesteps: state is opened and closed here, and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron, NeuronState
from pmsm.snn.temporal import Static, StaticState


@dataclass
class Spikes:
    """Spikes of one layer, signed multi-spikes counted by size: a count of -3 is three negative spikes.

    Args:
        neurons: neurons per sample.
        positive, negative: [T, N], spikes of each polarity per step and sample, whole numbers >= 0; [T, 1]
            where the layer's signal does not keep samples apart in dimension 0.
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
        outputs: [T, ...] (a pytree of such): the read-out after 1, 2, ... T steps, the mean over the steps so
            far.
        spikes: layer -> `Spikes`, in the order of execution; empty if they were not asked for.
        timesteps, samples: T and N.
    """

    outputs: Any
    timesteps: int
    samples: int
    spikes: dict[str, Spikes] = field(default_factory=dict)

    @property
    def output(self) -> Any:
        """The read-out after the last step."""
        return pytree.tree_map(lambda x: x[-1] if isinstance(x, Tensor) else x, self.outputs)

    def spikes_per_neuron(self, timesteps: int | None = None) -> float:
        """Mean over samples and neurons of the spikes sent in the first `timesteps` steps (default: all)."""
        t = self.timesteps if timesteps is None else timesteps
        sent = sum(int(s.positive[:t].sum() + s.negative[:t].sum()) for s in self.spikes.values())
        return sent / (self.samples * sum(s.neurons for s in self.spikes.values()))


def simulate(
    snn: Network, x: Any, timesteps: int = 1, *, record: str | None = "spikes", schedule: str = "auto"
) -> Run:
    """Run `snn` for T timesteps on a constant input.

    Args:
        snn: spiking network from `convert`; left as it was found, also when the run is interrupted.
        x: [N, ...] input, presented at every step; a tuple for several inputs.
        timesteps: T >= 1.
        record: "spikes" counts them per layer, step and sample; "counts" keeps every signed count as well
            (memory grows with T and network size); None records nothing.
        schedule: "layers" runs N / T samples at a time, all their steps in one batch, so that potentials stay
            in the cache and memory does not grow with T; "steps" runs the whole batch step by step. The same
            numbers, up to the rounding of layers whose kernels depend on the batch.

    Returns:
        Run with the read-out after each step and the spikes.

    Raises:
        SimulationError: not a spiking network, T < 1, NaN or Inf in the input, an input that the network
        refuses.
    """
    inputs = tuple(x) if isinstance(x, tuple | list) else (x,)
    _check(snn, inputs, timesteps, record, schedule)
    one_pass = snn.meta["batch_first"] and snn.meta["mode"] == "integrate"
    layers = one_pass if schedule == "auto" else schedule == "layers"
    run = _by_layers if layers and timesteps > 1 else _by_steps
    with torch.no_grad(), _opened(snn, timesteps, record, len(inputs[0])) as opened:
        outputs = run(snn, inputs, timesteps, opened)
    return Run(
        outputs,
        timesteps,
        len(inputs[0]),
        {name: recorder.read() for name, recorder in opened.recorders.items()},
    )


def _by_steps(snn: Network, inputs: tuple[Any, ...], timesteps: int, opened: "_Opened") -> Any:
    """[T, N, ...] read-outs; the whole batch, one step after the other."""
    opened.start(1)
    outputs, total = [], None
    for t in range(1, timesteps + 1):
        y = _forward(snn, inputs)
        adds = t > 1 and snn.meta["mode"] == "integrate"  # in tracking mode sums travel, the output is one
        total = _each(lambda a, b: a + b, total, y) if adds else y
        outputs.append(_each(lambda s, t=t: s / t, total) if adds else total)
    return _each(lambda *ys: torch.stack(ys), *outputs)


def _by_layers(snn: Network, inputs: tuple[Any, ...], timesteps: int, opened: "_Opened") -> Any:
    """[T, N, ...] read-outs; some samples at a time, all steps of a layer before the next layer."""
    samples = len(inputs[0])
    rows = max(1, samples // timesteps)
    outputs = []
    for row in range(0, samples, rows):
        opened.start(timesteps)
        repeated = tuple(x[row : row + rows].repeat(timesteps, *[1] * (x.dim() - 1)) for x in inputs)
        read = _means_so_far if snn.meta["mode"] == "integrate" else _each_step
        outputs.append(_each(lambda y, read=read: read(y, timesteps), _forward(snn, repeated)))
    return _each(lambda *ys: torch.cat(ys, 1), *outputs)


def _each_step(y: Tensor, timesteps: int) -> Tensor:
    """[T * N, ...] -> [T, N, ...]."""
    return y.unflatten(0, (timesteps, -1))


def _means_so_far(y: Tensor, timesteps: int) -> Tensor:
    """[T * N, ...] -> [T, N, ...] means over the steps up to each."""
    total = y.unflatten(0, (timesteps, -1)).cumsum(0)
    return total / torch.arange(1, timesteps + 1, device=y.device).view(-1, *[1] * (total.dim() - 1))


def _check(snn: Network, inputs: tuple[Any, ...], timesteps: int, record: str | None, schedule: str) -> None:
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise SimulationError(f"simulate needs a whole number of timesteps >= 1, got {timesteps!r}.")
    if record not in ("spikes", "counts", None):
        raise SimulationError(f"simulate needs record 'spikes', 'counts' or None, got {record!r}.")
    if schedule not in ("auto", "layers", "steps"):
        raise SimulationError(f"simulate needs schedule 'auto', 'layers' or 'steps', got {schedule!r}.")
    spiking = isinstance(snn, Network) and "mode" in snn.meta
    if not spiking or any(True for _ in graph.modules(snn, Quantizer)):
        raise SimulationError(
            f"simulate needs a spiking network, got {type(snn).__name__}. Call snn = pmsm.convert(qann) "
            f"first."
        )
    if schedule == "layers" and not snn.meta["batch_first"]:
        raise SimulationError(
            "schedule 'layers' needs the batch in dimension 0 of every signal, and something in this network "
            "moves it, mixes it or may do so. Use schedule='steps' or 'auto'."
        )
    if not inputs or not all(isinstance(x, Tensor) and x.dim() > 0 and len(x) for x in inputs):
        raise SimulationError(
            "simulate needs at least one sample, batch dimension first: x of shape [N, ...]."
        )


def _forward(snn: Network, inputs: tuple[Any, ...]) -> Any:
    """The read-outs, tensors only: whatever else a network returns passes as it is."""
    return graph.run(snn, inputs, SimulationError, "the input ")


def _each(function: Callable[..., Tensor], *trees: Any) -> Any:
    """`function` on the tensors of like trees; anything else is taken from the first."""
    return pytree.tree_map(lambda *xs: function(*xs) if isinstance(xs[0], Tensor) else xs[0], *trees)


class _Opened:
    """The state of a network for the time of one run."""

    def __init__(self, snn: Network, timesteps: int, record: str | None, samples: int):
        self.timesteps = timesteps
        self.modes = {module: module.training for module in snn.modules()}
        snn.eval()
        self.stateful: list[Any] = [m for m in snn.modules() if isinstance(m, Neuron | Static)]
        self.recorders: dict[str, _Recorder] = {}
        self.snn, self.samples, self.record = snn, samples, record

    def listen(self) -> None:
        """Attach a recorder to every neuron, if spikes are to be recorded."""
        for node, neuron in graph.modules(self.snn, Neuron) if self.record is not None else ():
            recorder = _Recorder(
                self.timesteps, self.samples, keep=self.record == "counts", signed=neuron.quant_min < 0
            )
            self.recorders[str(node.target)] = neuron.probe = recorder

    def start(self, steps_at_once: int) -> None:
        """Fresh state for the next samples; a single timestep needs none."""
        for module in self.stateful:
            fresh = NeuronState(steps_at_once) if isinstance(module, Neuron) else StaticState(steps_at_once)
            module.state = fresh if self.timesteps > 1 else None  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        """Leave no trace in the network."""
        for module, training in self.modes.items():
            module.training = training
        for module in self.stateful:
            module.state = None
            if isinstance(module, Neuron):
                module.probe = None


@contextmanager
def _opened(snn: Network, timesteps: int, record: str | None, samples: int) -> Iterator[_Opened]:
    opened = _Opened(snn, timesteps, record, samples)
    try:
        opened.listen()
        yield opened
    finally:
        opened.close()


class _Recorder:
    """Counts the spikes of one layer as they are sent; exact: sums below 2**24, or in float64."""

    def __init__(self, timesteps: int, samples: int, *, keep: bool, signed: bool):
        self.samples, self.signed, self.keep, self.per_row = samples, signed, keep, 0
        self.net: list[list[np.ndarray]] = [[] for _ in range(timesteps)]
        self.size: list[list[np.ndarray]] = [[] for _ in range(timesteps)]
        self.counts: list[list[Tensor]] = [[] for _ in range(timesteps)]

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        self.per_row = spikes[0].numel()
        exact = (
            torch.float64 if self.per_row * 64 >= 2**24 else torch.promote_types(spikes.dtype, torch.float32)
        )
        net = _whole(spikes.flatten(1).sum(1, dtype=exact))
        self.net[t].append(net)
        # Only from t=2 on does a rectified site send negative spikes, to take back what it sent too early.
        one_sign = t == 0 and not self.signed
        self.size[t].append(net if one_sign else _whole(spikes.abs().flatten(1).sum(1, dtype=exact)))
        if self.keep:
            self.counts[t].append(spikes.to("cpu", torch.int16))

    def add(self, net: np.ndarray, size: np.ndarray, t: int, neurons: int) -> None:
        self.per_row = neurons
        for i in range(len(net)):
            self.net[t + i].append(net[i])
            self.size[t + i].append(size[i])

    def read(self) -> Spikes:
        """Rows to samples: several rows per sample (windows), or one column where the layer mixes them."""
        net, size = (np.stack([np.concatenate(step) for step in parts]) for parts in (self.net, self.size))
        timesteps, rows = net.shape
        columns = self.samples if rows % self.samples == 0 else 1
        net, size = (x.reshape(timesteps, columns, -1).sum(2) for x in (net, size))
        positive, negative = (torch.from_numpy((size + sign * net) // 2) for sign in (1, -1))
        counts = torch.stack([torch.cat(step) for step in self.counts]) if self.keep else None
        return Spikes(self.per_row * rows // self.samples, positive, negative, counts)


def _whole(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.int64)
