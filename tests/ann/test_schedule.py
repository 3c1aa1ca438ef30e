import json

import numpy as np
import pytest
import torch

from pmsm.ann.schedule import Epoch, History, Settings, learning_rate
from pmsm.errors import TrainingError

SETTINGS = {
    "epochs": 2,
    "batches": 4,
    "lr": 0.5,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "momentum": 0.9,
    "label_smoothing": 0.0,
    "warmup_epochs": 0.5,
    "seed": 0,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
}


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [Settings(**SETTINGS).learning_rate(step) for step in range(9)]
    assert rates[:3] == [0.25, 0.5, 0.5]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[8] == 0.0


def test_a_warm_up_as_long_as_the_run_only_rises():
    assert [learning_rate(step, 4, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"optimizer": "adam"},
        {"momentum": 1.0},
        {"label_smoothing": 1.0},
        {"warmup_epochs": 3.0},
        {"seed": -1},
        {"precision": "fp8"},
        {"weight_decay": -1.0},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(TrainingError, match=f"train needs .*{next(iter(wrong))}.*; got"):
        Settings(**SETTINGS | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in ("epochs", "seed") for value in ("3", 2.5, True, None, np.int64(3))),
        *(
            {name: value}
            for name in ("lr", "weight_decay", "momentum", "label_smoothing", "warmup_epochs")
            for value in ("0.1", True, None, 0.1j, [0.1], torch.tensor(0.1), np.float32(0.1), float("nan"))
        ),
        *(
            {name: value}
            for name in ("optimizer", "precision")
            for value in (None, ["sgd"], {}, torch.float32)
        ),
        *({name: value} for name in ("channels_last", "compile") for value in ("yes", 1, None)),
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_refused_with_what_to_write(wrong):
    name = next(iter(wrong))
    with pytest.raises(
        TrainingError, match=rf"train needs .*{name}.*; got {name}=.*Write train\(\.\.\., {name}="
    ):
        Settings(**SETTINGS | wrong)


def test_every_wrong_setting_is_told_at_once_and_no_right_one():
    with pytest.raises(TrainingError) as refused:
        Settings(**SETTINGS | {"epochs": "3", "lr": -1.0, "optimizer": "adamw"})
    assert str(refused.value) == (
        "train needs a whole number epochs >= 1, a number 0 < lr < inf; got epochs='3', lr=-1.0. Write "
        "train(..., epochs=30, lr=0.001)."
    )


def test_a_history_survives_json():
    history = History(
        (Epoch(1.5, 50.0, None, 0.1, 0.1), Epoch(1.0, 75.0, 62.5, 0.1, 0.0)), Settings(**SETTINGS)
    )
    assert history.accuracy == 62.5
    text = json.loads(json.dumps(history.as_dict()))
    assert History(tuple(Epoch(**row) for row in text["epochs"]), Settings(**text["settings"])) == history
