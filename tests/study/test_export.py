"""A saved network reaches every format, from Python and from the command line."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pmsm
from pmsm.cli.app import app
from pmsm.errors import ConversionError, SettingsError
from pmsm.study.export import FORMATS, export


@pytest.fixture
def saved(tmp_path):
    ann = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()
    x = torch.randn(8, 1, 6, 6)
    qann = pmsm.calibrate(pmsm.quantize(ann, pmsm.PMSM(levels=5), x), x)
    pmsm.save(qann, tmp_path / "net.safetensors")
    pmsm.save(pmsm.convert(qann), tmp_path / "snn.safetensors")
    return tmp_path


@pytest.mark.parametrize("to", [to for to in FORMATS if to != "safetensors"])
def test_every_format_is_written_beside_the_file(saved, to):
    done = CliRunner().invoke(app, ["export", str(saved / "net.safetensors"), "--to", to, "--json"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row["bytes"] > 0
    assert row["file"] == str(saved / f"net.{'h' if to == 'c' else to}")


def test_a_spiking_network_goes_where_no_weight_is_rounded(saved):
    export(saved / "snn.safetensors", "pt2", saved / "step.pt2", state=True)
    x = torch.randn(3, 1, 6, 6)
    snn = pmsm.load(saved / "snn.safetensors")
    t, v, bound, total = (torch.zeros(()), *torch.zeros(2, 3, 3, 4, 4), torch.zeros(3, 4))
    with torch.no_grad():
        found = torch.export.load(saved / "step.pt2").module()(x, t, v, bound, total)[0]
    assert torch.equal(found, pmsm.simulate(snn, x).output)
    with pytest.raises(ConversionError, match="holds a spiking network, and 'npz' needs weights"):
        export(saved / "snn.safetensors", "npz")


def test_unknown_formats_and_settings_are_refused(saved):
    with pytest.raises(SettingsError, match="the formats are npz, c, nir, onnx, pt2, safetensors, got 'exe'"):
        export(saved / "net.safetensors", "exe")
    with pytest.raises(SettingsError, match="'npz' has one form"):
        export(saved / "net.safetensors", "npz", state=True)
    with pytest.raises(SettingsError, match="would take the place of"):
        export(saved / "net.safetensors", "safetensors")
