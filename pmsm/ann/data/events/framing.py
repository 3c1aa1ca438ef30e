"""How a recording becomes frames: which events a frame holds, and how they are counted."""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np

from pmsm.ann.data.events.record import MAX_TIME, SensorSize, check_events, check_sensor_size
from pmsm.errors import DataError

Count = Literal["int16", "uint8"]
WAYS = ("time_window", "event_count", "n_time_bins", "n_event_bins")

MAX_FRAME_BYTES = 2**31  # of one recording's frames


@dataclass(frozen=True)
class Framing:
    """How recordings are cut into frames. Exactly one of the first four is set; the names are tonic's.

    Args:
        time_window: microseconds of a frame.
        event_count: events of a frame.
        n_time_bins: number of frames, each of an equal part of the time.
        n_event_bins: number of frames, each of an equal part of the events.
        overlap: what a frame shares with the next, less than the frame: microseconds with `time_window`,
            events with `event_count`; with bins the part of a bin, in [0, 1), by which each is lengthened.
        include_incomplete: keep the last frame where less than a `time_window` or `event_count` is left.
        start_time, end_time: microseconds; only events at start_time <= t < end_time count. By default from
            the first event to behind the last.
        downsample: side of the square of pixels whose counts are added; it divides width and height.
        merge_polarities: count ON and OFF in one channel.
        dtype: of the counts. A pixel with more events in a frame than it holds is refused.

    Raises:
        DataError: none or several ways to cut, or a number outside its range.
    """

    time_window: int | None = None
    event_count: int | None = None
    n_time_bins: int | None = None
    n_event_bins: int | None = None
    overlap: float = 0
    include_incomplete: bool = False
    start_time: int | None = None
    end_time: int | None = None
    downsample: int = 1
    merge_polarities: bool = False
    dtype: Count = "int16"

    def __post_init__(self) -> None:
        chosen = [way for way in WAYS if getattr(self, way) is not None]
        if len(chosen) != 1:
            raise DataError(
                f"framing needs exactly one of {', '.join(WAYS)}, got {', '.join(chosen) or 'none'}. "
                f"n_time_bins=10 gives ten frames of equal time."
            )
        for name in (*WAYS, "downsample"):
            self._check_whole(name, 1)
        for name in ("start_time", "end_time"):
            self._check_whole(name, -MAX_TIME)
        if self.start_time is not None and self.end_time is not None and self.start_time >= self.end_time:
            raise DataError(
                f"framing needs start_time < end_time, got {self.start_time} and {self.end_time}."
            )
        if self.dtype not in ("int16", "uint8"):
            raise DataError(f"no dtype={self.dtype!r} for counts; choose 'int16' or 'uint8'.")
        self._check_overlap()

    def _check_whole(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if value is not None and not (isinstance(value, Integral) and low <= int(value) <= MAX_TIME):
            raise DataError(f"framing needs {name} as a whole number from {low} to 2^53, got {value!r}.")

    def _check_overlap(self) -> None:
        frame = self.time_window or self.event_count
        if frame is not None and not (0 <= self.overlap < frame and self.overlap == int(self.overlap)):
            unit = "microseconds" if self.time_window else "events"
            raise DataError(
                f"framing needs overlap as a whole number of {unit} in [0, {frame}), got {self.overlap!r}."
            )
        if not 0 <= self.overlap < (frame or 1):
            raise DataError(
                f"framing into bins needs overlap in [0, 1), a part of a bin, got {self.overlap!r}."
            )

    def frame_size(self, sensor_size: SensorSize) -> tuple[int, int, int]:
        """Channels, height and width of a frame of this sensor.

        Raises:
            DataError: `downsample` does not divide width and height.
        """
        check_sensor_size(sensor_size)
        width, height, polarities = sensor_size
        down, across = self._pool(sensor_size)
        if width % across or height % down:
            raise DataError(
                f"downsample must divide width and height, got {self.downsample} for {width} x {height}."
            )
        return 1 if self.merge_polarities else polarities, height // down, width // across

    def _pool(self, sensor_size: SensorSize) -> tuple[int, int]:
        """Rows and columns that are added up; of a cochlea, whose height is 1, only its channels."""
        return self.downsample if sensor_size[1] > 1 else 1, self.downsample


def to_frames(
    events: np.ndarray,
    sensor_size: SensorSize,
    *,
    time_window: int | None = None,
    event_count: int | None = None,
    n_time_bins: int | None = None,
    n_event_bins: int | None = None,
    overlap: float = 0,
    include_incomplete: bool = False,
    start_time: int | None = None,
    end_time: int | None = None,
    downsample: int = 1,
    dtype: Count = "int16",
) -> np.ndarray:
    """The events of a recording, counted per frame, polarity and pixel.

    Args:
        events: [n], n >= 0, fields x, y, t, p (y may be absent where H = 1), in order of time.
        sensor_size: (W, H, P); P = 1 counts both polarities in one channel.
        The others: see `Framing`.

    Returns:
        [T, P, H / downsample, W / downsample], `dtype`; channel 0 is OFF, 1 is ON. T >= 1: a recording that
        is shorter than one frame makes one frame, a recording without events a blank one.

    Raises:
        DataError: `events` is no recording of the sensor, an option is outside its range, a count does not
            fit `dtype`, or the frames would take more than 2 GiB.

    >>> from pmsm.ann.data.events import EVENT
    >>> events = np.array([(0, 1, 0, 1), (0, 1, 5, 1), (2, 0, 9, 0)], EVENT)
    >>> to_frames(events, (3, 2, 2), n_time_bins=2).sum((2, 3)).tolist()
    [[0, 1], [1, 1]]
    """
    framing = Framing(
        time_window,
        event_count,
        n_time_bins,
        n_event_bins,
        overlap,
        include_incomplete,
        start_time,
        end_time,
        downsample,
        dtype=dtype,
    )
    return frame_events(events, sensor_size, framing)


def frame_events(events: np.ndarray, sensor_size: SensorSize, framing: Framing) -> np.ndarray:
    """Like `to_frames`, with the options in one `Framing`."""
    channels, height, width = framing.frame_size(sensor_size)
    check_events(events, sensor_size)
    events = _between(events, framing)
    starts, stops = _cut(events["t"], framing, channels * height * width)
    pixel = _number_pixels(events, framing, sensor_size)
    frames = np.empty((len(starts), channels * height * width), framing.dtype)
    most = np.iinfo(frames.dtype).max
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        counts = np.bincount(pixel[start:stop], minlength=frames.shape[1])
        if stop - start > most and counts.max() > most:
            raise DataError(
                f"frame {i} has {counts.max()} events at one pixel, {framing.dtype} counts to {most}. Cut "
                f"into more frames, downsample less, or count in int16."
            )
        frames[i] = counts
    return frames.reshape(len(starts), channels, height, width)


def _number_pixels(events: np.ndarray, framing: Framing, sensor_size: SensorSize) -> np.ndarray:
    """Place of each event in its flattened frame: [n], int64."""
    channels, height, width = framing.frame_size(sensor_size)
    down, across = framing._pool(sensor_size)
    pixel = events["x"].astype(np.int64) // across
    if "y" in (events.dtype.names or ()):
        pixel += width * (events["y"].astype(np.int64) // down)
    if channels == 2:
        pixel += height * width * events["p"].astype(np.int64)
    return pixel


def _between(events: np.ndarray, framing: Framing) -> np.ndarray:
    low, high = 0, len(events)
    if framing.start_time is not None:
        low = int(np.searchsorted(events["t"], framing.start_time))
    if framing.end_time is not None:
        high = int(np.searchsorted(events["t"], framing.end_time))
    return events[low : max(low, high)]


def _cut(t: np.ndarray, framing: Framing, frame_numel: int) -> tuple[np.ndarray, np.ndarray]:
    """First event of each frame and the one behind its last: [T] and [T], int64."""
    # The last event lies inside the recording, so its end is one microsecond behind it.
    start = framing.start_time if framing.start_time is not None else int(t[0]) if len(t) else 0
    end = framing.end_time if framing.end_time is not None else int(t[-1]) + 1 if len(t) else start
    by_time = framing.time_window is not None or framing.n_time_bins is not None
    begin, length = (start, max(end - start, 0)) if by_time else (0, len(t))
    bins = framing.n_time_bins or framing.n_event_bins
    if bins is None:
        frame = int(framing.time_window or framing.event_count or 0)
        frames = _frame_count(length, frame, frame - int(framing.overlap), framing.include_incomplete)
        _check_bytes(frames, frame_numel, framing)
        starts = begin + (frame - int(framing.overlap)) * np.arange(frames, dtype=np.int64)
        stops = starts + frame
    else:
        _check_bytes(int(bins), frame_numel, framing)
        # Python's whole numbers: i * length may exceed 64 bits.
        edges = np.array([begin + i * length // int(bins) for i in range(int(bins) + 1)], dtype=np.int64)
        starts, stops = edges[:-1], edges[1:] + int(framing.overlap * length / int(bins))
    if by_time:
        return np.searchsorted(t, starts), np.searchsorted(t, stops)
    return np.minimum(starts, len(t)), np.minimum(stops, len(t))


def _frame_count(length: int, frame: int, stride: int, include_incomplete: bool) -> int:
    rest = max(length - frame, 0)
    return 1 + (-(-rest // stride) if include_incomplete else rest // stride)


def _check_bytes(frames: int, frame_numel: int, framing: Framing) -> None:
    size = frames * frame_numel * np.dtype(framing.dtype).itemsize
    if size > MAX_FRAME_BYTES:
        raise DataError(
            f"{frames:,} frames of {frame_numel:,} counts take {size:,} bytes; {MAX_FRAME_BYTES:,} are "
            f"allowed for a recording. Cut into fewer frames, or downsample."
        )
