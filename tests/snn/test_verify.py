"""The proof that SNN equals QANN: its numbers, its verdict, and that it fails where it must."""

import pytest
import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.ann.models import small_vgg
from pmsm.errors import VerificationError
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer, Start
from pmsm.methods.neuron import Neuron
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.verify import compare, verify


def calibrated(x: Tensor, method=PMSM(levels=5), ann: nn.Module | None = None) -> Network:  # noqa: B008
    return calibrate(quantize(ann or small_vgg(3, width=4), method, x), x)


def ties() -> tuple[Network, Tensor]:
    """A network of unit weights with step 1 at its one site, and inputs at every half: ties among them."""
    ann, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.arange(-8, 8).view(4, 4) / 2
    for layer in (ann[0], ann[2]):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    qann = quantize(ann, PMSM(levels=5, split="symmetric"), x)
    qann.get_submodule("1").set_start(Start(torch.tensor(1.0), -2, 2))
    return qann, x


class HalfToEven(Neuron):
    """Rounds as torch.round does."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.threshold).round().clamp(self.quant_min, self.quant_max) * self.threshold


class HalfTwice(Neuron):
    """Starts at half a threshold although counting already rounds to the nearest."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.threshold / 2)


class Rectified(Neuron):
    """Never sends a negative spike."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(min=0))


def test_the_report_counts_every_code_of_every_sample():
    x = torch.randn(6, 3, 8, 8)
    qann = calibrated(x)
    report = verify(qann, convert(qann), x)
    assert (report.exact, report.first, report.max_difference, report.different) == (True, None, 0.0, 0)
    assert report.samples == 6
    wanted = {
        q.site.name: 6 * q.site.neurons for _, q in graph.modules(qann, nn.Module) if hasattr(q, "site")
    }
    assert {layer.name: layer.codes for layer in report.layers} == wanted
    assert all(layer.whole and layer.different == 0 for layer in report.layers)
    assert report.codes == sum(wanted.values())
    assert str(report) == f"T=1: max |SNN - QANN| = 0, {report.codes:,} codes compared, 0 differ"


def test_batches_add_up():
    x = torch.randn(6, 3, 8, 8)
    qann = calibrated(x)
    snn = convert(qann)
    whole = verify(qann, snn, x)
    assert verify(qann, snn, x.split(4)) == whole
    assert verify(qann, snn, [(part, torch.zeros(len(part))) for part in x.split(2)]) == whole


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_qann_is_restored_and_no_hook_is_left(training):
    x = torch.randn(4, 3, 8, 8)
    qann = calibrated(x).train(training)
    snn = convert(qann)
    verify(qann, snn, x)
    assert qann.training == training
    assert not any(module._forward_hooks for network in (qann, snn) for module in network.modules())


@pytest.mark.parametrize("kind", [HalfToEven, HalfTwice, Rectified])
def test_a_wrong_neuron_is_found_out(kind):
    qann, x = ties()
    snn = convert(qann)
    assert verify(qann, snn, x).exact, "with the right neuron all is equal"
    right = snn.get_submodule("1")
    snn.set_submodule("1", kind(right.threshold, right.quant_min, right.quant_max))
    with pytest.raises(
        VerificationError, match=r"the SNN is not its QANN: .* the first difference is at '1'\. Convert again"
    ):
        verify(qann, snn, x)
    assert compare(qann, snn, x).different > 0


def test_the_error_names_the_first_layer_that_differs_and_carries_the_report():
    x = torch.randn(4, 3, 8, 8)
    qann = calibrated(x)
    snn = convert(qann)
    second = list(graph.modules(snn, Neuron))[1]
    second[1].threshold.mul_(2)
    with pytest.raises(VerificationError) as refused:
        verify(qann, snn, x)
    assert f"the first difference is at {str(second[0].target)!r}" in str(refused.value)
    report = refused.value.report
    assert report.first == str(second[0].target)
    assert report.layers[0].different == 0
    assert report.layers[1].different > 0
    assert not report.exact
    assert report.max_difference > 0


def test_a_difference_behind_the_last_site_is_one_of_the_read_out():
    qann, x = ties()
    snn = convert(qann)
    snn.get_submodule("2").bias.data.add_(0.25)
    with pytest.raises(VerificationError, match="the first difference is at 'the read-out'"):
        verify(qann, snn, x)
    assert compare(qann, snn, x).max_difference == 0.25


def test_a_read_out_that_is_nan_is_a_difference():
    qann, x = ties()
    snn = convert(qann)
    snn.get_submodule("2").bias.data.fill_(float("nan"))
    assert compare(qann, snn, x).max_difference == float("inf")


def test_an_analog_signal_in_place_of_spikes_is_found_out():
    qann, x = ties()
    snn = convert(qann)

    class Analog(Neuron):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-4

    snn.set_submodule("1", Analog(torch.tensor(1.0), -2, 2))
    report = compare(qann, snn, x)
    assert (report.layers[0].different, report.layers[0].whole, report.first) == (0, False, "1")


def test_the_network_of_another_qann_is_refused():
    x = torch.randn(4, 3, 8, 8)
    qann, other = calibrated(x), calibrated(x)
    with pytest.raises(VerificationError, match="the SNN is not its QANN"):
        verify(qann, convert(other), x)
    ties_qann, _ = ties()
    with pytest.raises(VerificationError, match="not the same network: only one of the two has '1'"):
        verify(qann, convert(ties_qann), x)


def test_qcfs_differs_at_one_step_and_the_error_says_that_it_never_promised():
    x = torch.randn(4, 3, 8, 8)
    qann = calibrated(x, QCFS(levels=5, start="entropy"))
    with pytest.raises(VerificationError, match="a method with exact=False does not promise it"):
        verify(qann, convert(qann), x)


def test_qcfs_with_two_levels_is_binary_and_equal():
    x = torch.randn(4, 3, 8, 8)
    qann = calibrated(x, QCFS(levels=2, start="entropy"))
    assert verify(qann, convert(qann), x).exact


@pytest.mark.parametrize("batches", [[], torch.zeros(0, 4)], ids=["no batch", "empty batch"])
def test_nothing_to_compare_is_refused(batches):
    qann, _ = ties()
    with pytest.raises(VerificationError, match="there is nothing to compare"):
        verify(qann, convert(qann), batches)


def test_a_tie_is_shown_as_a_tie():
    # Potentials of exactly k + 1/2: a neuron that rounds half to even differs there, and nowhere else.
    class Even(Neuron):
        def forward(self, x):
            return (x / self.threshold).round().clamp(self.quant_min, self.quant_max) * self.threshold

    ann = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(4, 2))
    x = torch.tensor([[0.5, 1.5, 2.5, 0.25]])
    qann = calibrate(quantize(ann, PMSM(levels=5), x), x)
    site = next(module for module in qann.modules() if isinstance(module, Quantizer))
    site.set_start(Start(torch.tensor(1.0), 0, 4))
    snn = convert(qann)
    neuron = next(module for module in snn.modules() if isinstance(module, Neuron))
    neuron.__class__ = Even
    report = compare(qann, snn, x)
    assert (report.different, report.ties) == (2, 2)
    assert "2 differ (2 of them ties)" in str(report)


def test_every_code_is_told_from_its_signal_in_half_precision():
    ann, codes = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(129, 2)).bfloat16(), torch.arange(129.0)
    qann = quantize(ann, PMSM(levels=129), torch.ones(1, 129).bfloat16())
    steps = torch.linspace(0.5, 1, 64).bfloat16()
    for step in steps:
        qann.get_submodule("1").set_start(Start(step, 0, 128))
        assert verify(qann, convert(qann), (codes * step)[None].bfloat16()).exact


def test_networks_in_the_wrong_order_are_refused():
    ann, x = small_vgg(3, width=4).eval(), torch.randn(2, 3, 16, 16)
    qann = calibrate(quantize(ann, PMSM(), x), x)
    with pytest.raises(VerificationError, match=r"verify\(qann, snn, x\)"):
        verify(convert(qann), qann, x)


def test_labels_beside_the_inputs_are_no_batch():
    ann, x = small_vgg(3, width=4).eval(), torch.randn(2, 3, 16, 16)
    qann = calibrate(quantize(ann, PMSM(), x), (x, torch.tensor([0, 1])))
    assert verify(qann, convert(qann), (x, torch.tensor([0, 1]))).samples == 2
