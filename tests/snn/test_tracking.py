"""Tracking mode: differential spikes that settle on the codes of the quantized network and fall silent."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm.ann.models import resnet20, small_vgg
from pmsm.ann.models.vit import VisionTransformer
from pmsm.methods import PMSM, QCFS, STBIF
from pmsm.methods.neuron import NeuronState, TrackingNeuron
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import verify


class Mixed(nn.Module):
    """Every kind of operator: pools, a normalization, a product of two signals, a softmax, a residual."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(3)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = h + F.gelu(self.conv2(h)) * torch.sigmoid(h)
        h = torch.softmax(h @ h.transpose(-2, -1), -1) @ h
        return self.fc(self.norm(h).mean(2).flatten(1))


NETWORKS = {
    "vgg": lambda: (small_vgg(3, width=4), torch.randn(3, 3, 16, 16)),
    "resnet20": lambda: (resnet20(), torch.randn(2, 3, 32, 32)),
    "vit": lambda: (VisionTransformer(8, 4, 24, 2, 2, 5), torch.randn(2, 3, 8, 8)),
    "mixed": lambda: (Mixed(), torch.randn(3, 3, 8, 8)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def qann_and_x(request):
    torch.manual_seed(0)
    ann, x = NETWORKS[request.param]()
    return calibrate(quantize(ann.eval(), PMSM(levels=9), x), x), x


def sent(run, t: int) -> int:
    return sum(int(s.positive[t].sum() + s.negative[t].sum()) for s in run.spikes.values())


def test_without_a_tight_burst_limit_it_is_exact_at_every_step_and_silent_after_the_first(qann_and_x):
    qann, x = qann_and_x
    snn = convert(qann, mode="tracking")
    verify(qann, snn, x)
    run = simulate(snn, x, 5)
    assert all(torch.equal(output, qann(x)) for output in run.outputs)
    assert sent(run, 0) > 0
    assert [sent(run, t) for t in range(1, 5)] == [0, 0, 0, 0]


@pytest.mark.parametrize("burst", [1, 2])
def test_a_tight_burst_limit_is_exact_once_it_is_silent(qann_and_x, burst):
    qann, x = qann_and_x
    run = simulate(convert(qann, mode="tracking", burst=burst), x, 40)
    assert not torch.equal(run.outputs[0], qann(x)), "the first step cannot say more than `burst`"
    assert torch.equal(run.output, qann(x))
    settled = next(t for t in range(40) if torch.equal(run.outputs[t], qann(x)))
    assert sent(run, 39) == 0
    assert settled > 0


def test_a_burst_of_one_is_the_signed_ternary_neuron():
    # ST-BIF written out: fire +1 while v >= threshold and below the top, -1 while v < 0 and above the bottom.
    neuron = TrackingNeuron(torch.tensor(0.5), -2, 3, burst=1)
    neuron.state = NeuronState()
    currents = torch.randint(-8, 9, (12, 50)) / 8  # dyadic: sums are exact
    v, total, count = torch.full((50,), 0.25), torch.zeros(50), torch.zeros(50)
    for current in currents:
        v, total = v + current, total + current
        fire = ((v >= 0.5) & (count < 3)).float() - ((v < 0) & (count > -2)).float()
        v, count = v - 0.5 * fire, count + fire
        assert torch.equal(neuron(total), 0.5 * count)


def test_a_still_scene_costs_nothing_and_a_change_costs_what_changed(qann_and_x):
    qann, x = qann_and_x
    snn = convert(qann, mode="tracking")
    neurons = [module for module in snn.modules() if isinstance(module, TrackingNeuron)]
    for neuron in neurons:
        neuron.state = NeuronState()
    moved = x.clone()
    moved[:, :, :2] += 0.5
    for frame in (x, x, moved):
        assert torch.equal(snn(frame), qann(frame))


def test_the_spikes_of_a_neuron_sum_to_its_code(qann_and_x):
    qann, x = qann_and_x
    once = simulate(convert(qann, mode="tracking"), x, 1, record="counts")
    many = simulate(convert(qann, mode="tracking", burst=1), x, 40, record="counts")
    for name, spikes in once.spikes.items():
        assert torch.equal(many.spikes[name].counts.sum(0), spikes.counts[0])
        assert int(many.spikes[name].counts.abs().max()) <= 1


def test_any_method_can_be_tracked():
    ann, x = small_vgg(3, width=4).eval(), torch.randn(2, 3, 16, 16)
    qann = calibrate(quantize(ann, QCFS(levels=5, start="entropy"), x), x)
    assert torch.equal(simulate(convert(qann, mode="tracking", burst=1), x, 20).output, qann(x))


def test_a_burst_below_one_and_a_burst_without_tracking_are_refused(qann_and_x):
    qann, _ = qann_and_x
    with pytest.raises(ValueError, match="burst >= 1"):
        convert(qann, mode="tracking", burst=0)
    with pytest.raises(ValueError, match=r"'tracking' \(with burst\)"):
        convert(qann, burst=2)


def test_st_bif_sends_one_spike_a_step_until_it_says_what_its_quantized_network_says():
    torch.manual_seed(0)
    ann, x = small_vgg(3, width=4).eval(), torch.randn(8, 3, 16, 16)
    qann = calibrate(quantize(ann, STBIF(levels=5), x), x)
    snn = convert(qann)
    assert snn.meta["mode"] == "tracking"
    run = simulate(snn, x, timesteps=40, record="counts")
    assert all(int(spikes.counts.abs().max()) == 1 for spikes in run.spikes.values())
    assert not torch.equal(run.outputs[0], qann(x))
    assert torch.equal(run.output, qann(x))


def test_a_mode_that_is_asked_for_wins_over_the_methods_own():
    x = torch.randn(2, 3, 16, 16)
    qann = calibrate(quantize(small_vgg(3, width=4).eval(), STBIF(levels=5), x), x)
    assert verify(qann, convert(qann, mode="integrate"), x).exact
    assert verify(qann, convert(qann, burst=4), x).exact
    assert convert(qann, mode="integrate").meta["mode"] == "integrate"
