"""Toy networks counted by hand, to the digit: per layer and per convention."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmsm.ann.models import resnet20, small_vgg
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.study.energy.measure import measure
from pmsm.study.energy.measurement import Measurement
from pmsm.study.energy.work import Work


def at(shape: tuple[int, ...], **counts: int) -> Tensor:
    """[1, *shape] zeros with a count at each place; `c0_1_2=3` is 3 at channel 0, row 1, column 2."""
    x = torch.zeros(1, *shape)
    for place, count in counts.items():
        x[(0, *map(int, place[1:].split("_")))] = count
    return x


def row(measured: Measurement, name: str):
    return next(row for row in measured.rows if row.name == name)


@pytest.mark.parametrize(
    ("layers", "x", "synops", "events"),
    [
        # corner: 2x2 outputs, edge: 2x3, inside: 3x3; each in 3 channels
        ([nn.Conv2d(1, 3, 3, padding=1)], at((1, 4, 4), c0_0_0=3, c0_0_1=1, c0_1_1=-2),
         3 * 12 + 1 * 18 + 2 * 27, 12 + 18 + 27),
        # stride 2 with padding 1: rows 0, 2, 3 are read once, row 1 twice
        ([nn.Conv2d(1, 3, 3, stride=2, padding=1)], at((1, 4, 4), c0_0_0=2, c0_1_1=1, c0_1_3=-1),
         2 * (1 * 1 * 3) + 2 * 2 * 3 + 2 * 1 * 3, 3 + 12 + 6),
        # 2 groups: each input reaches the 3 outputs of its group
        ([nn.Conv2d(4, 6, 3, groups=2)], at((4, 3, 3), c0_0_0=1, c3_2_2=4), (1 + 4) * 3, 2 * 3),
        # depthwise: one channel alone
        ([nn.Conv2d(2, 2, 3, groups=2, padding=1)], at((2, 3, 3), c0_1_1=2, c1_0_0=-3), 2 * 9 + 3 * 4, 9 + 4),
        # dilation 2: rows and columns 0, 2, 4 are read, 1 and 3 by nobody
        ([nn.Conv2d(1, 2, 3, dilation=2)], at((1, 5, 5), c0_0_0=1, c0_1_1=4, c0_2_4=-2), (1 + 2) * 2, 2 * 2),
        # kernel 2, stride 2: each input feeds 2x2 outputs of its own, in 2 channels
        ([nn.ConvTranspose2d(1, 2, 2, stride=2)], at((1, 3, 3), c0_0_0=1, c0_2_2=-2), (1 + 2) * 8, 2 * 8),
        # padding cuts the first row and column off; output_padding keeps the last
        ([nn.ConvTranspose2d(1, 2, 3, stride=2, padding=1, output_padding=1)],
         at((1, 2, 2), c0_0_0=1, c0_0_1=2, c0_1_1=3), 1 * 4 * 2 + 2 * (2 * 3) * 2 + 3 * 9 * 2, 8 + 12 + 18),
        ([nn.Flatten(), nn.Linear(4, 7)], at((1, 2, 2), c0_0_0=1, c0_1_1=-4), (1 + 4) * 7, 2 * 7),
        # a spike reaches what reads each average that it is in: 4 averages in the middle, 1 in the corner
        ([nn.AvgPool2d(2), nn.Conv2d(1, 3, 1)], at((1, 4, 4), c0_0_0=2, c0_3_1=1), (2 + 1) * 3, 2 * 3),
        ([nn.AvgPool2d(3, 1), nn.Conv2d(1, 3, 2)], at((1, 4, 4), c0_1_1=1, c0_0_0=-2), 4 * 3 + 2 * 3, 12 + 3),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10)], at((1, 3, 3), c0_0_2=4), 40, 10),
    ],
    ids=["conv", "strided", "grouped", "depthwise", "dilated", "transposed", "transposed-padded", "linear",
         "pool", "overlapping-pool", "global-pool"],
)  # fmt: skip
def test_synapses_of_single_spikes(spiking, told, layers, x, synops, events):
    snn = spiking(told(x.shape[1], *layers), x)
    counted = measure(snn, x)
    last = counted.rows[-1]
    assert (last.synops.mean, last.events.mean) == (synops, events)
    # No spike reaches anything else; the first layer, which makes the spikes, costs a MAC per value.
    assert (counted.synops.mean, counted.events.mean) == (synops, events)
    assert counted.rows[0].work == Work(macs=x.numel() * x.shape[1], values=x.numel())
    price = {c: counted.priced("45nm-fp32", c).rows[-1].energy_pj.mean for c in ("unary", "events", "graded")}
    assert price == pytest.approx({"unary": 0.9 * synops, "events": 0.9 * events, "graded": 4.6 * events})


class Residual(nn.Module):
    """x -> neurons -> conv -> + x -> neurons -> linear."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = (
            nn.Conv2d(1, 1, 1, bias=False),
            nn.Conv2d(1, 1, 3, padding=1),
            nn.Linear(4, 2),
        )
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        nn.init.ones_(self.stem.weight)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu1(self.stem(x))
        return self.fc(self.relu2(self.conv(h) + h).flatten(1))


