"""A run that is shared out to two processes on CPUs: its curve, its evaluation, its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pmsm
from pmsm.ann.batchnorm import over_all_processes
from pmsm.ann.evaluate import evaluate
from pmsm.ann.train import train
from pmsm.ann.workers import Workers
from pmsm.errors import MissingExtraError, TrainingError

torch.set_num_threads(1)
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(44, 3, 6, 6, generator=DRAW), torch.randint(0, 4, (44,), generator=DRAW)
BATCHES = [(X[:16], Y[:16]), (X[16:32], Y[16:32]), (X[32:], Y[32:])]
ODD = [(X[:15], Y[:15]), (X[15:30], Y[15:30])]
"""Batches that two processes cannot halve."""
TEACHER = {"teacher": True, "distill": 0.5}
RUNS = {  # name: whether with BatchNorm, batches, settings
    "odd": (False, ODD, {}),
    "norm": (True, ODD, {}),
    "all": (True, BATCHES, {"accumulate": 2, "clip_norm": 1.0, "ema": 0.9, **TEACHER}),
}


def network(norm: bool, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 4))


class Halves(Workers):
    """One of two processes, without the other."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(Accelerator(cpu=True))
        self.count, self.index = 2, index


class Half(nn.Module):
    """A network of which a part takes no part."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = network(norm=True), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


def curves() -> dict[str, dict]:
    """Loss and accuracies of every run, and the weights they end in."""
    found = {}
    for name, (norm, batches, given) in RUNS.items():
        ann, settings = network(norm), dict(given)
        if settings.pop("teacher", False):
            settings["teacher"] = network(norm, seed=1)
        history = train(
            ann, batches, BATCHES, epochs=3, lr=0.05, precision="fp32", progress=False, **settings
        )
        found[name] = {
            "loss": [epoch.loss for epoch in history.epochs],
            "accuracy": [[epoch.accuracy, epoch.valid_accuracy] for epoch in history.epochs],
            "weights": torch.cat([v.double().flatten() for v in ann.state_dict().values()]).tolist(),
        }
    return found


class Noted:
    """A shuffled loader that draws from torch's own generator, and what it gave."""

    def __init__(self) -> None:
        data = TensorDataset(X, torch.arange(len(X)) % 4, torch.arange(len(X)))
        self.loader, self.seen = DataLoader(data, batch_size=15, shuffle=True), []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for x, y, number in self.loader:
            self.seen += number.tolist()
            yield x, y


def order() -> list[int]:
    """What a shuffled loader gives while processes draw differently many numbers for dropout."""
    ann, noted = network(norm=False), Noted()
    ann.insert(3, nn.Dropout(0.5))
    train(ann, noted, epochs=3, precision="fp32", progress=False)
    return noted.seen


def elsewhere(path: Path) -> str:
    """What is said if only the first process finds the checkpoint."""
    train(network(norm=False), BATCHES, epochs=2, checkpoint=path, progress=False)
    try:
        train(network(norm=False), BATCHES, epochs=2, checkpoint=path, resume=True, progress=False)
    except TrainingError as error:
        return str(error)
    return ""


def told(folder: Path) -> None:
    """What a process of the job writes down: curves, and an evaluation shared out."""
    accelerator = Accelerator(cpu=True)
    found: dict[str, Any] = curves()
    found["evaluation"] = evaluate(network(norm=True), BATCHES, accelerator=accelerator)
    ann = pmsm.quantize(network(norm=True), pmsm.PMSM(levels=9), X[:2])
    pmsm.calibrate(ann, BATCHES)
    history = train(ann, BATCHES, BATCHES, epochs=2, lr=0.02, precision="fp32", progress=False)
    found["qann"] = [[row.loss, row.accuracy, row.valid_accuracy] for row in history.epochs]
    found["differ"] = pmsm.verify(ann, pmsm.convert(ann), X).different
    found["order"] = order()
    found["elsewhere"] = elsewhere(folder / f"{accelerator.process_index}.ckpt")
    ann = Half()
    try:
        train(ann, BATCHES, epochs=1, progress=False)
    except TrainingError as error:
        found["unused"] = str(error)
    found["batchnorm"] = [name for name, module in ann.named_modules() if "forward" in vars(module)]
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))


