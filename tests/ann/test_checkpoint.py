import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pmsm.ann.train import train
from pmsm.errors import CheckpointError

torch.set_num_threads(1)
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(32, 3, 6, 6, generator=DRAW), torch.randint(0, 4, (32,), generator=DRAW)
BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]
EPOCHS = 3


class Interrupted(list):
    """Batches that send `signal` to their own process in the middle of one epoch."""

    def __init__(self, batches, epoch, number=signal.SIGINT):
        super().__init__(batches)
        self.epoch, self.number = epoch, number

    def set_epoch(self, epoch):
        self.now = epoch

    def __iter__(self):
        yield self[0]
        if self.now == self.epoch:
            os.kill(os.getpid(), self.number)
        yield from self[1:]


def network(classes=4):
    """Convolution, BatchNorm and dropout: parameters, buffers and draws, from fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*features, nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 36, classes))


def run(batches=BATCHES, ann=None, **settings):
    ann = network() if ann is None else ann
    history = train(ann, batches, **{"epochs": EPOCHS, "lr": 0.05, "precision": "fp32"} | settings)
    return ann.state_dict(), history


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.fixture
def finished(tmp_path):
    run(checkpoint=tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


@pytest.mark.parametrize("epoch", range(EPOCHS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.05), ("adamw", 0.005)])
def test_a_run_stopped_by_ctrl_c_resumes_bit_for_bit(tmp_path, optimizer, lr, precision, epoch):
    settings = {"optimizer": optimizer, "lr": lr, "precision": precision, "valid": BATCHES}
    unbroken, history = run(**settings)
    settings["checkpoint"] = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(BATCHES, epoch), **settings)
    assert settings["checkpoint"].exists() == (epoch > 0)
    resumed, again = run(resume=True, **settings)
    assert same(resumed, unbroken)
    assert [row.loss for row in again.epochs] == [row.loss for row in history.epochs]
    assert again.accuracy == history.accuracy


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
def test_a_shuffled_loader_resumes_bit_for_bit(tmp_path, own):
    def loader():
        generator = torch.Generator().manual_seed(7) if own else None
        return DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=generator)

    class Stopped:
        """The loader, until its second epoch."""

        def __init__(self):
            self.loader, self.epochs = loader(), 0
            self.generator = self.loader.generator

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            self.epochs += 1
            if self.epochs == 2:
                raise KeyboardInterrupt
            return iter(self.loader)

    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(Stopped(), checkpoint=path)
    resumed = Stopped()
    resumed.epochs = 2
    assert same(run(resumed, checkpoint=path, resume=True)[0], run(loader())[0])


def test_a_finished_run_returns_at_once(finished):
    class Untouchable(list):
        def __iter__(self):
            raise RuntimeError("read although nothing is left to learn")

    state, history = run(Untouchable(BATCHES), checkpoint=finished, resume=True)
    assert same(state, run()[0])
    assert len(history.epochs) == EPOCHS


SCRIPT = """
import importlib.util, resource, signal, sys
spec = importlib.util.spec_from_file_location("claims", sys.argv[1])
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)
"""


def in_another_process(code, *arguments):
    command = [sys.executable, "-c", SCRIPT + code, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    path = tmp_path / "run.ckpt"
    code = "claims.run(claims.Interrupted(claims.BATCHES, 1, signal.SIGKILL), checkpoint=sys.argv[2])"
    assert in_another_process(code, path).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["run.ckpt"]
    assert same(run(checkpoint=path, resume=True)[0], run()[0])


def test_a_run_killed_in_the_middle_of_a_write_resumes_bit_for_bit(tmp_path):
    path = tmp_path / "run.ckpt"
    code = """
class Limited(list):
    def set_epoch(self, epoch):
        if epoch == 1:  # from now on the kernel kills this process when a file grows beyond 8192 bytes
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

claims.run(Limited(claims.BATCHES), checkpoint=sys.argv[2])
"""
    assert in_another_process(code, path).returncode == -signal.SIGXFSZ
    half_written = [file for file in tmp_path.iterdir() if file != path]
    assert [file.stat().st_size for file in half_written] == [8192]
    resumed, history = run(checkpoint=path, resume=True)
    assert same(resumed, run()[0])
    assert len(history.epochs) == EPOCHS


def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(tmp_path):
    recipe = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "kill_and_resume.py"))
    kills, differing = recipe["kill_and_resume"](tmp_path, kills=3, epochs=6, seed=0)
    assert differing == []
    assert kills, "a machine under load may miss the last kills, but not all"


def test_a_full_disk_leaves_the_last_checkpoint_whole(finished):
    before = finished.read_bytes()
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    claims.run(checkpoint=sys.argv[2])
except claims.CheckpointError as error:
    sys.exit(str(error))
"""
    result = in_another_process(code, finished)
    assert result.returncode == 1
    assert "cannot write" in result.stderr
    assert "File too large" in result.stderr
    assert os.listdir(finished.parent) == ["run.ckpt"]
    assert finished.read_bytes() == before


