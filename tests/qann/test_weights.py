"""Rounded networks: every number a whole multiple of its unit, no ties, and little lost."""

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.models import resnet20
from pmsm.errors import QuantizationError, SettingsError
from pmsm.qann.align import align, residuals, site_behind, steps
from pmsm.qann.program import compile_program
from pmsm.qann.units import LAYERS, Units, per_input
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
def rounded_rows(qann, bits):
    """Of each layer: weights per count as they were, their codes, [O, K]; unit and threshold, [O, 1]."""
    folded, rounded = pmsm.graph.fold_batchnorm(qann), pmsm.quantize_weights(qann, bits=bits)
    units = Units(rounded)
    for node in rounded.graph.nodes:
        if pmsm.graph.is_module(rounded, node, LAYERS):
            layer, site = rounded.get_submodule(node.target), site_behind(rounded, node)
            rows = folded.get_submodule(node.target).weight.double() * per_input(units.read(node), layer)
            threshold = None if site is None else steps(site).double().view(-1, 1)
            yield rows.flatten(1), layer.weight_codes.flatten(1).double(), layer.unit[:, None], threshold
        units.pass_on(node)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_weight_has_the_nearest_of_its_codes(qann, bits):
    largest = 2 ** (bits - 1) - 1
    for rows, codes, unit, _ in rounded_rows(qann, bits):
        assert codes.abs().max() <= largest
        clipped = rows.abs() - largest * unit
        bound = torch.maximum(unit / 2, clipped) * (1 + 1e-12)  # float64 rounds code * unit
        assert ((codes * unit - rows).abs() <= bound).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_no_unit_is_worse_than_the_odd_fraction_of_its_threshold_nearest_to_the_widest_weight(qann, bits):
    largest = 2 ** (bits - 1) - 1
    for rows, codes, unit, threshold in rounded_rows(qann, bits):
        plain = rows.abs().amax(1, keepdim=True) / largest
        if threshold is not None:
            plain = threshold / (2 * ((threshold / plain - 1) / 2).round().clamp(min=0) + 1)
        plainly = (rows / plain).round().clamp(-largest, largest) * plain
        assert ((codes * unit - rows).square().sum(1) <= (plainly - rows).square().sum(1)).all()


def test_rounding_to_8_bits_adds_uniform_noise_of_one_unit(qann):  # with less, a unit is not fine enough
    parts = [
        ((codes * unit - rows) / unit)[codes.abs() < 127]  # the outermost code also clips
        for rows, codes, unit, _ in rounded_rows(qann, bits=8)
    ]
    noise = torch.cat(parts)
    # Uniform in [-1/2, 1/2]: e has mean 0 and variance 1/12, e^2 has variance 1/180; five standard errors.
    assert noise.mean().abs() < 5 * (1 / 12 / len(noise)) ** 0.5
    assert (noise.square().mean() - 1 / 12).abs() < 5 * (1 / 180 / len(noise)) ** 0.5


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
