"""A rounded network as an ONNX file whose 8-bit kernels compute what the integer network does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pmsm.errors import QuantizationError, import_extra
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.qann.align import ODD_PARTS
from pmsm.qann.program import Operation, Program, compile_program

OPSET = 17
"""ONNX operator set of the files; IR version 8."""


def export_onnx(qann: Network, path: str | Path, example: Tensor) -> None:
    """Write a network from `quantize_weights` as an ONNX file: input [N, ...] float32, output [N, outputs].

    The batch is dynamic. Weights are int8 with one scale per output channel; counts are uint8 with scale 1,
    the most negative count as 0, between QuantizeLinear and DequantizeLinear (QDQ), so that a runtime puts
    its 8-bit kernels there. In these units a threshold is 1 and a layer's scale is one over an odd number: no
    sum lies halfway between two counts, and the runtime's rounding of ties does not matter. A residual sum is
    exact where `align` found a common fraction for all channels that 8 bits hold; other sums, and layers that
    read averages, stay in float32: slower, and as exact as float32 is. OpenVINO takes bfloat16 for them on
    some processors unless INFERENCE_PRECISION_HINT says f32.

    Args:
        qann: from `quantize_weights`, or trained no further since.
        path: of the file; written whole or not at all.
        example: [N, ...], whose shape without the batch the network was rounded for.

    Raises:
        QuantizationError: see `compile_program`; more than 255 levels; an example of another shape.
        MissingExtraError: without the extra `onnx`.
    """
    onnx = import_extra("onnx", "onnx")
    program = compile_program(qann)
    shape = program.operations[0].shape
    if not isinstance(example, Tensor) or tuple(example.shape[1:]) != shape:
        found = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise QuantizationError(
            f"this network takes [N, {', '.join(map(str, shape))}], the example is {found}."
        )
    model = _Writer(program, onnx).model()
    onnx.checker.check_model(model, full_check=True)
    write_atomic(path, model.SerializeToString(), QuantizationError)


@dataclass(frozen=True)
class _Bytes:
    """A sum in 8 bits: round(parts * layer), from `least` to least + 255, + worth * codes."""

    layer: str
    parts: int
    worth: int
    least: int


class _Writer:
    """Nodes and constants of one file. Layers return thresholds of the site behind them, sites counts."""

    def __init__(self, program: Program, onnx: Any):
        program = replace(program, operations=tuple(map(_named_apart, program.operations)))
        self.program, self.onnx = program, onnx
        self.by_name = {operation.name: operation for operation in program.operations}
        self.readers: dict[str, list[Operation]] = {op.name: [] for op in program.operations}
        for operation in program.operations:
            for name in operation.inputs:
                self.readers[name].append(operation)
        self.nodes: list[Any] = []
        self.names: set[str] = set()
        self.constants: dict[str, Any] = {}
        self.codes: dict[str, int] = {}  # signals that are uint8, and their zero points
        self.whole: dict[str, str] = {}  # layers that return whole numbers, and what a threshold is there

    def model(self) -> Any:
        """The whole file."""
        for operation in self.program.operations:
            _WRITERS[operation.kind](self, operation)
        helper, last = self.onnx.helper, self.program.operations[-1]
        if last.kind not in ("conv", "linear"):
            raise QuantizationError(
                f"the last operator, {last.path!r}, is no layer: what it returns has no scale."
            )
        self.node("Identity", [last.name], "output")
        kind = self.onnx.TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("input", kind, ["N", *self.program.operations[0].shape])]
        outputs = [helper.make_tensor_value_info("output", kind, ["N", *last.shape])]
        body = helper.make_graph(self.nodes, "pmsm", inputs, outputs, list(self.constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(body, opset_imports=opset, ir_version=8, producer_name="pmsm")

    def node(self, kind: str, inputs: list[str], output: str, **settings: Any) -> str:
        """Add a node, once; returns the name of its result."""
        if output not in self.names:
            made = self.onnx.helper.make_node(kind, inputs, [output], name=f"{output}.{kind}", **settings)
            self.nodes.append(made)
            self.names.add(output)
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, once; returns its name."""
        if name not in self.constants:
            array = np.array(value, order="C")
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def quantized(self, x: str, name: str, least: int, most: int, *, parts: int = 1) -> str:
        """Add round(parts * x), between least and most, as uint8 codes called `name`, the least one as 0."""
        if most - least > 255:
            raise QuantizationError(f"{name!r} has counts {least}..{most}: 8 bits hold 256 levels at most.")
        self.codes[name] = -least
        constants, axis = [self.scale(1 / parts), self.byte(-least)], {}
        if x in self.whole:
            zeros = np.full(self.constants[self.whole[x]].dims[0], -least, np.uint8)
            constants, axis = [self.whole[x], self.constant(f"{name}.zeros", zeros)], {"axis": 1}
        if most - least == 255:
            return self.node("QuantizeLinear", [x, *constants], name, **axis)
        codes = self.node("QuantizeLinear", [x, *constants], f"{name}.unclipped", **axis)
        return self.node("Clip", [codes, self.byte(0), self.byte(most - least)], name)

    def floats(self, name: str, worth: float = 1.0) -> str:
        """A signal in float: counts times `worth`, or what is float already."""
        if name not in self.codes:
            return name
        constants = [self.scale(worth), self.byte(self.codes[name])]
        return self.node("DequantizeLinear", [name, *constants], f"{name}.times_{worth:.9g}")

    def scale(self, value: float) -> str:
        """A float32 constant."""
        return self.constant(f"scale_{value:.9g}", np.float32(value))

    def byte(self, value: int) -> str:
        """A uint8 constant: a zero point or a bound."""
        return self.constant(f"byte_{value}", np.uint8(value))

    def only_reader(self, operation: Operation) -> Operation | None:
        """Who reads a layer or a sum; None behind the last."""
        readers = self.readers[operation.name]
        if len(readers) > 1 or (not readers and operation is not self.program.operations[-1]):
            raise QuantizationError(
                f"{operation.path!r} is read by {len(readers)} operators, and has an 8-bit form only for one."
            )
        return readers[0] if readers else None

    def site(self, operation: Operation | None) -> Operation | None:
        """The site behind a layer or a sum; None behind the last layer."""
        while operation is not None and operation.kind != "neuron":
            if operation.kind in ("sumpool", "move") or (operation.kind in ("conv", "linear")):
                raise QuantizationError(f"{operation.path!r} reads what no site has coded.")
            operation = self.only_reader(operation)
        return operation


