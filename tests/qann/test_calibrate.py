"""Steps chosen from a stream of data, or from BatchNorm without data; and what a calibrated network keeps."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.ann.models import CifarResNet, small_vgg
from pmsm.errors import CalibrationError, ConversionError
from pmsm.graph import Network
from pmsm.methods import PMSM, QCFS
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.entropy import RULES
from pmsm.qann.kept import kept
from pmsm.qann.quantize import clipped, quantize


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def quantized(ann: nn.Module, method=PMSM(), shape: tuple[int, ...] = (2, 1, 8, 8)) -> Network:  # noqa: B008
    return quantize(ann, method, torch.randn(shape))


def sites(qann: Network) -> dict[str, Quantizer]:
    return {quantizer.site.name: quantizer for _, quantizer in graph.modules(qann, Quantizer)}


def steps(qann: Network) -> dict[str, Tensor]:
    return {name: quantizer.scale().detach().clone() for name, quantizer in sites(qann).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def left_clean(qann: Network) -> bool:
    return all(
        quantizer.observer is None and not quantizer._forward_hooks and not quantizer._forward_pre_hooks
        for quantizer in sites(qann).values()
    )


# ----------------------------------------------------------------------------------------------------------
# With data
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("rule", RULES)
def test_every_site_gets_a_positive_step_in_place(rule, per_channel):
    qann = quantized(chain(), PMSM(per_channel=per_channel))
    assert calibrate(qann, torch.randn(16, 1, 8, 8), rule) is qann
    assert not qann.training
    for quantizer in sites(qann).values():
        assert quantizer.levels == 9
        assert bool((quantizer.scale() > 0).all())
    assert left_clean(qann)


def test_many_small_batches_give_the_steps_of_one_big_batch():
    qann, x = quantized(chain(), PMSM(per_channel=False)), torch.randn(512, 1, 8, 8)
    big = steps(calibrate(qann, x))
    small = steps(calibrate(qann, x.split(16)))
    for name in big:  # the first batch sets the bins, so that they lie elsewhere: 1 of some 4,000 in use
        assert float(small[name]) == pytest.approx(float(big[name]), rel=1e-2)


def test_batches_stream_by_one_at_a_time():
    alive = 0

    class Counted:
        def __del__(self):
            nonlocal alive
            alive -= 1

    def stream():
        nonlocal alive
        for _ in range(5):
            alive += 1
            yield torch.randn(4, 1, 8, 8), Counted()
            assert alive <= 2, "batches are kept"

    calibrate(quantized(chain()), stream())
    assert alive == 0


def test_labels_beside_the_inputs_are_ignored():
    qann, x = quantized(chain()), torch.randn(8, 1, 8, 8)
    alone = steps(calibrate(qann, [x]))
    assert same(steps(calibrate(qann, [(x, torch.zeros(8))])), alone)
    assert same(steps(calibrate(qann, [[x, torch.zeros(8)]])), alone)


def test_calibration_sees_the_float_network_not_the_quantized_one():
    ann, x = chain().eval(), torch.randn(8, 1, 8, 8)
    qann = calibrate(quantized(ann), x)
    seen = {}
    for name, quantizer in sites(qann).items():
        quantizer.observer = lambda signal, name=name: seen.update({name: signal.clone()})
    with torch.no_grad():
        out = qann(x)
    assert torch.equal(out, ann(x))
    assert torch.equal(seen["2"], ann[:3](x))


def test_calibrating_again_forgets_what_was_learned():
    qann, x = quantized(chain()), torch.randn(8, 1, 8, 8)
    first = steps(calibrate(qann, x))
    for quantizer in sites(qann).values():
        nn.init.constant_(quantizer.rho, 1.5)
    assert same(steps(calibrate(qann, x)), first)


def test_the_float_network_is_left_alone():
    ann = chain().train()
    before, mode = copy.deepcopy(ann.state_dict()), ann.training
    qann = calibrate(quantized(ann), torch.randn(8, 1, 8, 8))
    with torch.no_grad():
        for parameter in qann.parameters():
            parameter.add_(1)
    assert ann.training == mode
    for name, tensor in ann.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_calibration_leaves_batchnorm_statistics_alone():
    qann = quantized(chain()).train()
    before = qann.get_submodule("1").running_mean.clone()
    calibrate(qann, torch.randn(8, 1, 8, 8) + 3)
    assert torch.equal(qann.get_submodule("1").running_mean, before)


def test_a_signed_method_sees_the_signal_in_front_of_relu():
    split = {"symmetric": (-4, 4), "leaky": (-2, 6), "rectified": (0, 8), "entropy": (0, 8)}
    for name, bounds in split.items():
        qann = calibrate(quantized(chain(), PMSM(split=name)), torch.randn(8, 1, 8, 8))
        assert {(q.quant_min, q.quant_max) for q in sites(qann).values()} == {bounds}


def test_qcfs_starts_at_the_published_clipping_value():
    qann = calibrate(quantized(chain(), QCFS(levels=5)), torch.randn(8, 1, 8, 8))
    assert [q.clip_value.item() for q in sites(qann).values()] == [8.0, 8.0]


def test_double_networks_get_double_steps():
    ann = chain().double()
    qann = calibrate(
        quantize(ann, PMSM(), torch.randn(2, 1, 8, 8).double()), torch.randn(8, 1, 8, 8).double()
    )
    assert {step.dtype for step in steps(qann).values()} == {torch.float64}


# ----------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------


def with_bad_value(value: float) -> list[Tensor]:
    batches = [torch.randn(2, 1, 8, 8) for _ in range(3)]
    batches[2][0, 0, 0, :2] = value
    return batches


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], r"no batch to calibrate on.*pmsm.calibrate\(qann, \[x\]\)"),
        (iter(()), "no batch to calibrate on"),
        (with_bad_value(math.nan), "batch 2 holds 2 values that are NaN or Inf"),
        (with_bad_value(-math.inf), "batch 2 holds 2 values that are NaN or Inf"),
        ([torch.randn(2, 1, 8, 8), torch.randn(0, 1, 8, 8)], r"batch 1 is empty, shape \(0, 1, 8, 8\)"),
    ],
    ids=["no_batch", "empty_iterator", "nan", "inf", "empty_batch"],
)
def test_batches_that_cannot_serve_are_refused(batches, message):
    qann = quantized(chain())
    with pytest.raises(CalibrationError, match=message):
        calibrate(qann, batches)
    assert left_clean(qann)


def test_a_site_that_no_signal_reaches_is_refused_by_name():
    ann = chain()
    nn.init.constant_(ann[3].bias, -1e3)
    with pytest.raises(CalibrationError, match=r"no signal at all reaches '4'"):
        calibrate(quantized(ann), torch.randn(4, 1, 8, 8))


def test_activations_that_overflow_are_refused_by_the_name_of_the_site():
    ann = chain()
    nn.init.constant_(ann[1].weight, 1e38)
    with pytest.raises(
        CalibrationError, match="NaN or Inf arrives at site '2', though the batch itself is finite"
    ):
        calibrate(quantized(ann), torch.randn(4, 1, 8, 8) * 100)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"rule out of 'entropy', 'mse', 'percentile', 'kl', got 'max'"):
        calibrate(quantized(chain()), torch.randn(4, 1, 8, 8), "max")


def test_an_exception_in_the_stream_leaves_no_observer():
    def stream():
        yield torch.randn(4, 1, 8, 8)
        raise KeyboardInterrupt

    qann = quantized(chain())
    with pytest.raises(KeyboardInterrupt):
        calibrate(qann, stream())
    assert left_clean(qann)


def test_a_dead_channel_gets_the_median_step_of_the_others():
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    nn.init.constant_(ann[0].weight, 0.5)
    with torch.no_grad():
        ann[0].bias.copy_(torch.tensor([0.0, -100.0, 1.0, 4.0]))
    scale = steps(calibrate(quantized(ann, PMSM(per_channel=True)), torch.randn(16, 1, 8, 8)))["1"].flatten()
    assert scale[1] == scale[[0, 2, 3]].median()


# ----------------------------------------------------------------------------------------------------------
# The potential to start with
# ----------------------------------------------------------------------------------------------------------


def means(qann: Network, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Per site, the mean of each channel: of what the float network sends, and of the codes' values."""
    found: dict[str, list[Tensor]] = {}
    named = sites(qann)
    for name, quantizer in named.items():
        quantizer.observer = lambda x, name=name: found.update({name: [x.transpose(0, 1).flatten(1).mean(1)]})
    qann(x)
    for quantizer in named.values():
        quantizer.observer = None
    hooks = [
        quantizer.register_forward_hook(
            lambda module, args, out: found[module.site.name].append(out.transpose(0, 1).flatten(1).mean(1))
        )
        for quantizer in named.values()
    ]
    qann(x)
    for hook in hooks:
        hook.remove()
    return {name: (wanted, got) for name, (wanted, got) in found.items()}


