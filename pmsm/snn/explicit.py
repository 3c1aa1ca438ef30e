"""A network as plain operators, its state going in and out as tensors: what torch.export and ONNX hold."""

import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import ConversionError, import_extra
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron, TrackingNeuron
from pmsm.methods.rounding import count
from pmsm.methods.unary import UnaryNeuron
from pmsm.snn.temporal import Static, _is_number, on_signals

OPSET = 20
"""ONNX operator set of the files."""


class Memory:
    """What the modules of one network remember between two timesteps, in the order of execution."""

    def __init__(self) -> None:
        self.t: Tensor | None = None
        self._before: Iterator[Tensor] = iter(())
        self.after: list[Tensor] = []

    def open(self, t: Tensor, before: tuple[Tensor, ...]) -> None:
        """A new timestep: `t`, scalar, is how many are done; `before` what was remembered after the last."""
        self.t, self._before, self.after = t, iter(before), []

    def recall(self, like: Tensor, start: Tensor | float = 0.0) -> Tensor:
        """The next tensor remembered, shaped like `like`; in the first timestep `start`."""
        kept = next(self._before, torch.zeros_like(like))
        return torch.where(self.t == 0, torch.as_tensor(start, dtype=like.dtype, device=like.device), kept)


class PlainNeuron(nn.Module):
    """`Neuron`, or `TrackingNeuron`, in operators that return new tensors."""

    def __init__(self, neuron: Neuron, memory: Memory):
        super().__init__()
        self.neuron, self.memory = neuron, memory

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] input current of one timestep -> [N, ...] spikes times the threshold."""
        neuron, memory = self.neuron, self.memory
        if isinstance(neuron, TrackingNeuron):
            sent = memory.recall(x)
            wanted = count(x / neuron.threshold + neuron.initial, neuron.quant_min, neuron.quant_max)
            sent = sent + (wanted - sent).clamp(-neuron.burst, neuron.burst)
            memory.after.append(sent)
            return sent * neuron.threshold
        v = memory.recall(x, neuron.initial) + x / neuron.threshold
        spikes = count(v, *neuron._burst())
        first, step, side = neuron._bound_rule()
        if side:
            bound = memory.recall(x, float(first))
            spikes = torch.maximum(spikes, bound) if side > 0 else torch.minimum(spikes, bound)
        memory.after.append(v - spikes)
        if side:
            memory.after.append(bound - spikes + step)  # pyright: ignore[reportPossiblyUnboundVariable]
        return spikes * neuron.threshold


class PlainStatic(nn.Module):
    """`Static` in operators that return new tensors."""

    def __init__(self, static: Static, memory: Memory):
        super().__init__()
        self.operator, self.varies, self.memory = static.operator, static.varies, memory

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inputs of one timestep -> its outputs."""
        memory = self.memory
        assert memory.t is not None
        t = memory.t + 1

        def mean(x: Tensor) -> Tensor:
            if not _is_number(x):
                return x
            memory.after.append(memory.recall(x) + x)
            return memory.after[-1] / t

        def step(y: Any) -> Any:
            if not _is_number(y):
                return y
            total, last = y * t, memory.recall(y)
            memory.after.append(total)
            return total - last

        args, kwargs = on_signals(mean, self.varies, (args, kwargs))
        return pytree.tree_map(step, self.operator(*args, **kwargs))


class PlainQuantizer(nn.Module):
    """A quantizer, or a neuron at T=1, in operators that return new tensors."""

    def __init__(self, site: Quantizer | Neuron):
        super().__init__()
        burst = site.burst if isinstance(site, TrackingNeuron) else max(-site.quant_min, site.quant_max)
        self.quant_min, self.quant_max = max(site.quant_min, -burst), min(site.quant_max, burst)
        threshold = site.threshold if isinstance(site, Neuron) else site.threshold()
        self.register_buffer("threshold", threshold)
        self.register_buffer("initial", site.initial.clone())
        self.threshold: Tensor
        self.initial: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> [N, ...] whole multiples of the threshold."""
        return count(x / self.threshold + self.initial, self.quant_min, self.quant_max) * self.threshold


class Plain(nn.Module):
    """A quantized network, or a spiking one at T=1: inputs -> outputs, without any state."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        for kind in (Quantizer, Neuron):
            for node, site in list(graph.modules(self.network, kind)):
                self.network.set_submodule(str(node.target), PlainQuantizer(site))
        for node, static in list(graph.modules(self.network, Static)):
            if isinstance(static.operator, nn.Module):
                self.network.set_submodule(str(node.target), static.operator)

    def forward(self, *inputs: Tensor) -> Any:
        """As the network itself."""
        return self.network(*inputs)


