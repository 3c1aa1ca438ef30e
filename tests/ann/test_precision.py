import pytest
import torch
from torch import nn

from pmsm.ann.precision import Scaler, resolve, tf32
from pmsm.ann.train import train
from pmsm.errors import TrainingError

CPU = torch.device("cpu")
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(32, 12, generator=DRAW), torch.randint(0, 4, (32,), generator=DRAW)


def test_auto_is_what_was_launched_or_what_the_processor_has():
    assert resolve("fp32", CPU, launched="bf16") == "fp32"
    assert resolve("auto", CPU, launched="bf16") == "bf16"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert resolve("auto", CPU) == ("bf16" if native else "fp32")


def test_tf32_is_refused_where_it_does_not_exist():
    with pytest.raises(TrainingError, match=r"'tf32' is an arithmetic of NVIDIA GPUs.*precision='fp32'"):
        train(nn.Linear(12, 4), [(X, Y)], precision="tf32")


def test_tf32_is_switched_for_gpus_alone_and_returns_to_what_it_was():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for allowed in (True, False):
        with tf32(torch.device("cuda"), allowed):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        with tf32(CPU, allowed):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_float16_learns_and_its_factor_survives_a_checkpoint(tmp_path):
    def run(**settings):
        torch.manual_seed(0)
        ann = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
        history = train(ann, [(X, Y)], epochs=30, lr=0.2, precision="fp16", **settings)
        return history, ann

    history, ann = run()
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss

    def stop(epoch, network):
        if epoch == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "run.ckpt", on_epoch=stop)
    _, resumed = run(checkpoint=tmp_path / "run.ckpt", resume=True)
    assert torch.equal(resumed[2].weight, ann[2].weight)


def test_a_scaler_takes_back_what_it_told():
    one, other = Scaler(CPU, enabled=True), Scaler(CPU, enabled=True)
    one.scaler.load_state_dict(one.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 7})
    other.load(one.tensors())
    assert other.scaler.state_dict() == one.scaler.state_dict()
