"""The spiking network on whole numbers alone: int8 weights, small counts, int32 sums and thresholds."""

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.qann.program import INT32, Operation, Program, compile_program
from pmsm.qann.units import InputGrid
from pmsm.snn.temporal import Static


@dataclass(frozen=True)
class IntegerRun:
    """What an integer network returned.

    Args:
        sums: [T, N, outputs] int64, the outputs of the steps so far, added up, in units of `unit`.
        unit: [outputs] float64, what one count of the output is worth.
        counts: site -> [T, N, ...] int32, the signed counts of its neurons, where they were recorded.
    """

    sums: Tensor
    unit: Tensor
    counts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def outputs(self) -> Tensor:
        """[T, N, outputs] float64, the read-out after each step: the mean over the steps so far."""
        steps = torch.arange(1, len(self.sums) + 1).view(-1, *[1] * (self.sums.dim() - 1))
        return self.sums * self.unit / steps

    @property
    def output(self) -> Tensor:
        """[N, outputs] float64, the read-out after the last step."""
        return self.outputs[-1]


class IntegerNetwork:
    """A network on whole numbers; call it with a batch.

    Between the rounding of the input and the read-out there is no floating-point number, so the result does
    not depend on machine, number of threads or batch size.
    """

    def __init__(self, program: Program):
        self.program = program
        self.grid = InputGrid(program.operations[0].settings["step"])
        self.weights = {
            operation.name: {key: torch.from_numpy(array.copy()) for key, array in operation.arrays.items()}
            for operation in program.operations
        }

    @torch.no_grad()
    def __call__(self, x: Tensor, timesteps: int = 1, *, record: bool = False) -> IntegerRun:
        """Run [N, ...] over T timesteps, the same input at every step.

        Raises:
            SimulationError: T < 1 or so large that a sum could leave int32, an input of another shape, or
            with NaN or Inf.
        """
        self.check(timesteps)
        counted = self.count_input(x)
        state: dict[str, dict[str, Tensor]] = {op.name: {} for op in self.program.operations}
        total, sums, counts = 0, [], {}
        for _ in range(timesteps):
            values: dict[str, Tensor] = {}
            for operation in self.program.operations:
                inputs = [values[name] for name in operation.inputs] or [counted]
                values[operation.name] = self.step(operation, inputs, state[operation.name])
                if record and operation.kind == "neuron":
                    counts.setdefault(operation.path, []).append(values[operation.name])
            total = total + values[self.program.operations[-1].name].long()
            sums.append(total)
        unit = torch.from_numpy(self.program.output_unit)
        return IntegerRun(torch.stack(sums), unit, {key: torch.stack(k) for key, k in counts.items()})

    def step(self, operation: Operation, inputs: list[Tensor], state: dict[str, Tensor]) -> Tensor:
        """The result of one operation at one timestep, int32; `state` is what it remembers."""
        return _STEPS[operation.kind](operation, self.weights[operation.name], inputs, state)

    def check(self, timesteps: int) -> None:
        """Refuse a number of timesteps that is none, or with which a sum could leave int32."""
        if type(timesteps) is not int or timesteps < 1:
            raise SimulationError(f"timesteps must be a whole number >= 1, got {timesteps!r}.")
        held = {op.name: op.largest for op in self.program.operations}
        for operation in self.program.operations:
            if operation.kind not in ("neuron", "maxpool"):
                continue
            arriving = held[operation.inputs[0]]
            most = (INT32 - 2 * int(operation.arrays.get("threshold", torch.zeros(1)).max())) // max(
                1, arriving
            )
            if operation.kind == "neuron" and timesteps == 1:
                continue  # what one step can bring was checked where the network was compiled
            if timesteps > most:
                raise SimulationError(
                    f"after {timesteps} steps the potential of {operation.path!r} could leave int32. Run at "
                    f"most {most} steps, or round the weights coarser, pmsm.quantize_weights(qann, bits=4)."
                )

    def count_input(self, x: Tensor) -> Tensor:
        """[N, ...] analog -> [N, ...] int32, -127..127; the only place where floats are read."""
        shape = self.program.operations[0].shape
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != shape or not len(x):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise SimulationError(
                f"this integer network takes [N, {', '.join(map(str, shape))}], got {found}."
            )
        if not bool(torch.isfinite(x).all()):
            raise SimulationError("the input holds NaN or Inf. Remove or repair those samples.")
        return self.grid.counts(x).to(torch.int32)


def integer(network: Network) -> IntegerNetwork:
    """The integer form of a network from `quantize_weights`, or of what `convert` made of it.

    Raises:
        QuantizationError: see `compile_program`; softmax, LayerNorm and others that need floats are named.
    """
    return IntegerNetwork(integer_program(network))


def integer_program(network: Network) -> Program:
    """The program of a rounded QANN or SNN; static maps are taken for the operators that they wrap."""
    graph.require(network, "integer", SimulationError)
    network = copy.deepcopy(network)
    for node, static in list(graph.modules(network, Static)):
        if isinstance(static.operator, nn.Module):
            network.set_submodule(str(node.target), static.operator)
    return compile_program(network)


# ----------------------------------------------------------------------------------------------------------
# One timestep of each kind of operation
# ----------------------------------------------------------------------------------------------------------


def _input(_: Operation, __: Any, inputs: list[Tensor], ___: Any) -> Tensor:
    return inputs[0]