def _named_apart(operation: Operation) -> Operation:
    """The names of signals behind a dot, so that none can be "input", "output" or that of a constant."""
    inputs = tuple(f".{name}" for name in operation.inputs)
    return replace(operation, name=f".{operation.name}", inputs=inputs)


def _input(writer: _Writer, operation: Operation) -> None:
    """As `InputGrid`, operation by operation: runtimes round near ties in ways of their own."""
    scaled = writer.node("Div", ["input", writer.scale(operation.settings["step"])], "input_in_steps")
    above = writer.node("Add", [scaled, writer.scale(0.5)], "input_and_half")
    whole = writer.node("Floor", [above], "input_in_whole_steps")
    writer.quantized(whole, operation.name, -operation.largest, operation.largest)


def _layer(writer: _Writer, operation: Operation) -> None:
    name, reader = operation.name, writer.only_reader(operation)
    site = writer.site(reader)
    bias = operation.arrays["bias"].astype(np.int64)
    if site is None or reader is None:
        unit = writer.program.output_unit
    else:
        worth = np.ones(1, np.int64)
        if reader.kind == "sum":
            worth = reader.arrays["worth"][reader.inputs.index(name)].astype(np.int64)
        unit = worth / site.arrays["threshold"]
        if reader.kind != "sum" or name == _first_layer(writer, reader):
            bias = bias + site.arrays["start"] // worth  # whole: see `quantize_weights`
    unit = np.broadcast_to(unit, bias.shape)
    in_float = operation.inputs[0] not in writer.codes  # sums of windows are too wide for 8 bits
    if in_float and site is not None and reader is not None and reader.kind == "neuron":
        thresholds = site.arrays["threshold"].astype(np.float32)
        writer.whole[name] = writer.constant(f"{name}.threshold", thresholds)
        unit = np.ones_like(unit)
    scales = writer.constant(f"{name}.unit", unit.astype(np.float32))

    def whole(part: str, values: np.ndarray) -> str:
        """Name of the constant as floats: kept as whole numbers wherever engines read them exactly."""
        if in_float:
            by_row = unit.reshape(-1, *[1] * (values.ndim - 1))
            return writer.constant(f"{name}.{part}", (values * by_row).astype(np.float32))
        zeros = writer.constant(f"{name}.{part}_zeros", np.zeros(len(bias), values.dtype))
        stored = writer.constant(f"{name}.{part}", values)
        return writer.node("DequantizeLinear", [stored, scales, zeros], f"{name}.{part}_floats", axis=0)

    inputs = [
        writer.floats(operation.inputs[0]),
        whole("weight", operation.arrays["weight"]),
        whole("bias", bias.astype(np.int32)),
    ]
    if operation.kind == "linear":
        writer.node("Gemm", inputs, name, transB=1)
        return
    geometry = operation.settings
    writer.node(
        "Conv", inputs, name, strides=list(geometry["stride"]), pads=[*geometry["padding"]] * 2,
        dilations=list(geometry["dilation"]), group=geometry["groups"],
    )  # fmt: skip


