"""What is wrong with a file is told by name, and nothing of it is used."""

import os
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import pmsm
from pmsm.errors import CheckpointError
from pmsm.methods import PMSM

HOSTILE = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "hostile_mutations.py"))
split = HOSTILE["split"]


@pytest.fixture
def path(tmp_path) -> Path:
    """The file of a small quantized network."""
    x = torch.randn(4, 6)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pmsm.save(pmsm.calibrate(pmsm.quantize(ann, PMSM(levels=5), x), x), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def changed(path: Path, change) -> None:
    """Rewrite a file with its description changed and the description's hash put right."""
    path.write_bytes(HOSTILE["signed"](path.read_bytes(), change))


def call_instead(description, op: str, target: str, *arguments: str) -> None:
    """Let the first call be another."""
    description["modules"].pop("0")
    description["nodes"][1].update(op=op, target=target)
    description["nodes"][1]["args"] += arguments


def test_one_changed_bit_of_the_weights_is_told_by_the_name_of_its_tensor(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cannot load .*the tensor '.+' was changed: its hash"):
        pmsm.load(path)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda d: d.pop("sites"), "the description lacks 'sites'"),
        (lambda d: d.update(hooks=[]), "holds the unknown 'hooks'"),
        (lambda d: call_instead(d, "call_function", "os.system"), "'os.system'.*not know"),
        (lambda d: call_instead(d, "call_function", "builtins.eval"), "'builtins.eval'.*not know"),
        (lambda d: call_instead(d, "call_method", "__reduce__"), "'__reduce__'.*not know"),
        (lambda d: call_instead(d, "call_function", "builtins.getattr", "__class__"), "no file may read"),
        (lambda d: call_instead(d, "call_function", "builtins.getattr", ["shape"]), "no file may read"),
        (lambda d: d["nodes"][1].update(target={}), "no call in its graph uses '0'"),
        (lambda d: d["nodes"].append(d["nodes"].pop(1)), "is no node in front of it"),
        (lambda d: d["nodes"][1].update(name="import os"), "no name at all"),
        (lambda d: d["modules"]["0"].update({"class": "os.system"}), "'os.system'.*does not know"),
        (lambda d: d["modules"]["0"]["settings"].update(in_features=10**9), "takes"),
        (lambda d: d["modules"].update(extra=d["modules"]["0"]), "lacks the tensor|no call"),
        (lambda d: d["sites"][0].update(codes=[0, 3]), "list of sites"),
        (lambda d: d["inputs"][0].update(shape=[1]), "list of inputs"),
        (lambda d: d["tensors"].pop("0.weight"), r"holds \['0.weight'\] beside"),
        (lambda d: d["tied"].update({"../../x": "0.weight"}), "for a name"),
        (lambda d: d.update(kind="snn", run={"mode": "integrate", "batch_first": True}), "another kind"),
        (lambda d: d["tensors"]["0.weight"].update(sha256="0" * 64), "'0.weight' was changed"),
        (lambda d: d["tensors"]["0.weight"].update(strides=[1, 1, 1, 1]), "leave holes"),
    ],
)  # fmt: skip
def test_a_description_that_lies_is_refused_by_name(path, change, why):
    changed(path, change)
    with pytest.raises(CheckpointError, match=why):
        pmsm.load(path)


@pytest.mark.parametrize(
    "metadata, why",
    [
        ({"format": "pt"}, "format is 'pt', not 'pmsm-network'"),
        ({"format_version": "2"}, "version '2' of the format.*reads 1"),
        ({"extra": ""}, "holds the unknown 'extra'"),
        ({"network": "\ud800"}, "'network_sha256' is the hash of another text"),
        ({"network_sha256": "0"}, "'network_sha256' is the hash of another text"),
    ],
)
def test_another_format_or_version_is_refused_by_name(path, metadata, why):
    header, body = split(path.read_bytes())
    header["__metadata__"] |= metadata
    path.write_bytes(HOSTILE["joined"](header, body))
    with pytest.raises(CheckpointError, match=why):
        pmsm.load(path)


def test_what_is_no_such_file_is_refused(path, tmp_path):
    data = path.read_bytes()
    for content in (b"", b"PK\3\4", data[:100], data[:-1], data + b"\0", b"\xff" * 100):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cannot load '.*x': .*pmsm.save\(net, path\)"):
            pmsm.load(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", "/dev/zero"):
        with pytest.raises(CheckpointError, match="cannot load"):
            pmsm.load(path)
