"""DVS128-Gesture: recordings of several gestures each, cut at the times their tables state."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pmsm.ann.data.events.aedat3 import read_aedat3
from pmsm.ann.data.events.folders import require_folder
from pmsm.ann.data.events.record import MAX_TIME, Recordings
from pmsm.ann.data.events.sets import Events
from pmsm.ann.data.events.source import Disorder, fetch, refuse
from pmsm.errors import DataError

# In the order of gesture_mapping.csv, where they count from 1.
CLASSES = (
    "hand clapping, right hand wave, left hand wave, right arm clockwise, right arm counter clockwise, "
    "left arm clockwise, left arm counter clockwise, arm roll, air drums, air guitar, other gestures"
)
SENSOR_SIZE = (128, 128, 2)
HEADER = "class,startTime_usec,endTime_usec"
LAYOUT = (
    "DVS128-Gesture is read from trials_to_train.txt, trials_to_test.txt, and for each name in them "
    "user01_fluorescent.aedat and user01_fluorescent_labels.csv (unpack DvsGesture.tar.gz of "
    "research.ibm.com/dvsgesture)."
)


class Gesture(NamedTuple):
    """One row of a table of labels: which part of a recording shows which gesture."""

    path: Path
    label: int
    start: int
    end: int


def dvs128_gesture(directory: str | Path, *, disorder: Disorder = "refuse") -> tuple[Events, Events]:
    """DVS128-Gesture: 1,176 training and 288 test gestures of 29 people, 128x128, 11 classes, ON and OFF.

    A recording holds a dozen gestures. It is read when the first of them is asked for, and kept until one of
    another recording is: go through the set in order.

    Args:
        directory: holds the two lists and the recordings, or the folder DvsGesture that does.
        disorder: "sort" recordings whose time goes backwards, instead of refusing them.

    Returns:
        train, test: label = class of the tables minus 1; time counts from the start that they state.

    Raises:
        DataError: a list or table is missing or damaged; on access, a damaged recording or an empty gesture.

    Source: A. Amir et al., A low power, fully event-based gesture recognition system, CVPR 2017.
    """
    directory = require_folder(directory, LAYOUT)
    if (directory / "DvsGesture").is_dir():
        directory = directory / "DvsGesture"
    train, test = (_read_half(directory, half, disorder) for half in ("train", "test"))
    return train, test


def read_gestures(path: str | Path) -> list[Gesture]:
    """The rows of a table `<recording>_labels.csv`, class 1 to 11 as label 0 to 10, times in microseconds.

    Raises:
        DataError: no such file, another first line, or a row that is no class and span of time.
    """
    path = Path(path)
    data = fetch(path)
    recording = path.with_name(path.name.removesuffix("_labels.csv") + ".aedat")
    gestures, offset = [], 0
    for number, line in enumerate(data.splitlines(keepends=True)):
        text = line.decode("ascii", errors="replace").strip()
        if number == 0 and text != HEADER:
            refuse(path, 0, f"its first line must be {HEADER!r}, it is {text[:60]!r}")
        if number > 0 and text:
            gestures.append(_gesture(path, recording, offset, text))
        offset += len(line)
    if not gestures:
        refuse(path, offset, "it holds no gesture")
    return gestures


def cut_gesture(events: np.ndarray, gesture: Gesture) -> np.ndarray:
    """The events at start <= t < end, their time counted from the start.

    Raises:
        DataError: there is none.
    """
    low, high = np.searchsorted(events["t"], [gesture.start, gesture.end])
    if low == high:
        raise DataError(
            f"{str(gesture.path)!r} has no event from {gesture.start} to {gesture.end} microseconds, where "
            f"its table puts a gesture {gesture.label + 1}; its last event is at {events['t'][-1]}."
        )
    part = events[low:high].copy()
    part["t"] -= gesture.start
    return part


def _read_half(directory: Path, half: str, disorder: Disorder) -> Events:
    gestures: list[Gesture] = []
    for name in _trials(directory / f"trials_to_{half}.txt"):
        gestures += read_gestures(directory / f"{name}_labels.csv")

    @lru_cache(maxsize=1)
    def read(path: Path) -> np.ndarray:
        return read_aedat3(path, SENSOR_SIZE, disorder=disorder)

    recordings = Recordings(gestures, lambda gesture: cut_gesture(read(gesture.path), gesture))
    labels = torch.tensor([gesture.label for gesture in gestures], dtype=torch.int64)
    return Events(recordings, labels, tuple(CLASSES.split(", ")), SENSOR_SIZE, f"DVS128-Gesture {half}")


def _trials(path: Path) -> list[str]:
    """The names of recordings in a list, without .aedat."""
    if not path.is_file():
        raise DataError(f"{str(path.parent)!r} lacks {path.name}. {LAYOUT}")
    names = fetch(path).decode("utf-8", errors="replace").split()
    for name in names:
        if not name.endswith(".aedat") or "/" in name or "\\" in name:
            raise DataError(f"{str(path)!r} must list names such as user01_led.aedat, it has {name[:60]!r}.")
    if not names:
        refuse(path, 0, "it lists no recording")
    return [name.removesuffix(".aedat") for name in names]


def _gesture(path: Path, recording: Path, offset: int, text: str) -> Gesture:
    try:
        label, start, end = (int(part) for part in text.split(","))
    except ValueError:
        refuse(path, offset, f"a row must be three whole numbers, {HEADER}; it is {text[:60]!r}")
    if not (1 <= label <= 11 and 0 <= start < end <= MAX_TIME):
        refuse(path, offset, f"a row needs class 1 to 11 and 0 <= start < end, it is {text[:60]!r}")
    return Gesture(recording, label - 1, start, end)
