"""What `pmsm show` tells of a file."""

import json
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import pmsm
from pmsm.ann.checkpoint import save_network
from pmsm.cli import app
from pmsm.methods import PMSM
from pmsm.study.show import show, told


@pytest.fixture
def path(tmp_path):
    """The file of a spiking network with two sites."""
    ann, x = (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)),
        torch.randn(4, 6),
    )
    qann = pmsm.calibrate(pmsm.quantize(ann, PMSM(levels=5), x), x)
    pmsm.save(pmsm.convert(qann), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_file_tells_its_sites_inputs_operators_and_versions(path):
    found = show(path)
    assert (found["kind"], found["name"], found["run"]["mode"]) == ("snn", "Sequential", "integrate")
    assert found["inputs"] == [{"name": "input", "shape": [4, 6], "dtype": "float32"}]
    assert [(site["name"], site["method"]) for site in found["sites"]] == [
        ("1", "PMSM(levels=5)"), ("3_site", "PMSM(levels=5)"),
    ]  # fmt: skip
    assert found["operators"] == {"torch.nn.Linear": 3, "Neuron": 2, "torch.nn.GELU": 1}
    assert found["numbers"] == sum(tensor.numel() for tensor in load_file(path).values())
    assert found["versions"]["torch"] == torch.__version__
    assert "2 sites\n  1                 0..4  PMSM(levels=5)\n" in told(found)


def test_the_command_prints_it_as_text_and_as_json(path):
    done = CliRunner().invoke(app, ["show", str(path)])
    assert done.exit_code == 0
    assert done.stdout == told(show(path)) + "\n"
    done = CliRunner().invoke(app, ["show", str(path), "--json"])
    assert json.loads(done.stdout) == show(path)


def test_the_command_refuses_a_damaged_file_with_status_one(path):
    path.write_bytes(path.read_bytes()[:-1])
    done = CliRunner().invoke(app, ["show", str(path)])
    assert done.exit_code == 1
    assert "cannot load" in done.stderr


FOUND = {
    "format": "pmsm-network", "format_version": 1, "kind": "snn", "name": "SmallResNet",
    "run": {"mode": "integrate"}, "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 1, 8, 8]}],
    "versions": {"pmsm": "0.1.0", "torch": "2.13.0"},
    "sites": [{"name": "relu", "method": "PMSM(levels=9)", "codes": [0, 8]},
              {"name": "block1.relu1", "method": None, "codes": [0, 0]}],
    "operators": {"Conv2d": 2, "Neuron": 1}, "tensors": 7, "numbers": 1234, "bytes": 4936,
    "not_kept": {"drop": "DropPath"},
}  # fmt: skip
TOLD = """
    SmallResNet, spiking network, mode integrate (pmsm-network 1)
    input x: float32 [None, 1, 8, 8]
    written by pmsm 0.1.0, torch 2.13.0
    7 tensors, 1,234 numbers, 4,936 bytes, hashes agree
    operators: 2 Conv2d, 1 Neuron
    acts in training only and is not kept: drop (DropPath)
    2 sites
      relu                    0..8  PMSM(levels=9)
      block1.relu1  not calibrated
"""


def test_the_text_to_the_letter():
    assert told(FOUND) == textwrap.dedent(TOLD).strip()


TRAINED = {
    "format": "pmsm-training", "format_version": 1, "kind": "training", "epochs": 2,
    "last": {"epoch": 1, "loss": 0.51234567, "valid_accuracy": None}, "settings": {"lr": 0.1, "seed": 0},
    "sites": [{"name": "relu", "codes": [-4, 4]}], "tensors": 3, "numbers": 1200, "bytes": 4800,
}  # fmt: skip
TOLD_TRAINED = """
    checkpoint of training, 2 epochs (pmsm-training 1)
    last epoch: epoch 1, loss 0.5123, valid_accuracy None
    settings: lr 0.1, seed 0
    3 tensors of the network, 1,200 numbers, 4,800 bytes
    1 sites
      relu           -4..4
"""


def test_a_checkpoint_of_training_is_told_too(tmp_path):
    assert told(TRAINED) == textwrap.dedent(TOLD_TRAINED).strip()
    ann, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 4)
    qann = pmsm.calibrate(pmsm.quantize(ann, PMSM(levels=5), x), x)
    save_network(tmp_path / "qann.safetensors", qann)
    found = show(tmp_path / "qann.safetensors")
    assert (found["kind"], found["epochs"], found["last"]) == ("training", 0, None)
    assert [site["codes"] for site in found["sites"]] == [[0, 4]]
    assert found["numbers"] == sum(x.numel() for x in qann.state_dict().values())
    assert "checkpoint of training, 0 epochs" in told(found)
