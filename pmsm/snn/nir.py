"""The first timestep of a rounded network in NIR: every count composed of NIR's own threshold nodes.

NIR (Neuromorphic Intermediate Representation; Pedersen et al., Nature Communications 15, 8122, 2024) has no
signed, multi-spike or soft-reset neuron. But a count is a sum of steps: with u the potential in thresholds,

    clip(floor(u + 1/2), -n, p) = sum_j H(u - (j - 1/2)) - sum_j H(-u - (j - 1/2)), j = 1..p and j = 1..n,

where no u + 1/2 is whole; `quantize_weights` sees to that. So one site becomes p + n `Threshold` nodes side
by side, whose spikes add up where their edges meet. All numbers are whole, or halves.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pmsm.errors import ConversionError, import_extra
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.qann.onnx import as_subsample
from pmsm.qann.program import Operation
from pmsm.snn.integer import integer_program

LARGEST = 2**23
"""Halves are exact in float32, in which NIR's readers compute, up to here."""


def export_nir(network: Network, path: str | Path, *, timesteps: int = 1) -> None:
    """Write the first timestep of a network from `quantize_weights`, or of its SNN, as a NIR file (HDF5).

    Input: whole numbers floor(x / step + 1/2), clipped to -127..127; the step stands in the graph's metadata,
    `input_step`. Output: the read-out at T=1.

    Raises:
        ConversionError: timesteps > 1; MaxPool in front of a site with negative counts; channels that are
            moved otherwise than by flattening, subsampling and zero padding; sums beyond 2^23.
        QuantizationError: as `integer`.
        MissingExtraError: without the extra `nir`.
    """
    if timesteps != 1:
        raise ConversionError(
            f"NIR holds one timestep of this network, not {timesteps}: its IF neuron sends one positive "
            f"spike at most and forgets what lies above the threshold, where ours sends several, of either "
            f"sign, and keeps the rest. Over time, use pmsm.export_npz, pmsm.export_c or "
            f"pmsm.export_program(snn, 'net.onnx', example, state=True)."
        )
    nir = import_extra("nir", "nir")
    program = integer_program(network)
    for operation in program.operations:
        if operation.kind in ("conv", "linear", "sum") and operation.largest >= LARGEST:
            raise ConversionError(
                f"{operation.path!r} can reach {operation.largest}, beyond what float32 counts by halves. "
                f"Round coarser: pmsm.quantize_weights(qann, bits=6)."
            )
    builder = _Builder(nir)
    for operation in program.operations:
        builder.shapes[operation.name] = operation.shape
        _BUILDERS[operation.kind](builder, operation)
    last = program.operations[-1]
    unit = builder.add(
        "read_out", nir.Scale(np.broadcast_to(program.output_unit, last.shape).copy()), last.name
    )
    builder.add("output", nir.Output({"output": np.array(last.shape)}), unit)
    step = float(program.operations[0].settings["step"])
    graph = nir.NIRGraph(builder.nodes, builder.edges, metadata={"input_step": np.array([step])})
    buffer = io.BytesIO()
    nir.write(buffer, graph)
    write_atomic(path, buffer.getvalue(), ConversionError)


