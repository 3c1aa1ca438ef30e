"""Train, convert and evaluate as the command line does: on images and on recordings of events."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pmsm.ann.data.events import FrameBatches, Frames, WindowBatches
from pmsm.cli import app
from pmsm.errors import CheckpointError, SettingsError
from pmsm.study.experiment import (
    Experiment,
    evaluate_over_time,
    load_experiment,
    prove,
    run_experiment,
    told_over_time,
)


def write_nmnist(folder, recordings: int = 6) -> str:
    """Recordings of two classes in N-MNIST's 40-bit format: events in the left half, or in the right."""
    rng = np.random.default_rng(0)
    for half in ("Train", "Test"):
        for digit in range(10):
            (folder / half / str(digit)).mkdir(parents=True)
            for i in range(recordings if digit < 2 else 1):
                x = rng.integers(0, 17, 400) + 17 * (digit % 2)
                y, p, t = (
                    rng.integers(0, 34, 400),
                    rng.integers(0, 2, 400),
                    np.sort(rng.integers(0, 300_000, 400)),
                )
                rows = np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], 1).astype(np.uint8)
                (folder / half / str(digit) / f"{i:05d}.bin").write_bytes(rows.tobytes())
    return f"nmnist:{folder}"


@pytest.fixture(scope="module")
def events_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    experiment = Experiment(write_nmnist(folder / "data"), timesteps=3, levels=5, epochs=2, batch_size=10)
    row = run_experiment(experiment, folder / "run")
    return experiment, folder / "run", row


def test_a_finished_run_comes_back_as_it_was(events_run):
    experiment, folder, row = events_run
    loaded, source, qann = load_experiment(folder)
    assert loaded == experiment
    assert json.loads((folder / "run.json").read_text()) == row
    assert len(row["float_curve"]) == 2
    assert len(row["qann_curve"]) == 1
    from pmsm.ann.train import evaluate

    assert evaluate(qann, source.valid) == row["qann_accuracy"]
    assert prove(qann, source).different == 0


def test_the_stream_forgetting_between_frames_is_the_mean_of_the_quantized_network(events_run):
    _, folder, _ = events_run
    _, source, qann = load_experiment(folder)
    found = evaluate_over_time(qann, source, 3, reset_each_frame=True)
    right = total = 0
    with torch.no_grad():
        for x, y in source.test:
            right += int((sum(qann(frame) for frame in x).argmax(1) == y).sum())
            total += len(y)
    assert found["accuracy"][-1] == pytest.approx(100 * right / total)
    assert found["spikes_per_event"] > 0
    assert found["spikes_per_neuron"] == sorted(found["spikes_per_neuron"])


@pytest.mark.parametrize("arguments", [{}, {"mode": "tracking"}, {"mode": "tracking", "burst": 1}])
def test_every_mode_is_evaluated_on_the_stream(events_run, arguments):
    _, folder, _ = events_run
    _, source, qann = load_experiment(folder)
    assert len(evaluate_over_time(qann, source, 2, **arguments)["accuracy"]) == 2


def test_more_steps_than_frames_are_refused(events_run):
    _, source, qann = load_experiment(events_run[1])
    with pytest.raises(SettingsError, match="cut into 3 frames"):
        evaluate_over_time(qann, source, 4)


def test_the_commands_do_the_same_and_speak_json(events_run):
    folder = events_run[1]
    runner = CliRunner()
    told = runner.invoke(app, ["convert", str(folder), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["different"] == 0
    told = runner.invoke(app, ["evaluate", str(folder), "--json"])
    assert len(json.loads(told.stdout)["accuracy"]) == 3
    told = runner.invoke(app, ["evaluate", str(folder), "--timesteps", "2"])
    assert "T=2   accuracy" in told.stdout
    assert "spikes per event" in told.stdout


def test_the_energy_of_a_run_is_measured(events_run):
    runner, folder = CliRunner(), str(events_run[1])
    told = runner.invoke(app, ["measure", folder, "--technology", "45nm-int8", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)
    told = runner.invoke(app, ["measure", folder])
    assert "float ANN" in told.stdout
    told = runner.invoke(app, ["measure", folder, "--technology", "magic"])
    assert told.exit_code == 1
    assert "magic" in told.stderr


def test_images_go_the_same_way(tmp_path):
    runner, out = CliRunner(), str(tmp_path / "run")
    told = runner.invoke(app, ["train", "--epochs", "1", "--levels", "5", "--out", out, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["data"] == "digits"
    told = runner.invoke(app, ["evaluate", out, "--timesteps", "2", "--json"])
    assert len(json.loads(told.stdout)["accuracy"]) == 2
    assert "spikes_per_event" not in json.loads(told.stdout)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no finished run in .*pmsm train --data"):
        load_experiment(tmp_path)
    (tmp_path / "run.json").write_text("{")
    told = CliRunner().invoke(app, ["evaluate", str(tmp_path)])
    assert told.exit_code == 1
    assert "no finished run" in told.stderr


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"timesteps": 0}, {"epochs": 0}, {"batch_size": -1}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(SettingsError, match=r"magic|needs"):
        Experiment("", **wrong)


def test_windows_are_means_of_frames_in_a_row_and_follow_seed_and_epoch():
    frames = Frames(
        torch.arange(8, dtype=torch.uint8).view(1, 8, 1, 1, 1).repeat(40, 1, 1, 1, 1),
        torch.arange(40) % 2, 2, "ramp",
    )  # fmt: skip
    batches = WindowBatches(FrameBatches(frames, 40))
    first, again = (next(iter(batches))[0] for _ in range(2))
    assert torch.equal(first, again)
    batches.set_epoch(1)
    assert not torch.equal(first, next(iter(batches))[0])
    means = {sum(range(a, b)) / (b - a) for a in range(8) for b in range(a + 1, 9)}  # of 0, 1, ... 7
    assert all(min(abs(value - mean) for mean in means) < 1e-5 for value in first.flatten().tolist())
    assert first.unique().numel() > 5
    whole = next(iter(WindowBatches(FrameBatches(frames, 40), whole=True)))[0]
    assert torch.equal(whole, torch.full((40, 1, 1, 1), 3.5))


def test_accuracy_over_time_is_told_to_the_letter():
    row = {"accuracy": [9.5, 100.0], "spikes_per_neuron": [0.5, 12.25], "spikes_per_event": 3.0, "samples": 4}
    assert told_over_time(row) == (
        "T=1   accuracy   9.50 %   spikes per neuron   0.500\n"
        "T=2   accuracy 100.00 %   spikes per neuron  12.250\n"
        "spikes per event 3.00"
    )
