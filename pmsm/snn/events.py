"""The integer network event by event: a neuron that sends nothing causes no work behind it."""

import torch
from torch import Tensor

from pmsm.graph import Network
from pmsm.qann.program import Operation, Program
from pmsm.snn.integer import IntegerNetwork, integer_program


class EventNetwork(IntegerNetwork):
    """An integer network whose layers add one row of weights per event instead of multiplying whole tensors.

    An event is a neuron with a count k other than 0 at one timestep: it adds k * weight to every neuron that
    it reaches. Sums of integers do not depend on their order, so the result equals the integer network's
    exactly. `synops` counts, per layer, the sums of all calls so far: one for each weight that an event met,
    whatever its |k|.
    """

    def __init__(self, program: Program):
        super().__init__(program)
        self.synops: dict[str, int] = {}

    def step(self, operation: Operation, inputs: list[Tensor], state: dict[str, Tensor]) -> Tensor:
        """The result of one operation at one timestep, int32; `state` is what it remembers."""
        if operation.kind not in ("conv", "linear"):
            return super().step(operation, inputs, state)
        weights = self.weights[operation.name]
        x = inputs[0]
        bias = weights["bias"].view(1, -1, *[1] * (x.dim() - 2))
        out = bias.expand(len(x), *operation.shape).contiguous()
        deliver = _through_kernel if operation.kind == "conv" else _through_matrix
        met = deliver(operation, x, weights["weight"].to(torch.int32), out)
        self.synops[operation.path] = self.synops.get(operation.path, 0) + met
        return out


def events(network: Network) -> EventNetwork:
    """The event-driven form of a network from `quantize_weights`, or of what `convert` made of it.

    Raises:
        QuantizationError: as `integer`.
    """
    return EventNetwork(integer_program(network))


def _through_matrix(_: Operation, x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Adds count * column of weights for every event; returns the number of weights met."""
    sample, neuron = x.nonzero(as_tuple=True)
    out.index_add_(0, sample, x[sample, neuron, None] * weight[:, neuron].t())
    return len(sample) * len(weight)


def _through_kernel(operation: Operation, x: Tensor, weight: Tensor, out: Tensor) -> int:
    """As `_through_matrix`, for a convolution: one offset of the kernel after the other."""
    settings = operation.settings
    channels, height, width = operation.shape
    of_group, met = channels // settings["groups"], 0
    sample, channel, *place = x.nonzero(as_tuple=True)
    count, group = x[sample, channel, place[0], place[1]], channel // weight.shape[1]
    # [N * H * W * groups, O / groups]: one row for what an event reaches at one offset
    rows = out.permute(0, 2, 3, 1).reshape(-1, of_group).contiguous()
    for offset in torch.cartesian_prod(*(torch.arange(size) for size in weight.shape[2:])).tolist():
        target, reached = [], torch.ones_like(sample, dtype=torch.bool)
        for axis, size in enumerate((height, width)):
            spread = place[axis] + settings["padding"][axis] - offset[axis] * settings["dilation"][axis]
            stride = settings["stride"][axis]
            target.append(spread.div(stride, rounding_mode="floor"))
            reached &= (spread % stride == 0) & (target[axis] >= 0) & (target[axis] < size)
        row = ((sample * height + target[0]) * width + target[1]) * settings["groups"] + group
        taps = weight[:, :, offset[0], offset[1]].unflatten(0, (settings["groups"], -1))
        sent = taps[group[reached], :, channel[reached] % weight.shape[1]] * count[reached, None]
        rows.index_add_(0, row[reached], sent)
        met += int(reached.sum()) * of_group
    out.copy_(rows.view(len(x), height, width, channels).permute(0, 3, 1, 2))
    return met
