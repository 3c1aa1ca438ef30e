"""`pmsm calibrate`, `evaluate`, `measure` and `compare` on the command line: a network of the user's from its
weights to a table.
"""

import json
import os
import re
import signal
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pmsm.cli.app import app
from pmsm.errors import SettingsError
from pmsm.study.rival import rival, standing

COMMANDS = {
    command.callback.__name__: command.callback for command in app.registered_commands if command.callback
}
OWN = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
"""

DEAF = """
import contextlib, signal
import own
def build():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    return own.build()
"""


def pmsm_command(folder: Path, *arguments: str, **environment: str) -> Any:
    """The command line in this process, in a folder, piped."""
    before, path, threads = Path.cwd(), list(sys.path), torch.get_num_threads()
    os.chdir(folder)
    try:
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", **environment}, prog_name="pmsm")
    finally:
        os.chdir(before)
        sys.path[:] = path
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a network of the user's, its weights, and the run that `pmsm calibrate` makes of them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "own.py").write_text(OWN)
    names: dict = {}
    exec(OWN, names)
    torch.manual_seed(0)
    save_file(names["build"]().state_dict(), folder / "net.safetensors")
    made = ("calibrate", "--model", "own:build", "--weights", "net.safetensors", "--out", "mine")
    done = pmsm_command(folder, *made, "--levels", "5")
    assert done.exit_code == 0, done.stderr
    assert "Go on with: pmsm convert mine" in done.stdout
    assert done.stderr == ""  # piped: quiet
    return folder


def test_a_calibrated_network_is_a_run_like_any_other(home):
    row = json.loads((home / "mine" / "run.json").read_text())
    proof = json.loads(pmsm_command(home, "convert", "mine", "--json").stdout)
    assert proof["different"] == 0 < proof["codes"]
    found = json.loads(pmsm_command(home, "evaluate", "mine", "--timesteps", "2", "--json").stdout)
    assert found["accuracy"][0] == pytest.approx(row["qann_accuracy"])
    assert found["samples"] == 355
    assert row["qann_curve"] == []


def test_what_was_evaluated_and_measured_can_be_compared(home):
    assert pmsm_command(home, "evaluate", "mine", "--timesteps", "2").exit_code == 0
    measured = json.loads(pmsm_command(home, "measure", "mine", "--timesteps", "2", "--json").stdout)
    done = pmsm_command(home, "compare", "mine", "--json", "--out", "table.md", "--out", "pareto.svg")
    assert done.exit_code == 0, done.stderr
    first, second = json.loads(done.stdout)["rows"]
    assert (first["method"], first["levels"], first["network"]) == ("PMSM, calibrated only", 5, "own:build")
    assert first["energy_nj"] is None
    assert second["energy_nj"]["median"] * 1000 == pytest.approx(measured["totals"]["energy_pj"]["mean"])
    assert (home / "table.md").read_text().startswith("| data | network |")
    assert "<svg" in (home / "pareto.svg").read_text()


@pytest.mark.parametrize("to", ["safetensors", "npz", "onnx", "pt2"])
def test_a_run_is_exported_and_answers_as_before(home, to):
    done = pmsm_command(home, "export", "mine", "--to", to, "--json")
    assert done.exit_code == 0, done.stderr
    row = json.loads(done.stdout)
    written = home / "mine" / f"net.{to}"
    assert row["bytes"] == written.stat().st_size > 0
    assert row["samples"] == 250
    assert row["agreement"] == 100 if to in ("safetensors", "pt2") else row["agreement"] > 90
    if to == "safetensors":
        assert pmsm_command(home, "show", str(written)).exit_code == 0


def test_a_network_of_the_users_is_trained_under_the_name_that_explain_takes(home):
    done = pmsm_command(home, "train", "--model", "own:build", "--epochs", "1", "--out", "learned", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["experiment"]["network"] == "own:build"
    assert done.stderr == ""
    assert not {"network", "model"} <= {
        name for run in COMMANDS.values() for name in signature(run).parameters
    }


def test_another_run_stands_beside_at_the_smallest_t_within_a_point(home):
    done = pmsm_command(home, "measure", "mine", "--beside", "mine", "--json")
    assert done.exit_code == 0, done.stderr
    beside = json.loads(done.stdout)["comparison"]
    assert [b["name"] for b in beside] == ["float ANN", "int8 QANN", "PMSM of mine, T=1"]
    assert beside[2]["ratio"] == pytest.approx(1)
    out_of_reach = standing(home / "mine", 1)._replace(accuracy=[150.0])
    name, _, timesteps = rival(out_of_reach, home / "mine", longest=2)
    assert timesteps == 2
    assert "T=2, " in name
    assert name.endswith("points behind")
    with pytest.raises(SettingsError, match=r"is on digits, this one on MNIST: their energies"):
        rival(out_of_reach._replace(data="MNIST"), home / "mine", longest=1)


def test_compare_alone_prints_what_is_published(home):
    done = pmsm_command(home, "compare", "--data", "ImageNet")
    assert done.exit_code == 0
    assert "81.60" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compare", "nowhere"], "cannot compare 'nowhere'"),
        (["compare", "--out", "table.xls"], "--out takes files that end in .md, .csv, .json, .svg, .txt"),
        (["export", "mine", "--to", "zip"], "the formats are npz, c, nir, onnx, pt2, safetensors, got 'zip'"),
        (["calibrate", "--model", "own:none"], "own has no 'none'"),
        (["calibrate", "--model", "own:build", "--weights", "none.safetensors"], "cannot read weights from"),
        (["calibrate", "--model", "small", "--weights", "net.safetensors"], "are not those of SmallResNet"),
        (["calibrate", "--model", "own:build", "--rule", "guess"], "calibrate needs a rule out of"),
    ],
)
def test_a_mistake_ends_with_its_remedy_and_no_traceback(home, arguments, text):
    done = pmsm_command(home, *arguments)
    assert done.exit_code == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_told_on_one_page(home):
    done = pmsm_command(home, "report", "mine", "--out", "mine.html", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"report": "mine.html", "bytes": (home / "mine.html").stat().st_size}
    page = (home / "mine.html").read_text()
    assert "Converted, exactly." in page
    assert "pmsm calibrate --model own:build" in page
    assert "record.json" in {path.name for path in (home / "mine").iterdir()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_speaks_json(name):
    run = COMMANDS[name]
    assert run.__doc__ is not None
    assert re.search(rf"Examples?: pmsm {name}\b", run.__doc__)
    assert "json" in signature(run).parameters


def test_ctrl_c_that_a_library_swallows_still_ends_a_command(home):
    (home / "deaf.py").write_text(DEAF)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = pmsm_command(home, "explain", "deaf:build", "--shape", "1,8,8")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130
    assert done.stderr == "Stopped.\n"


def test_the_help_of_a_command_shows_its_example(home):
    done = pmsm_command(home, "compare", "--help")
    assert done.exit_code == 0
    assert "Example: pmsm compare results runs/mine" in done.stdout


def test_the_shell_completes_commands(home):
    done = pmsm_command(
        home, _PMSM_COMPLETE="complete_bash", COMP_WORDS="pmsm com", COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="pmsm com",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "compare" in done.stdout
    assert "report" not in done.stdout
