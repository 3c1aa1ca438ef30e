"""What one recording of events is: a structured array, and the sequence that reads many of them on access."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from pmsm.errors import DataError

# The layout of tonic's arrays, so that its users keep theirs: t in microseconds, p True for brighter (ON).
EVENT = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.bool_)])
SOUND = np.dtype([("x", np.int16), ("t", np.int64), ("p", np.bool_)])  # a cochlea: x is the channel

SensorSize = tuple[int, int, int]  # W, H, number of polarities

MAX_SIDE = 2**15  # x and y are int16
MAX_TIME = 2**53  # microseconds, 285 years either way: sums and differences stay exact in int64 and float64


def make_events(x: np.ndarray, y: np.ndarray | None, t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The recording of these columns, [n] each; without `y` that of a cochlea.

    Returns:
        [n], dtype EVENT or SOUND. Nothing is checked; values must fit their type.

    >>> make_events(
    ...     np.array([1]), np.array([2]), np.array([30]), np.array([True])
    ... ).tolist()
    [(1, 2, 30, True)]
    """
    events = np.empty(len(t), EVENT if y is not None else SOUND)
    events["x"], events["t"], events["p"] = x, t, p
    if y is not None:
        events["y"] = y
    return events


def check_sensor_size(sensor_size: SensorSize) -> None:
    """Refuse anything but (W, H, P), whole numbers, W and H from 1 to 32,768, P 1 or 2.

    Raises:
        DataError: with the value.
    """
    numbers = isinstance(sensor_size, tuple) and all(isinstance(n, int) for n in sensor_size)
    if not (
        numbers
        and len(sensor_size) == 3
        and all(1 <= side <= MAX_SIDE for side in sensor_size[:2])
        and sensor_size[2] in (1, 2)
    ):
        raise DataError(
            f"sensor_size must be (W, H, P): width and height from 1 to {MAX_SIDE:,}, and 1 or 2 polarities; "
            f"got {sensor_size!r}. N-MNIST has (34, 34, 2), DVS128 (128, 128, 2), SHD (700, 1, 1)."
        )


def check_events(events: np.ndarray, sensor_size: SensorSize) -> None:
    """Refuse an array that is no recording of this sensor; the first wrong event is named.

    Args:
        events: [n], structured, n >= 0: whole numbers x in [0, W), y in [0, H) (absent means 0), t in
            microseconds, never decreasing, within 2^53, and p, False or 0 for OFF, True or 1 for ON.
        sensor_size: (W, H, P). P = 1 says that polarities are merged; p may still hold both.

    Raises:
        DataError: no such array, or an event outside the sensor, or time going backwards.
    """
    check_sensor_size(sensor_size)
    _check_layout(events, sensor_size)
    width, height, _ = sensor_size
    t, p = events["t"], events["p"]
    y = events["y"] if "y" in (events.dtype.names or ()) else None
    for name, values, side in (("x", events["x"], width), ("y", y, height)):
        if values is not None and len(values) and not 0 <= values.min() <= values.max() < side:
            i = first(outside(values, side))
            raise DataError(
                f"event {i} has {name} = {values[i]}, outside [0, {side}) of a sensor of {sensor_size}."
            )
    if p.dtype.kind != "b" and len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise DataError(f"p must be 0 (OFF) or 1 (ON), got {p.min()} to {p.max()}. Write -1 as 0.")
    if len(t) and not -MAX_TIME <= t.min() <= t.max() <= MAX_TIME:
        raise DataError(f"t must lie within 2^53 microseconds, got {t.min()} to {t.max()}.")
    if (back := backwards(t)).any():
        i = first(back)
        raise DataError(
            f"time goes backwards at event {i + 1}, from {t[i]} to {t[i + 1]} microseconds. If the order "
            f'carries no meaning, sort it: events[np.argsort(events["t"], kind="stable")].'
        )


def outside(values: np.ndarray, side: int) -> np.ndarray:
    """Which of the coordinates `values` ([n]) lie outside [0, side): [n], bool."""
    return (values < 0) | (values >= side)


def backwards(t: np.ndarray) -> np.ndarray:
    """After which of the events at `t` ([n]) time goes backwards: [n - 1], bool."""
    return t[1:] < t[:-1]


def first(found: np.ndarray) -> int:
    """Index of the first True of `found` ([n], bool), which has one."""
    return int(found.argmax())


def _check_layout(events: np.ndarray, sensor_size: SensorSize) -> None:
    if not isinstance(events, np.ndarray) or events.ndim != 1 or events.dtype.names is None:
        raise DataError(
            f"events must be a structured array [n] with the fields x, y, t, p, got {_kind(events)}. "
            f"Build one with pmsm.ann.data.events.make_events(x, y, t, p)."
        )
    fields = set(events.dtype.names)
    wanted = {"x", "t", "p"} if sensor_size[1] == 1 else {"x", "y", "t", "p"}
    if not wanted <= fields:
        raise DataError(
            f"events of a sensor of {sensor_size} need the fields {', '.join(sorted(wanted))}; this array "
            f"has {', '.join(events.dtype.names)}."
        )
    for name in sorted(wanted | (fields & {"y"})):
        kind = events.dtype[name].kind
        if kind not in ("biu" if name == "p" else "iu"):
            raise DataError(f"field {name!r} must hold whole numbers, got {events.dtype[name]}.")


def _kind(thing: object) -> str:
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {list(thing.shape)}"
    return type(thing).__name__


class Recordings(Sequence[np.ndarray]):
    """Recordings that are read each time they are asked for, so that a set of any size costs no memory.

    Args:
        keys: what tells one recording from another: a path, bytes, a row.
        read: makes the recording ([n], dtype EVENT or SOUND) of a key; its errors name the file.

    >>> Recordings([2, 3], lambda n: np.zeros(n, EVENT))[-1].shape
    (3,)
    """

    def __init__(self, keys: Sequence[Any], read: Callable[[Any], np.ndarray]) -> None:
        self.keys = keys
        self.read = read

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "Recordings": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | Recordings":
        if isinstance(index, slice):
            return Recordings(self.keys[index], self.read)
        return self.read(self.keys[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.read, self.keys)
