"""Levels under a budget: kept as `measure` counts it, better than equal levels, and told to the letter."""

import json
import math
import textwrap
from itertools import pairwise

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.models.small import SmallResNet
from pmsm.ann.models.vit import VisionTransformer
from pmsm.errors import QuantizationError, SettingsError
from pmsm.study.allocation.plan import Allocation, Allotted, Uniform

LEVELS = (3, 5, 9, 17)


@pytest.fixture(scope="module")
def small():
    """A calibrated network, and its batch."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8)
    ann = SmallResNet(1, 10).eval()
    return pmsm.calibrate(pmsm.quantize(ann, pmsm.PMSM(levels=9), x[:2]), x), x


def spent(qann, x, unit: str) -> float:
    if unit == "bits":
        sites = pmsm.kept(qann, x)
        sizes = [math.prod(s.shape) for s in sites]
        bits = [math.log2(s.quant_max - s.quant_min + 1) for s in sites]
        return sum(n * b for n, b in zip(sizes, bits, strict=True)) / sum(sizes)
    measured = pmsm.measure(pmsm.convert(qann), x)
    if unit == "budget_pj":
        return measured.totals.energy_pj.mean
    return sum(f.spikes.mean for f in measured.firing) / sum(f.neurons for f in measured.firing)


@pytest.mark.parametrize("unit", ["budget_pj", "spikes", "bits"])
def test_a_budget_is_kept_and_beats_equal_levels_of_the_same_cost(small, unit):
    qann, x = small
    budget = spent(qann, x, unit)
    found, plan = pmsm.allocate(qann, x, **{unit: budget}, levels=LEVELS, samples=64)
    assert spent(found, x, unit) == pytest.approx(plan.cost)
    assert plan.cost <= budget * (1 + 1e-9)
    assert {site.site: site.quant_max - site.quant_min + 1 for site in pmsm.kept(found, x)} == plan.levels
    equal = next(u for u in plan.uniform if u.levels == 9)
    assert equal.cost == pytest.approx(budget)
    assert plan.error < equal.error


def test_the_result_is_exact_and_the_argument_is_left_alone(small):
    qann, x = small
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    found, _ = pmsm.allocate(qann, x, bits=3.0, levels=LEVELS, samples=64)
    assert pmsm.verify(found, pmsm.convert(found), x).different == 0
    assert all(torch.equal(value, before[name]) for name, value in qann.state_dict().items())


def test_more_budget_never_makes_it_worse(small):
    qann, x = small
    errors = [pmsm.allocate(qann, x, bits=b, levels=LEVELS, samples=64)[1].error for b in (2.0, 3.0, 4.0)]
    assert errors == sorted(errors, reverse=True)


def test_a_transformer_keeps_its_budget_too():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    ann = VisionTransformer(8, 4, 16, 1, 2, 5).eval()
    qann = pmsm.calibrate(pmsm.quantize(ann, pmsm.PMSM(levels=9), x[:2]), x)
    budget = spent(qann, x, "budget_pj")
    found, plan = pmsm.allocate(qann, x, budget_pj=budget, levels=LEVELS, samples=8)
    assert spent(found, x, "budget_pj") <= budget * (1 + 1e-9)
    assert plan.error < next(u.error for u in plan.uniform if u.levels == 9)


def test_entropy_alone_may_be_chosen_and_a_calibration_of_ones_own(small):
    qann, x = small
    called = []

    def calibrate(network, batches):
        called.append(network)
        return pmsm.calibrate(network, batches, rule="percentile")

    _, plan = pmsm.allocate(qann, [x], bits=3.0, levels=LEVELS, criterion="entropy", calibrate=calibrate)
    assert plan.criterion == "entropy"
    assert len(called) == len(LEVELS)  # every candidate


def test_progress_ends_at_its_total(small):
    qann, x = small
    steps = []
    pmsm.allocate(
        qann, x, bits=3.0, levels=LEVELS, samples=32, progress=lambda done, of: steps.append((done, of))
    )
    assert all(a <= b for a, b in pairwise(steps))
    assert all(done <= of for done, of in steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one positive budget, got none"),
        ({"bits": 3.0, "spikes": 1.0}, "exactly one positive budget, got"),
        ({"bits": -1.0}, "exactly one positive budget, got"),
        ({"bits": 3.0, "criterion": "luck"}, "a criterion out of output, entropy, got 'luck'"),
        ({"bits": 3.0, "levels": (1,)}, "allocate needs a whole number of levels >= 2, got 1"),
        ({"bits": 0.5, "levels": LEVELS}, r"a budget of 0.5 bits per neuron cannot be kept: with 3 levels"),
        ({"bits": 3.0, "technology": "2nm"}, "2nm"),
    ],
)
def test_a_bad_argument_is_refused(small, options, message):
    qann, x = small
    with pytest.raises(SettingsError, match=message):
        pmsm.allocate(qann, x, **options)


def test_what_has_no_levels_to_change_is_refused(small):
    _, x = small
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    with pytest.raises(QuantizationError, match="allocate needs a quantized network"):
        pmsm.allocate(pmsm.convert(small[0]), x, bits=3.0)
    fixed = pmsm.quantize(ann, pmsm.PMSM(levels=5, split=(0, 4)), x[:2])
    with pytest.raises(QuantizationError, match="fixes its bounds"):
        pmsm.allocate(fixed, x, bits=3.0)
    with pytest.raises(QuantizationError, match="does not send its levels in one timestep"):
        pmsm.allocate(pmsm.quantize(ann, pmsm.QCFS(levels=5), x[:2]), x, bits=3.0)


PLAN = Allocation(
    sites=(
        Allotted("relu", 1024, 13, 9, 2.03, 2.79, 1.112, 0.75),
        Allotted("fc_site", 64, 17, 17, 2.62, 3.61, 2.065, 0.25),
    ),
    budget=384700.0, cost=373950.4, error=0.1237,
    uniform=(Uniform(5, 250000.0, 0.594), Uniform(9, 384700.0, 0.2007), Uniform(17, 616100.0, 0.0754)),
    criterion="output", unit="pJ per sample",
)  # fmt: skip
# ruff: noqa: E501 -- tables, as they are printed
TOLD = """
    site     neurons  levels  step of  entropy (bits)  effective (bits)  spikes/neuron   cost
    relu       1,024      13        9            2.03              2.79          1.112  75.0%
    fc_site       64      17       17            2.62              3.61          2.065  25.0%

    Budget 384,700 pJ per sample, used 373,950; criterion output. Error of the output (mean squared distance from the float network over its variance) 0.1237. The same levels everywhere: 9 levels 384,700 with error 0.2007; 17 levels 616,100 with error 0.0754.
"""


def test_the_plan_to_the_letter():
    assert str(PLAN) == textwrap.dedent(TOLD).strip()
    assert PLAN.markdown().startswith("| site | neurons | levels |")
    assert json.loads(PLAN.as_json())["sites"][1]["levels"] == 17
