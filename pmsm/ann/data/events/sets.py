"""A labelled set of recordings, and the same set framed once."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from pmsm.ann.data.events.framing import Framing, frame_events
from pmsm.ann.data.events.record import Recordings, SensorSize, check_sensor_size
from pmsm.ann.data.labels import check_labels
from pmsm.errors import DataError

Progress = Callable[[int, int], None]  # called with the recordings done and their total


@dataclass(frozen=True, eq=False)
class Events:
    """Labelled recordings of one sensor.

    Args:
        recordings: n recordings, each [events] of dtype EVENT or SOUND; read on access where they are many.
        labels: [n], int64, in [0, number of classes).
        classes: the names of the classes, or only their number.
        sensor_size: (W, H, P).
        name: what reports call the set.

    Raises:
        DataError: no recording, one class only, wrong shape or type, a label without a class.
    """

    recordings: Sequence[np.ndarray]
    labels: Tensor
    classes: tuple[str, ...] | int
    sensor_size: SensorSize
    name: str

    def __post_init__(self) -> None:
        check_sensor_size(self.sensor_size)
        check_labels(self.labels, len(self.recordings), self.class_count, name=self.name, noun="recordings")

    @property
    def class_count(self) -> int:
        """Number of classes, the width of the network's output."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def __len__(self) -> int:
        return len(self.recordings)

    def take(self, index: Tensor | slice) -> "Events":
        """The same set with only the recordings at `index` (whole numbers, a mask, or a slice), unread.

        Raises:
            DataError: fewer than two classes are left.
        """
        chosen = torch.arange(len(self))[index].tolist()
        if isinstance(self.recordings, Recordings):
            keys = [self.recordings.keys[i] for i in chosen]
            recordings: Sequence[np.ndarray] = Recordings(keys, self.recordings.read)
        else:
            recordings = [self.recordings[i] for i in chosen]
        return replace(self, recordings=recordings, labels=self.labels[index])

    def to_frames(
        self,
        framing: Framing,
        *,
        timesteps: int | None = None,
        file: str | Path | None = None,
        progress: Progress | None = None,
    ) -> "Frames":
        """Frame every recording once.

        Args:
            framing: how.
            timesteps: T; later frames are dropped, missing ones are blank. Without it all recordings must
                give equally many frames, as they do with n_time_bins and n_event_bins.
            file: keep the frames in this .npy file, mapped into memory, instead of in memory; what stood
                there is replaced once all frames are written.
            progress: called with the recordings framed so far and their total, after each.

        Raises:
            DataError: a recording cannot be read or framed, they differ in their number of frames, `file`
                cannot be written, or memory does not suffice.
        """
        if timesteps is not None and timesteps < 1:
            raise DataError(f"Events.to_frames needs timesteps >= 1, got {timesteps}.")
        shape = (len(self), timesteps or len(self._frame(0, framing)), *framing.frame_size(self.sensor_size))
        frames = self._framed(framing, shape, timesteps is not None, progress)
        if file is None:
            array = _collect(frames, shape, framing.dtype, self.name)
        else:
            array = _store(frames, shape, framing.dtype, Path(file))
        return Frames(torch.from_numpy(array), self.labels, self.classes, self.name)

    def _framed(
        self, framing: Framing, shape: tuple[int, ...], fit: bool, progress: Progress | None
    ) -> Iterator[np.ndarray]:
        for i in range(len(self)):
            frames = self._frame(i, framing)
            if len(frames) != shape[1] and not fit:
                raise DataError(
                    f"recording {i} of {self.name!r} gives {len(frames)} frames, recording 0 {shape[1]}. "
                    f"Pass timesteps= to cut and pad all to one length, or frame with n_time_bins."
                )
            missing = max(shape[1] - len(frames), 0)
            yield np.pad(frames[: shape[1]], [(0, missing), (0, 0), (0, 0), (0, 0)]) if fit else frames
            if progress is not None:
                progress(i + 1, len(self))

    def _frame(self, index: int, framing: Framing) -> np.ndarray:
        events = self.recordings[index]
        try:
            return frame_events(events, self.sensor_size, framing)
        except DataError as cause:
            raise DataError(f"cannot frame recording {index} of {self.name!r}: {cause}") from cause


@dataclass(frozen=True, eq=False)
class Frames:
    """Labelled sequences of frames, all of one length and size.

    Args:
        frames: [n, T, C, H, W], uint8 or int16: events per frame, polarity (0 OFF, 1 ON) and pixel.
        labels: [n], int64, in [0, number of classes).
        classes: the names of the classes, or only their number.
        name: what reports call the set.
        scale: what one event is to the network, > 0.

    `dataclasses.replace(frames, scale=1 / 8)` makes eight events 1.

    Raises:
        DataError: no frame, one class only, wrong shape or type, a label without a class, scale not positive.
    """

    frames: Tensor
    labels: Tensor
    classes: tuple[str, ...] | int
    name: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.frames.dtype not in (torch.uint8, torch.int16) or self.frames.dim() != 5:
            raise DataError(
                f"cannot use the set {self.name!r}: frames must be uint8 or int16 [n, T, C, H, W], got "
                f"{self.frames.dtype} {list(self.frames.shape)}."
            )
        if self.frames.numel() == 0:
            raise DataError(f"cannot use the set {self.name!r}: frames have shape {list(self.frames.shape)}.")
        if not 0 < self.scale < float("inf"):
            raise DataError(f"cannot use the set {self.name!r}: it needs 0 < scale, got {self.scale}.")
        check_labels(self.labels, len(self.frames), self.class_count, name=self.name, noun="recordings")

    @property
    def class_count(self) -> int:
        """Number of classes, the width of the network's output."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, index: Tensor | slice) -> "Frames":
        """The same set with only the sequences at `index` (whole numbers, a mask, or a slice).

        Raises:
            DataError: fewer than two classes are left.
        """
        return replace(self, frames=self.frames[index], labels=self.labels[index])


def _collect(frames: Iterator[np.ndarray], shape: tuple[int, ...], dtype: str, name: str) -> np.ndarray:
    try:
        array = np.empty(shape, dtype)
    except (MemoryError, ValueError) as cause:  # ValueError where the size exceeds 64 bits
        raise DataError(
            f"the frames of {name!r}, {list(shape)} in {dtype}, do not fit into memory. Keep them in a file, "
            f"file='frames.npy', count in uint8, or downsample."
        ) from cause
    for i, one in enumerate(frames):
        array[i] = one
    return array


def _store(frames: Iterator[np.ndarray], shape: tuple[int, ...], dtype: str, file: Path) -> np.ndarray:
    """The frames in a .npy file, mapped; a page that is written to is copied, the file stays as it is."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with _replacing(file) as opened:
        np.lib.format.write_array_header_2_0(opened, header)
        for one in frames:
            opened.write(one.tobytes())
    return np.load(file, mmap_mode="c", allow_pickle=False)


@contextmanager
def _replacing(file: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, renamed to `file` if all goes well, removed if not."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as opened:
            yield opened
        part.replace(file)
    except OSError as cause:
        raise DataError(
            f"cannot write {str(file)!r}: {cause.strerror or cause}. What stood there before is untouched; "
            f"free some space or choose another folder, then repeat."
        ) from cause
    finally:
        part.unlink(missing_ok=True)