def _first_layer(writer: _Writer, operation: Operation) -> str | None:
    """The branch of a sum that brings the initial potential of its site along."""
    layers = [name for name in operation.inputs if writer.by_name[name].kind in ("conv", "linear")]
    return layers[0] if layers else None


def _sum(writer: _Writer, operation: Operation) -> None:
    site = writer.site(operation)
    if site is None:
        raise QuantizationError(f"no site codes the sum {operation.path!r}.")
    threshold, terms = site.arrays["threshold"], []
    eight = _in_bytes(writer, operation, site)
    for i, name in enumerate(operation.inputs):
        worth = operation.arrays["worth"][i] / threshold
        if eight is not None and name == eight.layer:
            branch = f"{operation.name}.branch"
            writer.quantized(name, branch, eight.least, eight.least + 255, parts=eight.parts)
            terms.append(writer.floats(branch, 1 / eight.parts))
        elif eight is not None:
            terms.append(writer.floats(name, eight.worth / eight.parts))
        elif writer.by_name[name].kind in ("conv", "linear", "sum"):
            terms.append(name)
        else:
            shaped = worth.astype(np.float32).reshape(-1, *[1] * (len(operation.shape) - 1))
            factor = writer.constant(f"{operation.name}.worth_{i}", shaped)
            terms.append(writer.node("Mul", [writer.floats(name), factor], f"{operation.name}.branch{i}"))
    writer.node("Add", terms, operation.name)
    if _first_layer(writer, operation) is None and bool(site.arrays["start"].any()):
        raise QuantizationError(
            f"the sum {operation.path!r} has no layer to bring an initial potential along."
        )


