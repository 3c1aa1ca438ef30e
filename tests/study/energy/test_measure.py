"""Measuring: streams and intervals, prices and comparisons, refusals; and that the network is left alone."""

import copy
import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.ann.models import CifarResNet
from pmsm.errors import SettingsError, SimulationError
from pmsm.methods import PMSM, QCFS
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import RULES, convert
from pmsm.snn.simulate import simulate
from pmsm.snn.temporal import Rule
from pmsm.study.energy.firing import Estimate, Moments
from pmsm.study.energy.measure import measure
from pmsm.study.energy.operators import OPS, Operator
from pmsm.study.energy.plan import MeasurementError
from pmsm.study.energy.prices import Traffic
from pmsm.study.energy.technology import CONVENTIONS, MEMORIES, TECHNOLOGIES, Memory, Technology
from pmsm.study.energy.work import Work, per_output


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2),
        nn.GELU(), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


X = torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def qann():
    torch.manual_seed(0)
    return calibrate(quantize(small().eval(), PMSM(levels=5), X), X)


@pytest.fixture(scope="module")
def snn(qann):
    return convert(qann)


def numbers(measured) -> list:
    """Every count, exactly, without the interval's last bits."""
    return [
        *((r.name, r.synops.mean, r.events.mean, r.work, r.dense, r.updates) for r in measured.rows),
        *((f.name, f.spikes.mean, f.histogram, f.dead) for f in measured.firing),
    ]


# ----------------------------------------------------------------------------------------------------------
# Counts
# ----------------------------------------------------------------------------------------------------------


def test_every_rule_of_conversion_has_an_entry():
    assert set(OPS) >= set(RULES)


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("mode", ["integrate", "tracking"])
def test_spikes_are_those_that_simulate_records(qann, mode, timesteps):
    snn = convert(qann, mode=mode)
    run = simulate(snn, X, timesteps, record="counts")
    measured = measure(snn, X, timesteps)
    for layer in measured.firing:
        counts = run.spikes[layer.name].counts
        per_sample = counts.abs().sum((0, *range(2, counts.dim()))).double()
        assert layer.spikes.mean == per_sample.mean()
        assert layer.events.mean == (counts != 0).sum() / len(X)
        values, times = counts.unique(return_counts=True)
        assert layer.histogram == dict(zip(values.tolist(), times.tolist(), strict=True))
        assert layer.silent == pytest.approx(float((counts == 0).double().mean()))
        negative = counts.clamp(max=0).abs().sum() / counts.abs().sum()
        assert layer.negative == pytest.approx(float(negative))
        by_neuron = counts.abs().sum((0, 1)).double()
        assert layer.dead == pytest.approx(float((by_neuron == 0).double().mean()))
        torch.testing.assert_close(measured.per_neuron[layer.name][0], by_neuron / len(X), rtol=0, atol=1e-12)
        assert layer.neurons == run.spikes[layer.name].neurons


def test_saturated_is_what_stands_at_a_bound(spiking, told):
    x = torch.tensor([-9.0, -4, -3, 0, 1, 3, 4, 5]).view(1, 1, 2, 4)
    (layer,) = measure(spiking(told(1, nn.Conv2d(1, 1, 1)), x), x).firing
    assert (layer.saturated, layer.silent, layer.dead) == (4 / 8, 1 / 8, 1 / 8)
    (rectified,) = measure(spiking(told(1, nn.Conv2d(1, 1, 1)), x, 0, 4), x).firing
    assert (rectified.saturated, rectified.silent, rectified.dead) == (2 / 8, 4 / 8, 4 / 8)  # 0 is no bound


@pytest.mark.parametrize("timesteps", [1, 4])
def test_how_samples_are_cut_into_batches_does_not_matter(snn, timesteps):
    whole = measure(snn, X, timesteps)
    assert whole.samples == 7
    for batches in ([X[:3], X[3:]], [(X[:1], torch.zeros(1)), (X[1:], torch.zeros(6))], iter(X.split(2))):
        cut = measure(snn, batches, timesteps)
        assert numbers(cut) == numbers(whole)
        for row, same in zip(cut.rows, whole.rows, strict=True):
            assert row.synops.half_width == pytest.approx(same.synops.half_width, rel=1e-12)


def test_the_interval_is_that_of_the_mean_over_samples(snn):
    single = [measure(snn, x[None]) for x in X]
    whole = measure(snn, X)
    for index, row in enumerate(whole.rows):
        values = [m.rows[index].synops.mean for m in single]
        assert row.synops.mean == statistics.mean(values)
        width = 1.959964 * statistics.stdev(values) / math.sqrt(len(X))
        assert row.synops.half_width == pytest.approx(width, rel=1e-6)
    energies = [m.totals.energy_pj.mean for m in single]
    assert whole.totals.energy_pj.mean == pytest.approx(statistics.mean(energies))
    width = 1.959964 * statistics.stdev(energies) / math.sqrt(len(X))
    assert whole.totals.energy_pj.half_width == pytest.approx(width, rel=1e-6)
    assert math.isnan(single[0].totals.energy_pj.half_width)


