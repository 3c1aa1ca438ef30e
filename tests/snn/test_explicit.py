"""Written as plain operators with its state in and out, a network computes what `simulate` does."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import pmsm
from pmsm.errors import ConversionError
from pmsm.snn.explicit import Plain, Step


class Pooled(nn.Module):
    """A MaxPool and a softmax: static maps, which remember sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        return self.linear(self.pool(torch.relu(self.conv(x))).flatten(1)).softmax(1)


@pytest.fixture
def qann():
    x = torch.randn(6, 1, 6, 6)
    return pmsm.calibrate(pmsm.quantize(Pooled().eval(), pmsm.PMSM(levels=5), x), x), x


@pytest.mark.parametrize("settings", [{}, {"mode": "tracking", "burst": 1}], ids=str)
@torch.no_grad()
def test_one_step_after_the_other_is_simulate_bit_for_bit(qann, settings):
    snn, x = pmsm.convert(qann[0], **settings), qann[1]
    expected = pmsm.simulate(snn, x, 5, schedule="steps").outputs
    step = Step(snn)
    state = step.first((x,))
    for t in range(5):
        y, *state = step(x, *state)
        assert torch.equal(y, expected[t])


@pytest.mark.parametrize("settings", [{}, {"mode": "tracking", "burst": 1}], ids=str)
@torch.no_grad()
def test_without_state_it_is_the_first_timestep(qann, settings):
    snn, x = pmsm.convert(qann[0], **settings), qann[1]
    assert torch.equal(Plain(snn)(x), pmsm.simulate(snn, x).output)


@torch.no_grad()
def test_torch_export_keeps_every_bit_for_any_batch(qann, tmp_path):
    snn, x = pmsm.convert(qann[0]), qann[1]
    pmsm.export_program(snn, tmp_path / "step.pt2", x[:2], state=True)
    step = torch.export.load(tmp_path / "step.pt2").module()
    expected = pmsm.simulate(snn, x, 3, schedule="steps").outputs
    state = Step(snn).first((x,))
    for t in range(3):
        y, *state = step(x, *state)
        assert torch.equal(y, expected[t])
    pmsm.export_program(qann[0], tmp_path / "once.pt2", x[:2])
    assert torch.equal(torch.export.load(tmp_path / "once.pt2").module()(x), qann[0](x))


def test_onnxruntime_runs_it_over_time(qann, tmp_path):
    snn, x = pmsm.convert(qann[0]), qann[1]
    pmsm.export_program(snn, tmp_path / "step.onnx", x[:2], state=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", settings)
    expected = pmsm.simulate(snn, x, 4).outputs
    state = {
        i.name: np.zeros([len(x) if isinstance(n, str) else n for n in i.shape], np.float32)
        for i in session.get_inputs()[1:]
    }
    for t in range(4):
        y, *new = session.run(None, {"input": x.numpy(), **state})
        state = dict(zip(state, new, strict=True))
        # One count elsewhere would move the output by 1e-2 or more.
        assert torch.allclose(torch.from_numpy(y), expected[t], atol=1e-5)


def test_what_has_no_such_form_is_refused(qann, tmp_path):
    qann, x = qann
    with pytest.raises(ConversionError, match=r"writes \.pt2 or \.onnx"):
        pmsm.export_program(qann, tmp_path / "net.bin", x)
    with pytest.raises(ConversionError, match="two samples or more"):
        pmsm.export_program(qann, tmp_path / "net.pt2", x[:1])
    with pytest.raises(ConversionError, match="a QANN has no state"):
        pmsm.export_program(qann, tmp_path / "net.pt2", x, state=True)
    with pytest.raises(ConversionError, match="without unroll=True"):
        pmsm.export_program(pmsm.convert(qann, unroll=True), tmp_path / "net.pt2", x)
