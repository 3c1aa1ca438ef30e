"""Unary unroll: binary spikes in micro-steps, which add up to the multi-spikes."""

import pytest
import torch
from torch import Tensor, nn

from pmsm.ann.models import CifarResNet, small_vgg
from pmsm.ann.models.vit import VisionTransformer
from pmsm.errors import ConversionError
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer, Start
from pmsm.methods.neuron import Neuron, NeuronState
from pmsm.methods.unary import UnaryNeuron, collapse, repeat
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.running import running
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import verify

NETWORKS = {
    "vgg": lambda: small_vgg(3, width=4),  # MaxPool, BatchNorm, biases
    "resnet": lambda: CifarResNet(1),
    "vit": lambda: VisionTransformer(16, 4, 16, 2, 2, 10),  # softmax, LayerNorm, products of two signals
}
METHODS = [PMSM(levels=5), PMSM(levels=9, split="symmetric"), PMSM(levels=6, split="leaky")]


class Dyadic(nn.Module):
    """Convolutions, a residual and a pool whose sums are exact in float32: weights are multiples of 1/8."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(36, 3)
        for parameter in self.parameters():
            parameter.data = torch.randint(-8, 9, parameter.shape) / 8

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x).relu()
        h = (h + self.conv2(h)).relu()
        return self.fc(self.pool(h).flatten(1))


def quantized(ann: nn.Module, x: Tensor, method=METHODS[1]) -> Network:
    return calibrate(quantize(ann.eval(), method, x), x)


def dyadic(method) -> tuple[Network, Tensor]:
    """The network with steps that are powers of two."""
    x = torch.randint(-8, 9, (3, 2, 8, 8)) / 8
    qann = quantized(Dyadic(), x, method)
    for module in qann.modules():
        if isinstance(module, Quantizer):
            step = 2.0 ** module.scale().detach().log2().round()
            module.set_start(Start(step, module.quant_min, module.quant_max))
    return qann, x


@pytest.mark.parametrize("levels", [(0, 4), (0, 8), (-4, 4), (-2, 8)])
def test_micro_steps_are_binary_and_sum_to_the_multi_spikes(levels):
    x = 3 * torch.randn(5, 2, 7)
    neuron, unary = (Neuron(torch.tensor(0.5), *levels) for _ in range(2))
    unary = UnaryNeuron(unary, unary.most_spikes)
    neuron.state, unary.state = NeuronState(), NeuronState()
    for current in (x, -x, 0.3 * x):
        many = neuron(current)
        trains = unary(repeat(current, unary.micro_steps)) / (0.5 * unary.micro_steps)
        assert set(trains.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert torch.equal(trains.unflatten(0, (unary.micro_steps, -1)).sum(0) * 0.5, many)
        assert torch.equal(collapse(trains * (0.5 * unary.micro_steps), unary.micro_steps), many)


@pytest.mark.parametrize(
    "method", [PMSM(levels=5), PMSM(levels=9), PMSM(levels=9, split="symmetric")], ids=repr
)
@pytest.mark.parametrize("schedule", ["steps", "layers"])
def test_where_sums_are_exact_the_unrolled_network_is_equal_bit_for_bit(method, schedule):
    qann, x = dyadic(method)
    plain, binary = convert(qann), convert(qann, unroll=True)
    verify(qann, binary, x)
    a, b = (simulate(snn, x, 4, record="counts", schedule=schedule) for snn in (plain, binary))
    # Means over 3 steps and pools of 4 are the only divisions; those behind the network are the same in both.
    assert torch.equal(a.outputs, b.outputs)
    for name, spikes in a.spikes.items():
        assert torch.equal(spikes.counts, b.spikes[name].counts)
    assert b.micro_steps == max(
        neuron.most_spikes for neuron in plain.modules() if isinstance(neuron, Neuron)
    )
    assert a.micro_steps == 1


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("network", NETWORKS)
def test_everywhere_else_the_spikes_are_equal_in_double_precision(network, method):
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    qann = quantized(NETWORKS[network]().double(), x, method)
    plain, binary = convert(qann), convert(qann, unroll=True)
    a, b = (simulate(snn, x, 3, record="counts") for snn in (plain, binary))
    for name, spikes in a.spikes.items():
        assert torch.equal(spikes.counts, b.spikes[name].counts)
    # Sums of other products in another order: float64 keeps 15 digits.
    torch.testing.assert_close(b.outputs, a.outputs, rtol=1e-9, atol=1e-9)


def test_all_spikes_on_the_wires_of_an_unrolled_network_are_binary():
    x = torch.randn(2, 3, 16, 16)
    snn = convert(quantized(small_vgg(3, width=4), x, PMSM(levels=9, split="symmetric")), unroll=True)
    seen = []

    def hook(neuron, args, out):
        seen.append((out / (neuron.threshold * neuron.micro_steps)).unique().tolist())

    for module in snn.modules():
        if isinstance(module, UnaryNeuron):
            module.register_forward_hook(hook)
    simulate(snn, x, 3, schedule="steps")
    assert {value for values in seen for value in values} == {-1.0, 0.0, 1.0}
    assert len(seen) == 3 * sum(isinstance(module, UnaryNeuron) for module in snn.modules())


def test_an_unrolled_network_takes_streams_early_exit_and_single_frames():
    x = torch.randn(3, 2, 3, 16, 16, dtype=torch.float64)
    qann = quantized(VisionTransformer(16, 4, 16, 2, 2, 10).double(), x[0])
    plain, binary = convert(qann), convert(qann, unroll=True)
    lengths = torch.tensor([1, 3])
    for arguments in ({}, {"lengths": lengths}, {"reset_each_frame": True}):
        a, b = (simulate(snn, x, stream=True, **arguments) for snn in (plain, binary))
        torch.testing.assert_close(b.outputs, a.outputs, rtol=1e-9, atol=1e-9)
        assert a.sent() == b.sent()
    with running(binary) as step:
        last = [step(frame) for frame in x][-1]
    torch.testing.assert_close(last, simulate(plain, x, stream=True).output, rtol=1e-9, atol=1e-9)


def test_tracking_and_mixed_batches_are_refused():
    x = torch.randn(2, 3, 16, 16)
    qann = quantized(small_vgg(3, width=4), x)
    with pytest.raises(ConversionError, match=r"needs mode='integrate'.*burst=1"):
        convert(qann, mode="tracking", unroll=True)

    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().transpose(0, 1)).transpose(0, 1)

    x = torch.randn(2, 3, 4)
    with pytest.raises(ConversionError, match="batch first in every signal"):
        convert(quantized(Moved(), x), unroll=True)