def test_moments_of_a_stream_are_those_of_the_whole():
    x = torch.randint(0, 2**40, (50, 3)).double()  # far beyond what float32 holds
    moments = Moments()
    for part in x.split([1, 20, 29]):
        moments.update(part)
    for i in range(3):
        found = moments.estimate(i)
        assert found.mean == float(x[:, i].sum()) / 50
        assert found.half_width == pytest.approx(1.959964 * float(x[:, i].std()) / math.sqrt(50), rel=1e-6)


class Windows(nn.Module):
    """Attention-like windows: 4 of them per sample, joined with the batch in dimension 0."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 2, 3)
        return self.b(torch.relu(self.a(windows))).reshape(x.shape[0], -1)


class BatchSecond(nn.Module):
    """Tokens in dimension 0, as nn.MultiheadAttention wants them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.transpose(0, 1)))).transpose(0, 1)


@pytest.mark.parametrize("network", [Windows, BatchSecond])
@pytest.mark.parametrize("timesteps", [1, 3])
def test_networks_that_do_not_keep_the_batch_alone_in_front(spiking, network, timesteps):
    x = torch.randint(-4, 5, (5, 8, 3)).float()
    snn = spiking(network(), x)
    measured, single = measure(snn, x, timesteps), [measure(snn, row[None], timesteps) for row in x]
    last = [m.rows[-1].synops.mean for m in single]
    assert measured.rows[-1].synops.mean == statistics.mean(last)
    assert measured.rows[-1].synops.half_width == pytest.approx(1.959964 * statistics.stdev(last) / 5**0.5)
    spikes = simulate(snn, x, timesteps).spikes["relu"].total
    assert measured.rows[-1].synops.mean == spikes / 5 * 2
    assert measured.firing[0].neurons == 8 * 4


@pytest.mark.parametrize("mode", ["integrate", "tracking"])
@pytest.mark.parametrize("timesteps", [1, 2])
def test_a_stream_is_counted_frame_by_frame(qann, mode, timesteps):
    snn, frames = convert(qann, mode=mode), torch.randn(3, 4, 2, 6, 6)
    measured = measure(snn, frames, timesteps, stream=True)
    run = simulate(snn, frames, timesteps, stream=True)
    assert (measured.samples, measured.timesteps) == (4, 3 * timesteps)
    for layer in measured.firing:
        assert layer.spikes.mean == run.spikes[layer.name].total / 4
    first = measured.rows[0]
    assert first.dense.macs == first.work.macs == 3 * 4 * 36 * 18  # once per frame, with and without spikes
    assert first.reads == ("analog" if timesteps == 1 else "analog, per frame")
    assert numbers(measure(snn, [frames[:, :1], frames[:, 1:]], timesteps, stream=True)) == numbers(measured)


def test_a_stream_that_stands_still_costs_a_tracking_network_nothing_more(qann):
    snn, still = convert(qann, mode="tracking"), X.expand(3, *X.shape)
    assert measure(snn, still, stream=True).synops == measure(snn, X).synops
    assert measure(snn, still, stream=True).totals.macs == 3 * measure(snn, X).totals.macs


def test_double_precision_and_many_channels_are_counted_exactly(spiking, told):
    x = torch.full((1, 3, 64, 64), 4.0, dtype=torch.float64)
    measured = measure(spiking(told(3, nn.Conv2d(3, 512, 1)).double(), x), x)
    assert measured.rows[-1].synops.mean == 4 * 3 * 64 * 64 * 512  # 25,165,824: more than float32 can count


def test_the_network_is_left_alone(snn):
    before = copy.deepcopy(snn.state_dict())
    nodes = [(node.name, node.target) for node in snn.graph.nodes]
    shapes = [graph.shape_of(node) for node in snn.graph.nodes]
    measure(snn, X, 2)
    assert nodes == [(node.name, node.target) for node in snn.graph.nodes]
    assert shapes == [graph.shape_of(node) for node in snn.graph.nodes]
    assert all(torch.equal(tensor, before[name]) for name, tensor in snn.state_dict().items())
    assert all(getattr(module, "probe", None) is None for module in snn.modules())


# ----------------------------------------------------------------------------------------------------------
# Prices
# ----------------------------------------------------------------------------------------------------------


