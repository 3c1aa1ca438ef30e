"""Rounded networks: every number a whole multiple of its unit, no ties, and little lost."""

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.models import resnet20
from pmsm.errors import QuantizationError, SettingsError
from pmsm.qann.align import align, residuals, steps
from pmsm.qann.program import compile_program
from pmsm.qann.weights import best_step


@pytest.fixture
def qann(randomize):
    x = torch.randn(8, 3, 8, 8)
    return pmsm.calibrate(pmsm.quantize(randomize(resnet20()), pmsm.PMSM(levels=9), x), x)


def test_rounding_leaves_its_argument_alone(qann):
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    pmsm.quantize_weights(qann)
    assert all(torch.equal(before[name], value) for name, value in qann.state_dict().items())


def test_every_threshold_is_odd_in_the_units_that_arrive(qann):
    program = compile_program(pmsm.quantize_weights(qann))
    sites = [operation for operation in program.operations if operation.kind == "neuron"]
    assert len(sites) == 19
    assert all((site.arrays["threshold"] % 2 == 1).all() for site in sites)


def test_the_rounded_network_is_exact_as_a_spiking_network(qann):
    x = torch.randn(4, 3, 8, 8)
    rounded = pmsm.quantize_weights(qann, x)
    assert pmsm.verify(rounded, pmsm.convert(rounded), x).different == 0


@torch.no_grad()
@pytest.mark.parametrize("bits, most", [(8, 0.25), (4, 0.75)])
def test_rounded_weights_are_near(qann, bits, most):
    folded = pmsm.graph.fold_batchnorm(qann)
    rounded = pmsm.quantize_weights(qann, bits=bits)
    error = size = 0.0
    for name, layer in folded.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            near = rounded.get_submodule(name)
            assert int(near.weight_codes.abs().max()) <= 2 ** (bits - 1) - 1
            error += float((near.weight - layer.weight).square().sum())
            size += float(layer.weight.square().sum())
    assert error <= most**2 * size


def test_the_step_of_a_row_is_no_worse_than_the_plain_ones():
    rows = torch.randn(16, 100).double() ** 3  # long tails: clipping pays
    plain = rows.abs().amax(1) / 7

    def error(step):
        return ((rows / step[:, None]).round().clamp(-7, 7) * step[:, None] - rows).square().sum(1)

    found = best_step(rows, 7, None)
    assert (error(found) <= error(plain)).all()
    assert (error(found) < 0.9 * error(plain)).any()
    threshold = torch.full((16,), 2.0).double()
    parts = threshold / best_step(rows, 7, threshold)
    assert torch.allclose(parts, parts.round())
    assert (parts.round() % 2 == 1).all()


def test_aligned_codes_count_for_whole_fractions_of_a_threshold(qann):
    aligned = align(pmsm.graph.fold_batchnorm(qann))
    found = list(residuals(aligned))
    assert len(found) == 9
    for residual in found:
        carried = residual.channels >= 0
        ratio = steps(residual.source)[residual.channels[carried]] / steps(residual.target)[carried]
        assert any(
            torch.allclose(ratio * q, (ratio[0] * q).round().expand_as(ratio), rtol=1e-6)
            for q in range(1, 32, 2)
        )


def test_without_aligning_the_steps_move_by_a_63rd_of_a_threshold_at_most(qann):
    kept = align(pmsm.graph.fold_batchnorm(qann), bytes_=False)
    for residual in residuals(kept):
        carried = residual.channels >= 0
        before = steps(qann.get_submodule(residual.source.site.name))
        moved = (steps(residual.source) - before).abs()[residual.channels[carried]]
        assert (moved <= steps(residual.target)[carried] / 63).all()


def test_settings_out_of_range_are_refused(qann):
    with pytest.raises(SettingsError, match="bits from 2 to 8"):
        pmsm.quantize_weights(qann, bits=9)
    with pytest.raises(SettingsError, match="input_step > 0"):
        pmsm.quantize_weights(qann, input_step=0.0)


def test_a_layer_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(torch.relu(self.linear(x)))

    x = torch.randn(8, 4)
    qann = pmsm.calibrate(pmsm.quantize(Twice(), pmsm.PMSM(levels=9), x), x)
    with pytest.raises(QuantizationError, match="'linear' is called twice"):
        pmsm.quantize_weights(qann)
