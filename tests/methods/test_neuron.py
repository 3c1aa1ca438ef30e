"""The spiking neuron: equal to the quantizer at T=1, bounded and faithful over time, in steps or a scan."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pmsm.methods import PMSM
from pmsm.methods.base import Start
from pmsm.methods.neuron import Neuron, NeuronState
from pmsm.methods.rounding import quantize

pytestmark = pytest.mark.usefixtures("form")

SPLITS = [(0, 8), (-4, 4), (-2, 6), (-6, 2)]
STEPS = 12

over_splits = pytest.mark.parametrize("split", SPLITS, ids=str)
# Multiples of 1/64, steps that are powers of two: every potential is exact in float32, without tolerance.
dyadic = st.lists(st.integers(-1024, 1024), min_size=1, max_size=8).map(lambda k: torch.tensor(k) / 64)
power_of_two = st.integers(-3, 3).map(lambda k: torch.tensor(2.0**k))


def by_steps(neuron: Neuron, current: Tensor) -> Tensor:
    """[T, N, ...] current -> [T, N, ...] output, one call for each step."""
    neuron.state = NeuronState()
    try:
        return torch.stack([neuron(x.clone()) for x in current])
    finally:
        neuron.state = None


def by_scan(neuron: Neuron, current: Tensor) -> Tensor:
    """[T, N, ...] current -> [T, N, ...] output, all steps in one call."""
    neuron.state = NeuronState(timesteps=len(current))
    try:
        return neuron(current.flatten(0, 1)).unflatten(0, current.shape[:2])
    finally:
        neuron.state = None


class Seen:
    """A probe that keeps every count, [T, N, ...]."""

    keep = True

    def __init__(self, *shape: int):
        self.counts = torch.full(shape, float("nan"))

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        self.counts[t, row : row + len(spikes)] = spikes


class Sums:
    """A probe that keeps sums over each sample's neurons only: of the counts and of their sizes, [T, N]."""

    keep = False

    def __init__(self, timesteps: int, samples: int):
        self.net, self.size = torch.zeros(2, timesteps, samples, dtype=torch.int64)

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        here, spikes = slice(row, row + len(spikes)), spikes.flatten(1).long()
        self.net[t, here] = spikes.sum(1)
        self.size[t, here] = spikes.abs().sum(1)

    def add(self, net, size, t: int, neurons: int) -> None:
        self.net[t : t + len(net)], self.size[t : t + len(net)] = torch.tensor(net), torch.tensor(size)


def random_current(low: float, high: float, *shape: int) -> Tensor:
    """[STEPS, *shape] multiples of 1/64 between the bounds."""
    return torch.randint(int(low * 64), int(high * 64) + 1, (STEPS, *shape)) / 64


@given(x=dyadic, scale=power_of_two, split=st.sampled_from(SPLITS))
def test_one_timestep_equals_the_quantizer(x, scale, split):
    quantizer = PMSM(levels=9, split=split).quantizer()
    quantizer.set_start(Start(scale, *split))
    neuron, wanted = quantizer.neuron(), quantizer(x).detach()
    assert torch.equal(neuron(x), wanted)
    assert torch.equal(by_steps(neuron, x[None])[0], wanted)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
@over_splits
def test_a_probe_sees_the_codes_and_changes_nothing(split, layout):
    x = (torch.randn(5, 8, 64, 80) * 4).to(memory_format=layout)  # 204,800 elements: more than one block
    neuron = Neuron(torch.tensor(0.7), *split)
    wanted = neuron(x)
    neuron.probe = seen = Seen(1, *x.shape)
    assert torch.equal(neuron(x), wanted)
    assert torch.equal(seen.counts[0] * neuron.threshold, wanted)
    assert torch.equal(wanted, quantize(x, neuron.threshold, *split))


@over_splits
def test_without_saturation_the_mean_output_is_within_half_a_step_over_t(split):
    scale, (low, high) = 2.0, split
    current = random_current(low, high, 100) * scale  # within the codes at every step: nothing saturates
    out = by_steps(Neuron(torch.tensor(scale), *split), current)
    for t in range(1, STEPS + 1):
        error = (out[:t].sum(0) - current[:t].sum(0)).abs().max()  # t times the distance of the means, exact
        assert error <= scale / 2


@over_splits
def test_running_total_stays_within_the_codes_of_t_steps(split):
    low, high = split
    sent = by_steps(Neuron(torch.tensor(1.0), *split), random_current(-12, 12, 200)).cumsum(0)
    t = torch.arange(1, STEPS + 1)[:, None]
    assert bool((sent >= low * t).all())
    assert bool((sent <= high * t).all())


def test_a_rectified_neuron_never_has_a_negative_running_total():
    out = by_steps(Neuron(torch.tensor(0.5), 0, 8), random_current(-6, 6, 200))
    assert bool((out < 0).any()), "it takes back what it sent too early"
    assert bool((out.cumsum(0) >= 0).all())


@over_splits
def test_each_step_sends_at_most_the_larger_bound(split):
    burst = max(-split[0], split[1])
    out = by_steps(Neuron(torch.tensor(1.0), *split), random_current(-20, 20, 200))
    assert out.abs().max() <= burst


@over_splits
def test_constant_saturation_sends_the_outermost_code_at_every_step(split):
    current = torch.tensor([[-100.0, 100.0]]).repeat(STEPS, 1)
    out = by_steps(Neuron(torch.tensor(1.0), *split), current)
    assert torch.equal(out, torch.tensor(split).float().expand(STEPS, 2))