def _in_bytes(writer: _Writer, operation: Operation, site: Operation) -> _Bytes | None:
    """How a sum is added in 8 bits without loss; None where it is not."""
    kinds = [writer.by_name[name].kind in ("conv", "linear") for name in operation.inputs]
    codes = [name for name, layer in zip(operation.inputs, kinds, strict=True) if not layer]
    if sum(kinds) != 1 or len(codes) != 1 or codes[0] not in writer.codes:
        return None
    i = kinds.index(False)
    worth, threshold = (
        operation.arrays["worth"][i].astype(np.int64),
        site.arrays["threshold"].astype(np.int64),
    )
    carried = worth > 0
    for parts in reversed(ODD_PARTS):
        found = worth[carried] * parts // threshold[carried]
        exact = (worth[carried] * parts == found * threshold[carried]).all() and len(set(found.tolist())) == 1
        if not exact:
            continue
        least, most = _counts(writer, codes[0])
        below = int(found[0]) * most - parts * site.settings["quant_min"]
        above = parts * site.settings["quant_max"] - int(found[0]) * least
        spare = 255 - below - above  # beyond these ends, the sum saturates whatever the codes say
        return (
            None if spare < 0 else _Bytes(operation.inputs[1 - i], parts, int(found[0]), -below - spare // 2)
        )
    return None


def _counts(writer: _Writer, name: str) -> tuple[int, int]:
    """Smallest and largest count of a site or of what moves its counts."""
    operation = writer.by_name[name]
    while operation.kind != "neuron":
        if operation.kind == "input":
            return -operation.largest, operation.largest
        operation = writer.by_name[operation.inputs[0]]
    return operation.settings["quant_min"], operation.settings["quant_max"]


def _neuron(writer: _Writer, operation: Operation) -> None:
    source, pools = writer.by_name[operation.inputs[0]], []
    while source.kind == "maxpool" and source.inputs[0] not in writer.codes:
        pools.append(source)  # rounding is monotone: pool the counts, a quarter of the bytes
        source = writer.by_name[source.inputs[0]]
    name = operation.name
    least, most = operation.settings["quant_min"], operation.settings["quant_max"]
    x = writer.quantized(source.name, f"{name}.unpooled" if pools else name, least, most)
    for pool in reversed(pools):
        _pool(writer, pool, "MaxPool", x, name)
        writer.codes[name] = writer.codes[x]


def _pool(writer: _Writer, operation: Operation, kind: str, x: str, name: str, **more: Any) -> str:
    kernel, stride, padding = (list(operation.settings[key]) for key in ("kernel", "stride", "padding"))
    return writer.node(kind, [x], name, kernel_shape=kernel, strides=stride, pads=padding * 2, **more)


def _maxpool(writer: _Writer, operation: Operation) -> None:
    if operation.inputs[0] in writer.codes:
        _pool(writer, operation, "MaxPool", operation.inputs[0], operation.name)
        writer.codes[operation.name] = writer.codes[operation.inputs[0]]


def _sumpool(writer: _Writer, operation: Operation) -> None:
    name, x = operation.name, writer.floats(operation.inputs[0])
    kernel = operation.settings["kernel"]
    if operation.shape[1:] == (1, 1) and kernel == writer.by_name[operation.inputs[0]].shape[1:]:
        axes = writer.constant("pixels", np.array([2, 3], np.int64))
        writer.node("ReduceSum", [x, axes], name, keepdims=1)
        return
    channels = operation.shape[0]  # no AveragePool: OpenVINO would round the means of codes to 8 bits
    ones = writer.constant(f"{name}.ones", np.ones((channels, 1, *kernel), np.float32))
    geometry = {"strides": [*operation.settings["stride"]], "pads": [*operation.settings["padding"]] * 2}
    writer.node("Conv", [x, ones], name, group=channels, **geometry)


def _move(writer: _Writer, operation: Operation) -> None:
    index, name, x = operation.arrays["index"], operation.name, operation.inputs[0]
    before = writer.by_name[x].shape
    subsampled = as_subsample(index, before)
    one = len(operation.inputs) == 1
    if one and np.array_equal(index.ravel(), np.arange(int(np.prod(before)))):
        shape = writer.constant(f"{name}.shape", np.array([-1, *operation.shape], np.int64))
        writer.node("Reshape", [x, shape], name)
    elif one and subsampled is not None:
        stride, border = subsampled
        if stride != (1, 1):  # a pool of one pixel: runtimes have fast kernels for it, and slow ones to slice
            writer.node("MaxPool", [x], x := f"{name}.sampled", kernel_shape=[1, 1], strides=list(stride))
        pads = writer.constant(f"{name}.pads", np.array([0, border[0], 0, 0, 0, border[1], 0, 0], np.int64))
        zero = writer.codes.get(operation.inputs[0])
        writer.node("Pad", [x, pads, *([] if zero is None else [writer.byte(zero)])], name)
    else:
        _gather(writer, operation)
        return
    if operation.inputs[0] in writer.codes:
        writer.codes[name] = writer.codes[operation.inputs[0]]


def _gather(writer: _Writer, operation: Operation) -> None:
    """Any other move: the inputs end to end, a zero behind them, and one index for each value."""
    index, name = operation.arrays["index"], operation.name
    flat = []
    for source in operation.inputs:
        shape = writer.constant("flat", np.array([0, -1], np.int64))
        flat.append(writer.node("Reshape", [writer.floats(source), shape], f"{name}.{source}.flat"))
    joined = writer.node("Concat", flat, f"{name}.joined", axis=1)
    pads = writer.constant("zero_behind", np.array([0, 0, 0, 1], np.int64))
    padded = writer.node("Pad", [joined, pads], f"{name}.padded")
    total = sum(int(np.prod(writer.by_name[source].shape)) for source in operation.inputs)
    where = writer.constant(f"{name}.index", np.where(index < 0, total, index).astype(np.int64).ravel())
    moved = writer.node("Gather", [padded, where], f"{name}.moved", axis=1)
    shape = writer.constant(f"{name}.shape", np.array([-1, *operation.shape], np.int64))
    writer.node("Reshape", [moved, shape], name)


def as_subsample(
    index: np.ndarray, before: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """((stride down, stride right), (zero channels in front, behind)) where a move is just that, or None."""
    if index.ndim != 3 or len(before) != 3:
        return None
    filled = np.flatnonzero((index >= 0).any((1, 2)))
    stride = tuple(-(-b // a) for a, b in zip(index.shape[1:], before[1:], strict=True))
    border = (int(filled[0]), index.shape[0] - 1 - int(filled[-1])) if len(filled) else (0, 0)
    taken = np.arange(int(np.prod(before))).reshape(before)[:, :: stride[0], :: stride[1]]
    padded = np.pad(taken, (border, (0, 0), (0, 0)), constant_values=-1)
    same = padded.shape == index.shape and np.array_equal(padded, index)
    return (stride, border) if same else None  # pyright: ignore[reportReturnType]


_WRITERS: dict[str, Callable[[_Writer, Operation], None]] = {
    "input": _input, "conv": _layer, "linear": _layer, "sum": _sum, "neuron": _neuron,
    "maxpool": _maxpool, "sumpool": _sumpool, "move": _move,
}  # fmt: skip