def test_a_spike_on_a_shortcut_is_one_accumulate_at_the_neuron_behind(spiking):
    x = at((1, 2, 2), c0_0_0=3, c0_1_0=-1)
    counted = measure(spiking(Residual(), x), x)
    found = {r.name: (r.synops.mean, r.events.mean) for r in counted.rows if r.synops.mean}
    # 2x2 pictures: every output reads every input. The sum is what came in, and is sent on as it was.
    assert found == {"conv": (4 * 4, 2 * 4), "add": (4, 2), "fc": (4 * 2, 2 * 2)}


def test_the_addends_of_a_sum_of_spikes_travel_separately(spiking):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
            return self.fc(a + b + a)

    ann, x = Sum(), torch.tensor([[1.0, -2.0, 0.0]])
    with torch.no_grad():
        for layer, factor in ((ann.a, 1), (ann.b, -1)):
            layer.weight.copy_(factor * torch.eye(3))
            layer.bias.zero_()
    snn = spiking(ann, x, skip=["*site"])  # no neurons behind the sum
    # 3 spikes of a arrive twice, 3 of b once, each at 5 outputs.
    assert row(measure(snn, x), "fc").synops.mean == (2 * 3 + 3) * 5


class Products(nn.Module):
    """softmax-free attention: (a b^T) v, each operand a linear map of x; tokens behind the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.v = (nn.Linear(2, 2, bias=False) for _ in range(3))
        for layer, factor in ((self.a, 1), (self.b, -1), (self.v, 2)):
            layer.weight.data.copy_(factor * torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) @ self.b(x).transpose(1, 2)) @ self.v(x)


TOKENS = torch.tensor([[[1.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]])  # 3 tokens of width 2


def test_a_product_of_spikes_is_driven_by_its_left_operand_at_one_timestep(spiking):
    counted = measure(spiking(Products(), TOKENS), TOKENS)
    first, second = (r for r in counted.rows if r.kind == "matmul")
    # a sends 3 spikes, each to 3 keys. a b^T = -[[1, -1, 0], [-1, 2, 0], [0, 0, 0]], sent as 5 spikes of 4
    # neurons, each to a width of 2.
    assert (first.synops.mean, first.events.mean) == (3 * 3, 3 * 3)
    assert (second.synops.mean, second.events.mean) == (5 * 2, 4 * 2)
    assert (first.work, first.dense.macs, second.dense.macs) == (Work(), 3 * 3 * 2, 3 * 3 * 2)


class Weighted(Products):
    """Attention: softmax(a b^T) v."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.a(x) @ self.b(x).transpose(1, 2), -1) @ self.v(x)


def test_attention_with_its_softmax(spiking):
    counted = measure(spiking(Weighted(), TOKENS), TOKENS)
    first, second = (r for r in counted.rows if r.kind == "matmul")
    softmax = next(r for r in counted.rows if "oftmax" in r.kind)
    assert (first.synops.mean, first.events.mean) == (3 * 3, 3 * 3)
    # Scores [[-1, 1, 0], [1, -2, 0], [0, 0, 0]]: a share above 1/2 is sent, one of 0.67 and one of 0.71.
    assert (second.synops.mean, second.events.mean) == (2 * 2, 2 * 2)
    # Each of 9 values: one comparison, a subtraction and a sum, an exponential and a division.
    assert softmax.work == softmax.dense == Work(comparisons=9, adds=18, functions=18, values=18)
    price = {c: counted.priced("45nm-fp32", c) for c in ("unary", "events", "graded")}
    by_hand = {"unary": 0.9 * 13, "events": 0.9 * 13, "graded": 4.6 * 13}
    assert {c: m.totals.spikes_pj for c, m in price.items()} == pytest.approx(by_hand)


def test_a_product_of_spikes_is_a_dense_map_of_means_at_more(spiking):
    timesteps = 2
    counted = measure(spiking(Products(), TOKENS), TOKENS, timesteps)
    first, second = (r for r in counted.rows if r.kind == "matmul")
    # Each step: 18 MACs; a multiplication for each of 12 + 9 means and differences, a subtraction for 9.
    assert first.work == Work(macs=18, multiplies=12 + 9, adds=9, values=9) * timesteps
    assert second.work == Work(macs=18, multiplies=15 + 6, adds=6, values=6) * timesteps
    # A spike is added to the running sum of its operand: 3 of a and 3 of b per step.
    assert first.synops.mean == 6 * timesteps


