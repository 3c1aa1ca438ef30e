"""Fan-out: what `measure` counts equals a count of every event, spike by spike and output by output."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pmsm.snn.simulate import simulate
from pmsm.study.energy.measure import measure

# ----------------------------------------------------------------------------------------------------------
# Event by event: which outputs, each as often as it reads the input, by loops over coordinates
# ----------------------------------------------------------------------------------------------------------

Place = tuple[int, ...]


def inside(at: int, size: int, mode: str) -> int | None:
    """Where a padded coordinate reads from."""
    if 0 <= at < size:
        return at
    if mode == "zeros":
        return None
    if mode == "circular":
        return at % size
    if mode == "replicate":
        return 0 if at < 0 else size - 1
    return -at if at < 0 else 2 * (size - 1) - at  # reflect


def by_conv(conv, before: Place, after: Place, place: Place) -> list[Place]:
    channel, *at = place
    per_group = after[0] // conv.groups
    group = channel // (before[0] // conv.groups)
    found = []
    for out in product(*map(range, after[1:])):
        for tap in product(*map(range, conv.kernel_size)):
            reads = [
                inside(o * s - p + k * d, n, conv.padding_mode)
                for o, k, s, p, d, n in zip(
                    out, tap, conv.stride, conv.padding, conv.dilation, before[1:], strict=True
                )
            ]
            if reads == at:
                found += [(group * per_group + c, *out) for c in range(per_group)]
    return found


def by_transposed(conv, before: Place, after: Place, place: Place) -> list[Place]:
    channel, *at = place
    per_group = after[0] // conv.groups
    group = channel // (before[0] // conv.groups)
    found = []
    for tap in product(*map(range, conv.kernel_size)):
        out = [
            i * s - p + k * d
            for i, k, s, p, d in zip(at, tap, conv.stride, conv.padding, conv.dilation, strict=True)
        ]
        if all(0 <= o < n for o, n in zip(out, after[1:], strict=True)):
            found += [(group * per_group + c, *out) for c in range(per_group)]
    return found


def by_average(pool, before: Place, after: Place, place: Place) -> list[Place]:
    def pair(x):
        return x if isinstance(x, tuple) else (x,) * (len(before) - 1)

    sizes, strides, pads = map(pair, (pool.kernel_size, pool.stride, pool.padding))
    reached = [
        [o for o in range(m) if o * s - p <= i < o * s - p + k]
        for i, m, k, s, p in zip(place[1:], after[1:], sizes, strides, pads, strict=True)
    ]
    return [(place[0], *out) for out in product(*reached)]


def by_adaptive(pool, before: Place, after: Place, place: Place) -> list[Place]:
    reached = [
        [o for o in range(m) if o * n // m <= i < -(-(o + 1) * n // m)]
        for i, n, m in zip(place[1:], before[1:], after[1:], strict=True)
    ]
    return [(place[0], *out) for out in product(*reached)]


def by_linear(linear, before: Place, after: Place, place: Place) -> list[Place]:
    return [(*place[:-1], o) for o in range(linear.out_features)]


def by_jacobian(layer, before: Place, after: Place, place: Place) -> list[Place]:
    """For any linear layer in which each output reads an input once: where its derivative is not zero."""
    x = torch.zeros(1, *before, dtype=torch.float64)
    x[(0, *place)] = 1
    with torch.no_grad():
        return [tuple(at) for at in copy.deepcopy(layer).double()(x)[0].nonzero().tolist()]


REACHED = {
    nn.Conv1d: by_conv, nn.Conv2d: by_conv, nn.Conv3d: by_conv, nn.Linear: by_linear,
    nn.ConvTranspose1d: by_transposed, nn.ConvTranspose2d: by_transposed,
    nn.AvgPool1d: by_average, nn.AvgPool2d: by_average, nn.AdaptiveAvgPool2d: by_adaptive,
}  # fmt: skip


def event_by_event(layers: list[nn.Module], counts: Tensor) -> tuple[list[int], list[int]]:
    """Accumulates of each sample: one per spike, and one per nonzero count; `counts` [T, N, ...]."""
    shapes = [tuple(counts.shape[2:])]
    for layer in layers:
        with torch.no_grad():
            shapes.append(tuple(layer(torch.zeros(1, *shapes[-1])).shape[1:]))
    by_spike, by_count = [0] * counts.shape[1], [0] * counts.shape[1]
    fans: dict[Place, int] = {}
    for _, n, *at in counts.nonzero().tolist():
        place = tuple(at)
        if place not in fans:
            places = [place]
            for layer, before, after in zip(layers, shapes[:-1], shapes[1:], strict=True):
                places = [
                    q for p in places for q in REACHED.get(type(layer), by_jacobian)(layer, before, after, p)
                ]
            fans[place] = len(places)
        by_count[n] += fans[place]
    for t, n, *at in counts.nonzero().tolist():
        by_spike[n] += abs(int(counts[(t, n, *at)])) * fans[tuple(at)]
    return by_spike, by_count


def agree(spiking, told, x: Tensor, *layers: nn.Module, timesteps: int = 1, **options) -> None:
    """`measure` counts what the loops count, in the row of the last layer, sample by sample."""
    dims = x.dim() - 2
    snn = spiking(told(x.shape[1], *layers, dims=dims), x, **options)
    run = simulate(snn, x, timesteps, record="counts")
    by_spike, by_count = event_by_event(list(layers), next(iter(run.spikes.values())).counts)
    for n in range(len(x)):
        row = measure(snn, x[n : n + 1], timesteps).rows[-1]
        assert (row.synops.mean, row.events.mean) == (by_spike[n], by_count[n])
    last = measure(snn, x, timesteps).rows[-1]
    assert (last.synops.mean, last.events.mean) == (sum(by_spike) / len(x), sum(by_count) / len(x))


def whole(*shape: int) -> Tensor:
    """Whole numbers from -3 to 3, half of them 0."""
    return torch.randint(-3, 4, shape).float() * (torch.rand(shape) < 0.5)


@st.composite
def convolutions(draw) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of any geometry, and a shape that it takes."""
    dims, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, stride, padding, dilation = (
        tuple(draw(st.integers(*bounds)) for _ in range(dims)) for bounds in ((1, 3), (1, 3), (0, 2), (1, 2))
    )
    size = tuple(d * (k - 1) + 1 + draw(st.integers(1, 3)) for k, d in zip(kernel, dilation, strict=True))
    if draw(st.booleans()):
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        padding = tuple(min(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel, strict=True))
        conv = kind(into, out, kernel, stride, padding, extra, groups, dilation=dilation)
    else:
        mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
        padding = tuple(min(p, n - 1) for p, n in zip(padding, size, strict=True))
        kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
        conv = kind(into, out, kernel, stride, padding, dilation, groups, padding_mode=mode)
    return conv, (into, *size)


