"""The record of a run: everything that its report shows is measured, once, and again when the run changes."""

import json
import os

import pytest

from pmsm.errors import CheckpointError, DataError
from pmsm.study.calibrated import run_calibration
from pmsm.study.compare import compare
from pmsm.study.experiment import Experiment, run_experiment
from pmsm.study.record import read_record
from pmsm.study.report import write_report
from pmsm.study.run_record import record_of_run, write_record


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    run_experiment(Experiment("", epochs=1, levels=5), folder)
    return folder


@pytest.fixture(scope="module")
def record(trained):
    return record_of_run(trained)


def test_a_trained_run_is_told_before_and_after_training(trained, record):
    checked = read_record(record)
    before, after = checked["methods"]
    assert [before["name"], after["name"]] == ["PMSM, calibrated only", "PMSM, after QAT"]
    assert before["verify"]["different"] == after["verify"]["different"] == 0
    assert after["accuracy"][0] == pytest.approx(after["qann_accuracy"])  # T=1 is the quantized network
    assert [row["timesteps"] for row in after["energy"]] == record["timesteps"] == [1, 2, 4, 8]
    assert {row["name"] for row in after["energy"][0]["beside"]} == {"float ANN", "int8 QANN"}
    assert len(record["raster"]["layers"]) == len(after["sites"]) == record["network"]["sites"]
    assert record["command"].startswith("pmsm train --model small --method pmsm --levels 5")
    assert record["data"]["train"] == 1442


def test_the_sum_over_the_operators_is_the_energy(record):
    row = record["methods"][1]["energy"][0]
    assert sum(o["energy_nj"] for o in row["operators"]) == pytest.approx(row["energy_nj"])
    dense = {b["name"]: b["energy_nj"] for b in row["beside"]}
    assert sum(o["float_nj"] for o in row["operators"]) == pytest.approx(dense["float ANN"])
    assert sum(o["int8_nj"] for o in row["operators"]) == pytest.approx(dense["int8 QANN"])


def test_a_record_is_kept_compared_and_made_anew_when_the_run_is_newer(trained, record, tmp_path):
    write_record(trained, record)
    assert record_of_run(trained) == json.loads(json.dumps(record))
    assert "Converted, exactly." in write_report(record_of_run(trained), tmp_path / "r.html").read_text()
    assert {row.method for row in compare([trained]).rows} == {"PMSM, calibrated only", "PMSM, after QAT"}
    run = trained / "run.json"
    later = (trained / "record.json").stat().st_mtime_ns + 10**9
    os.utime(run, ns=(later, later))
    (trained / "record.json").write_text("{}")
    os.utime(trained / "record.json", ns=(later - 10**9, later - 10**9))
    assert record_of_run(trained)["format"] == "pmsm-run"


def test_a_calibrated_run_has_one_method(tmp_path):
    run_calibration(Experiment("", levels=5), tmp_path, rule="mse")
    told = record_of_run(tmp_path)
    assert [m["name"] for m in told["methods"]] == ["PMSM, calibrated only"]
    assert told["command"].startswith("pmsm calibrate --model small")


def test_a_folder_without_a_run_or_with_a_broken_record_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no finished run in"):
        record_of_run(tmp_path)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*record.json.* Write it anew: pmsm demo --out"):
        record_of_run(tmp_path)