class Step(nn.Module):
    """One timestep of a spiking network: (inputs, t, state) -> (read-out, t + 1, state).

    `t`, scalar, counts the timesteps done; it and the whole state are zeros before the first. The read-out is
    that of `simulate` after this timestep: the mean over the steps so far, or, in tracking mode, the sum.
    """

    def __init__(self, snn: Network):
        super().__init__()
        self.network, self.memory = copy.deepcopy(snn).eval(), Memory()
        self.integrates = snn.meta["mode"] == "integrate"
        for node, neuron in list(graph.modules(self.network, Neuron)):
            self.network.set_submodule(str(node.target), PlainNeuron(neuron, self.memory))
        for node, static in list(graph.modules(self.network, Static)):
            self.network.set_submodule(str(node.target), PlainStatic(static, self.memory))
        self.inputs = graph.input_count(self.network)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See above; outputs: read-outs, t, state."""
        inputs, t, state = tensors[: self.inputs], tensors[self.inputs], tensors[self.inputs + 1 :]
        self.memory.open(t, state)
        found = []
        for y in pytree.tree_leaves(self.network(*inputs)):
            if self.integrates and _is_number(y):
                self.memory.after.append(self.memory.recall(y) + y)
                y = self.memory.after[-1] / (t + 1)
            found.append(y)
        return (*found, t + 1, *self.memory.after)

    def first(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """t and the state before the first timestep, for inputs of this size: zeros."""
        t = inputs[0].new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            self(*inputs, t)
        return (t, *(torch.zeros_like(x) for x in self.memory.after))


def export_program(network: Network, path: str | Path, example: Any, *, state: bool = False) -> None:
    """Write any network that converts as plain operators in floating point: .pt2 (torch.export) or .onnx.

    Neither reader needs this library. The batch is dynamic. For int8 kernels see `export_onnx`.

    Args:
        network: a calibrated QANN, or an SNN from `convert`.
        path: ends in .pt2, for `torch.export.load`, or .onnx (opset 20, extra `onnx`).
        example: one batch of at least two samples, or a tuple of inputs.
        state: of an SNN, one timestep with its state in and out, for any T: inputs, t and state in; read-out,
            t and state out, in the same order; t and state are zeros before the first timestep, see `Step`.
            False: the network at T=1.

    Raises:
        ConversionError: a path with another ending, an example of one sample, state=True for a QANN or an
            unrolled network, a network that is made for one size of batch or holds operators which the format
            does not know.
        MissingExtraError: .onnx without the extra `onnx`.
    """
    graph.require(network, "export_program", ConversionError)
    path, inputs = Path(path), tuple(example) if isinstance(example, tuple | list) else (example,)
    if path.suffix not in (".pt2", ".onnx"):
        raise ConversionError(f"export_program writes .pt2 or .onnx, got {path.name!r}.")
    if not all(isinstance(x, Tensor) and x.dim() and len(x) > 1 for x in inputs):
        raise ConversionError(
            "export_program needs an example batch of two samples or more: one has no size."
        )
    program = _exported(network, inputs, state)
    if path.suffix == ".pt2":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        write_atomic(path, buffer.getvalue(), ConversionError)
        return
    import_extra("onnxscript", "onnx")
    names = _names(program, len(inputs), state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns of deprecated calls of its own
            written = torch.onnx.export(program, opset_version=OPSET, dynamo=True, verbose=False, **names)
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(f"ONNX does not hold this network: {error}") from error
    assert written is not None
    write_atomic(path, written.model_proto.SerializeToString(), ConversionError)


@torch.no_grad()
def _exported(network: Network, inputs: tuple[Tensor, ...], state: bool) -> Any:
    """The network as a `torch.export.ExportedProgram`."""
    if any(isinstance(module, UnaryNeuron) for module in network.modules()):
        raise ConversionError("export_program takes multi-spikes: convert without unroll=True.")
    if state and "mode" not in network.meta:
        raise ConversionError(
            "a QANN has no state: snn = pmsm.convert(qann), then export it with state=True."
        )
    module: Any = Step(network) if state else Plain(network)
    arguments = (*inputs, *module.first(inputs)) if state else inputs
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if x.dim() else None for x in arguments)
    try:
        return torch.export.export(module, arguments, dynamic_shapes=(shapes,), strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConversionError(
            f"torch.export cannot hold this network with a batch of any size: {error}. Write its forward "
            f"pass without numbers that were read from the example's batch."
        ) from error


def _names(program: Any, inputs: int, state: bool) -> dict[str, Any]:
    """Names of what goes in and out of the ONNX file."""
    signature = program.graph_signature
    entering, leaving = len(signature.user_inputs), len(signature.user_outputs)
    held = [f"state_{i}" for i in range(entering - inputs - 1)] if state else []
    outputs = leaving - len(held) - state
    first = ["input"] if inputs == 1 else [f"input_{i}" for i in range(inputs)]
    last = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    moved = [f"{name}_next" for name in (["t"] if state else []) + held]
    return {"input_names": first + (["t"] if state else []) + held, "output_names": last + moved}