@torch.no_grad()
def test_every_channel_sends_on_average_what_the_float_network_sends():
    torch.manual_seed(0)
    qann, x = quantized(chain(), PMSM(levels=5)), torch.randn(64, 1, 8, 8)
    calibrate(qann, x)
    found = means(qann, x)
    for name, quantizer in sites(qann).items():
        wanted, got = found[name]
        free = quantizer.initial.flatten().abs() < 0.49  # else the potential was not enough
        n = x.numel() if name == "2" else 64 * 16
        step = quantizer.scale().flatten()
        # The interval is halved eight times, and n codes are whole numbers.
        assert bool(((wanted - got).abs()[free] <= (step * (2**-8 + 2 / n) + 1e-6)[free]).all()), name
        assert bool(free.float().mean() > 0.5)
        quantizer.initial.zero_()
    assert any(bool(((w - g).abs() > 0.02 * w.abs()).any()) for w, g in means(qann, x).values())


def test_a_neuron_without_input_is_silent_whatever_it_starts_with():
    qann = calibrate(quantized(chain()), torch.randn(64, 1, 8, 8) * 5)
    for quantizer in sites(qann).values():
        assert bool((quantizer.initial.abs() < 0.5).all())
        zero = torch.zeros(1, *quantizer.site.shape[1:])
        assert not quantizer(zero).any()


