"""Event cameras and cochleas: readers of their formats, framing, and one function per data set."""

from collections.abc import Callable

from pmsm.ann.data.events.aedat2 import read_aedat2
from pmsm.ann.data.events.aedat3 import read_aedat3
from pmsm.ann.data.events.aedat4 import read_aedat4
from pmsm.ann.data.events.atis import decode_atis, read_atis
from pmsm.ann.data.events.batches import FrameBatches, WindowBatches
from pmsm.ann.data.events.cifar10_dvs import cifar10_dvs
from pmsm.ann.data.events.dvs128_gesture import cut_gesture, dvs128_gesture, read_gestures
from pmsm.ann.data.events.framing import Framing, to_frames
from pmsm.ann.data.events.ncaltech101 import ncaltech101
from pmsm.ann.data.events.nmnist import nmnist
from pmsm.ann.data.events.record import EVENT, SOUND, Recordings, check_events, make_events
from pmsm.ann.data.events.sets import Events, Frames
from pmsm.ann.data.events.shd import shd
from pmsm.errors import DataError

__all__ = [
    "load_events",
    "nmnist",
    "ncaltech101",
    "cifar10_dvs",
    "dvs128_gesture",
    "shd",
    "Events",
    "Recordings",
    "Framing",
    "to_frames",
    "Frames",
    "FrameBatches",
    "WindowBatches",
    "EVENT",
    "SOUND",
    "make_events",
    "check_events",
    "read_atis",
    "decode_atis",
    "read_aedat2",
    "read_aedat3",
    "read_aedat4",
    "read_gestures",
    "cut_gesture",
]

SETS: dict[str, Callable[[str], tuple[Events, Events]]] = {
    "nmnist": nmnist,
    "ncaltech101": ncaltech101,
    "cifar10dvs": cifar10_dvs,
    "dvs128gesture": dvs128_gesture,
    "shd": shd,
}


def load_events(spec: str) -> tuple[Events, Events]:
    """The training and test recordings that a command line names.

    Args:
        spec: "set:place", such as "nmnist:data/N-MNIST"; the sets nmnist, ncaltech101, cifar10dvs and
            dvs128gesture lie in a folder, shd in a folder or in two files, of which either may be named.

    Raises:
        DataError: no such set, or any error of the set itself.
        MissingExtraError: the set needs h5py, pyarrow, lz4 or zstandard, and it is not installed.
    """
    name, colon, place = spec.partition(":")
    if name not in SETS or not colon or not place:
        raise DataError(
            f"no events under {spec!r}. Write one of {', '.join(SETS)}, a colon and the place, such as "
            f"nmnist:data/N-MNIST."
        )
    return SETS[name](place)
