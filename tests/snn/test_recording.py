"""Recorded spikes are whole numbers, counted and never rounded, whatever type the network computes in."""

import pytest
import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import PMSMError
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.methods.base import MAX_LEVELS, Quantizer, Start
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
MODES = pytest.mark.parametrize("mode", ["integrate", "tracking"])
SCHEDULES = pytest.mark.parametrize("schedule", ["layers", "steps"])
COUNTED = pytest.mark.parametrize("record", ["spikes", "counts"])


def wide(dtype: torch.dtype, neurons: int = 3000) -> tuple[nn.Sequential, Tensor]:
    """One hidden layer of so many neurons that their spikes sum to thousands, and 4 samples."""
    ann = nn.Sequential(nn.Linear(6, neurons), nn.ReLU(), nn.Linear(neurons, 3))
    return ann.to(dtype), torch.randn(4, 6).to(dtype)


def echo(levels: int, neurons: int, dtype: torch.dtype = torch.float32) -> Network:
    """A quantized network whose neurons each count an input of its own, with step 1."""
    ann, x = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(neurons, 2)).to(dtype), torch.ones(1, neurons)
    qann = quantize(ann, PMSM(levels=levels), x.to(dtype))
    for _, quantizer in graph.modules(qann, Quantizer):
        quantizer.set_start(Start(torch.tensor(1.0), 0, levels - 1))
    return qann


@MODES
@SCHEDULES
@pytest.mark.parametrize("split", ["rectified", "symmetric"])
@DTYPES
def test_spike_sums_are_exact_though_the_network_cannot_write_them(dtype, split, schedule, mode):
    ann, x = wide(dtype)
    method = PMSM(levels=33, split=split, per_channel=False)  # one histogram instead of thousands
    snn = convert(calibrate(quantize(ann, method, x), x), mode=mode)
    kept, summed = (simulate(snn, x, 3, record=record, schedule=schedule) for record in ("counts", "spikes"))
    counts = kept.spikes["1"].counts.long().flatten(2)
    positive, negative = counts.clamp(min=0).sum(2), -counts.clamp(max=0).sum(2)
    for run in (kept, summed):
        assert torch.equal(run.spikes["1"].positive, positive)
        assert torch.equal(run.spikes["1"].negative, negative)
    if dtype in (torch.bfloat16, torch.float16):
        assert not torch.equal(positive.to(dtype).long(), positive), "rounding would show"


@DTYPES
def test_at_one_step_the_sums_are_those_of_the_codes(dtype):
    ann, x = wide(dtype)
    qann, codes = calibrate(quantize(ann, PMSM(levels=33, per_channel=False), x), x), []
    quantizer = qann.get_submodule("1")
    quantizer.register_forward_hook(
        lambda _, args, out: codes.append(out.double() / quantizer.scale().double())
    )
    with torch.no_grad():
        qann(x)
    spikes = simulate(convert(qann), x).spikes["1"]
    assert spikes.positive.tolist() == [codes[0].round().long().sum(1).tolist()]
    assert spikes.negative.tolist() == [[0] * 4]


@COUNTED
@MODES
def test_the_largest_count_that_a_method_allows_is_recorded(mode, record):
    top = MAX_LEVELS - 1
    x = torch.tensor([[0.0, 1.0, top - 1.0, top], [top, top, top, top + 1.0]])
    spikes = simulate(convert(echo(MAX_LEVELS, 4), mode=mode), x, record=record).spikes["1"]
    assert spikes.positive.tolist() == [[2 * top, 4 * top]]
    assert spikes.negative.tolist() == [[0, 0]]
    if record == "counts":
        assert spikes.counts.tolist() == [[[0, 1, top - 1, top], [top] * 4]]


@MODES
@pytest.mark.parametrize(
    "levels, neurons, record",
    [(257, 250_000, "counts"), (1025, 65_536, "counts"), (MAX_LEVELS, 2_000, "counts")]
    + [(MAX_LEVELS, 2_000, "spikes")],
)
def test_sums_beyond_the_whole_numbers_of_float32_are_exact(levels, neurons, record, mode):
    x = torch.randint(levels * 3 // 4, levels, (2, neurons))
    run = simulate(convert(echo(levels, neurons), mode=mode), x.float(), record=record)
    assert run.spikes["1"].positive.tolist() == [x.sum(1).tolist()]


# From 1 / eps on a type has no halves: v + 1/2 is rounded to even before it is rounded down.
HALVES = pytest.mark.parametrize("dtype, largest", [(torch.bfloat16, 2**7), (torch.float16, 2**10)], ids=str)


@HALVES
def test_half_precision_counts_exactly_while_it_has_halves(dtype, largest):
    x = torch.tensor([[0.0, 1.0, largest - 1.0, largest]]).to(dtype)
    run = simulate(convert(echo(largest + 1, 4, dtype)), x, record="counts")
    assert run.spikes["1"].counts.tolist() == [x.long().tolist()]


@HALVES
def test_more_levels_than_half_precision_can_count_are_refused(dtype, largest):
    with pytest.raises(PMSMError, match="levels"):
        echo(largest + 2, 4, dtype)