def test_calibrating_again_or_with_another_batch_size_starts_anew():
    qann, x = quantized(chain()), torch.randn(64, 1, 8, 8)
    first = {name: q.initial.clone() for name, q in sites(calibrate(qann, x)).items()}
    assert same({name: q.initial for name, q in sites(calibrate(qann, x)).items()}, first)
    assert any(bool(initial.any()) for initial in first.values())


def test_signed_codes_in_place_of_relu_start_at_zero():
    qann = calibrate(quantized(chain(), PMSM(split="symmetric")), torch.randn(64, 1, 8, 8))
    assert not any(bool(quantizer.initial.any()) for quantizer in sites(qann).values())


# ----------------------------------------------------------------------------------------------------------
# Without data
# ----------------------------------------------------------------------------------------------------------


def settled(ann: nn.Module, x: Tensor) -> nn.Module:
    """BatchNorm statistics as training leaves them: those of `x`."""
    for norm in ann.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        ann.train()(x)
    return ann.eval()


@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize(
    "network, shape",
    [(lambda: CifarResNet(1), (32, 3, 16, 16)), (lambda: small_vgg(width=8), (32, 1, 16, 16))],
    ids=["resnet_with_padded_shortcuts", "vgg"],
)
def test_without_data_the_steps_come_close_to_those_from_data(network, shape, per_channel):
    x = torch.randn(shape)
    qann = quantize(settled(network(), x), PMSM(per_channel=per_channel), x)
    from_data, implied = steps(calibrate(qann, x)), steps(calibrate(qann))
    for name in from_data:
        # Gaussians and independent summands are an approximation, and behind MaxPool the largest of four is
        # wider than one. A factor of two either way is what keeps a start useful.
        ratio = implied[name] / from_data[name]
        assert 0.5 < float(ratio.log().mean().exp()) < 2.0, name


def test_without_data_nothing_runs_and_batchnorm_stays_as_it_is():
    qann = quantized(CifarResNet(1), shape=(2, 3, 16, 16))
    before = copy.deepcopy(qann.get_submodule("bn1").state_dict())
    calibrate(qann)
    assert all(torch.equal(before[k], v) for k, v in qann.get_submodule("bn1").state_dict().items())
    assert all(quantizer.calibrated for quantizer in sites(qann).values())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_works_without_data(rule):
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    qann = calibrate(quantized(ann), rule=rule)
    assert all(bool((step > 0).all() and step.isfinite().all()) for step in steps(qann).values())