class Killed(list):
    """Batches in whose second epoch process 1 is killed."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for batch in super().__iter__():
            if self.epoch == 1 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def killed(folder: Path) -> None:
    """A run of which one process is killed."""
    train(network(norm=True), Killed(BATCHES), epochs=3, lr=0.05, precision="fp32",
          checkpoint=folder / "run.ckpt", progress=False)  # fmt: skip


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What each of two processes tells, started with the variables that torchrun sets."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "told", str(folder)],
            env=job | {"RANK": str(index), "LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, dict]:
    """The same runs in this process alone."""
    return curves()


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_curve_of_one(one, two, name):
    """Sums over the batch are taken in another order: nine updates keep within a few float32 roundings."""
    assert two[0][name] == two[1][name]
    assert two[0][name]["loss"] == pytest.approx(one[name]["loss"], rel=1e-6)
    assert two[0][name]["accuracy"] == one[name]["accuracy"]
    assert two[0][name]["weights"] == pytest.approx(one[name]["weights"], rel=1e-5, abs=1e-6)


def test_a_quantized_network_learns_and_converts_as_in_one_process(two):
    ann = pmsm.calibrate(pmsm.quantize(network(norm=True), pmsm.PMSM(levels=9), X[:2]), BATCHES)
    history = train(ann, BATCHES, BATCHES, epochs=2, lr=0.02, precision="fp32")
    alone = [[row.loss, row.accuracy, row.valid_accuracy] for row in history.epochs]
    assert two[0]["qann"] == two[1]["qann"]
    # As above, and no value lies so near to the border of two codes that a rounding moves it.
    torch.testing.assert_close(torch.tensor(two[0]["qann"]), torch.tensor(alone), rtol=1e-5, atol=0)
    assert two[0]["differ"] == 0


def test_the_order_of_the_data_is_the_same_in_both_processes_whatever_dropout_draws(two):
    assert two[0]["order"] == two[1]["order"]
    epochs = [two[0]["order"][i : i + 44] for i in (0, 44, 88)]
    assert all(sorted(epoch) == list(range(44)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_checkpoint_that_one_process_does_not_see_is_refused(two):
    assert "checkpoints of 0 to 2 epochs" in two[0]["elsewhere"]
    assert two[0]["elsewhere"] == two[1]["elsewhere"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_draws_for_itself_and_leaves_the_stream_of_the_data_alone(index):
    def draw(index: int, step: int) -> list[float]:
        worker = Halves(index)
        with worker.own_draws(seed=3, step=step):
            return torch.rand(4).tolist()

    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    assert draw(index, 5) == draw(index, 5)
    assert draw(index, 5) != draw(index, 6)
    assert draw(index, 5) != draw(1 - index, 5)
    assert torch.equal(torch.rand(4), expected)


def test_parameters_that_take_no_part_are_told_with_the_remedy(two):
    assert re.search(r"take no part .*requires_grad_\(False\).*find_unused_parameters=True", two[0]["unused"])
    train(Half(), BATCHES, epochs=1, precision="fp32")


def test_two_processes_evaluate_exactly_as_one(two):
    alone = evaluate(network(norm=True), BATCHES)
    assert two[0]["evaluation"] == two[1]["evaluation"] == alone


def test_a_killed_process_ends_the_job_with_the_way_on_and_resuming_goes_on(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, __file__, "killed", str(tmp_path)],
        capture_output=True, text=True, timeout=200, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode != 0
    told = "process 0 of 2 lost another process in epoch 2.*start the same command again with .*resume=True"
    assert re.search(told, done.stderr)
    assert "SIGKILL" in done.stderr
    # Resumed by one process: how many share a run is no part of its settings.
    ann, path = network(norm=True), tmp_path / "run.ckpt"
    again = train(ann, BATCHES, epochs=3, lr=0.05, precision="fp32", checkpoint=path, resume=True)
    whole = train(network(norm=True), BATCHES, epochs=3, lr=0.05, precision="fp32")
    assert [row.loss for row in again.epochs] == pytest.approx([row.loss for row in whole.epochs], rel=1e-6)


def test_batchnorm_modules_are_themselves_again_after_training(two):
    ann = network(norm=True)
    with over_all_processes(ann):
        assert "forward" in vars(ann[1])
    assert "forward" not in vars(ann[1])
    assert two[0]["batchnorm"] == two[1]["batchnorm"] == []


def test_an_accelerator_of_the_callers_own_learns_the_same():
    ann, other = network(norm=True), network(norm=True)
    train(ann, BATCHES, epochs=1, precision="fp32", accelerator=Accelerator(cpu=True))
    train(other, BATCHES, epochs=1, precision="fp32")
    assert all(torch.equal(a, b) for a, b in zip(ann.parameters(), other.parameters(), strict=True))
    with pytest.raises(TrainingError, match=r"accelerator is a str; .*accelerator=Accelerator\(\)"):
        train(ann, BATCHES, accelerator="cpu")
    accumulating = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(TrainingError, match=r"accumulates 4 batches by itself.*accumulate=4"):
        train(ann, BATCHES, accelerator=accumulating)


def test_processes_that_know_nothing_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 processes were started, .* each would train alone"):
        Workers(Accelerator())


def test_without_accelerate_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pmsm\[train\]'"):
        train(network(norm=False), BATCHES, epochs=1)
    assert evaluate(network(norm=False), BATCHES) >= 0


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    x, y = Halves().share(X[:3], Y[:3], 0)
    assert (len(x), len(y)) == (1, 1)
    with pytest.raises(TrainingError, match=r"batch 7 has 1 samples for 2 processes.*drop_last=True"):
        Halves().share(X[:1], Y[:1], 7)


if __name__ == "__main__":
    {"told": told, "killed": killed}[sys.argv[1]](Path(sys.argv[2]))
