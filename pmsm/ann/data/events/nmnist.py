"""N-MNIST, from its own folders or from parquet files of the same bytes."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from pmsm.ann.data.events.atis import decode_atis, read_atis
from pmsm.ann.data.events.folders import label_by_folder, list_recordings, require_folder
from pmsm.ann.data.events.record import Recordings
from pmsm.ann.data.events.sets import Events
from pmsm.ann.data.events.source import Disorder
from pmsm.ann.data.parquet import files_of, read_column, read_labels
from pmsm.errors import DataError

CLASSES = tuple("0123456789")
SENSOR_SIZE = (34, 34, 2)
HALVES = ("train", "test")
LAYOUT = (
    "N-MNIST is read from Train/0 ... Train/9 and Test/0 ... Test/9 with files .bin or .bs2 (unpack "
    "Train.zip and Test.zip of garrickorchard.com/datasets/n-mnist), or from train*.parquet and "
    "test*.parquet with the columns events = {bytes, path} and label."
)


def nmnist(directory: str | Path, *, disorder: Disorder = "refuse") -> tuple[Events, Events]:
    """N-MNIST: 60,000 training and 10,000 test recordings of digits before a moving camera, 10 classes.

    34x34 pixels, ON and OFF, about 300,000 microseconds and 4,000 events each. Files are read on access.

    Args:
        directory: holds the published folders Train and Test, or parquet files of the same bytes.
        disorder: "sort" recordings whose time goes backwards, instead of refusing them.

    Raises:
        DataError: a class or half is missing; on access, a damaged recording.
        MissingExtraError: it is in parquet and pyarrow is not installed.

    Source: G. Orchard et al., Converting static image datasets to spiking neuromorphic datasets using
    saccades, 2015, doi:10.3389/fnins.2015.00437.
    """
    directory = require_folder(directory, LAYOUT)
    if any(files_of(directory, half) for half in HALVES):
        train, test = (_from_parquet(directory, half, disorder) for half in HALVES)
    else:
        train, test = (_from_folders(directory, half, disorder) for half in HALVES)
    return train, test


def _from_folders(directory: Path, half: str, disorder: Disorder) -> Events:
    files = list_recordings(directory / half.capitalize(), CLASSES, (".bin", ".bs2"), LAYOUT)
    read = partial(read_atis, sensor_size=SENSOR_SIZE, disorder=disorder)
    return label_by_folder(files, read, CLASSES, SENSOR_SIZE, f"N-MNIST {half}")


def _from_parquet(directory: Path, half: str, disorder: Disorder) -> Events:
    files = files_of(directory, half)
    if not files:
        raise DataError(f"{str(directory)!r} lacks {half}*.parquet. {LAYOUT}")
    labels = np.concatenate([read_labels(file, "label") for file in files])
    rows = [
        (f"{file}, row {row}", _content(file, row, cell))
        for file in files
        for row, cell in enumerate(read_column(file, "events"))
    ]
    recordings = Recordings(rows, partial(_decode, disorder=disorder))
    return Events(recordings, torch.from_numpy(labels), CLASSES, SENSOR_SIZE, f"N-MNIST {half}")


def _content(file: Path, row: int, cell: object) -> bytes:
    code = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(code, bytes):
        raise DataError(
            f"{str(file)!r}, row {row}: events must be {{bytes, path}} with the recording in bytes."
        )
    return code


def _decode(row: tuple[str, bytes], disorder: Disorder) -> np.ndarray:
    where, data = row
    return decode_atis(data, where, SENSOR_SIZE, disorder=disorder)