def test_without_data_and_without_batchnorm_the_sites_are_named():
    with pytest.raises(
        CalibrationError, match=r"without data there is no step for '4': no BatchNorm.*batches\)"
    ):
        calibrate(quantized(chain()))


@pytest.mark.parametrize(
    "batches", [None, torch.linspace(-1, 1, 256).view(4, 1, 8, 8)], ids=["without_data", "data"]
)
def test_a_batchnorm_with_zero_running_variance_works(batches):
    ann = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    ann[1].running_var.zero_()
    qann = calibrate(quantized(ann), batches)
    assert bool((steps(qann)["2"] > 0).all() and steps(qann)["2"].isfinite().all())
    assert bool(torch.isfinite(qann(torch.randn(2, 1, 8, 8))).all())


# ----------------------------------------------------------------------------------------------------------
# What is kept
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["entropy", "symmetric"])
def test_kept_counts_every_code_of_every_site(split):
    qann, x = quantized(chain(), PMSM(levels=5, split=split)), torch.randn(8, 1, 8, 8)
    calibrate(qann, x)
    seen = {}
    handles = [
        quantizer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0], out)}))
        for name, quantizer in sites(qann).items()
    ]
    with torch.no_grad():
        qann(x)
    for handle in handles:
        handle.remove()
    for site in kept(qann, x.split(3)):
        quantizer, (signal, out) = sites(qann)[site.site], seen[site.site]
        signal = signal.relu() if split == "entropy" else signal
        assert sum(site.histogram.values()) == pytest.approx(1, abs=1e-6)  # float32 shares
        assert list(site.histogram) == list(range(quantizer.quant_min, quantizer.quant_max + 1))
        codes = (out / quantizer.scale()).round()
        for code, share in site.histogram.items():
            assert share == pytest.approx(float((codes == code).double().mean()), abs=1e-7)
        shares = torch.tensor([p for p in site.histogram.values() if p > 0])
        assert site.entropy_bits == pytest.approx(float(-(shares * shares.log2()).sum()), abs=1e-5)
        error = (signal.double() - out.double()).square().mean()
        bits = -0.5 * math.log2(float(error / signal.double().var(correction=0)))
        assert site.effective_bits == pytest.approx(bits, abs=1e-4)
        assert (site.quant_min, site.quant_max) == (quantizer.quant_min, quantizer.quant_max)
        assert site.shape == tuple(signal.shape[1:])


def test_kept_of_an_uncalibrated_network_is_refused_and_leaves_no_hook():
    qann = quantized(chain())
    with pytest.raises(CalibrationError, match="site '2' has no step yet"):
        kept(qann, torch.randn(2, 1, 8, 8))
    assert left_clean(qann)


def test_without_data_a_sum_that_is_not_followed_is_refused_not_guessed():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            h = self.norm(self.conv(x))
            return self.out(torch.relu(h + h + 10))

    with pytest.raises(CalibrationError, match="no BatchNorm in front"):
        calibrate(quantize(Doubled().eval(), PMSM(), torch.randn(2, 3, 8, 8)))


def test_without_data_a_batchnorm_that_sends_nothing_is_refused():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    nn.init.zeros_(ann[1].weight)
    with pytest.raises(CalibrationError, match="no signal at all reaches '2'"):
        calibrate(quantize(ann, PMSM(), torch.randn(2, 3, 8, 8)))


def test_a_split_given_by_hand_sees_the_same_signal_as_its_name():
    ann, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), torch.randn(4, 3, 8, 8)
    scales = [
        next(m for m in calibrate(quantize(ann, method, x), x).modules() if isinstance(m, Quantizer)).scale()
        for method in (PMSM(9, split="rectified"), PMSM(9, split=(0, 8)), PMSM(9))
    ]
    assert torch.equal(scales[0], scales[1])
    assert torch.equal(scales[0], scales[2])


@pytest.mark.parametrize("method", [PMSM(), PMSM(per_channel=True), QCFS()], ids=repr)
def test_an_uncalibrated_network_has_no_clipped_one_and_is_told_what_to_call(method):
    qann, x = quantized(chain(), method), torch.randn(8, 1, 8, 8)
    with pytest.raises(ConversionError, match=r"site '2' has no .*step.*pmsm\.calibrate\(qann, batches\)"):
        clipped(qann)
    with torch.no_grad():
        assert bool(clipped(calibrate(qann, x))(x).any())
