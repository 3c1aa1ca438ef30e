"""Running over time: read-outs at every step, two schedules of equal numbers, static maps, no trace left."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.ann.models import CifarResNet, small_vgg
from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import RULES, convert
from pmsm.snn.simulate import simulate
from pmsm.snn.temporal import Rule, Static

SCHEDULES = pytest.mark.parametrize("schedule", ["layers", "steps"])


def spiking(ann: nn.Module, x: Tensor, method=PMSM(levels=5), rules=RULES) -> Network:  # noqa: B008
    return convert(calibrate(quantize(ann, method, x), x), rules=rules)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.GELU(),
        nn.Conv2d(3, 2, 1), nn.Flatten(),
    )  # fmt: skip


def left_clean(snn: Network) -> bool:
    return all(
        module.state is None and getattr(module, "probe", None) is None
        for module in snn.modules()
        if isinstance(module, Neuron | Static)
    )


# ----------------------------------------------------------------------------------------------------------
# Read-outs and schedules
# ----------------------------------------------------------------------------------------------------------

NETWORKS = {
    "small": (small, (6, 1, 8, 8)),
    "vgg": (lambda: small_vgg(3, width=4), (5, 3, 8, 8)),
    "resnet": (lambda: CifarResNet(1), (3, 3, 16, 16)),
}
METHODS = [
    PMSM(levels=5),
    PMSM(levels=5, split="symmetric", per_channel=True),
    PMSM(split="leaky"),
    QCFS(start="entropy"),
]
over_networks = pytest.mark.parametrize("network, shape", NETWORKS.values(), ids=NETWORKS)
over_methods = pytest.mark.parametrize("method", METHODS, ids=repr)


@SCHEDULES
@over_networks
def test_the_first_read_out_of_a_long_run_is_the_run_of_one_step(network, shape, schedule, randomize):
    x = torch.randn(shape)
    snn = spiking(randomize(network()), x)
    first = simulate(snn, x, 4, schedule=schedule).outputs[0]
    # Another batch at once: kernels of other shapes may sum in another order, a few units in the last place.
    torch.testing.assert_close(first, simulate(snn, x).output, rtol=1e-5, atol=1e-5)


@SCHEDULES
def test_every_read_out_is_that_of_a_run_of_so_many_steps(schedule):
    x = torch.randn(4, 1, 8, 8)
    snn = spiking(small(), x)
    run = simulate(snn, x, 6, schedule=schedule)
    assert run.outputs.shape[0] == run.timesteps == 6
    assert torch.equal(run.output, run.outputs[-1])
    for t in range(1, 7):
        torch.testing.assert_close(
            simulate(snn, x, t, schedule="steps").output, run.outputs[t - 1], rtol=1e-5, atol=1e-5
        )


@over_methods
@over_networks
def test_both_schedules_send_the_same_spikes(network, shape, method, randomize):
    x = torch.randn(
        shape, dtype=torch.float64
    )  # rounding differs by kernel; at 1e-16 no potential is that near a tie
    snn = spiking(randomize(network()).double(), x, method)
    layers, steps = (simulate(snn, x, 4, record="counts", schedule=s) for s in ("layers", "steps"))
    assert list(layers.spikes) == list(steps.spikes)
    for name in layers.spikes:
        assert torch.equal(layers.spikes[name].counts, steps.spikes[name].counts)
        assert torch.equal(layers.spikes[name].positive, steps.spikes[name].positive)
        assert torch.equal(layers.spikes[name].negative, steps.spikes[name].negative)
    torch.testing.assert_close(layers.outputs, steps.outputs, rtol=0, atol=1e-12)


def test_both_schedules_agree_bit_for_bit_where_every_sum_is_exact():
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)
    )
    with torch.no_grad():
        for parameter in ann.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape) / 8)
    x = torch.randint(-8, 9, (6, 1, 8, 8)) / 8
    qann = calibrate(quantize(ann, PMSM(levels=5), x), x)
    for _, quantizer in graph.modules(qann, nn.Module):
        if hasattr(quantizer, "start"):
            quantizer.start.fill_(0.5)
    snn = convert(qann)
    # Powers of two as numbers of steps, so that means are exact as well.
    layers, steps = (simulate(snn, x, 2, schedule=schedule) for schedule in ("layers", "steps"))
    assert torch.equal(layers.outputs, steps.outputs)


@SCHEDULES
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_each_sample_runs_as_if_alone(samples, schedule):
    x = torch.randn(samples, 1, 8, 8)
    snn = spiking(small(), torch.randn(8, 1, 8, 8))
    together = simulate(snn, x, 3, schedule=schedule).outputs
    alone = [simulate(snn, x[i : i + 1], 3, schedule=schedule).outputs for i in range(samples)]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


@SCHEDULES
def test_outputs_of_any_form_come_back_in_that_form(schedule):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.relu, self.fc2 = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)

        def forward(self, x: Tensor):
            h = self.relu(self.fc1(x))
            return {"scores": self.fc2(h), "rest": (h, [h.sum(1)])}

    x = torch.randn(6, 4)
    snn = spiking(Heads(), x)
    run = simulate(snn, x, 3, schedule=schedule)
    assert run.outputs["scores"].shape == (3, 6, 3)
    assert run.outputs["rest"][0].shape == (3, 6, 5)
    assert run.outputs["rest"][1][0].shape == (3, 6)
    assert torch.equal(run.output["scores"], run.outputs["scores"][-1])
    assert torch.equal(simulate(snn, x, schedule=schedule).output["rest"][0], snn(x)["rest"][0])


@SCHEDULES
def test_several_inputs_come_as_a_tuple(schedule):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu, self.c = nn.Linear(4, 5), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(self.relu(self.a(x) + self.b(y)))

    x = torch.randn(6, 4), torch.randn(6, 3)
    qann = calibrate(quantize(Two(), PMSM(), x), [x])
    snn = convert(qann)
    assert torch.equal(simulate(snn, x).output, qann(*x))
    assert simulate(snn, x, 3, schedule=schedule).outputs.shape == (3, 6, 2)


# ----------------------------------------------------------------------------------------------------------
# Static maps
# ----------------------------------------------------------------------------------------------------------


class Mapped(nn.Module):
    """Returns the signals in front of a map and behind it."""

    def __init__(self, function):
        super().__init__()
        self.fc1, self.relu, self.fc2, self.fc3 = (
            nn.Linear(6, 8),
            nn.ReLU(),
            nn.Linear(8, 16),
            nn.Linear(8, 16),
        )
        self.pool, self.norm, self.prelu, self.gelu = nn.MaxPool1d(2), nn.LayerNorm(4), nn.PReLU(), nn.GELU()
        self.group, self.table = nn.GroupNorm(2, 4), nn.Parameter(torch.randn(4, 4))
        self.function = function
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor):
        h = self.relu(self.fc1(x))
        a, b = self.fc2(h).view(-1, 4, 4), self.fc3(h).view(-1, 4, 4)
        return a, b, self.function(self, a, b)


MAPS = {
    "MaxPool": lambda net, a, b: net.pool(a),
    "GELU": lambda net, a, b: net.gelu(a),
    "softmax": lambda net, a, b: a.softmax(1),
    "log_softmax": lambda net, a, b: F.log_softmax(a, dim=-1),
    "LayerNorm": lambda net, a, b: net.norm(a),
    "GroupNorm": lambda net, a, b: net.group(a),
    "PReLU": lambda net, a, b: net.prelu(a),
    "clamp": lambda net, a, b: a.clamp(-0.5, 0.5),
    "larger of two signals": lambda net, a, b: torch.maximum(a, b),
    "product of two signals": lambda net, a, b: a * b,
    "matrix product of two signals": lambda net, a, b: a @ b,
    "attention": lambda net, a, b: (a @ b.transpose(1, 2) / 2).softmax(-1) @ b,
    "quotient of two signals": lambda net, a, b: a / (b.exp() + 1),
    "square": lambda net, a, b: a * a,
    "matrix product with itself": lambda net, a, b: torch.matmul(a, a),
    "einsum with itself": lambda net, a, b: torch.einsum("nij,njk->nik", a, a),
    "reciprocal": lambda net, a, b: 1 / (a.abs() + 1),
    "quotient of a table": lambda net, a, b: net.table / (a.abs() + 1),
    "quotient rounded down": lambda net, a, b: torch.div(a, 0.3, rounding_mode="floor"),
    "larger than a table": lambda net, a, b: torch.maximum(a, net.table),
    "functional LayerNorm with weights": lambda net, a, b: F.layer_norm(
        a, (4,), net.norm.weight, net.norm.bias
    ),
    "the same LayerNorm twice": lambda net, a, b: net.norm(a) + net.norm(b),
    "the same PReLU twice": lambda net, a, b: net.prelu(a) + net.prelu(b),
    "product of transposes": lambda net, a, b: a.mT.softmax(1) * b.mT,
    "linear in one signal": lambda net, a, b: (a @ net.table - b) * 3 + 1,
    "mean": lambda net, a, b: a.mean(1, keepdim=True) - b,
}


@SCHEDULES
@pytest.mark.parametrize("function", MAPS.values(), ids=MAPS)
def test_the_mean_output_of_a_map_is_the_map_of_its_mean_input(function, schedule):
    ann, x = Mapped(function).double(), torch.randn(9, 6, dtype=torch.float64)
    qann = quantize(ann, PMSM(), x)
    for node, quantizer in list(graph.modules(qann, Quantizer)):
        if not quantizer.site.rectified:  # the operands of a product: the map alone is the claim here
            graph.remove(qann, node)
    run = simulate(convert(calibrate(graph.finish(qann), x)), x, 4, schedule=schedule)
    before_a, before_b, behind = run.outputs
    assert not torch.equal(before_a[0], before_a[3]), "the signal changes over time"
    for t in range(4):
        # Sums over the steps are taken and undone: rounding of float64.
        torch.testing.assert_close(behind[t], ann.function(ann, before_a[t], before_b[t]), rtol=0, atol=1e-12)


def test_a_map_whose_rule_the_user_gives_obeys_the_same_law():
    ann, x = Mapped(lambda net, a, b: torch.asinh(a)).double(), torch.randn(4, 6, dtype=torch.float64)
    run = simulate(spiking(ann, x, rules=RULES | {torch.asinh: Rule.STATIC}), x, 3)
    torch.testing.assert_close(run.output[2], torch.asinh(run.output[0]), rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------
# No trace left
# ----------------------------------------------------------------------------------------------------------


@SCHEDULES
@pytest.mark.parametrize("timesteps", [1, 3])
def test_no_state_and_no_probe_are_left_after_a_run(timesteps, schedule):
    x = torch.randn(4, 1, 8, 8)
    snn = spiking(small(), x)
    before = {name: tensor.clone() for name, tensor in snn.state_dict().items()}
    simulate(snn, x, timesteps, record="counts", schedule=schedule)
    assert left_clean(snn)
    assert before.keys() == snn.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in snn.state_dict().items())


@SCHEDULES
@pytest.mark.parametrize(
    "error, seen",
    [(KeyboardInterrupt, KeyboardInterrupt), (RuntimeError, SimulationError), (ValueError, SimulationError)],
)
def test_an_exception_inside_a_run_leaves_the_network_as_it_was(error, seen, schedule):
    x = torch.randn(4, 1, 8, 8)
    snn = spiking(small(), x)
    wanted, calls = simulate(snn, x, 3, schedule=schedule).outputs, 0

    def interrupt(*_) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error("in the middle")

    handle = snn.get_submodule("4").register_forward_hook(interrupt)
    with pytest.raises(seen):
        simulate(snn, x, 3, schedule=schedule)
    handle.remove()
    assert left_clean(snn)
    assert torch.equal(simulate(snn, x, 3, schedule=schedule).outputs, wanted)


@SCHEDULES
def test_a_batch_of_another_size_runs_afterwards(schedule):
    x = torch.randn(6, 1, 8, 8)
    snn = spiking(small(), x)
    simulate(snn, x, 3, schedule=schedule)
    assert simulate(snn, x[:2], 2, schedule=schedule).outputs.shape == (2, 2, 8)


def test_the_input_is_left_alone():
    x = torch.randn(4, 1, 8, 8)
    snn, before = spiking(small(), x), x.clone()
    simulate(snn, x, 3)
    assert torch.equal(x, before)


# ----------------------------------------------------------------------------------------------------------
# Spikes
# ----------------------------------------------------------------------------------------------------------


@SCHEDULES
@over_methods
@pytest.mark.parametrize("timesteps", [1, 4])
def test_spike_counts_are_those_counted_by_hand(timesteps, method, schedule):
    x = torch.randn(5, 3, 8, 8)
    snn = spiking(small_vgg(3, width=4), x, method)
    kept = simulate(snn, x, timesteps, record="counts", schedule=schedule)
    counted = simulate(snn, x, timesteps, record="spikes", schedule=schedule)
    assert torch.equal(kept.outputs, counted.outputs)
    neurons = {str(node.target): neuron for node, neuron in graph.modules(snn, Neuron)}
    assert list(kept.spikes) == list(counted.spikes) == list(neurons)
    for name, spikes in kept.spikes.items():
        counts = spikes.counts
        assert counts.shape[:2] == (timesteps, 5)
        assert spikes.neurons == counts[0, 0].numel()
        assert torch.equal(spikes.positive, counts.clamp(min=0).flatten(2).sum(2))
        assert torch.equal(spikes.negative, -counts.clamp(max=0).long().flatten(2).sum(2))
        assert torch.equal(counted.spikes[name].positive, spikes.positive)
        assert torch.equal(counted.spikes[name].negative, spikes.negative)
        assert counted.spikes[name].counts is None
        assert spikes.total == int(counts.abs().sum())
    sent = sum(spikes.total for spikes in kept.spikes.values())
    assert sent > 0
    assert kept.spikes_per_neuron() == sent / (5 * sum(s.neurons for s in kept.spikes.values()))
    assert kept.spikes_per_neuron(1) == simulate(snn, x, 1).spikes_per_neuron()


def test_at_one_step_the_counts_are_the_codes_of_the_quantized_network():
    x = torch.randn(5, 3, 8, 8)
    qann = calibrate(quantize(small_vgg(3, width=4), PMSM(levels=5, split="symmetric"), x), x)
    codes = {}
    for node, quantizer in graph.modules(qann, nn.Module):
        if hasattr(quantizer, "site"):
            quantizer.register_forward_hook(
                lambda site, _, out, name=str(node.target): codes.update({name: out / site.scale()})
            )
    with torch.no_grad():
        qann(x)
    spikes = simulate(convert(qann), x, record="counts").spikes
    assert {name: True for name in codes} == {
        name: torch.equal(codes[name].round().short(), spikes[name].counts[0]) for name in spikes
    }


@SCHEDULES
def test_nothing_is_recorded_when_nothing_is_asked_for(schedule):
    x = torch.randn(4, 1, 8, 8)
    snn = spiking(small(), x)
    silent = simulate(snn, x, 3, record=None, schedule=schedule)
    assert silent.spikes == {}
    assert torch.equal(silent.outputs, simulate(snn, x, 3, schedule=schedule).outputs)


# ----------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [0, -1, True, 2.0, "4", None], ids=repr)
def test_timesteps_that_are_no_whole_number_from_one_up_are_refused(timesteps):
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(SimulationError, match=rf"whole number of timesteps >= 1, got {timesteps!r}\."):
        simulate(spiking(small(), x), x, timesteps)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.full((2, 1, 8, 8), float("nan")), r"the input holds \d+ values that are NaN or Inf"),
        (torch.full((2, 1, 8, 8), float("inf")), r"the input holds \d+ values that are NaN or Inf"),
        (torch.zeros(0, 1, 8, 8), "at least one sample, batch dimension first"),
        (torch.tensor(1.0), "at least one sample, batch dimension first"),
        ([[1.0]], "at least one sample, batch dimension first"),
        (torch.zeros(2, 3, 8, 8), r"the network, which refuses inputs of shape \(2, 3, 8, 8\)"),
        (
            (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)),
            r"refuses inputs of shape \(2, 1, 8, 8\), \(2, 1, 8, 8\)",
        ),
    ],
    ids=["nan", "inf", "empty", "scalar", "list", "channels", "two inputs"],
)
@SCHEDULES
def test_an_input_that_cannot_serve_is_refused(schedule, x, message):
    snn = spiking(small(), torch.randn(4, 1, 8, 8))
    with pytest.raises(SimulationError, match=message):
        simulate(snn, x, 2, schedule=schedule)
    assert left_clean(snn)


@pytest.mark.parametrize("setting", [{"record": "all"}, {"schedule": "rows"}], ids=str)
def test_an_unknown_setting_is_refused(setting):
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(SimulationError, match=f"simulate needs {next(iter(setting))} .*, got '(all|rows)'"):
        simulate(spiking(small(), x), x, **setting)


def test_a_network_that_does_not_spike_is_refused():
    x = torch.randn(2, 1, 8, 8)
    qann = calibrate(quantize(small(), PMSM(), x), x)
    for network in (qann, small()):
        with pytest.raises(
            SimulationError, match=r"needs a spiking network, got \w+. Call snn = pmsm.convert\(qann\)"
        ):
            simulate(network, x)


# ----------------------------------------------------------------------------------------------------------
# Networks that move the batch, and networks left in training mode
# ----------------------------------------------------------------------------------------------------------

MOVERS = {
    "transpose": lambda h: h.transpose(0, 1),
    "swapaxes": lambda h: h.swapaxes(0, 1),
    "movedim": lambda h: torch.movedim(h, 0, 1),
    "permute": lambda h: h.permute(1, 0, 2),
    "einsum": lambda h: torch.einsum("nld->lnd", h),
    "flip": lambda h: torch.flip(h, (0,)),
    "roll": lambda h: torch.roll(h, 1, 0),
    "mean over all": lambda h: h - h.mean(),
    "mean over the batch": lambda h: h - h.mean(0, keepdim=True),
    "keeps": lambda h: h.transpose(1, 2).transpose(-1, -2),
}


@pytest.mark.parametrize("move", MOVERS.values(), ids=MOVERS)
@pytest.mark.parametrize("timesteps", [2, 4])
def test_the_automatic_schedule_gives_what_the_steps_give_whatever_moves_the_batch(move, timesteps):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(move(torch.relu(self.a(x)))))

    x = torch.randn(4, 4, 6, dtype=torch.float64)
    snn = spiking(Moving().double(), x)
    auto, steps = simulate(snn, x, timesteps), simulate(snn, x, timesteps, schedule="steps")
    torch.testing.assert_close(auto.outputs, steps.outputs, rtol=0, atol=1e-12)  # float64, other batch sizes
    assert auto.spikes_per_neuron() == steps.spikes_per_neuron()


def test_a_network_left_in_training_mode_runs_in_evaluation_and_stays_as_it_was():
    x = torch.randn(4, 1, 8, 8)
    snn = spiking(small(), x)
    wanted, before = simulate(snn, x, 2).outputs, copy.deepcopy(snn.state_dict())
    snn.train()
    assert torch.equal(simulate(snn, x, 2).outputs, wanted)
    assert snn.training
    assert all(torch.equal(before[name], tensor) for name, tensor in snn.state_dict().items())
