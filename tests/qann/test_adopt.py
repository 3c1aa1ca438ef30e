"""Networks that were quantized elsewhere compute here what they computed there."""

import pytest
import torch
from torch import nn

import pmsm
from pmsm.errors import CheckpointError, QuantizationError
from pmsm.qann.adopt import Step, adopt, read_brevitas, read_qcfs, read_spikezip


class ClipFloorShift(nn.Module):
    """The activation of QCFS, by its equation: one learned `thresh`, L levels above zero."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.thresh = steps, nn.Parameter(torch.tensor([1.5]))

    def forward(self, x):
        return (torch.clamp(x / self.thresh, 0, 1) * self.steps + 0.5).floor() / self.steps * self.thresh


class LearnedStep(nn.Module):
    """The quantizer of SpikeZIP-TF: s * round(clip(x / s))."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high, self.s = low, high, nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return (x / self.s).clamp(self.low, self.high).round() * self.s


def network(activation) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), activation(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), activation(), nn.Flatten(),
        nn.Linear(24, 3),
    ).eval()  # fmt: skip


@torch.no_grad()
def test_a_qcfs_checkpoint_is_exact_here_at_one_timestep():
    theirs, x = network(lambda: ClipFloorShift(8)), torch.randn(9, 1, 10, 10)
    weights, steps = read_qcfs(theirs.state_dict(), levels=9)
    assert list(steps) == ["1", "4"]
    ours = network(nn.ReLU)
    ours.load_state_dict(weights, strict=True)
    qann = adopt(ours, x, steps)
    assert torch.allclose(qann(x), theirs(x), atol=1e-6)
    snn = pmsm.convert(qann)
    assert pmsm.verify(qann, snn, x).different == 0
    assert torch.allclose(pmsm.simulate(snn, x).output, theirs(x), atol=1e-6)
    rounded = pmsm.quantize_weights(qann)
    assert torch.allclose(pmsm.integer(rounded)(x).output.float(), rounded(x), atol=1e-5)


@torch.no_grad()
def test_a_spikezip_checkpoint_keeps_its_negative_codes():
    low, high = -4, 3
    theirs, x = network(lambda: LearnedStep(low, high)), torch.randn(9, 1, 10, 10)
    theirs[2] = nn.Identity()
    theirs[6] = nn.Linear(6 * 36, 3)
    weights, steps = read_spikezip(theirs.state_dict(), {"1": (low, high), "4": (low, high)})
    ours = network(nn.Identity)
    ours[2], ours[6] = nn.Identity(), nn.Linear(6 * 36, 3)
    ours.load_state_dict(weights, strict=True)
    with pytest.raises(QuantizationError, match="sites without a step"):
        adopt(ours, x, steps)
    sites = {"2_site": steps["1"], "5_site": steps["4"]}
    assert torch.allclose(adopt(ours, x, sites)(x), theirs(x), atol=1e-6)


@torch.no_grad()
def test_a_network_of_brevitas_computes_here_what_it_does_there():
    brevitas = pytest.importorskip("brevitas.nn", exc_type=ImportError)
    theirs = nn.Sequential(
        brevitas.QuantConv2d(1, 4, 3, weight_bit_width=8), brevitas.QuantIdentity(bit_width=4),
        brevitas.QuantConv2d(4, 6, 3, weight_bit_width=8), brevitas.QuantReLU(bit_width=3), nn.MaxPool2d(2),
        nn.Flatten(), brevitas.QuantLinear(54, 3, bias=True, weight_bit_width=8),
    )  # fmt: skip
    x = torch.randn(16, 1, 10, 10)
    for _ in range(3):
        theirs.train()(x)  # its quantizers learn their ranges
    weights, steps = read_brevitas(theirs.eval())
    assert [tuple(step[1:]) for step in steps.values()] == [(-8, 7), (0, 7)]
    ours = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Identity(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(54, 3),
    ).eval()  # fmt: skip
    ours.load_state_dict(weights, strict=True)
    assert torch.allclose(adopt(ours, x, steps)(x), theirs(x), atol=1e-5)


def test_what_does_not_fit_is_refused():
    ours, x = network(nn.ReLU), torch.randn(2, 1, 10, 10)
    with pytest.raises(QuantizationError, match="sites without a step: '4'; steps without a site: 'head'"):
        adopt(ours, x, {"1": Step(0.1, 0, 8), "head": Step(0.1, 0, 8)})
    with pytest.raises(QuantizationError, match="must be positive"):
        adopt(ours, x, {"1": Step(0.1, 0, 8), "4": Step(-0.1, 0, 8)})
    with pytest.raises(QuantizationError, match="has 6 channels, its step has 5"):
        adopt(ours, x, {"1": Step(0.1, 0, 8), "4": Step(torch.ones(5), 0, 8)})
    with pytest.raises(CheckpointError, match=r"no entry ends in '\.thresh'"):
        read_qcfs(ours.state_dict(), 9)
    with pytest.raises(CheckpointError, match="bounds has no entry for 'a'"):
        read_spikezip({"a.s": torch.ones(())}, {})
    with pytest.raises(CheckpointError, match="no module has an activation quantizer of Brevitas"):
        read_brevitas(ours)