@over_splits
def test_without_cancelling_every_step_stays_within_the_codes(split):
    out = by_steps(Neuron(torch.tensor(1.0), *split, cancel=False), random_current(-12, 12, 200))
    assert split[0] <= out.min()
    assert out.max() <= split[1]


def test_binary_and_without_cancelling_it_is_the_published_integrate_and_fire_neuron():
    """QCFS: v(0) = threshold / 2, fire when v >= threshold, soft reset (Bu et al. 2022)."""
    threshold, current = 4.0, random_current(-8, 12, 300)
    out = by_steps(Neuron(torch.tensor(threshold), 0, 1, cancel=False), current)
    v = torch.full((300,), threshold / 2)
    for x, got in zip(current, out, strict=True):
        v = v + x
        wanted = (v >= threshold) * threshold
        v = v - wanted
        assert torch.equal(got, wanted)


@over_splits
def test_the_neuron_is_the_written_out_recurrence(split):
    """v += u; k = floor(v + 1/2) within the burst and within what the running total allows; v -= k."""
    low, high = split
    burst, current = max(-low, high), random_current(-12, 12, 300)
    out = by_steps(Neuron(torch.tensor(1.0), low, high), current)
    v, sent = torch.zeros(300), torch.zeros(300)
    for t, (u, got) in enumerate(zip(current, out, strict=True), start=1):
        v = v + u
        wanted = (v + 0.5).floor().clamp(-burst, burst)
        wanted = torch.minimum(torch.maximum(wanted, low * t - sent), high * t - sent)
        v, sent = v - wanted, sent + wanted
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("cancel", [True, False], ids=["cancel", "free"])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@over_splits
def test_the_scan_equals_step_by_step(split, per_channel, layout, cancel):
    current = torch.randn(4, 5, 8, 40, 84) * 5  # one step of it is more than one block
    threshold = torch.rand(1, 8, 1, 1) + 0.5 if per_channel else torch.tensor(0.7)
    neuron = Neuron(threshold, *split, cancel=cancel)
    scanned_from = current.flatten(0, 1).to(memory_format=layout).unflatten(0, (4, 5))
    wanted = by_steps(neuron, torch.stack([x.contiguous(memory_format=layout) for x in current]))
    assert torch.equal(by_scan(neuron, scanned_from), wanted)


@pytest.mark.parametrize("shape, dim", [((5, 8, 40, 84), 1), ((3, 8, 3, 3), 1), ((3, 11, 7), 2)], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@over_splits
def test_every_neuron_starts_with_the_potential_of_its_channel(split, per_channel, shape, dim):
    along = [1] * len(shape)
    along[dim] = shape[dim]
    initial = torch.rand(along) - 0.5
    threshold = torch.rand(along) + 0.5 if per_channel else torch.tensor(0.7)
    current, neuron = torch.randn(3, *shape) * 5, Neuron(threshold, *split, initial=initial)
    outs = by_steps(neuron, current)
    assert torch.equal(outs[0], quantize(current[0], threshold, *split, initial=initial))
    assert torch.equal(by_scan(neuron, current), outs)
    neuron.probe = Sums(1, shape[0])
    assert torch.equal(neuron(current[0]), outs[0])
    counts = (outs[0] / threshold).round().long().flatten(1)
    assert torch.equal(neuron.probe.net[0], counts.sum(1))
    neuron.probe = Seen(3, *shape)
    assert torch.equal(by_scan(neuron, current), outs)  # the plain form
    v = initial + (current - outs).div(threshold).sum(0)
    neuron.probe, neuron.state = None, NeuronState()
    for x in current:
        neuron(x.clone())
    torch.testing.assert_close(neuron.state.v, v, rtol=0, atol=1e-4)  # float32 sums in another order


@over_splits
def test_the_scan_shows_its_probe_what_step_by_step_shows(split):
    current, neuron = torch.randn(4, 6, 8, 50, 60) * 5, Neuron(torch.tensor(0.7), *split)
    seen = {}
    for run in (by_steps, by_scan):
        neuron.probe = Seen(*current.shape)
        run(neuron, current)
        seen[run] = neuron.probe.counts
    assert torch.equal(seen[by_steps], seen[by_scan])


@pytest.mark.parametrize("run", [by_steps, by_scan])
@over_splits
def test_a_probe_that_keeps_nothing_is_told_the_sums(split, run):
    current, neuron = torch.randn(4, 6, 8, 50, 60) * 5, Neuron(torch.tensor(0.7), *split)
    neuron.probe = Seen(*current.shape)
    wanted = run(neuron, current)
    counts = neuron.probe.counts.flatten(2).long()
    neuron.probe = Sums(4, 6)
    assert torch.equal(run(neuron, current), wanted)
    assert torch.equal(neuron.probe.net, counts.sum(2))
    assert torch.equal(neuron.probe.size, counts.abs().sum(2))


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 7), (1, 1), (3, 1, 4, 4)], ids=str)
def test_the_scan_takes_every_shape(shape):
    current, neuron = torch.randn(4, *shape) * 5, Neuron(torch.tensor(0.7), -2, 6)
    assert torch.equal(by_scan(neuron, current), by_steps(neuron, current))


def test_the_neuron_never_writes_to_its_input():
    current, neuron = torch.randn(4, 3, 7) * 5, Neuron(torch.tensor(0.7), 0, 8)
    before = current.clone()
    by_steps(neuron, current)
    by_scan(neuron, current)
    neuron.probe = Seen(1, 3, 7)
    neuron(current[0])
    assert torch.equal(current, before)