def test_the_constants_are_those_of_their_sources():
    fp32, int8, fp16 = (TECHNOLOGIES[f"45nm-{name}"] for name in ("fp32", "int8", "fp16"))
    assert (fp32.mac_pj, fp32.ac_pj) == (4.6, 0.9)
    assert (int8.mac_pj, int8.ac_pj) == (0.23, 0.03)
    assert (fp16.mac_pj, fp16.ac_pj) == (1.5, 0.4)
    assert (TECHNOLOGIES["loihi"].ac_pj, TECHNOLOGIES["loihi"].update_pj) == (23.6, 81.0)
    assert MEMORIES["sram-8k"].pj_per_byte == 1.25
    assert all("doi" in entry.source for entry in (*TECHNOLOGIES.values(), *MEMORIES.values()))


def test_prices_change_without_another_run(snn):
    measured = measure(snn, X, 2)
    for technology in TECHNOLOGIES:
        for convention in CONVENTIONS:
            again = measure(snn, X, 2, technology=technology, convention=convention)
            assert measured.priced(technology, convention).totals == again.totals


def test_a_row_costs_its_operations(snn):
    t = TECHNOLOGIES["45nm-int8"]
    measured = measure(snn, X, 3, technology=t)
    for row in measured.rows:
        w = row.work
        work = w.macs * 0.23 + w.multiplies * 0.2 + (w.adds + w.comparisons) * 0.03 + w.functions * 0.92
        assert row.energy_pj.mean == pytest.approx(row.synops.mean * 0.03 + work)
    totals = measured.totals
    assert totals.energy_pj.mean == pytest.approx(totals.spikes_pj + totals.work_pj + totals.updates_pj)


def test_memory_is_charged_for_what_nothing_reuses(spiking, told):
    x = torch.ones(1, 1, 2, 2)
    snn = spiking(told(1, nn.Conv2d(1, 3, 1)), x)
    free, charged = measure(snn, x), measure(snn, x, memory=Memory("test", 2.0, "assumed"))
    first, neurons, last = charged.rows
    assert first.traffic == Traffic(weights=4 * 4, values=4 * (4 + 4))  # 4 MACs, 4 results
    assert neurons.traffic == Traffic(states=4 * 2 * 4)
    assert last.traffic == Traffic(weights=12 * 4, states=12 * 2 * 4)
    for row, without in zip(charged.rows, free.rows, strict=True):
        assert row.traffic == without.traffic
        assert row.energy_pj.mean == pytest.approx(without.energy_pj.mean + 2.0 * row.traffic.total)
    assert charged.totals.memory_pj == 2.0 * charged.totals.traffic.total
    assert charged.comparison[0].energy_pj.mean > free.comparison[0].energy_pj.mean


def test_a_technology_may_have_a_figure_for_a_whole_update(snn):
    measured = measure(snn, X, 2, technology="loihi")
    neurons = [row for row in measured.rows if row.updates]
    assert [row.energy_pj.mean for row in neurons] == [81.0 * row.updates for row in neurons]
    with pytest.raises(SettingsError, match="the figures of 'loihi' contain its memory"):
        measured.priced("loihi", memory="dram")


def test_dense_networks_always_stand_beside(snn):
    measured = measure(snn, X)
    macs = measured.totals.macs
    assert macs == 4 * 36 * 18 + 3 * 4 * 16 + 12 * 5
    # Beside the MACs: 36 results of a maximum of 4, and 12 values of GELU, a function and a product each.
    other = {"45nm-fp32": 108 * 0.9 + 12 * (4 * 4.6 + 3.7), "45nm-int8": 108 * 0.03 + 12 * (4 * 0.23 + 0.2)}
    for beside, mac_pj in zip(measured.comparison, (4.6, 0.23), strict=True):
        assert beside.energy_pj.mean == pytest.approx(macs * mac_pj + other[beside.technology])
        assert beside.ratio == pytest.approx(beside.energy_pj.mean / measured.totals.energy_pj.mean)
    for technology in TECHNOLOGIES:  # whatever the spikes are priced at
        again = measured.priced(technology).comparison
        assert [b.energy_pj for b in again] == [b.energy_pj for b in measured.comparison]


def test_at_the_break_even_rate_both_cost_the_same(snn):
    measured = measure(snn, X)
    totals, float_network = measured.totals, measured.comparison[0]
    assert totals.rate == pytest.approx(measured.synops.mean / (3 * 4 * 16 + 12 * 5))
    factor = float_network.break_even / totals.rate
    spikes = replace(
        measured,
        rows=tuple(replace(row, synops=row.synops * factor).priced(measured.prices) for row in measured.rows),
        synops=measured.synops * factor,
    )
    assert spikes.totals.energy_pj.mean == pytest.approx(float_network.energy_pj.mean)
    assert measured.comparison[1].break_even == 0.0  # 8 bits cost less than the first layer in 32


