"""Whole numbers alone compute what the rounded network computes."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.models import resnet20
from pmsm.ann.models.small import SmallResNet
from pmsm.errors import QuantizationError, SimulationError
from pmsm.snn.integer import IntegerNetwork, product

READER = Path(__file__).parents[2] / "docs" / "read_npz.py"


class Shuffled(nn.Module):
    """Grouped, dilated and strided convolutions, concatenation, an average pool in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
        self.pool = nn.AvgPool2d(2, 1, padding=1)
        self.conv3 = nn.Conv2d(8, 3, 1)
        self.relu3 = nn.ReLU()
        self.linear = nn.Linear(3 * 25, 5)

    def forward(self, x):
        y = self.relu1(self.conv1(x))
        y = self.relu1(self.conv2(y))
        y = self.pool(torch.cat([y, y.flip(1)], 1))
        return self.linear(self.relu3(self.conv3(y)).flatten(1))


NETWORKS = {
    "pooled residual": (lambda: SmallResNet(1, 4, width=4), (1, 12, 12)),
    "subsampled residual": (lambda: resnet20(), (3, 8, 8)),
    "groups, concatenation": (Shuffled, (2, 8, 8)),
}


@pytest.fixture(params=NETWORKS, ids=str)
def rounded(request, randomize):
    build, shape = NETWORKS[request.param]
    x = torch.randn(6, *shape)
    qann = pmsm.calibrate(pmsm.quantize(randomize(build()), pmsm.PMSM(levels=9), x), x)
    return pmsm.quantize_weights(qann, x), x


def test_every_count_equals_the_rounded_networks(rounded):
    qann, x = rounded
    snn = pmsm.convert(qann)
    run = pmsm.integer(qann)(x, record=True)
    spikes = pmsm.simulate(snn, x, record="counts").spikes
    assert len(run.counts) == len(spikes)
    for name, counts in run.counts.items():
        assert torch.equal(counts[0].float(), spikes[name].counts[0]), name
    assert torch.allclose(run.output, qann(x).double(), rtol=1e-5, atol=1e-5)  # float32 read-out


@pytest.mark.parametrize("timesteps", [2, 5])
def test_over_time_the_integers_do_what_the_neurons_do(rounded, timesteps):
    qann, x = rounded
    snn = pmsm.convert(qann)
    run = pmsm.integer(snn)(x, timesteps)
    outputs = pmsm.simulate(snn, x, timesteps).outputs
    # Potentials are float32 there: a residue that lands on a boundary may fall on either side.
    near = torch.isclose(run.outputs, outputs.double(), rtol=1e-4, atol=1e-4)
    assert near.float().mean() > 0.9


def test_batch_size_and_threads_change_no_bit(rounded):
    qann, x = rounded
    network = pmsm.integer(qann)
    whole = network(x, 3).sums
    assert torch.equal(torch.cat([network(part, 3).sums for part in x.split(1)], 1), whole)
    torch.set_num_threads(2)
    try:
        assert torch.equal(network(x, 3).sums, whole)
    finally:
        torch.set_num_threads(1)


def test_without_the_8_bit_kernel_the_sums_are_the_same(rounded, monkeypatch):
    qann, x = rounded
    network = pmsm.integer(qann)
    expected = network(x).sums
    monkeypatch.setattr("pmsm.snn.integer._kernel_is_exact", lambda: False)
    assert torch.equal(network(x).sums, expected)


def test_event_by_event_the_sums_are_the_same(rounded):
    qann, x = rounded
    events = pmsm.events(qann)
    assert torch.equal(events(x, 3).sums, pmsm.integer(qann)(x, 3).sums)
    before = dict(events.synops)
    events(torch.zeros_like(x[:1]))
    first = next(iter(before))
    assert events.synops[first] == before[first]  # no event, no work


def test_numpy_alone_reads_the_exported_file(rounded, tmp_path):
    qann, x = rounded
    pmsm.export_npz(pmsm.convert(qann), tmp_path / "net.npz")
    run = runpy.run_path(str(READER))["run"]
    found = torch.from_numpy(run(tmp_path / "net.npz", x.numpy(), 3))
    assert torch.equal(found, pmsm.integer(qann)(x, 3).sums)


@pytest.mark.parametrize("form", [lambda qann: qann, pmsm.convert], ids=["qann", "snn"])
def test_a_rounded_network_is_saved_whole(rounded, tmp_path, form):
    qann, x = rounded
    pmsm.save(form(qann), tmp_path / "net.safetensors")
    loaded = pmsm.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), qann(x))
    assert torch.equal(pmsm.integer(loaded)(x, 3).sums, pmsm.integer(qann)(x, 3).sums)


@pytest.mark.parametrize("largest", [100, 1000, 100_000])
def test_products_of_any_size_are_exact(largest):
    x = torch.randint(-largest, largest + 1, (50, 30), dtype=torch.int32)
    weight = torch.randint(-127, 128, (30, 7)).to(torch.int8)
    assert torch.equal(product(x, weight).long(), x.long() @ weight.long())


def test_what_needs_floats_is_named(randomize):
    ann = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1))
    x = torch.randn(5, 4)
    qann = pmsm.calibrate(pmsm.quantize(ann, pmsm.PMSM(levels=9), x), x)
    with pytest.raises(QuantizationError, match=r"no integer form: '1' \(LayerNorm\).*; '4' \(Softmax\)"):
        pmsm.quantize_weights(qann)


def test_a_network_that_was_not_rounded_is_refused(rounded):
    qann, x = rounded
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    x = torch.randn(4, 1, 8, 8)
    plain = pmsm.calibrate(pmsm.quantize(ann, pmsm.PMSM(levels=9), x), x)
    with pytest.raises(QuantizationError, match="Round them first"):
        pmsm.integer(plain)
    layer = next(m for m in qann.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        layer.weight.mul_(1.01)
    with pytest.raises(QuantizationError, match="have changed since they were rounded"):
        pmsm.integer(qann)


def test_inputs_and_steps_that_do_not_fit_are_refused(rounded):
    qann, x = rounded
    network: IntegerNetwork = pmsm.integer(qann)
    with pytest.raises(SimulationError, match="this integer network takes"):
        network(x[:, :, 1:])
    with pytest.raises(SimulationError, match="NaN or Inf"):
        network(x * torch.inf)
    with pytest.raises(SimulationError, match="could leave int32"):
        network(x, 10**6)
    with pytest.raises(SimulationError, match="whole number >= 1"):
        network(x, 0)
