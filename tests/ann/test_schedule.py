import json

import pytest

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
        {"precision": "fp16"},
        {"weight_decay": -1.0},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(TrainingError, match=f"train needs .*{next(iter(wrong))}.*; got"):
        Settings(**SETTINGS | wrong)


def test_a_history_survives_json():
    history = History(
        (Epoch(1.5, 50.0, None, 0.1, 0.1), Epoch(1.0, 75.0, 62.5, 0.1, 0.0)), Settings(**SETTINGS)
    )
    assert history.accuracy == 62.5
    text = json.loads(json.dumps(history.as_dict()))
    assert History(tuple(Epoch(**row) for row in text["epochs"]), Settings(**text["settings"])) == history