class _Builder:
    """Nodes and edges; a signal is the sum of what the nodes in `sources` send."""

    def __init__(self, nir: Any):
        self.nir = nir
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pools: dict[str, Operation] = {}  # MaxPools, which follow the thresholds of the site behind them

    def add(self, name: str, node: Any, *signals: str) -> str:
        """Let a node read the sum of `signals`, and be the signal `name`; returns the node's own name."""
        at_end = isinstance(node, (self.nir.Input, self.nir.Output))
        own = name if at_end else f"{len(self.nodes)}_{name}"  # a user's layer may be called "input"
        self.nodes[own] = node
        self.edges += [(source, own) for signal in signals for source in self.sources[signal]]
        self.sources[name] = self.sources[own] = [own]
        return own

    def spread(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """[C] -> [C, ...] float32."""
        shaped = np.asarray(values, np.float32).reshape(-1, *[1] * (len(shape) - 1))
        return np.broadcast_to(shaped, shape).copy()


def _input(builder: _Builder, operation: Operation) -> None:
    node = builder.add("input", builder.nir.Input({"input": np.array(operation.shape)}))
    builder.sources[operation.name] = [node]


def _conv(builder: _Builder, operation: Operation) -> None:
    settings, weight = operation.settings, operation.arrays["weight"].astype(np.float32)
    into = weight.shape[1] * settings["groups"]
    whole = np.zeros((len(weight), into, *weight.shape[2:]), np.float32)
    for group, rows in enumerate(np.split(np.arange(len(weight)), settings["groups"])):
        first = group * weight.shape[1]  # written out with zeros: NIR's type check knows no groups
        whole[rows, first : first + weight.shape[1]] = weight[rows]
    geometry = (settings["stride"], settings["padding"], settings["dilation"])
    bias = operation.arrays["bias"].astype(np.float32)
    _add_conv(builder, operation.name, operation.inputs[0], whole, *geometry, bias)


def _add_conv(builder: _Builder, name: str, source: str, weight: np.ndarray, *settings: Any) -> None:
    stride, padding, dilation, bias = settings
    node = builder.nir.Conv2d(
        input_shape=tuple(builder.shapes[source][1:]), weight=weight, stride=tuple(stride),
        padding=tuple(padding), dilation=tuple(dilation), groups=1, bias=bias,
    )  # fmt: skip
    builder.add(name, node, source)


def _linear(builder: _Builder, operation: Operation) -> None:
    weight, bias = (operation.arrays[key].astype(np.float32) for key in ("weight", "bias"))
    builder.add(operation.name, builder.nir.Affine(weight, bias), operation.inputs[0])


def _sum(builder: _Builder, operation: Operation) -> None:
    sources = []
    for i, (name, worth) in enumerate(zip(operation.inputs, operation.arrays["worth"], strict=True)):
        if (worth == 1).all():
            sources += builder.sources[name]
            continue
        scale = builder.nir.Scale(builder.spread(worth, operation.shape))
        sources.append(builder.add(f"{operation.name}_branch{i}", scale, name))
    builder.sources[operation.name] = sources


def _maxpool(builder: _Builder, operation: Operation) -> None:
    builder.pools[operation.name] = operation


def _sumpool(builder: _Builder, operation: Operation) -> None:
    builder.add(operation.name, _pool(builder, operation), operation.inputs[0])


def _pool(builder: _Builder, operation: Operation) -> Any:
    sizes = (np.array(operation.settings[key]) for key in ("kernel", "stride", "padding"))
    return builder.nir.SumPool2d(*sizes)


def _move(builder: _Builder, operation: Operation) -> None:
    source, index = operation.inputs[0], operation.arrays["index"]
    before = builder.shapes[source]
    if len(operation.inputs) == 1 and np.array_equal(index.ravel(), np.arange(int(np.prod(before)))):
        if len(operation.shape) != 1:
            raise ConversionError(f"NIR has no reshape for {operation.path!r} but to one dimension.")
        flatten = builder.nir.Flatten({"input": np.array(before)}, start_dim=0)
        builder.add(operation.name, flatten, source)
        return
    taken = as_subsample(index, before) if len(operation.inputs) == 1 else None
    if taken is None:
        raise ConversionError(
            f"NIR has no node that moves values as {operation.path!r} does. Flattening, subsampling and "
            f"channels of zeros have a form; pmsm.export_npz holds any."
        )
    stride, (in_front, _) = taken
    weight = np.zeros((operation.shape[0], before[0], 1, 1), np.float32)
    weight[in_front + np.arange(before[0]), np.arange(before[0])] = 1
    nothing = np.zeros(len(weight), np.float32)
    _add_conv(builder, operation.name, source, weight, stride, (0, 0), (1, 1), nothing)


def _neuron(builder: _Builder, operation: Operation) -> None:
    """p thresholds, and, of the negated potential, n more."""
    nir, name, potential, pool = builder.nir, operation.name, operation.inputs[0], None
    settings, (threshold, start) = operation.settings, (operation.arrays[k] for k in ("threshold", "start"))
    if potential in builder.pools:
        pool = builder.pools[potential]
        potential = pool.inputs[0]
        if potential in builder.pools or settings["quant_min"] < 0:
            raise ConversionError(
                f"NIR has no MaxPool. In front of {operation.path!r} it could be composed of sums and "
                f"thresholds only if it were alone and no count were negative."
            )
    shape, spikes = builder.shapes[potential], []
    for j in range(1, settings["quant_max"] + 1):
        above = nir.Threshold(builder.spread((j - 0.5) * threshold - start, shape))
        spike = builder.add(f"{name}_above{j}", above, potential)
        if pool is not None:  # the largest of binary values: whether their sum is above a half
            pooled = builder.add(f"{name}_sum{j}", _pool(builder, pool), spike)
            half = np.full(operation.shape, 0.5, np.float32)
            spike = builder.add(f"{name}_any{j}", nir.Threshold(half), pooled)
        spikes.append(spike)
    if settings["quant_min"] < 0:
        minus = np.full(shape, -1, np.float32)
        negated = builder.add(f"{name}_negated", nir.Scale(minus), potential)
        below = []
        for j in range(1, -settings["quant_min"] + 1):
            node = nir.Threshold(builder.spread((j - 0.5) * threshold + start, shape))
            below.append(builder.add(f"{name}_below{j}", node, negated))
        spikes.append(builder.add(f"{name}_minus", nir.Scale(minus), *below))
    builder.sources[name] = spikes


_BUILDERS: dict[str, Callable[[_Builder, Operation], None]] = {
    "input": _input, "conv": _conv, "linear": _linear, "sum": _sum, "maxpool": _maxpool,
    "sumpool": _sumpool, "move": _move, "neuron": _neuron,
}  # fmt: skip
