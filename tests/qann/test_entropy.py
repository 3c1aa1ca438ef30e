"""What a quantizer keeps of a signal, and the steps that keep the most."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pmsm.methods import PMSM
from pmsm.qann.entropy import RULES, Gaussian, Histogram, cells, choose, effective_bits, entropy_bits

over_rules = pytest.mark.parametrize("rule", RULES)


def unit(*, rectified: bool = False) -> Gaussian:
    return Gaussian(torch.zeros(1), torch.ones(1), rectified=rectified)


def histogram(x: Tensor, bins: int = 8192) -> Histogram:
    seen = Histogram(len(x), bins)
    seen.update(x)
    return seen.finish()


def kept_bits(signal, scale: Tensor, quant_min: int, quant_max: int) -> float:
    return float(entropy_bits(cells(signal, scale.view(1, 1), quant_min, quant_max)[0]))


# The unit Gaussian, symmetric codes. Columns: levels; step, MSE and entropy of the least mean squared error;
# step and value of the most entropy; step of the entropy rule; mean |code| at the least mean squared error.
# The second and the third are those of Max, IRE Trans. Inf. Theory 1960.
TABLE = [
    (3, 1.2240, 0.1902, 1.536, 0.8615, 1.585, 1.1461, 0.541),
    (5, 0.8430, 0.0822, 2.183, 0.5566, 2.320, 0.7670, 0.879),
    (9, 0.5338, 0.0307, 2.904, 0.3331, 3.150, 0.4830, 1.457),
    (17, 0.3189, 0.0104, 3.676, 0.1894, 4.032, 0.2909, 2.481),
    (33, 0.1833, 0.0033, 4.487, 0.1042, 4.943, 0.1694, 4.341),
]


@pytest.mark.parametrize(
    "levels, step, mse, bits, step_bits, most_bits, step_rule, size", TABLE, ids=lambda x: f"{x:g}"
)
def test_the_reference_table_of_the_unit_gaussian(
    levels, step, mse, bits, step_bits, most_bits, step_rule, size
):
    n = levels // 2
    found = choose(unit(), [(-n, n)], "mse").scale
    shares, error = (x[0, 0] for x in cells(unit(), found.view(1, 1), -n, n))
    # Half a digit of what the table shows; steps get a whole one: so close ends the search of a flat optimum.
    assert float(found) == pytest.approx(step, abs=1e-4)
    assert float(error) == pytest.approx(mse, abs=6e-5)
    assert float(entropy_bits(shares)) == pytest.approx(bits, abs=6e-4)
    assert float((shares * torch.arange(-n, n + 1).abs()).sum()) == pytest.approx(size, abs=6e-4)
    assert float(choose(unit(), [(-n, n)], "entropy").scale) == pytest.approx(step_rule, abs=1e-4)
    steps = torch.linspace(0.9 * step_bits, 1.1 * step_bits, 4001, dtype=torch.float64)[None]
    entropies = entropy_bits(cells(unit(), steps, -n, n)[0])[0]
    assert float(steps[0, entropies.argmax()]) == pytest.approx(step_bits, abs=1.1e-4)
    assert float(entropies.max()) == pytest.approx(most_bits, abs=6e-4)


@pytest.mark.parametrize("levels, bits", [(5, 1.65), (9, 2.12), (17, 2.59)])
def test_dropping_the_negatives_keeps_fewer_bits(levels, bits):
    signal = unit(rectified=True)
    scale = choose(signal, [(0, levels - 1)], "mse").scale
    assert kept_bits(signal, scale, 0, levels - 1) == pytest.approx(bits, abs=6e-3)  # the digits shown


def test_entropy_is_at_most_the_logarithm_of_the_levels():
    shares = torch.rand(200, 7, dtype=torch.float64)
    shares /= shares.sum(1, keepdim=True)
    assert float(entropy_bits(shares).max()) <= math.log2(7)
    assert float(entropy_bits(torch.full((7,), 1 / 7, dtype=torch.float64))) == pytest.approx(
        math.log2(7), rel=1e-14
    )


def test_effective_bits_of_nothing_lost_are_capped_and_of_everything_lost_are_none():
    assert float(effective_bits(torch.tensor(0.0), torch.tensor(1.0))) == 20
    assert float(effective_bits(torch.tensor(1.0), torch.tensor(1.0))) == 0


# ----------------------------------------------------------------------------------------------------------
# Distributions
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rectified", [False, True], ids=["signed", "rectified"])
def test_a_gaussian_knows_its_moments(rectified):
    mean, std = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    x = torch.randn(3, 1_000_000, dtype=torch.float64) * std[:, None] + mean[:, None]
    x = x.relu() if rectified else x
    signal = Gaussian(mean, std, rectified=rectified)
    # A million samples: standard errors of about 1e-3 of the deviation; four of them, for deviations up to 2.
    torch.testing.assert_close(signal.variance, x.var(1), rtol=0, atol=2e-2)
    torch.testing.assert_close(signal.rms, (x * x).mean(1).sqrt(), rtol=0, atol=8e-3)
    torch.testing.assert_close(signal.at_zero, (x == 0).double().mean(1), rtol=0, atol=2e-3)
    edges = torch.tensor([-1.0, 0.0, 0.3, 2.0], dtype=torch.float64)
    below = signal.below(edges.expand(3, -1))
    for i, edge in enumerate(edges):
        here = (x < edge).double()
        for power in range(3):
            torch.testing.assert_close(below[power, :, i], (here * x**power).mean(1), rtol=0, atol=2e-2)


def test_a_mixture_is_the_mean_of_its_channels():
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 2.0])
    edges = torch.linspace(-3, 3, 7, dtype=torch.float64)[None]
    apart = Gaussian(mean, std, rectified=True).below(edges.expand(2, -1))
    mixed = Gaussian(mean, std, rectified=True, mixture=True)
    torch.testing.assert_close(mixed.below(edges), apart.mean(1, keepdim=True), rtol=0, atol=1e-15)
    assert mixed.variance.shape == mixed.rms.shape == mixed.largest.shape == (1,)


@pytest.mark.parametrize("rectified", [False, True], ids=["signed", "rectified"])
@over_rules
def test_a_histogram_of_a_gaussian_sample_gives_the_step_of_the_gaussian(rule, rectified):
    x = torch.randn(1, 1_000_000)
    split = (0, 8) if rectified else (-4, 4)
    sampled = choose(histogram(x.relu() if rectified else x), [split], rule).scale
    exact = choose(unit(rectified=rectified), [split], rule).scale
    # The optimum of a flat criterion on a million samples; that of KL, which compares bins, is the flattest.
    assert float(sampled / exact) == pytest.approx(1, abs=0.1 if rule == "kl" else 0.01)


def test_a_histogram_counts_zeros_apart():
    seen = histogram(torch.tensor([[0.0, 0.0, 0.0, 1.0, -2.0, 0.5, 0.0, 3.0]]))
    assert seen.zeros.tolist() == [4]
    assert seen.at_zero.tolist() == [0.5]
    assert seen.total.tolist() == [8]
    just_above = torch.tensor([[0.0, 1e-9]], dtype=torch.float64)
    mass = seen.below(just_above)[0, 0]
    assert float(mass[0]) == pytest.approx(
        1 / 8, abs=1e-9
    )  # what is negative; the density of a bin is a quotient
    assert float(mass[1]) == pytest.approx(5 / 8, abs=1e-6)  # and the zeros


def test_the_memory_of_a_histogram_does_not_grow():
    seen = Histogram(3, 1024)
    for size in (1.0, 100.0, 1e-3, 1e6):
        seen.update(torch.randn(3, 1000) * size)
        assert seen.counts.shape == (3, 1024)
    assert seen.total.tolist() == [4000] * 3


def test_doubling_the_reach_is_having_had_it_from_the_start():
    # Odd multiples of 1/512 never lie on the edge of a bin, and the reach is a power of two.
    batches = [(2 * torch.randint(-size, size, (2, 1000)) + 1) / 512 for size in (250, 500, 1000, 2000)]
    grown, wide = Histogram(2, 256), Histogram(2, 256)
    grown.reach, wide.reach = 1.0, 8.0
    for x in batches:
        grown.update(x)
        wide.update(x)
    assert grown.reach == wide.reach == 8
    assert torch.equal(grown.counts, wide.counts)
    assert torch.equal(grown.zeros, wide.zeros)


def test_the_order_of_later_batches_does_not_matter():
    first, *later = (torch.randn(1, 500) * size for size in (1, 3, 20, 0.1, 5))
    seen = []
    for order in (later, later[::-1]):
        one = Histogram()
        for x in (first, *order):
            one.update(x)
        seen.append(one)
    assert torch.equal(seen[0].counts, seen[1].counts)


def test_a_histogram_of_channels_is_the_histograms_of_the_channels():
    x = torch.randn(3, 1000) * torch.tensor([[1.0], [0.5], [0.25]])
    together = Histogram(3, 1024)
    together.update(x)
    for i in range(3):
        alone = Histogram(1, 1024)
        alone.reach = together.reach
        alone.update(x[i : i + 1])
        assert torch.equal(together.counts[i], alone.counts[0])


@over_rules
def test_steps_per_channel_are_the_steps_of_the_channels_alone(rule):
    mean, std = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    together = choose(Gaussian(mean, std), [(-4, 4)], rule).scale
    for i in range(3):
        alone = choose(Gaussian(mean[i : i + 1], std[i : i + 1]), [(-4, 4)], rule).scale
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=0)


# ----------------------------------------------------------------------------------------------------------
# Rules
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.125, 4.0, 1024.0])
@over_rules
def test_a_signal_scaled_by_a_power_of_two_has_its_step_scaled_alike(rule, factor):
    x = torch.randn(1, 20_000).relu() + 0.1
    splits = PMSM(levels=5).splits(rectified=False)
    start, scaled = choose(histogram(x), splits, rule), choose(histogram(x * factor), splits, rule)
    assert (scaled.quant_min, scaled.quant_max) == (start.quant_min, start.quant_max)
    # Everything scales exactly but the logarithm and the power of the search grid.
    assert float(scaled.scale / start.scale) == pytest.approx(factor, rel=1e-9)


SIGNALS = {
    "gaussian": lambda: torch.randn(1, 20_000),
    "rectified": lambda: torch.randn(1, 20_000).relu(),
    "uniform": lambda: torch.rand(1, 20_000),
    "heavy": lambda: torch.randn(1, 20_000) ** 5,
    "constant": lambda: torch.full((1, 100), 3.0),
    "negative": lambda: -torch.rand(1, 1000),
    "binary": lambda: torch.randint(0, 2, (1, 1000)).float(),
    "sparse": lambda: (torch.rand(1, 20_000) < 1e-3).float(),
    "tiny": lambda: torch.randn(1, 1000) * 1e-20,
    "huge": lambda: torch.randn(1, 1000) * 1e20,
}


@pytest.mark.parametrize("levels", [2, 3, 9, 33])
@pytest.mark.parametrize("signal", SIGNALS)
@over_rules
def test_every_rule_finds_a_positive_finite_step_on_every_signal(rule, signal, levels):
    seen = histogram(SIGNALS[signal]())
    start = choose(seen, [(0, levels - 1)], rule)
    assert 0 < float(start.scale) < math.inf
    assert float(start.scale) * (levels - 1) <= 2.6 * float(
        seen.largest
    )  # no code lies far beyond every value


def test_a_symmetric_signal_gets_a_symmetric_split():
    x = torch.randn(1, 100_000)
    assert choose(histogram(torch.cat([x, -x], 1)), PMSM(9).splits(False)).quant_min == -4
    assert choose(unit(), PMSM(9).splits(False)).quant_min == -4


def test_a_gelu_needs_few_codes_below_zero():
    start = choose(histogram(F.gelu(torch.randn(1, 100_000))), PMSM(9).splits(False))
    assert start.quant_min in (0, -1)


def test_a_signal_without_negatives_gets_no_code_below_zero():
    start = choose(histogram(torch.randn(1, 100_000).relu()), PMSM(9).splits(False))
    assert (start.quant_min, start.quant_max) == (0, 8)


def test_the_chosen_step_is_the_best_of_a_fine_grid():
    signal = histogram(torch.randn(1, 100_000).relu())
    for rule in ("entropy", "mse"):
        best = choose(signal, [(0, 8)], rule).scale
        grid = torch.linspace(0.05, 1.5, 5000, dtype=torch.float64)[None]
        most = RULES[rule](signal, grid, 0, 8).max()
        got = float(RULES[rule](signal, best[None], 0, 8))
        assert got >= float(most) - 1e-4  # flat to that between the points of a grid


def test_a_channel_without_signal_gets_the_median_step_of_the_others():
    x = torch.randn(4, 10_000) * torch.tensor([[1.0], [0.0], [2.0], [4.0]])
    scale = choose(histogram(x, 1024), [(-4, 4)]).scale
    assert scale[1] == scale[[0, 2, 3]].median()


def test_the_percentile_rule_clips_one_value_in_a_thousand():
    scale = choose(histogram(torch.randn(1, 1_000_000)), [(-4, 4)], "percentile").scale
    share = 2 * (1 - torch.special.ndtr(scale * 4))
    assert float(share) == pytest.approx(0.001, rel=0.15)  # a thousand of a million values: four times 3 %