@settings(max_examples=40)
@given(geometry=convolutions(), seed=st.integers(0, 99))
def test_a_convolution_of_any_geometry(spiking, told, geometry, seed):
    conv, shape = geometry
    torch.manual_seed(seed)
    agree(spiking, told, whole(2, *shape), conv)


@pytest.mark.parametrize("mode", ["integrate", "tracking"])
@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Flatten(), nn.Linear(12, 5)], (3, 2, 2)),
        ([nn.Linear(4, 3)], (4,)),
        ([nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 3, 2)], (2, 3, 3)),
        ([nn.AvgPool2d(2), nn.Conv2d(2, 3, 3, padding=1)], (2, 6, 6)),
        ([nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(2, 3, 2, stride=2)], (2, 5, 5)),
        ([nn.AvgPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(18, 4)], (2, 6, 6)),
        ([nn.AvgPool1d(3, 2, 1), nn.Conv1d(2, 3, 2)], (2, 7)),
        ([nn.AdaptiveAvgPool2d((3, 2)), nn.Conv2d(2, 2, 2)], (2, 5, 5)),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)], (3, 4, 4)),
        ([nn.Upsample(scale_factor=2), nn.Conv2d(2, 3, 3, padding=1)], (2, 3, 4)),
        ([nn.AvgPool2d(2, 1), nn.AvgPool2d(2, 1), nn.Conv2d(1, 2, 2)], (1, 5, 5)),
        ([nn.PixelShuffle(2), nn.Conv2d(1, 2, 3, padding=1)], (4, 2, 2)),
        ([nn.ReflectionPad2d(1), nn.Conv2d(1, 2, 3)], (1, 3, 3)),
        ([nn.Unfold(2), nn.Flatten(), nn.Linear(16, 3)], (1, 3, 3)),
    ],
    ids=lambda value: "+".join(type(layer).__name__ for layer in value) if isinstance(value, list) else "",
)  # fmt: skip
def test_through_what_only_moves_and_averages(spiking, told, layers, shape, mode):
    agree(spiking, told, whole(3, *shape), *layers, timesteps=3, mode=mode)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 2, 3)], (1, 3, 4)),
        ([nn.Upsample(size=7, mode="linear", align_corners=True), nn.Conv1d(1, 2, 3)], (1, 4)),
        ([nn.Upsample(scale_factor=1.5, mode="bicubic"), nn.Conv2d(1, 2, 2)], (1, 4, 4)),
    ],
    ids=["bilinear", "linear", "bicubic"],
)
def test_a_spike_reaches_all_that_is_interpolated_from_it(spiking, told, layers, shape):
    agree(spiking, told, whole(2, *shape), *layers, skip=["2_site"])  # no neurons in between


class Calls(nn.Module):
    """Weighted functions and products with a constant, in place of layers."""

    def __init__(self, call, *weight: int):
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.randn(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


@pytest.mark.parametrize(
    ("call", "layer", "shape"),
    [
        (Calls(lambda x, w: F.conv2d(x, w, None, 2, 1, groups=2), 6, 2, 3, 3),
         nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 5, 5)),
        (Calls(lambda x, w: F.conv1d(x, w, padding=1), 3, 2, 3), nn.Conv1d(2, 3, 3, padding=1), (2, 6)),
        (Calls(lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2), 4, 3, 3, 3),
         nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 3, 3)),
        (Calls(lambda x, w: F.linear(x, w), 5, 3), nn.Linear(3, 5), (3,)),
        (Calls(lambda x, w: x @ w, 3, 5), nn.Linear(3, 5), (3,)),
        (Calls(lambda x, w: torch.einsum("nc,co->no", x, w), 3, 5), nn.Linear(3, 5), (3,)),
        (Calls(lambda x, w: w.matmul(x.unsqueeze(-1)).squeeze(-1), 5, 3), nn.Linear(3, 5), (3,)),
    ],
)  # fmt: skip
def test_a_function_counts_like_the_layer(spiking, told, call, layer, shape):
    x = whole(3, *shape)
    dims = len(shape) - 1
    of_call, of_layer = (
        [
            (r.synops.mean, r.events.mean, r.dense.macs)
            for r in measure(spiking(told(shape[0], one, dims=dims), x), x).rows
        ]
        for one in (call, layer)
    )
    assert of_call == of_layer
