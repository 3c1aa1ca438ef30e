"""Streams of frames: state carried or forgotten, samples that stop early, frame by frame; no trace left."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pmsm.ann.models import small_vgg
from pmsm.ann.models.vit import VisionTransformer
from pmsm.errors import SimulationError
from pmsm.methods import PMSM
from pmsm.methods.neuron import Neuron
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.running import running
from pmsm.snn.simulate import simulate
from pmsm.snn.temporal import Static

NETWORKS = {
    "vgg": lambda: small_vgg(3, width=4),  # BatchNorm and MaxPool
    "vit": lambda: VisionTransformer(16, 4, 16, 2, 2, 10),  # LayerNorm, softmax, products of signals
}


@pytest.fixture(params=NETWORKS, scope="module")
def qann(request):
    torch.manual_seed(0)
    ann = NETWORKS[request.param]().eval()
    x = torch.randn(8, 3, 16, 16)
    return calibrate(quantize(ann, PMSM(levels=9), x), x)


@pytest.fixture(params=["integrate", "tracking"], scope="module")
def snn(request, qann):
    return convert(qann, mode=request.param)


def frames(count: int = 4, samples: int = 4) -> Tensor:
    """[F, N, 3, 16, 16], each frame another."""
    return torch.randn(count, samples, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def clean(snn: nn.Module) -> bool:
    parts = [module for module in snn.modules() if isinstance(module, Neuron | Static)]
    return all(m.state is None and getattr(m, "probe", None) is None for m in parts) and not snn.meta.get(
        "running"
    )


def same(a, b) -> bool:
    """Equal read-outs, steps and spikes."""
    return (
        torch.equal(a.outputs, b.outputs)
        and torch.equal(a.steps, b.steps)
        and a.spikes.keys() == b.spikes.keys()
        and all(
            torch.equal(s.positive, b.spikes[name].positive)
            and torch.equal(s.negative, b.spikes[name].negative)
            for name, s in a.spikes.items()
        )
    )


# ----------------------------------------------------------------------------------------------------------
# What a stream is
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["steps", "layers"])
def test_a_still_stream_is_a_constant_input(snn, schedule):
    x = frames(1)
    still = simulate(snn, x.expand(4, -1, -1, -1, -1), stream=True, schedule=schedule)
    assert same(still, simulate(snn, x[0], 4, schedule=schedule))


@pytest.mark.parametrize("per_frame", [1, 3])
def test_both_schedules_run_a_stream_to_the_same_bits(snn, per_frame):
    x = frames()
    by_steps = simulate(snn, x, per_frame, stream=True, schedule="steps")
    assert by_steps.timesteps == 4 * per_frame
    assert same(by_steps, simulate(snn, x, per_frame, stream=True, schedule="layers"))
    assert clean(snn)


def test_several_steps_per_frame_are_the_frame_shown_so_often(snn):
    x = frames()
    assert same(simulate(snn, x, 3, stream=True), simulate(snn, x.repeat_interleave(3, 0), stream=True))


def test_a_network_that_forgets_between_frames_is_the_mean_of_its_quantized_network(qann):
    x = frames()
    run = simulate(convert(qann), x, stream=True, reset_each_frame=True)
    total = 0
    for t, frame in enumerate(x):
        total = total + qann(frame)
        assert torch.equal(run.outputs[t], total / (t + 1))
    alone = [simulate(convert(qann), frame) for frame in x]
    for name, spikes in run.spikes.items():
        assert torch.equal(spikes.positive, torch.cat([one.spikes[name].positive for one in alone]))
        assert torch.equal(spikes.negative, torch.cat([one.spikes[name].negative for one in alone]))


def test_a_network_that_forgets_runs_each_frame_as_if_it_were_alone(qann):
    x, snn = frames(), convert(qann)
    run = simulate(snn, x, 3, stream=True, reset_each_frame=True)
    alone = torch.stack([3 * simulate(snn, frame, 3, schedule="steps").output for frame in x])
    # The same steps, summed in another order: a few units in the last place.
    torch.testing.assert_close(
        run.outputs[2::3], alone.cumsum(0) / torch.tensor([3, 6, 9, 12]).view(-1, 1, 1)
    )


def test_tracking_follows_every_frame_exactly(qann):
    snn, x = convert(qann, mode="tracking"), frames()
    run = simulate(snn, x, stream=True)
    assert all(torch.equal(run.outputs[t], qann(frame)) for t, frame in enumerate(x))


def test_tracking_sends_nothing_while_the_scene_is_still(qann):
    snn, x = convert(qann, mode="tracking"), frames(2)
    run = simulate(snn, x[[0, 0, 0, 1, 1]], stream=True)
    sent = [
        sum(int(s.positive[t].sum() + s.negative[t].sum()) for s in run.spikes.values()) for t in range(5)
    ]
    assert sent[0] > 0
    assert sent[3] > 0
    assert (sent[1], sent[2], sent[4]) == (0, 0, 0)


def test_the_mean_frame_decides_in_the_long_run():
    # One layer, no saturation: the read-out tends to the layer of the mean frame as 1 / T.
    layer = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.rand(64, 2, 6)
    qann = calibrate(quantize(layer, PMSM(levels=33), x[0]), x.flatten(0, 1))
    run = simulate(convert(qann), x, stream=True)
    scale = qann.get_submodule("1").scale()
    reach = (layer[2].weight.abs() * scale).sum(1).detach()  # every neuron off by one step at most
    for t in (16, 64):
        mean = layer[1](layer[0](x[:t].transpose(0, 1)).mean(1))  # of currents, not of codes
        assert bool(((run.outputs[t - 1] - layer[2](mean)).abs() <= reach / t + 1e-5).all())


# ----------------------------------------------------------------------------------------------------------
# Samples that stop
# ----------------------------------------------------------------------------------------------------------


def test_a_shorter_sample_keeps_its_last_read_out_and_sends_nothing_more(snn):
    x, lengths = frames(), torch.tensor([4, 1, 2, 4])
    run = simulate(snn, x, stream=True, lengths=lengths)
    assert torch.equal(run.steps, lengths)
    for n, length in enumerate(lengths.tolist()):
        alone = simulate(snn, x[:length, n : n + 1], stream=True)
        # Alone, the layers see another batch: kernels of other shapes may sum in another order.
        torch.testing.assert_close(run.output[n], alone.output[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(run.outputs[length - 1 :, n], run.output[n].expand(5 - length, -1))
        for name, spikes in run.spikes.items():
            assert not spikes.positive[length:, n].any()
            assert not spikes.negative[length:, n].any()
            assert spikes.positive[:length, n].sum() == alone.spikes[name].positive.sum()


def test_lengths_of_all_frames_change_nothing(snn):
    x = frames()
    whole = simulate(snn, x, stream=True, schedule="steps")
    assert same(simulate(snn, x, stream=True, lengths=torch.full((4,), 4)), whole)


def test_every_count_is_kept_in_its_place_when_samples_stop(snn):
    x, lengths = frames(), torch.tensor([1, 4, 2, 3])
    run = simulate(snn, x, stream=True, lengths=lengths, record="counts")
    for spikes in run.spikes.values():
        counts = spikes.counts.flatten(2) if spikes.counts.shape[1] == 4 else spikes.counts.view(4, 4, -1)
        assert torch.equal(counts.clamp(min=0).sum(2), spikes.positive)
        assert torch.equal(-counts.clamp(max=0).sum(2), spikes.negative)


def test_a_sample_stops_at_its_first_confident_step(qann):
    snn, x = convert(qann), frames(1, 8)[0]
    whole = simulate(snn, x, 8, schedule="steps")
    sure = whole.outputs.softmax(2).amax(2)  # [T, N]
    level = float(sure[3].median())
    run = simulate(snn, x, 8, until=level)
    expected = torch.tensor(
        [next((t + 1 for t in range(8) if row[t] >= level), 8) for row in sure.T.tolist()]
    )
    assert torch.equal(run.steps, expected)
    assert 1 <= run.mean_timesteps == expected.double().mean() < 8
    for n, steps in enumerate(expected.tolist()):
        torch.testing.assert_close(run.output[n], whole.outputs[steps - 1, n], rtol=1e-4, atol=1e-4)


def test_a_run_ends_when_every_sample_is_sure(qann):
    run = simulate(convert(qann), frames(1)[0], 8, until=1e-6)
    assert run.timesteps == 1
    assert run.outputs.shape[0] == 1
    assert all(len(spikes.positive) == 1 for spikes in run.spikes.values())


def test_any_function_of_the_read_out_may_decide(qann):
    seen = []

    def third(output: Tensor) -> Tensor:
        seen.append(len(output))
        return torch.full((len(output),), len(seen) == 3)

    run = simulate(convert(qann), frames(1)[0], 8, until=third)
    assert seen == [4, 4, 4]
    assert run.steps.tolist() == [3] * 4


# ----------------------------------------------------------------------------------------------------------
# Frame by frame
# ----------------------------------------------------------------------------------------------------------


def test_frame_by_frame_is_the_stream(snn):
    x = frames()
    whole = simulate(snn, x, 2, stream=True, schedule="steps")
    with running(snn, record="spikes") as step:
        for f, frame in enumerate(x):
            assert torch.equal(step(frame, 2), whole.outputs[2 * f + 1])
            assert step.t == 2 * f + 2
            for name, spikes in step.spikes.items():
                assert torch.equal(spikes.positive, whole.spikes[name].positive[2 * f : 2 * f + 2])
                assert torch.equal(spikes.negative, whole.spikes[name].negative[2 * f : 2 * f + 2])
    assert clean(snn)


def test_a_reset_makes_the_next_frame_the_first(snn):
    x = frames(2)
    with running(snn) as step:
        first = step(x[0])
        step(x[1])
        step.reset()
        assert torch.equal(step(x[0]), first)
        step.reset()
        step(x[0][:2])  # another batch is a new start


def test_a_frame_of_another_batch_size_is_refused_and_the_run_goes_on(snn):
    x = frames(3)
    whole = simulate(snn, x[:2], stream=True, schedule="steps")
    with running(snn) as step:
        step(x[0])
        with pytest.raises(SimulationError, match=r"remembers a potential per sample.*reset\(\)"):
            step(x[1][:2])
        assert torch.equal(step(x[1]), whole.output)


def test_a_frame_with_nan_is_refused_and_the_run_goes_on(snn):
    x = frames(2)
    whole = simulate(snn, x, stream=True, schedule="steps")
    with running(snn) as step:
        step(x[0])
        with pytest.raises(SimulationError, match="NaN or Inf"):
            step(torch.full_like(x[0], float("nan")))
        assert step.t == 1
        assert torch.equal(step(x[1]), whole.output)


def test_after_a_block_that_failed_a_run_takes_no_frame(snn):
    steps = []

    def fail() -> None:
        with running(snn) as step:
            steps.append(step)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(SimulationError, match="has ended"):
        steps[0](frames()[0])
    assert clean(snn)


def test_after_its_block_a_run_takes_no_frame(snn):
    with running(snn) as step:
        step(frames()[0])
    with pytest.raises(SimulationError, match="has ended"):
        step(frames()[0])


def test_one_network_runs_one_run_at_a_time(snn):
    x = frames()[0]
    with running(snn) as step:
        first = step(x)
        with pytest.raises(SimulationError, match=r"running already.*deepcopy"):
            simulate(snn, x, 2)
        with pytest.raises(SimulationError, match="running already"), running(snn):
            pass
        assert torch.equal(step(x), simulate(copy.deepcopy(convert_like(snn)), x, 2, schedule="steps").output)
    assert torch.equal(simulate(snn, x).output, first)


def convert_like(snn):
    """The same network with nothing in it of the run that is going on."""
    twin = copy.deepcopy(snn)
    for module in twin.modules():
        if isinstance(module, Neuron | Static):
            module.state = None
    twin.meta = {key: value for key, value in snn.meta.items() if key != "running"}
    return twin


def one_by_one(snn, x: Tensor) -> None:
    with running(snn) as step:
        for frame in x:
            step(frame)


def test_an_interrupted_run_leaves_no_trace(snn):
    x = frames()
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    last = [module for module in snn.modules() if isinstance(module, Neuron)][-1]
    before = simulate(snn, x, stream=True).outputs
    handle = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulate(snn, x, stream=True, schedule="steps")
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        one_by_one(snn, x)
    handle.remove()
    assert clean(snn)
    assert torch.equal(simulate(snn, x, stream=True).outputs, before)
    half = simulate(snn, x[:, :2], stream=True).outputs
    torch.testing.assert_close(half, before[:, :2], rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(lengths=torch.tensor([1, 2, 3])), "lengths needs 4 whole numbers from 1 to 4"),
        (dict(lengths=torch.tensor([0, 1, 2, 3])), "lengths needs 4 whole numbers"),
        (dict(lengths=torch.tensor([1, 2, 3, 5])), "lengths needs 4 whole numbers"),
        (dict(lengths=torch.tensor([1.0, 2, 3, 4])), "lengths needs 4 whole numbers"),
        (dict(until=0.0), r"confidence in \(0, 1\]"),
        (dict(until=1.5), r"confidence in \(0, 1\]"),
        (dict(until=lambda output: True), r"must give a bool per sample, \[4\]"),
        (dict(until=lambda output: output > 0), "must give a bool per sample"),
        (dict(until=0.5, schedule="layers"), "cannot serve lengths, until or reset_each_frame"),
        (dict(reset_each_frame=True, schedule="layers"), "cannot serve lengths, until or reset_each_frame"),
        (dict(timesteps=0), "timesteps >= 1"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_meant_is_refused(snn, arguments, message):
    with pytest.raises(SimulationError, match=message):
        simulate(snn, frames(), stream=True, **arguments)
    assert clean(snn)


def test_a_stream_without_a_dimension_for_time_is_refused(snn):
    with pytest.raises(SimulationError, match="time dimension first"):
        simulate(snn, torch.randn(3), stream=True)
    with pytest.raises(SimulationError, match="time dimension first"):
        simulate(snn, frames()[:0], stream=True)


def test_a_confidence_needs_class_scores():
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    x = torch.randn(2, 1, 5, 5)
    snn = convert(calibrate(quantize(ann, PMSM(), x), x))
    with pytest.raises(SimulationError, match=r"needs a read-out \[N, classes\].*until=lambda"):
        simulate(snn, x, 2, until=0.9)
