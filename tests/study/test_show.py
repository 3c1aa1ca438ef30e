"""What `pmsm show` tells of a file."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import pmsm
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