def test_a_maximum_is_compared_and_costs_no_synapses(spiking):
    ann = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1))
    x = torch.randint(-2, 3, (1, 1, 4, 4)).float()
    pool = row(measure(spiking(ann, x), x, 4), "2")
    assert (pool.synops.mean, pool.reads) == (
        0,
        "analog, once",
    )  # in front of all neurons: the same at every step
    assert pool.work == pool.dense == Work(comparisons=8 * 3, values=32 + 8)


def test_a_map_between_neurons_runs_at_every_step(spiking):
    ann = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 1), nn.GELU(), nn.Conv2d(2, 3, 1))
    x = torch.randint(-2, 3, (1, 1, 2, 2)).float()
    gelu = row(measure(spiking(ann, x), x, 3), "3")
    # 8 values: a function and a product each; their mean, and the difference of what comes out.
    assert gelu.dense == Work(functions=8, multiplies=8, values=16)
    assert gelu.work == (gelu.dense + Work(multiplies=8 + 8, adds=8 + 8)) * 3
    tracked = row(measure(spiking(ann, x, mode="tracking"), x, 3), "3")
    assert tracked.work == (tracked.dense + Work(adds=8 + 8)) * 3  # sums arrive: no means


def test_layers_in_front_of_all_neurons_run_once(spiking, told):
    x = torch.randint(-2, 3, (1, 2, 3, 3)).float()
    snn = spiking(told(2, nn.Conv2d(2, 3, 3, padding=1)), x)
    first, neurons, last = measure(snn, x, 5).rows
    assert (first.reads, first.work.macs) == ("analog, once", 2 * 2 * 9)
    assert (neurons.updates, neurons.reads) == (5 * 18, "neurons")
    # The accumulators start at their bias; four more steps add it four times.
    assert (last.reads, last.work) == ("spikes", Work(adds=4 * 27))


def test_a_neuron_adds_compares_and_subtracts(spiking, told):
    x = torch.randint(-2, 3, (1, 2, 3, 3)).float()
    ann = told(2, nn.Conv2d(2, 3, 1))
    each = {
        "signed": (spiking(ann, x), 4, Work(adds=2, comparisons=1)),
        "one step": (spiking(ann, x, 0, 4), 1, Work(adds=2, comparisons=1)),
        "bounded": (spiking(ann, x, 0, 4), 4, Work(adds=4, comparisons=2)),
        "tracking": (spiking(ann, x, mode="tracking"), 4, Work(adds=3, comparisons=1)),
    }
    for snn, timesteps, work in each.values():
        assert measure(snn, x, timesteps).rows[1].work == work * (18 * timesteps)


def test_batchnorm_is_free_where_it_folds_and_leaves_its_bias(spiking, told):
    x = torch.randint(-2, 3, (1, 2, 3, 3)).float()
    folded = told(2, nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1))
    rows = {r.name: r for r in measure(spiking(folded, x), x, 4).rows}
    assert "3" not in rows
    assert rows["2"].work == Work(adds=3 * 27)
    alone = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1))
    norm = measure(spiking(alone, x), x, 4).rows[0]
    assert (norm.kind, norm.work) == ("BatchNorm2d", Work(multiplies=18, adds=18, values=36))


def test_tracking_counts_differences(spiking, told):
    x = at((1, 3, 3), c0_1_1=3)
    ann = told(1, nn.Conv2d(1, 2, 3))
    for burst in (None, 1):  # 3 at once, or one by one; then nothing
        counted = measure(spiking(ann, x, mode="tracking", burst=burst), x, 5)
        assert counted.rows[-1].synops.mean == 3 * 2
        assert counted.rows[-1].events.mean == (2 if burst is None else 3 * 2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)).mean(1))


@pytest.mark.parametrize(
    ("ann", "shape"),
    [(resnet20(), (3, 32, 32)), (small_vgg(3, width=4), (3, 8, 8)), (Attention(), (5, 6))],
    ids=["resnet", "vgg", "attention"],
)
def test_torch_counts_the_same_multiplications(ann, shape):
    x = torch.randn(2, *shape)
    snn = convert(calibrate(quantize(ann.eval(), PMSM(), x), x))
    # The fused kernels of attention have no entry in torch's table; the plain one consists of products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        ann(x[:1])
    assert measure(snn, x).totals.macs * 2 == counter.get_total_flops()