def test_other_spiking_networks_see_the_same_batches(qann):
    torch.manual_seed(0)
    binary = convert(calibrate(quantize(small().eval(), QCFS(levels=5, start="entropy"), X), X))
    alone = measure(binary, X, 8)
    for other in ((binary, 8), alone):
        measured = measure(
            convert(qann), iter(X.split(3)), technology="45nm-int8", baselines={"QCFS-IF": other}
        )
        *_, last = measured.comparison
        assert (last.name, last.technology) == ("QCFS-IF", "45nm-int8")
        assert last.energy_pj.mean == pytest.approx(alone.priced("45nm-int8").totals.energy_pj.mean)
        assert last.ratio == pytest.approx(last.energy_pj.mean / measured.totals.energy_pj.mean)


# ----------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean()


def test_every_operator_without_an_entry_is_named_and_the_remedy_works(spiking):
    ann = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.InstanceNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 2, 1),
        nn.InstanceNorm2d(2),
        Scaled(),
    )
    x = torch.randn(2, 1, 4, 4)
    rules = RULES | {nn.InstanceNorm2d: Rule.STATIC, Scaled: Rule.STATIC}
    qann = calibrate(quantize(ann.eval(), PMSM(levels=5), x, leaves=[Scaled]), x)
    snn = convert(qann, rules=rules)
    with pytest.raises(MeasurementError) as refused:
        measure(snn, x)
    assert "nn.InstanceNorm2d at '1', '4'; " in str(refused.value)
    assert "Scaled at '5'" in str(refused.value)
    assert "OPS | {nn.InstanceNorm2d: Operator(per_output(functions=1))}" in str(refused.value)
    own = OPS | {
        nn.InstanceNorm2d: Operator(per_output(multiplies=2)),
        Scaled: Operator(per_output(multiplies=1)),
    }
    rows = {row.name: row for row in measure(snn, x, ops=own).rows}
    assert rows["1"].work == Work(multiplies=2 * 32, values=64)


@pytest.mark.parametrize(
    ("setting", "wrong", "text"),
    [
        ("technology", "7nm", "a technology out of '45nm-fp32', .*, or a Technology of your own, got '7nm'"),
        ("convention", "spikes", "a convention out of 'unary', 'events', 'graded', got 'spikes'"),
        ("memory", "tape", "a memory out of 'sram-8k', .*, or a Memory of your own, got 'tape'"),
    ],
)
def test_an_unknown_price_is_refused_before_anything_runs(snn, setting, wrong, text):
    def batches():
        raise AssertionError("a batch was asked for")
        yield

    with pytest.raises(SettingsError, match=f"measure needs {text}"):
        measure(snn, batches(), **{setting: wrong})


def test_what_cannot_be_measured_is_refused(qann, snn):
    with pytest.raises(MeasurementError, match="measure needs a network from"):
        measure(small(), X)
    with pytest.raises(MeasurementError, match=r"measure needs a spiking network\. Call snn = pmsm\.convert"):
        measure(qann, X)
    with pytest.raises(MeasurementError, match="no batch"):
        measure(snn, [])
    with pytest.raises(MeasurementError, match="samples of one shape"):
        measure(snn, [X, X[:, :, :, :5]])
    with pytest.raises(SimulationError, match="timesteps >= 1"):
        measure(snn, X, 0)
    for empty in (X[:0], torch.zeros(()), torch.zeros(3)):
        with pytest.raises(SimulationError, match="at least one sample"):
            measure(snn, [empty], stream=len(empty.shape) == 1)
    with pytest.raises(SettingsError, match="finite costs >= 0"):
        Technology("wrong", -1, 1, 1, 1, 1, "nobody")
    with pytest.raises(SettingsError, match="finite cost >= 0"):
        Memory("wrong", math.inf, "nobody")


def test_an_unrolled_network_is_measured_before_it_is_unrolled(qann):
    unrolled = convert(qann)
    unrolled.meta["micro_steps"] = 4
    with pytest.raises(MeasurementError, match="before it is unrolled"):
        measure(unrolled, X)


def test_a_residual_network_counts_whatever_its_prices(randomize):
    x = torch.randn(4, 3, 16, 16)
    ann = randomize(CifarResNet(1))
    snn = convert(calibrate(quantize(ann, PMSM(levels=5), x), x))
    measured = measure(snn, x, 2)
    told = json.loads(measured.as_json())
    assert told["totals"]["macs"] == measured.totals.macs
    assert [row["name"] for row in told["rows"]] == [row.name for row in measured.rows]
    assert told["prices"]["technology"]["source"] == TECHNOLOGIES["45nm-fp32"].source
    assert measured.synops.mean == pytest.approx(sum(row.synops.mean for row in measured.rows))
    assert Estimate(2.0, 1.0) * -2 + 1 == Estimate(-3.0, 2.0)
