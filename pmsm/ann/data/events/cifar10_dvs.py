"""CIFAR10-DVS, from its own folders, in AEDAT 2.0 as published or converted to AEDAT 4."""

from functools import partial
from pathlib import Path

import numpy as np

from pmsm.ann.data.events.aedat2 import read_aedat2
from pmsm.ann.data.events.aedat4 import read_aedat4
from pmsm.ann.data.events.folders import list_recordings, own_split, require_folder
from pmsm.ann.data.events.sets import Events
from pmsm.ann.data.events.source import Disorder

CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
SENSOR_SIZE = (128, 128, 2)
LAYOUT = (
    "CIFAR10-DVS is read from airplane/cifar10_airplane_0.aedat ... and nine more folders of classes (unpack "
    "the ten archives of figshare 4724671); .aedat4 is read as well."
)


def cifar10_dvs(
    directory: str | Path, *, test_share: float = 0.1, seed: int = 0, disorder: Disorder = "refuse"
) -> tuple[Events, Events]:
    """CIFAR10-DVS: 10,000 recordings of pictures that move on a screen, 128x128, 10 classes, ON and OFF.

    The set has no official split. This one is ours: of each class the part `test_share` is for testing,
    chosen by the hash of `seed` and the file's name (`folders.split_by_name`). Say so beside every accuracy:
    on the first hundred of each class, a usual test set, SpikingJelly's documentation reports higher ones.

    Args:
        directory: holds the ten folders of the classes.
        test_share: in (0, 1).
        seed: chooses another split.
        disorder: "sort" recordings whose time goes backwards, instead of refusing them.

    Returns:
        train, test: time counts from the first event of each recording.

    Raises:
        DataError: a class is missing; on access, a damaged recording.
        MissingExtraError: on access of compressed AEDAT 4, without lz4 or zstandard.

    Source: H. Li et al., CIFAR10-DVS: an event-stream dataset for object classification, 2017,
    doi:10.3389/fnins.2017.00309.
    """
    directory = require_folder(directory, LAYOUT)
    files = list_recordings(directory, CLASSES, (".aedat", ".aedat4"), LAYOUT)
    read = partial(_read, disorder=disorder)
    return own_split("CIFAR10-DVS", files, read, CLASSES, SENSOR_SIZE, test_share=test_share, seed=seed)


def _read(path: Path, disorder: Disorder) -> np.ndarray:
    if path.suffix == ".aedat4":
        events = read_aedat4(path, SENSOR_SIZE, disorder=disorder)
    else:
        events = read_aedat2(path, disorder=disorder)
    events["t"] -= events["t"][0]
    return events
