"""The command line: what it prints, what it leaves behind, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pmsm.errors import CheckpointError
from pmsm.study.demo import Demo, run_demo

PMSM = [sys.executable, "-c", "from pmsm.cli import main; main()"]
ROOT = str(Path(__file__).parents[1])  # this checkout, wherever pmsm is installed from
ENVIRONMENT = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}


def pmsm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PMSM, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo")
    return out, pmsm("demo", "--epochs", "2", "--out", str(out))


def test_help_lists_the_commands_and_loads_no_torch():
    script = "import sys; from pmsm.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert "explain" in done.stdout


def test_the_demo_prints_the_proof_and_writes_its_files(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert "T=1: max |SNN - QANN| = 0" in done.stdout
    assert "0 differ" in done.stdout
    assert "QCFS-IF" in done.stdout
    files = {"float.safetensors", "pmsm.safetensors", "qcfs_if.safetensors", "record.json", "report.html"}
    assert {path.name for path in out.iterdir()} == files


def test_the_record_says_what_was_measured(finished):
    record = json.loads((finished[0] / "record.json").read_text())
    calibrated, trained, baseline = record["methods"]
    assert calibrated["verify"]["different"] == trained["verify"]["different"] == 0
    assert baseline["verify"] is None
    # At T=1 an exact method has the accuracy of its quantized network, to the last image.
    assert trained["accuracy"][0] == trained["qann_accuracy"]
    assert record["command"].startswith("pmsm demo --epochs 2")
    for site in trained["sites"]:
        assert 0 < site["entropy_bits"] <= site["max_bits"]
        assert sum(site["histogram"].values()) == pytest.approx(1, abs=1e-5)  # float32 shares


def test_the_demo_is_a_function_of_its_seed_and_resumes_to_the_same_bits(finished, tmp_path):
    first = Demo(epochs=2, out=tmp_path / "a")
    run_demo(first)
    again = Demo(epochs=2, out=tmp_path / "a", resume=True)
    record = run_demo(again)
    assert (
        record["methods"][1]["accuracy"]
        == json.loads((finished[0] / "record.json").read_text())["methods"][1]["accuracy"]
    )
    one, two = (load_file(folder / "pmsm.safetensors") for folder in (finished[0], tmp_path / "a"))
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


OWN = """
from torch import nn
def good(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
def bad(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3))
"""
MISTAKES = {
    "demo --levels 1 --out out": "PMSM needs a whole number of levels >= 2, got 1",
    "demo --data nowhere --out out": "nowhere",
    "demo --epochs 0 --out out": "epochs >= 1",
    "explain own:good --shape 1,8,x": "--shape needs whole numbers >= 1 with commas between, got '1,8,x'",
    "explain own:good --shape 3,8,8": "refuses the example of shape (1, 3, 8, 8)",
    "explain own:good --levels 1": "PMSM needs a whole number of levels >= 2, got 1",
    "explain own:none": "own has no 'none'",
    "explain resnet18": "unknown network 'resnet18'. Write timm:<name>",
}
# One process for all of them: most of what a command takes is the import of torch.
IN_TURN = """
import contextlib, io, json, sys
from pmsm.cli import main
sys.path.remove("")
told = {}
for line in json.loads(sys.argv[1]):
    sys.argv = ["pmsm", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            told[line] = end.code, errors.getvalue()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def endings(tmp_path_factory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """A folder with a module `own`, and how every mistake made in it ends: status and errors."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "own.py").write_text(OWN)
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(list(MISTAKES))],
        cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_with_its_remedy_and_no_traceback(endings, line):
    folder, told = endings
    status, errors = told[line]
    assert status == 1
    assert MISTAKES[line] in errors
    assert "Traceback" not in errors
    assert not (folder / "out").exists()


def test_ctrl_c_keeps_the_finished_epochs_and_says_how_to_go_on(tmp_path):
    with subprocess.Popen(
        [*PMSM, "demo", "--epochs", "400", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (tmp_path / "float.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["float.safetensors"]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from pmsm.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--epochs", "1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def explain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pmsm explain` in a folder with a module `own`, not on the path: as the installed command runs."""
    (folder / "own.py").write_text(OWN)
    script = "import sys; sys.path.remove(''); from pmsm.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, "explain", *arguments],
        cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False,
    )  # fmt: skip


def test_explain_prints_a_row_per_operator_and_the_sums(tmp_path):
    done = explain(tmp_path, "own:good", "--shape", "1,8,8", "--levels", "5")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row.split()[:2] for row in rows[1:4]] == [["0", "Conv2d"], ["1", "PMSM"], ["2", "Conv2d"]]
    assert "rectified 0..4; replaces ReLU" in rows[2]
    assert rows[-1].startswith("Sequential with PMSM(levels=5")


def test_explain_ends_with_status_1_and_all_rows_if_an_operator_has_no_rule(tmp_path):
    done = explain(tmp_path, "own:bad", "--shape", "1,8,8", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert [row["fate"] for row in told["rows"]] == ["analog", "unsupported", "site", "linear"]
    assert told["supported"] is False
    assert "Traceback" not in done.stderr


def test_resuming_with_other_levels_is_refused(finished):
    with pytest.raises(CheckpointError, match=r"has codes 0\.\.8 in the checkpoint"):
        run_demo(Demo(epochs=2, levels=5, out=finished[0], resume=True))
