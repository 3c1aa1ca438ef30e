"""Which spikes reach which operators, and how often: one walk through a spiking network, before it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import MeasurementError
from pmsm.graph import Network, Node
from pmsm.methods.neuron import Neuron, TrackingNeuron
from pmsm.snn.convert import rule_for, spelled
from pmsm.snn.temporal import Rule, Static, TensorMethod
from pmsm.study.energy import touch
from pmsm.study.energy.operators import Operator, find
from pmsm.study.energy.work import Work


@dataclass(frozen=True)
class Planned:
    """One operator, as it will be counted; all per sample and for all steps together.

    Args:
        name, kind: where it is called; module type, function or method.
        reads: "spikes"; "analog", values in one step or in each of several; "analog, once" or "analog, per
            frame", values that no neuron has touched, so that one pass serves several steps; or "neurons".
        dense: the float network's work there, one pass for each frame.
        work: the spiking network's work there that no spike causes.
        updates: neurons times steps.
    """

    name: str
    kind: str
    reads: str
    dense: Work
    work: Work
    updates: int = 0


@dataclass
class Plan:
    """What is to be counted.

    Args:
        operators: in the order of execution.
        fans: neuron layer -> [(index of an operator, fan-out to it)]: [r, ...] float64 whole numbers, places
            of that operator that one spike of each neuron of a sample reaches.
        neurons: neuron layer -> [r, ...], the shape of one sample's neurons.
        timesteps: all steps.
    """

    timesteps: int = 1
    operators: list[Planned] = field(default_factory=list)
    fans: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    neurons: dict[str, tuple[int, ...]] = field(default_factory=dict)


def plan(
    snn: Network, sample: tuple[Any, ...], timesteps: int, frames: int, ops: Mapping[Any, Operator]
) -> Plan:
    """What a spiking network does with one sample.

    Args:
        sample: [1, ...], of a stream its first frame.
        timesteps: all steps, those of all frames together.
        frames: how often the input changes, 1 without a stream.

    Raises:
        MeasurementError: operators without an entry in `ops`; all are named.
    """
    walk = _Walk(snn, sample, timesteps, frames, ops)
    with torch.enable_grad():
        for node in walk.network.graph.nodes:
            walk.visit(node)
    return walk.plan


class _Walk:
    """What is known of the signals so far, on the way from input to output.

    A signal holds spikes if it is what neurons have sent, moved, averaged and summed: `arrived` then tells,
    by its gradient, how often each neuron's spikes are in it. Every other signal is analog, and steady, the
    same for a whole frame, if no neuron stands in front of it.
    """

    def __init__(
        self,
        snn: Network,
        sample: tuple[Any, ...],
        timesteps: int,
        frames: int,
        ops: Mapping[Any, Operator],
    ):
        self.network, self.wrapped = _plain(snn)
        self.mode: str = snn.meta["mode"]
        self.timesteps, self.frames, self.ops = timesteps, frames, ops
        self.signals = graph.signals(self.network)
        _refuse_unknown(self.network, self.signals, ops)
        self.run = graph.stepwise(self.network, sample)
        self.values: dict[Node, Any] = {}
        self.arrived: dict[Node, Any] = {}
        self.steady: set[Node] = set()
        self.sources: dict[str, Tensor] = {}
        self.plan = Plan(timesteps)

    def visit(self, node: Node) -> None:
        """Note what a node computes, and what it costs."""
        if node.op == "output":
            read = [n for n in dict.fromkeys(touch.mentions(node)) if n in self.arrived]
            if read:
                self._add(
                    Planned("output", "output", "spikes", Work(), Work()), [self.arrived[n] for n in read]
                )
            return
        self.values[node] = self.run(node)
        if node in self.signals and node.op != "placeholder":
            self._count(node)
        elif node.op == "placeholder":
            self.steady.add(node)

    def _count(self, node: Node) -> None:
        read = [n for n in touch.mentions(node) if n in self.signals]
        spiking = {n for n in read if n in self.arrived}
        analog = [n for n in read if n not in self.arrived]
        if all(n in self.steady for n in read):
            self.steady.add(node)
        if graph.is_module(self.network, node, (Neuron,)):
            self.steady.discard(node)
            self._neurons(node, spiking)
            return
        op = find(self.network, node, self.ops)
        assert op is not None
        is_map = op.touch is None or (self._is_static(node, op) and (self.timesteps > 1 or op.carries))
        if is_map:
            self._map(node, op, read, spiking)
        elif op.carries and not analog:
            self._carry(node, op, read, spiking)
        elif spiking:
            self._land(node, op, spiking)
        else:
            self._analog(node, op)

    def _is_static(self, node: Node, op: Operator) -> bool:
        """Whether an operator runs on means or sums of its inputs so far."""
        if self.mode == "integrate":
            return node in self.wrapped
        rule = rule_for(self.network, node, self.signals)
        return op.touch is None if rule is None else rule is Rule.STATIC

    def _neurons(self, node: Node, spiking: set[Node]) -> None:
        """A layer of neurons: its updates, and spikes that reach its potentials past any weights."""
        value: Tensor = self.values[node]
        self.arrived[node] = torch.zeros_like(value, dtype=torch.float64).requires_grad_()
        landed = [self.arrived[n] for n in spiking]
        self.sources[str(node.target)] = self.arrived[node]
        self.plan.fans[str(node.target)] = []
        self.plan.neurons[str(node.target)] = tuple(value.shape)
        neuron: Any = graph.module_of(self.network, node)
        updates = value.numel() * self.timesteps
        work = update_work(neuron, self.timesteps) * updates
        planned = Planned(str(node.target), type(neuron).__name__, "neurons", Work(), work, updates)
        self._add(planned, landed)

    def _map(self, node: Node, op: Operator, read: list[Node], spiking: set[Node]) -> None:
        """A nonlinear map. Over several steps it reads running means or sums, into which spikes are added,
        and what it sends are differences.
        """
        of_means = self.mode == "integrate" and self.frames > 1  # the mean over a stream never rests
        passes = self.timesteps if of_means else self._passes(node)
        dense = self._dense(node, op)
        work, landed = dense * passes, []
        if passes > 1:
            into = {n: self._size(n) for n in read}
            out, summed = self._size(node), sum(into[n] for n in into if n not in spiking)
            scaled = sum(into.values()) + out if self.mode == "integrate" else 0
            work += Work(adds=summed + out, multiplies=scaled) * passes
            landed = [self.arrived[n] for n in spiking]
        self._add(self._planned(node, self._analog_reads(passes), dense, work), landed)

    def _carry(self, node: Node, op: Operator, read: list[Node], spiking: set[Node]) -> None:
        """Spikes go on: nothing is computed here, unless a constant is added."""
        assert op.touch is not None
        arrived = op.touch(self.network, node, self._operands(node), spiking)
        shapes = [[x.shape for x in pytree.tree_leaves(v)] for v in (arrived, self.values[node])]
        if shapes[0] != shapes[1]:
            raise MeasurementError(
                f"cannot follow spikes through {graph.operator_name(self.network, node)!r}, which makes "
                f"{shapes[1]} of them and not {shapes[0]}. Give its signals a batch and a channel dimension."
            )
        self.arrived[node] = arrived
        dense = self._dense(node, op)
        constant = dense.adds if op.touch is touch.added and len(read) == 1 else 0
        times = self.timesteps if self.mode == "integrate" else 1
        self._add(self._planned(node, "spikes", dense, Work(adds=constant) * times), [])

    def _land(self, node: Node, op: Operator, spiking: set[Node]) -> None:
        """Spikes end: each adds weights to what it touches. Accumulators start at their bias; each further
        step adds it once more.
        """
        assert op.touch is not None
        arrived = op.touch(self.network, node, self._operands(node), spiking)
        biases = self._size(node) * self._has_bias(node) * (self.mode == "integrate")
        work = Work(adds=biases) * (self.timesteps - 1)
        self._add(self._planned(node, "spikes", self._dense(node, op), work), [arrived])

    def _analog(self, node: Node, op: Operator) -> None:
        dense, passes = self._dense(node, op), self._passes(node)
        self._add(self._planned(node, self._analog_reads(passes), dense, dense * passes), [])

    def _operands(self, node: Node) -> dict[Node, Any]:
        return {n: self.arrived.get(n, self.values[n]) for n in node.all_input_nodes}

    def _passes(self, node: Node) -> int:
        return self.frames if node in self.steady else self.timesteps

    def _analog_reads(self, passes: int) -> str:
        fewer = "" if passes == self.timesteps else ", once" if passes == 1 else ", per frame"
        return f"analog{fewer}"

    def _size(self, node: Node) -> int:
        return sum(x.numel() for x in pytree.tree_leaves(self.values[node]) if isinstance(x, Tensor))

    def _dense(self, node: Node, op: Operator) -> Work:
        """The work of one float pass, with the values that it reads and writes."""
        work = op.work(self.network, node)
        if work == Work():
            return work
        into = 0 if work.macs else sum(self._size(n) for n in {*node.all_input_nodes} & self.signals)
        return replace(work, values=into + self._size(node))

    def _has_bias(self, node: Node) -> bool:
        if node.op == "call_module":
            return getattr(graph.module_of(self.network, node), "bias", None) is not None
        given = node.args[2] if len(node.args) > 2 else None
        return node.target in graph.WEIGHTED_CALLS and node.kwargs.get("bias", given) is not None

    def _planned(self, node: Node, reads: str, dense: Work, work: Work) -> Planned:
        kind = graph.kind_of(self.network, node)
        name = graph.operator_name(self.network, node)
        return Planned(name, getattr(kind, "__name__", str(kind)), reads, dense * self.frames, work)

    def _add(self, planned: Planned, landed: list[Any]) -> None:
        """Keep an operator that costs anything, with the fan-out of every neuron to it."""
        if not landed and planned.dense == planned.work == Work() and not planned.updates:
            return
        self.plan.operators.append(planned)
        total = sum(x.sum() for x in pytree.tree_leaves(landed))
        if not isinstance(total, Tensor) or not total.requires_grad:
            return
        fans = torch.autograd.grad(total, [*self.sources.values()], retain_graph=True, allow_unused=True)
        for name, fan in zip(self.sources, fans, strict=True):
            if fan is not None:
                self.plan.fans[name].append((len(self.plan.operators) - 1, fan.round()))


def update_work(neuron: Neuron, timesteps: int) -> Work:
    """Additions and comparisons of one neuron in one step.

    Integrate: add the current, find the count, subtract it; over several steps, two additions and a
    comparison more where the running total is bounded. Tracking: add the current, find the code, subtract and
    add what was sent.
    """
    if isinstance(neuron, TrackingNeuron):
        return Work(adds=3, comparisons=1)
    bounded = timesteps > 1 and neuron.cancel and -neuron.quant_min != neuron.quant_max
    return Work(adds=2, comparisons=1) + Work(adds=2, comparisons=1) * bounded


def _plain(snn: Network) -> tuple[Network, set[Node]]:
    """A copy as it would be deployed, BatchNorm folded where it can be, in which each static map is the plain
    call that it wraps; and those calls.
    """
    network = graph.fold_batchnorm(snn)
    wrapped = {node for node, _ in graph.modules(network, Static)}
    for node in wrapped:
        inner: Any = graph.module_of(network, node).operator  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(inner, nn.Module):
            network.set_submodule(str(node.target), inner)
        elif isinstance(inner, TensorMethod):
            node.op, node.target = "call_method", inner.__name__
        else:
            node.op, node.target = "call_function", inner
    return network, wrapped  # to be read node by node, never called


def _refuse_unknown(network: Network, signals: set[Node], ops: Mapping[Any, Operator]) -> None:
    unknown: dict[str, list[str]] = {}
    for node in network.graph.nodes:
        counted = node.op in ("placeholder", "output") or graph.is_module(network, node, (Neuron,))
        if node in signals and not counted and find(network, node, ops) is None:
            kind = spelled(graph.kind_of(network, node))
            unknown.setdefault(kind, []).append(graph.operator_name(network, node))
    if unknown:
        listed = "; ".join(f"{kind} at {', '.join(map(repr, names))}" for kind, names in unknown.items())
        raise MeasurementError(
            f"cannot measure, no entry in study.energy.operators.OPS for: {listed}. Say what each costs, "
            f"for example measure(snn, x, ops=OPS | {{{next(iter(unknown))}: "
            f"Operator(per_output(functions=1))}})."
        )
