"""The exported file computes, in the runtimes that people ship, what the rounded network computes."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.models import resnet20
from pmsm.ann.models.small import SmallResNet
from pmsm.errors import QuantizationError


class Signed(nn.Module):
    """A site with negative counts, channels that change places, an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=2)
        self.pool = nn.AvgPool2d(2)
        self.linear1 = nn.Linear(16, 6)
        self.linear2 = nn.Linear(6, 3)

    def forward(self, x):
        y = torch.relu(self.conv2(self.conv1(x)))
        y = torch.relu(self.conv3(torch.cat([y, y.flip(1)], 1)))
        return self.linear2(torch.relu(self.linear1(self.pool(y).flatten(1))))


NETWORKS = {
    "subsampled residual": (resnet20, (3, 8, 8)),
    "pooled residual": (lambda: SmallResNet(1, 4, width=4), (1, 12, 12)),
    "signed, concatenation": (Signed, (2, 8, 8)),
}


def exported(randomize, tmp_path, name, levels, **settings):
    build, shape = NETWORKS[name]
    x = torch.randn(7, *shape)
    qann = pmsm.calibrate(pmsm.quantize(randomize(build()), pmsm.PMSM(levels=levels), x), x)
    qann = pmsm.quantize_weights(qann, x, **settings)
    pmsm.export_onnx(qann, tmp_path / "net.onnx", x[:2])
    return qann, x, tmp_path / "net.onnx"


def in_onnxruntime(path):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("levels, aligned", [(9, True), (33, True), (9, False)])
def test_onnxruntime_computes_what_the_rounded_network_does(randomize, tmp_path, name, levels, aligned):
    qann, x, path = exported(randomize, tmp_path, name, levels, aligned=aligned)
    with torch.no_grad():
        expected = qann(x)
    # One count elsewhere would move the output by 1e-2 or more; what is left is float32 in the last layer.
    for batch in (x, x[:1]):
        assert torch.allclose(in_onnxruntime(path)(batch), expected[: len(batch)], rtol=1e-5, atol=2e-5)


def in_openvino(path):
    openvino = pytest.importorskip("openvino")
    # In float32: left to itself, OpenVINO takes bfloat16 where the processor has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_computes_what_the_rounded_network_does(randomize, tmp_path, name):
    qann, x, path = exported(randomize, tmp_path, name, 9)
    with torch.no_grad():
        assert torch.allclose(in_openvino(path)(x), qann(x), rtol=1e-5, atol=2e-5)


def test_inputs_between_two_whole_steps_are_rounded_alike(randomize, tmp_path):
    qann, _, path = exported(randomize, tmp_path, "signed, concatenation", 9)
    halves = (torch.randint(-200, 200, (64, 2, 8, 8)) + 0.5) / 32
    x = halves + torch.randint(-2, 3, halves.shape) * 2.0**-22  # a tie, or a last bit beside one
    expected = pmsm.integer(qann)(x)
    for runtime in (in_onnxruntime, in_openvino):
        whole = (runtime(path)(x).double() / expected.unit).round()
        assert torch.equal(whole, expected.sums[0].double())


def test_every_convolution_of_an_aligned_resnet_runs_on_8_bit_kernels(randomize, tmp_path):
    _, _, path = exported(randomize, tmp_path, "subsampled residual", 9)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 19
    assert kinds.count("QLinearAdd") == 9
    assert "Conv" not in kinds
    assert "FusedConv" not in kinds


def test_what_does_not_fit_is_refused(randomize, tmp_path):
    qann, x, path = exported(randomize, tmp_path, "signed, concatenation", 9)
    with pytest.raises(QuantizationError, match="the example is"):
        pmsm.export_onnx(qann, path, x[:, :, 1:])
    wide = pmsm.calibrate(pmsm.quantize(randomize(Signed()), pmsm.PMSM(levels=1025), x), x)
    with pytest.raises(QuantizationError, match="8 bits hold 256 levels at most"):
        pmsm.export_onnx(pmsm.quantize_weights(wide), path, x)