def _linear(_: Operation, weights: dict[str, Tensor], inputs: list[Tensor], __: Any) -> Tensor:
    return product(inputs[0], weights["weight"].t()) + weights["bias"]


def _conv(operation: Operation, weights: dict[str, Tensor], inputs: list[Tensor], _: Any) -> Tensor:
    weight, groups = weights["weight"], operation.settings["groups"]
    (down, right), out = operation.settings["padding"], []
    x = F.pad(inputs[0], (right, right, down, down))
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
    for part, kernel in parts:
        windows = _windows(
            part, kernel.shape[2:], operation.settings["stride"], operation.settings["dilation"]
        )
        rows = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
        out.append(product(rows, kernel.flatten(1).t()))
    n, (_, height, width) = len(x), operation.shape
    return (torch.cat(out, 1) + weights["bias"]).view(n, height, width, -1).permute(0, 3, 1, 2).contiguous()


def _sum(_: Operation, weights: dict[str, Tensor], inputs: list[Tensor], __: Any) -> Tensor:
    return sum((x * _on_channels(w, x) for x, w in zip(inputs, weights["worth"], strict=True)), inputs[0] * 0)


def _maxpool(operation: Operation, _: Any, inputs: list[Tensor], state: dict[str, Tensor]) -> Tensor:
    state["total"] = state["total"] + inputs[0] if "total" in state else inputs[0]
    (down, right) = operation.settings["padding"]
    padded = F.pad(state["total"], (right, right, down, down), value=-INT32)
    found = _windows(padded, operation.settings["kernel"], operation.settings["stride"]).amax((4, 5))
    sent, state["sent"] = state.get("sent"), found
    return found if sent is None else found - sent


def _sumpool(operation: Operation, _: Any, inputs: list[Tensor], __: Any) -> Tensor:
    (down, right) = operation.settings["padding"]
    padded = F.pad(inputs[0], (right, right, down, down))
    windows = _windows(padded, operation.settings["kernel"], operation.settings["stride"])
    return windows.sum((4, 5), dtype=torch.int32)


def _move(operation: Operation, weights: dict[str, Tensor], inputs: list[Tensor], _: Any) -> Tensor:
    flat = torch.cat([x.flatten(1) for x in inputs], 1)
    index = weights["index"].flatten().long()
    moved = flat[:, index.clamp(min=0)] * (index >= 0)
    return moved.to(torch.int32).view(len(flat), *operation.shape)


def _neuron(
    operation: Operation, weights: dict[str, Tensor], inputs: list[Tensor], state: dict[str, Tensor]
) -> Tensor:
    """As `Neuron`: floor(v / threshold + 1/2) = floor((v + floor(threshold / 2)) / threshold), v whole."""
    threshold = _on_channels(weights["threshold"], inputs[0])
    v = inputs[0] + state.get("v", _on_channels(weights["start"], inputs[0]))
    count = (v + threshold // 2).div(threshold, rounding_mode="floor")
    settings = operation.settings
    count = count.clamp(settings["least"], settings["most"])
    if side := settings["side"]:
        step = settings["quant_min"] if side > 0 else settings["quant_max"]
        bound = state.get("bound", torch.full_like(count, step))
        count = torch.maximum(count, bound) if side > 0 else torch.minimum(count, bound)
        state["bound"] = bound - count + step
    state["v"] = v - count * threshold
    return count


_int_mm: Any = torch._int_mm  # pyright: ignore[reportPrivateImportUsage] -- int8 x int8 -> int32

_STEPS: dict[str, Any] = {
    "input": _input, "conv": _conv, "linear": _linear, "sum": _sum, "maxpool": _maxpool,
    "sumpool": _sumpool, "move": _move, "neuron": _neuron,
}  # fmt: skip


def product(x: Tensor, weight: Tensor) -> Tensor:
    """[M, K] int32 @ [K, O] int8 -> [M, O] int32, exact while the result fits.

    Counts of one byte go to the 8-bit kernel; larger ones are cut into digits of one byte with sign.
    """
    if not _kernel_is_exact():
        return torch.mm(x, weight.to(torch.int32))
    low, high = (int(end) for end in torch.aminmax(x)) if x.numel() else (0, 0)
    if -128 <= low and high <= 127:
        return _int_mm(x.to(torch.int8).contiguous(), weight.contiguous())
    digit = (x + 128).remainder(256) - 128
    return product(digit, weight) + 256 * product((x - digit).div(256, rounding_mode="floor"), weight)


@cache
def _kernel_is_exact() -> bool:
    """Whether this processor's 8-bit kernel adds without saturating: those without VNNI may not."""
    signs = torch.tensor([-128, 127, -128, -127], dtype=torch.int8).repeat(64)
    x, weight = signs.expand(32, -1).contiguous(), signs.sort().values[:, None].expand(-1, 32).contiguous()
    exact = torch.mm(x.long(), weight.long())
    return bool(torch.equal(_int_mm(x, weight).long(), exact))


def _windows(x: Tensor, kernel: Any, stride: Any, dilation: Any = (1, 1)) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W', kh, kw], a view."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = x.unfold(2, spans[0], stride[0]).unfold(3, spans[1], stride[1])
    return windows[..., :: dilation[0], :: dilation[1]]


def _on_channels(values: Tensor, like: Tensor) -> Tensor:
    """[C] -> shaped to go with [N, C, ...]."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
