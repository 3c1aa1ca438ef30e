"""From quantized to spiking network: which operators have a rule, what is refused and how it is said."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmsm import graph
from pmsm.ann.models import small_vgg
from pmsm.errors import ConversionError
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import RULES, convert
from pmsm.snn.simulate import simulate
from pmsm.snn.temporal import Rule, Static
from pmsm.snn.verify import verify


class Tail(nn.Module):
    """conv-ReLU-conv, and a function of the network and the signal behind it."""

    def __init__(self, tail):
        super().__init__()
        self.conv1, self.relu, self.conv2 = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)
        self.instance, self.glu, self.pool = nn.InstanceNorm2d(4), nn.GLU(1), nn.MaxPool2d(2)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, self.conv2(self.relu(self.conv1(x))))


def calibrated(ann: nn.Module, method=PMSM(), shape=(4, 3, 8, 8)) -> Network:  # noqa: B008
    x = torch.randn(shape)
    return calibrate(quantize(ann, method, x), x)


def kinds(network: Network) -> list[str]:
    return [type(graph.module_of(network, node)).__name__ for node, _ in graph.modules(network, nn.Module)]


def test_every_quantizer_becomes_its_neuron():
    qann = calibrated(small_vgg(3, width=4))
    snn = convert(qann)
    sites = {str(node.target): quantizer for node, quantizer in graph.modules(qann, Quantizer)}
    neurons = {str(node.target): neuron for node, neuron in graph.modules(snn, Neuron)}
    assert list(sites) == list(neurons)
    for name, quantizer in sites.items():
        assert torch.equal(neurons[name].threshold, quantizer.scale().detach())
        assert (neurons[name].quant_min, neurons[name].quant_max) == (
            quantizer.quant_min,
            quantizer.quant_max,
        )
    assert not list(graph.modules(snn, Quantizer))


def test_a_nonlinear_operator_runs_as_a_static_map_and_a_linear_one_as_it_is():
    qann = calibrated(Tail(lambda net, h: F.gelu(net.pool(h)).softmax(1).flatten(1) * 2 + 1))
    assert kinds(convert(qann)) == ["Conv2d", "Neuron", "Conv2d", "Static", "Static", "Static"]


def test_the_qann_is_left_alone():
    qann = calibrated(small_vgg(3, width=4)).train()
    before, operators = copy.deepcopy(qann.state_dict()), kinds(qann)
    snn = convert(qann)
    with torch.no_grad():
        for tensor in (*snn.parameters(), *snn.buffers()):
            tensor.zero_()
    assert qann.training
    assert kinds(qann) == operators
    assert all(torch.equal(before[name], tensor) for name, tensor in qann.state_dict().items())
    assert all(parameter.requires_grad for parameter in qann.parameters())


@pytest.mark.parametrize("method", [PMSM(), PMSM(split="symmetric", per_channel=True), QCFS()], ids=repr)
def test_a_spiking_network_has_thresholds_instead_of_steps_to_train(method):
    snn = convert(calibrated(small_vgg(3, width=4), method))
    assert not snn.training
    assert not any(name.endswith((".rho", ".clip_value")) for name in snn.state_dict())
    assert any(name.endswith(".threshold") for name in snn.state_dict())


def test_weights_keep_their_flags_so_that_torch_takes_the_same_kernels():
    # Linear on a transposed 3-d signal goes another way, and rounds otherwise, if its weight needs none.
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).transpose(0, 1)).transpose(0, 1)

    x = torch.randn(6, 4, 6)
    for flag in (True, False):
        qann = calibrate(quantize(Transposed(), PMSM(), x), x).requires_grad_(flag)
        assert verify(qann, convert(qann), x).max_difference == 0


def test_all_unknown_operators_are_listed_in_one_error_with_the_code_to_write():
    def tail(net: Tail, h: Tensor) -> Tensor:
        h = net.instance(torch.digamma(h)) + torch.digamma(net.glu(h.logcumsumexp(1)).repeat(1, 2, 1, 1))
        return operator.mod(h, 2).sinc()

    qann = calibrated(Tail(tail))
    with pytest.raises(ConversionError) as refused:
        convert(qann)
    text = str(refused.value)
    assert text.startswith("cannot convert, no rule in snn.convert.RULES for: ")
    assert "torch.digamma at 'digamma', 'digamma_1'" in text
    assert "nn.InstanceNorm2d at 'instance'" in text
    assert "nn.GLU at 'glu'" in text
    assert "'logcumsumexp' at 'logcumsumexp'" in text
    assert "operator.mod at 'mod" in text
    assert "'sinc' at 'sinc'" in text
    assert "convert(qann, rules=RULES | {" in text
    assert "}): Rule.LINEAR if it is affine" in text
    assert "Rule.STATIC for any other" in text


def test_the_code_in_the_error_is_the_code_that_fixes_it():
    qann = calibrated(Tail(lambda net, h: torch.digamma(h)))
    with pytest.raises(ConversionError) as refused:
        convert(qann)
    code = str(refused.value).partition("for example ")[2].partition(": Rule.LINEAR if")[0].split(":", 1)
    assert code[0].strip() == "convert(qann, rules=RULES | {torch.digamma"
    x = torch.randn(4, 3, 8, 8)
    snn = eval(
        ":".join(code), {"convert": convert, "qann": qann, "RULES": RULES, "Rule": Rule, "torch": torch}
    )
    assert torch.equal(simulate(snn, x).output, qann(x))


def test_a_rule_of_the_user_wins():
    qann = calibrated(Tail(lambda net, h: net.pool(h)))
    assert not list(graph.modules(convert(qann, rules=RULES | {nn.MaxPool2d: Rule.LINEAR}), Static))
    replaced = convert(qann, rules=RULES | {nn.MaxPool2d: lambda module: nn.AvgPool2d(module.kernel_size)})
    assert kinds(replaced)[-1] == "AvgPool2d"


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.Softmax, nn.MaxPool2d, nn.GELU, nn.PReLU])
def test_known_nonlinear_modules_have_the_static_rule(kind):
    assert RULES[kind] is Rule.STATIC


def test_batchnorm_that_takes_its_statistics_from_the_batch_is_refused():
    """Neither affine nor sample by sample: no rule can run it over time."""
    ann = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 2, 3)
    )
    with pytest.raises(ConversionError, match="track_running_stats"):
        convert(calibrated(ann))


def test_an_uncalibrated_network_is_refused():
    with pytest.raises(
        ConversionError, match=r"site 'relu' has no positive step.*pmsm.calibrate\(qann, batches\)"
    ):
        convert(quantize(Tail(lambda net, h: h), PMSM(), torch.randn(2, 3, 8, 8)))


def test_called_directly_it_runs_one_timestep():
    qann, x = calibrated(small_vgg(3, width=4)), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(convert(qann)(x), qann(x))


def test_folded_it_agrees_up_to_rounding(randomize):
    ann = randomize(small_vgg(3, width=4)).double()
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    qann = calibrate(quantize(ann, PMSM(), x), x)
    snn = convert(qann, fold=True)
    assert not any(graph.is_module(snn, node, graph.BATCHNORMS) for node in snn.graph.nodes)
    # In float64 no potential lies within 1e-12 of a tie: all codes agree, and the rest is rounding.
    torch.testing.assert_close(simulate(snn, x).output, qann(x).detach(), rtol=0, atol=1e-9)


def test_an_operator_without_a_rule_may_be_kept_float_by_name():
    ann, x = Tail(lambda net, h: torch.digamma(h)), torch.randn(2, 3, 8, 8)
    qann = calibrate(quantize(ann, PMSM(), x), x)
    snn = convert(qann, skip=["digamma*"])
    assert torch.equal(snn(x), qann(x))
    with pytest.raises(ConversionError, match="skip matches no operator: 'cos'"):
        convert(qann, skip=["cos"])


def test_nan_weights_and_an_infinite_step_are_refused():
    qann = calibrated(small_vgg(3, width=4))
    first = next(module for module in qann.modules() if isinstance(module, nn.Conv2d))
    first.weight.data[0] = float("nan")
    with pytest.raises(ConversionError, match="holds NaN or Inf"):
        convert(qann)
    qann = calibrated(small_vgg(3, width=4))
    next(q for q in qann.modules() if isinstance(q, Quantizer)).rho.data.fill_(1e4)
    with pytest.raises(ConversionError, match="no positive step"):
        convert(qann)


def test_a_network_that_was_not_quantized_is_refused_with_the_step_that_is_missing():
    with pytest.raises(ConversionError, match=r"Call qann = pmsm.quantize\(ann"):
        convert(small_vgg(3, width=4))
