"""Measure a spiking network: run it, count what its spikes cause and what they do not, beside others."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import MeasurementError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron
from pmsm.snn.simulate import simulate
from pmsm.study.energy.firing import Estimate, Moments, Tally
from pmsm.study.energy.measurement import Firing, Measurement, Row
from pmsm.study.energy.operators import OPS, Operator
from pmsm.study.energy.plan import Plan, plan
from pmsm.study.energy.prices import Prices, Traffic, priced_at
from pmsm.study.energy.technology import Memory, Technology


def measure(
    snn: Network,
    batches: Iterable[Any] | Tensor,
    timesteps: int = 1,
    *,
    stream: bool = False,
    technology: str | Technology = "45nm-fp32",
    convention: str = "unary",
    memory: str | Memory | None = None,
    baselines: Mapping[str, Measurement | tuple[Network, int]] | None = None,
    ops: Mapping[Any, Operator] = OPS,
) -> Measurement:
    """What a spiking network costs per sample, operator by operator, beside what it is to be compared with.

    Args:
        snn: from `convert`; left alone.
        batches: a tensor [N, ...], or an iterable of tensors or (input, label) pairs, samples of one shape.
            They stream by: memory does not grow with their number.
        timesteps: T >= 1; each sample is presented for T steps.
        stream: samples are streams, batches [F, N, ...], and each of their F frames is presented for
            `timesteps` steps, state carried; the networks without spikes then run on every frame.
        technology: what an operation costs, a name in `TECHNOLOGIES` or figures of your own.
        convention: what a count k costs at a synapse, a name in `CONVENTIONS`.
        memory: charge memory traffic as well, a name in `MEMORIES` or a figure of your own.
        baselines: name -> an earlier `Measurement`, or another spiking network and its T, which then sees the
            same batches. The float and the 8-bit quantized network always stand beside.
        ops: how operators are counted; extend with `OPS | {MyNorm: Operator(...)}`.

    Returns:
        Measurement; `measurement.priced(...)` changes prices without another run.

    Raises:
        MeasurementError: operators without an entry in `ops` (all are named), no batch, samples of several
            shapes, no spiking network.
        SettingsError: unknown technology, convention or memory.
        SimulationError: what `simulate` refuses.
    """
    prices = priced_at(technology, convention, memory)
    others = dict(baselines or {})
    given = {name: other for name, other in others.items() if isinstance(other, tuple)}
    running = {name: _Count(other, steps, stream, ops) for name, (other, steps) in given.items()}
    count = _Count(snn, timesteps, stream, ops)
    for inputs in graph.batches_of(count.snn, batches):
        for each in (count, *running.values()):
            each.update(inputs)
    measured = {name: other for name, other in others.items() if isinstance(other, Measurement)}
    measured |= {name: each.finish(prices, {}) for name, each in running.items()}
    beside = {name: measured[name] for name in others}
    return count.finish(prices, beside)


class _Count:
    """What a network has done so far."""

    def __init__(self, snn: Network, timesteps: int, stream: bool, ops: Mapping[Any, Operator]):
        graph.require(snn, "measure", MeasurementError)
        if "mode" not in snn.meta or any(True for _ in graph.modules(snn, Quantizer)):
            raise MeasurementError("measure needs a spiking network. Call snn = pmsm.convert(qann) first.")
        if "micro_steps" in snn.meta:
            raise MeasurementError(
                "measure counts a network before it is unrolled: convert(qann) without unroll=True. Its "
                "spikes are the same, and convention='unary' counts them one by one; only its neurons are "
                "updated in every micro-step."
            )
        self.snn, self.timesteps, self.stream, self.ops = snn, timesteps, stream, ops
        self.neurons: dict[str, Neuron] = {str(n.target): m for n, m in graph.modules(self.snn, Neuron)}
        self.plan = Plan()
        self.shapes: list[tuple[int, ...]] = []
        self.tallies: dict[str, Tally] = {}
        self.operators, self.sent = Moments(), Moments()

    def update(self, inputs: tuple[Any, ...]) -> None:
        """Run a batch; sample by sample where the network does not keep samples apart in dimension 0."""
        if not self.shapes:
            self._prepare(inputs)
        shapes = [self._shape(x) for x in inputs]
        if shapes != self.shapes:
            raise MeasurementError(
                f"measure needs samples of one shape, got {self.shapes} and {shapes}. Measure each shape "
                f"by itself."
            )
        if self.snn.meta["batch_first"]:
            self._run(inputs)
        else:
            for i in range(inputs[0].shape[self.stream]):
                self._run(tuple(self._sample(x, i) for x in inputs))

    def _sample(self, x: Tensor, i: int) -> Tensor:
        """One of a batch, which stays a batch."""
        return x[:, i : i + 1] if self.stream else x[i : i + 1]

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Of one sample, frames first in a stream."""
        return (*x.shape[: self.stream], *x.shape[self.stream + 1 :])

    def _simulate(self, inputs: tuple[Any, ...]) -> None:
        simulate(self.snn, inputs, self.timesteps, stream=self.stream, record=None)

    def _prepare(self, inputs: tuple[Any, ...]) -> None:
        """Plan with one sample, once `simulate` has accepted it."""
        self._simulate(tuple(self._sample(x, 0) if x.dim() > self.stream else x for x in inputs))
        self.shapes = [self._shape(x) for x in inputs]
        frames = len(inputs[0]) if self.stream else 1
        sample = tuple((x[0] if self.stream else x)[:1] for x in inputs)
        self.plan = plan(self.snn, sample, self.timesteps * frames, frames, self.ops)
        for name, neuron in self.neurons.items():
            fans = [fan for _, fan in self.plan.fans[name]]
            self.tallies[name] = Tally(neuron, self.plan.neurons[name], fans)

    def _run(self, inputs: tuple[Any, ...]) -> None:
        hooks = []
        try:
            for name, neuron in self.neurons.items():
                neuron.probe = self.tallies[name]
                hooks.append(neuron.register_forward_hook(self.tallies[name].sent))
            self._simulate(inputs)
        finally:
            for neuron, hook in zip(self.neurons.values(), hooks, strict=True):
                neuron.probe = None
                hook.remove()
        samples, last = inputs[0].shape[self.stream], len(self.plan.operators)
        at_operators = torch.zeros(samples, last + 1, 2, dtype=torch.float64)
        sent = torch.zeros(samples, len(self.tallies), 2, dtype=torch.float64)
        for layer, (name, tally) in enumerate(self.tallies.items()):
            found = tally.collect(samples)
            sent[:, layer] = found[..., 0]
            for column, (index, _) in enumerate(self.plan.fans[name], 1):
                at_operators[:, index] += found[..., column]
        at_operators[:, last] = at_operators[:, :last].sum(1)
        self.operators.update(at_operators)
        self.sent.update(sent)

    def finish(self, prices: Prices, others: Mapping[str, Measurement]) -> Measurement:
        """The counts, priced."""
        if not self.shapes:
            raise MeasurementError(
                "there is nothing to measure on: no batch. Pass at least one, measure(snn, x)."
            )
        rows = [
            Row(
                p.name, p.kind, p.reads, *self._estimates(self.operators, i), p.dense, p.work, p.updates,
                Traffic(), Estimate(0.0),
            )
            for i, p in enumerate(self.plan.operators)
        ]  # fmt: skip
        samples = self.operators.samples
        return Measurement(
            self.snn.meta["mode"],
            self.plan.timesteps,
            samples,
            tuple(rows),
            *self._estimates(self.operators, len(rows)),
            tuple(self._fired(i, name) for i, name in enumerate(self.tallies)),
            prices,
            tuple(others.items()),
            {name: (tally.per_neuron / samples).cpu() for name, tally in self.tallies.items()},
        ).priced(prices.technology, prices.convention, prices.memory)

    def _estimates(self, moments: Moments, index: int) -> tuple[Any, Any]:
        """Of sums of |k|, and of nonzero counts."""
        return moments.estimate(index, 0), moments.estimate(index, 1)

    def _fired(self, layer: int, name: str) -> Firing:
        tally = self.tallies[name]
        histogram = tally.sizes.histogram()
        counts = sum(histogram.values())
        low, high = tally.limits
        return Firing(
            name,
            tally.per_neuron.numel(),
            *self._estimates(self.sent, layer),
            histogram,
            silent=histogram.get(0, 0) / counts,
            saturated=sum(n for k, n in histogram.items() if k >= high or k <= low < 0) / counts,
            dead=float((tally.per_neuron == 0).double().mean()),
        )