def test_tied_weights_and_frozen_ones_resume_bit_for_bit(tmp_path):
    def tied():
        ann = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        for parameter in ann.parameters():
            nn.init.constant_(parameter, 0.01)
        nn.init.eye_(ann[2].weight)
        ann[3].weight = ann[2].weight
        ann[1].bias.requires_grad_(False)
        return ann

    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(BATCHES, 2), tied(), checkpoint=path)
    assert same(run(ann=tied(), checkpoint=path, resume=True)[0], run(ann=tied())[0])


@pytest.mark.parametrize("length", [0, 5, 100, -1], ids=lambda length: f"first {length} bytes")
def test_a_truncated_file_is_refused(finished, length):
    finished.write_bytes(finished.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"cannot read .*run\.ckpt.*resume=False"):
        run(checkpoint=finished, resume=True)


def test_a_pickle_is_refused_unread(tmp_path):
    path = tmp_path / "run.ckpt"
    torch.save(network().state_dict(), path)
    with pytest.raises(CheckpointError, match="cannot read"):
        run(checkpoint=path, resume=True)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    save_file(network().state_dict(), path)
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        run(checkpoint=path, resume=True)


def altered(path, tensors=None, **header):
    with safe_open(path, framework="pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata() | header
    new = {name: value for name, value in (old | (tensors or {})).items() if value is not None}
    save_file(new, path, metadata)


@pytest.mark.parametrize(
    "header, text",
    [
        ({"format_version": "2"}, "training format '2'"),
        ({"training": "{"}, "damaged header"),
        ({"training": json.dumps({"settings": {}})}, "damaged header"),
        ({"training": json.dumps({"settings": 1, "epochs": []})}, "damaged header"),
    ],
)
def test_another_version_or_header_is_refused(finished, header, text):
    altered(finished, **header)
    with pytest.raises(CheckpointError, match=text):
        run(checkpoint=finished, resume=True)


@pytest.mark.parametrize(
    "tensors, text",
    [
        ({"model.1.bias": None}, r"network differs \(model\.1\.bias is missing there and float32\[8\] here"),
        ({"model.1.bias": torch.zeros(9)}, r"float32\[9\] there and float32\[8\] here"),
        ({"model.1.bias": torch.zeros(8).half()}, r"float16\[8\] there"),
        ({"more": torch.zeros(1)}, r"more is float32\[1\] there and missing here"),
        ({"rng.torch": None}, "random streams differs"),
        ({"optimizer.momentum_buffer.1.bias": torch.zeros(9)}, "optimizer differs"),
        ({"optimizer.odd": torch.zeros(9)}, r"optimizer\.odd is float32\[9\] there and missing here"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(finished, tensors, text):
    altered(finished, tensors)
    ann = network()
    with pytest.raises(CheckpointError, match=text):
        run(ann=ann, checkpoint=finished, resume=True)
    assert same(ann.state_dict(), network().state_dict())


def test_another_network_is_refused(finished):
    with pytest.raises(CheckpointError, match=r"model\.5\.bias is float32\[4\] there and float32\[5\] here"):
        run(ann=network(classes=5), checkpoint=finished, resume=True)


def test_other_settings_are_named(finished):
    with pytest.raises(CheckpointError, match=r"epochs=3 there and 4 here; lr=0\.05 there and 0\.1 here"):
        run(checkpoint=finished, resume=True, epochs=4, lr=0.1)


def test_a_checkpoint_from_before_a_setting_existed_goes_on(finished):
    with safe_open(finished, framework="pt") as file:
        training = json.loads(file.metadata()["training"])
    for name in ("ema", "accumulate", "teacher"):
        del training["settings"][name]
    altered(finished, training=json.dumps(training))
    assert same(run(checkpoint=finished, resume=True)[0], run()[0])
    with pytest.raises(CheckpointError, match=r"accumulate=1 there and 2 here"):
        run(checkpoint=finished, resume=True, accumulate=2)


def test_other_data_is_refused_by_its_length(finished):
    with pytest.raises(CheckpointError, match="batches=2 there and 4 here"):
        run(BATCHES * 2, checkpoint=finished, resume=True)


def test_state_that_is_no_tensor_is_refused_with_the_remedy(tmp_path):
    class Talkative(nn.Linear):
        def get_extra_state(self):
            return {"any": "thing"}

        def set_extra_state(self, state):
            pass

    ann = nn.Sequential(nn.Flatten(), Talkative(108, 4))
    with pytest.raises(CheckpointError, match=r"1\._extra_state .*register_buffer"):
        run(ann=ann, checkpoint=tmp_path / "run.ckpt")


def test_a_new_run_replaces_a_checkpoint_only_when_an_epoch_is_done(finished):
    before = finished.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(BATCHES, 0), checkpoint=finished)
    assert finished.read_bytes() == before
    run(checkpoint=finished, seed=1)
    assert finished.read_bytes() != before
