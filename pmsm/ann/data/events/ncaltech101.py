"""N-Caltech101, from its own folders."""

from functools import partial
from pathlib import Path

from pmsm.ann.data.events.atis import read_atis
from pmsm.ann.data.events.folders import list_recordings, own_split, require_folder
from pmsm.ann.data.events.sets import Events
from pmsm.ann.data.events.source import Disorder
from pmsm.errors import DataError

CLASS_COUNT = 101  # 100 objects and BACKGROUND_Google; Faces is left out, being Faces_easy again
SENSOR_SIZE = (240, 180, 2)
LAYOUT = (
    "N-Caltech101 is read from Caltech101/<class>/image_0001.bin ..., with 101 folders of classes (unpack "
    "Caltech101.zip of garrickorchard.com/datasets/n-caltech101)."
)


def ncaltech101(
    directory: str | Path, *, test_share: float = 0.1, seed: int = 0, disorder: Disorder = "refuse"
) -> tuple[Events, Events]:
    """N-Caltech101: 8,709 recordings of photographs before a moving camera, 101 classes, ON and OFF.

    The set has no official split. This one is ours: of each class the part `test_share` is for testing,
    chosen by the hash of `seed` and the file's name (`folders.split_by_name`). Say so beside every accuracy.

    Args:
        directory: holds the folders of the classes, or the folder Caltech101 that does.
        test_share: in (0, 1).
        seed: chooses another split.
        disorder: "sort" recordings whose time goes backwards, instead of refusing them.

    Returns:
        train, test: pictures were scaled to 240x180 pixels at most, so W = 240, H = 180 hold them all.

    Raises:
        DataError: a class is missing; on access, a damaged recording or one of other size.

    Source: G. Orchard et al., Converting static image datasets to spiking neuromorphic datasets using
    saccades, 2015, doi:10.3389/fnins.2015.00437.
    """
    directory = require_folder(directory, LAYOUT)
    if (directory / "Caltech101").is_dir():
        directory = directory / "Caltech101"
    classes = tuple(sorted(path.name for path in directory.iterdir() if path.is_dir()))
    if len(classes) != CLASS_COUNT:
        raise DataError(f"{str(directory)!r} holds {len(classes)} folders. {LAYOUT}")
    files = list_recordings(directory, classes, (".bin",), LAYOUT)
    read = partial(read_atis, sensor_size=SENSOR_SIZE, disorder=disorder)
    return own_split("N-Caltech101", files, read, classes, SENSOR_SIZE, test_share=test_share, seed=seed)
