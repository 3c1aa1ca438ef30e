"""`pmsm calibrate`, `evaluate`, `measure` and `compare` on the command line: a network of the user's from its
weights to a table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = str(Path(__file__).parents[2])  # this checkout, wherever pmsm is installed from
ENVIRONMENT = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
OWN = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
"""


def pmsm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = "import sys; sys.path.remove(''); from pmsm.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a network of the user's, its weights, and the run that `pmsm calibrate` makes of them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "own.py").write_text(OWN)
    names: dict = {}
    exec(OWN, names)
    torch.manual_seed(0)
    save_file(names["build"]().state_dict(), folder / "net.safetensors")
    done = pmsm(folder, "calibrate", "--model", "own:build", "--weights", "net.safetensors", "--levels", "5",
                "--out", "mine")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Go on with: pmsm convert mine" in done.stdout
    assert done.stderr == ""  # piped: quiet
    return folder


def test_a_calibrated_network_is_a_run_like_any_other(home):
    row = json.loads((home / "mine" / "run.json").read_text())
    proof = json.loads(pmsm(home, "convert", "mine", "--json").stdout)
    assert proof["different"] == 0 < proof["codes"]
    found = json.loads(pmsm(home, "evaluate", "mine", "--timesteps", "2", "--json").stdout)
    assert found["accuracy"][0] == pytest.approx(row["qann_accuracy"])
    assert found["samples"] == 355
    assert row["qann_curve"] == []


def test_what_was_evaluated_and_measured_can_be_compared(home):
    assert pmsm(home, "evaluate", "mine", "--timesteps", "2").returncode == 0
    measured = json.loads(pmsm(home, "measure", "mine", "--timesteps", "2", "--json").stdout)
    done = pmsm(home, "compare", "mine", "--json", "--out", "table.md", "--out", "pareto.svg")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["rows"]
    assert (first["method"], first["levels"], first["network"]) == ("PMSM, calibrated only", 5, "own:build")
    assert first["energy_nj"] is None
    assert second["energy_nj"]["median"] * 1000 == pytest.approx(measured["totals"]["energy_pj"]["mean"])
    assert (home / "table.md").read_text().startswith("| data | network |")
    assert "<svg" in (home / "pareto.svg").read_text()


def test_compare_alone_prints_what_is_published(home):
    done = pmsm(home, "compare", "--data", "ImageNet")
    assert done.returncode == 0
    assert "81.60" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compare", "nowhere"], "cannot compare 'nowhere'"),
        (["compare", "--out", "table.xls"], "--out takes files that end in .md, .csv, .json, .svg, .txt"),
        (["calibrate", "--model", "own:none"], "own has no 'none'"),
        (["calibrate", "--model", "own:build", "--weights", "none.safetensors"], "cannot read weights from"),
        (["calibrate", "--model", "small", "--weights", "net.safetensors"], "are not those of SmallResNet"),
        (["calibrate", "--model", "own:build", "--rule", "guess"], "calibrate needs a rule out of"),
    ],
)
def test_a_mistake_ends_with_its_remedy_and_no_traceback(home, arguments, text):
    done = pmsm(home, *arguments)
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
