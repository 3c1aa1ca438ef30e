"""Settings of the methods, what they refuse, and what a quantizer keeps when it is saved."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pmsm.errors import CalibrationError, CheckpointError, ConversionError
from pmsm.methods import METHODS, PMSM, QCFS, Method
from pmsm.methods.base import MAX_LEVELS, Site, Start

over_methods = pytest.mark.parametrize("method", [kind() for kind in METHODS.values()], ids=repr)


def calibrated(method: Method, scale: float = 0.5, quant_min: int = 0, quant_max: int = 8):
    quantizer = method.quantizer()
    quantizer.set_start(Start(torch.tensor(scale), quant_min, quant_max))
    return quantizer


def test_every_method_of_the_table_says_whether_it_is_exact_and_builds_a_quantizer():
    assert {name: kind.exact for name, kind in METHODS.items()} == {
        "pmsm": True, "qcfs": False, "stbif": False,
    }  # fmt: skip
    for kind in METHODS.values():
        assert calibrated(kind()).calibrated
        assert calibrated(kind()).neuron().threshold > 0


@over_methods
def test_settings_cannot_be_changed_afterwards(method):
    with pytest.raises(AttributeError):
        method.levels = 5


@pytest.mark.parametrize("levels", [1, 0, -3, True, 2.5, "9", None], ids=repr)
@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_levels_that_are_no_whole_number_from_two_up_are_refused(kind, levels):
    with pytest.raises(
        ValueError, match=rf"needs a whole number of levels >= 2, got {levels!r}. Write .*levels=9"
    ):
        kind(levels=levels)


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_more_levels_than_16_bits_can_count_are_refused(kind):
    assert MAX_LEVELS - 1 == 2**15 - 1  # the largest count of int16, as which counts are recorded
    assert kind(levels=MAX_LEVELS).levels == MAX_LEVELS
    for levels in (MAX_LEVELS + 1, 10**9):
        with pytest.raises(ValueError, match=f"at most 32768 levels, got {levels}"):
            kind(levels=levels)
    with pytest.raises(ValueError, match="at most 32768 levels, got 40001"):
        PMSM(levels=40001, split=(-20000, 20000))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"split": "halves"}, r"needs split in .*'symmetric'.* or a pair, got 'halves'"),
        ({"levels": 2, "split": (1, 2)}, "needs quant_min <= 0 < quant_max, got 1 and 2"),
        ({"levels": 3, "split": (-2, 0)}, "needs quant_min <= 0 < quant_max, got -2 and 0"),
        (
            {"levels": 9, "split": (-2, 2)},
            r"got -2\.\.2 and 9 levels. Write PMSM\(levels=5, split=\(-2, 2\)\)",
        ),
    ],
    ids=["unknown", "no_zero", "no_positive", "levels_mismatch"],
)
def test_a_split_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PMSM(**settings)


@pytest.mark.parametrize("start", [0, -1.0, "mse", None], ids=repr)
def test_a_start_of_qcfs_that_is_no_positive_number_is_refused(start):
    with pytest.raises(ValueError, match=f"QCFS needs start > 0 or 'entropy', got {start!r}"):
        QCFS(start=start)


@pytest.mark.parametrize(
    "split, levels, behind_relu, elsewhere",
    [
        ("rectified", 9, [(0, 8)], [(0, 8)]),
        ("leaky", 9, [(-2, 6)], [(-2, 6)]),
        ("symmetric", 9, [(-4, 4)], [(-4, 4)]),
        ("symmetric", 4, [(-1, 2)], [(-1, 2)]),
        ("leaky", 3, [(0, 2)], [(0, 2)]),
        ("entropy", 4, [(0, 3)], [(0, 3), (-1, 2), (-2, 1)]),
        ("entropy", 2, [(0, 1)], [(0, 1)]),
        ((-1, 3), 5, [(-1, 3)], [(-1, 3)]),
    ],
    ids=str,
)
def test_the_splits_of_each_setting(split, levels, behind_relu, elsewhere):
    method = PMSM(levels=levels, split=split)
    assert method.splits(rectified=True) == behind_relu
    assert method.splits(rectified=False) == elsewhere


@given(levels=st.integers(2, 40), split=st.sampled_from(["entropy", "rectified", "leaky", "symmetric"]))
def test_every_split_has_the_levels_asked_for(levels, split):
    for rectified in (True, False):
        for quant_min, quant_max in PMSM(levels=levels, split=split).splits(rectified):
            assert quant_min <= 0 < quant_max
            assert quant_max - quant_min + 1 == levels


@given(rho=st.floats(-80, 80))
def test_the_step_of_pmsm_is_positive_whatever_training_does(rho):
    quantizer = calibrated(PMSM())
    with torch.no_grad():
        quantizer.rho.fill_(rho)
    assert quantizer.scale() > 0
    assert quantizer.neuron().threshold > 0


def test_rho_takes_no_weight_decay():
    quantizer = calibrated(PMSM())
    assert quantizer.no_decay == ("rho",)
    assert dict(quantizer.named_parameters()).keys() == {"rho"}


def test_the_gradient_of_rho_is_the_step_times_that_of_the_step():
    quantizer = calibrated(PMSM(), scale=0.5, quant_min=-2, quant_max=2)
    x = torch.randint(-128, 129, (100,)) / 64
    quantizer(x).sum().backward()
    u = x / 0.5
    code = (u + 0.5).floor().clamp(-2, 2)
    inside = (u >= -2.5) & (u < 2.5)
    assert quantizer.rho.grad == 0.5 * torch.where(inside, code - u, code).sum()


@over_methods
def test_a_state_dict_brings_back_step_and_bounds(method):
    quantizer, fresh = calibrated(method, scale=0.25), method.quantizer()
    assert not fresh.calibrated
    fresh.load_state_dict(quantizer.state_dict())
    assert (fresh.quant_min, fresh.quant_max, fresh.levels) == (0, 8, 9)
    x = torch.randn(50)
    assert torch.equal(fresh(x), quantizer(x))


@over_methods
def test_a_start_forgets_what_training_had_learned(method):
    quantizer = calibrated(method)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(1)
    quantizer.set_start(Start(torch.tensor(0.25), 0, 8))
    assert quantizer.scale() == 0.25


@over_methods
def test_an_uncalibrated_site_refuses_to_run_and_says_what_to_call(method):
    quantizer = method.quantizer(Site("layer1.relu"))
    with pytest.raises(
        CalibrationError,
        match=r"site 'layer1.relu' has no step yet. Call pmsm.calibrate\(qann, batches\) first",
    ):
        quantizer(torch.zeros(1))


@over_methods
def test_an_uncalibrated_site_has_no_neuron(method):
    with pytest.raises(
        ConversionError, match=r"site 'layer1.relu' has no positive step .*pmsm.calibrate\(qann, batches\)"
    ):
        method.quantizer(Site("layer1.relu")).neuron()


def test_a_clipping_value_of_qcfs_that_turned_negative_has_no_neuron():
    quantizer = calibrated(QCFS())
    with torch.no_grad():
        quantizer.clip_value.fill_(-1.0)
    with pytest.raises(ConversionError, match=r"no positive step \(smallest: -0.125.*smaller learning rate"):
        quantizer.neuron()


@over_methods
def test_an_unknown_mode_is_refused(method):
    with pytest.raises(ValueError, match=r"the modes are 'integrate' and 'tracking'"):
        calibrated(method).neuron("differential")


@pytest.mark.parametrize("burst", [True, False, 2.0, 0, -1, "1", float("nan")], ids=repr)
@over_methods
def test_a_burst_that_is_no_whole_number_from_one_up_is_refused(method, burst):
    with pytest.raises(ValueError, match=rf"needs a whole number burst >= 1, got {burst!r}"):
        calibrated(method).neuron("tracking", burst)


@over_methods
def test_a_burst_limits_the_spikes_of_a_step_and_without_one_any_change_is_sent_at_once(method):
    quantizer = calibrated(method)
    assert [quantizer.neuron("tracking", burst).burst for burst in (1, 3, None)] == [1, 3, 8]


def test_the_neuron_of_qcfs_is_binary_with_the_whole_clipping_value_as_threshold():
    neuron = calibrated(QCFS(levels=9), scale=0.25).neuron()
    assert (neuron.quant_min, neuron.quant_max, neuron.cancel) == (0, 1, False)
    assert neuron.threshold == 2.0


@pytest.mark.parametrize(
    "site, wanted",
    [
        (Site(shape=(2, 5, 4, 4)), (1, 5, 1, 1)),
        (Site(shape=(2, 7, 5), channel_dim=-1), (1, 1, 5)),
        (Site(shape=(2, 5)), (1, 5)),
    ],
    ids=["conv", "tokens", "linear"],
)
def test_a_step_for_each_channel_has_the_shape_of_the_channels(site, wanted):
    assert PMSM(per_channel=True).quantizer(site).scale().shape == wanted
    assert PMSM(per_channel=False).quantizer(site).scale().shape == ()
    assert site.neurons == torch.Size(site.shape[1:]).numel()


@pytest.mark.parametrize(
    "saved, loading", [(PMSM(9), PMSM(3)), (PMSM(9), PMSM(9, split="symmetric")), (QCFS(9), QCFS(5))]
)
def test_a_checkpoint_of_another_method_is_refused(saved, loading):
    with pytest.raises(CheckpointError, match=r"site 'site' has codes 0\.\.8 in the checkpoint"):
        loading.quantizer().load_state_dict(calibrated(saved).state_dict())
