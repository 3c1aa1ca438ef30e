"""How framed recordings become batches that a resumed run repeats bit for bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pmsm.ann.data.events.sets import Frames
from pmsm.ann.data.images import draw_moves, epoch_generator, move
from pmsm.errors import DataError

Augmentation = Literal["none", "shift"]  # no mirror: a mirrored gesture is another gesture


class FrameBatches:
    """The batches of one epoch of framed recordings, as often as they are asked for.

    Yields x: [T, N, C, H, W], float32, events times the set's scale; y: [N], int64.

    Order and augmentation depend on `seed` and the epoch alone, as with `pmsm.ann.data.Batches`: call
    `set_epoch(epoch)` before each epoch of training; without it every pass repeats the same order.

    Args:
        frames: the set.
        batch_size: N; the last batch may be smaller, unless `drop_last`.
        augment: "shift" moves each recording, all its frames alike, by up to an eighth of its height.

    Raises:
        DataError: batch_size below 1, an unknown augmentation, or `drop_last` leaves no batch.
    """

    def __init__(
        self,
        frames: Frames,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augmentation = "none",
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"FrameBatches needs batch_size >= 1, got {batch_size}.")
        if augment not in get_args(Augmentation):
            raise DataError(
                f"FrameBatches has no augment={augment!r}; choose one of {get_args(Augmentation)}."
            )
        if seed < 0:
            raise DataError(f"FrameBatches needs seed >= 0, got {seed}.")
        if drop_last and len(frames) < batch_size:
            raise DataError(
                f"{frames.name!r} has {len(frames)} recordings, less than one batch of {batch_size}, and "
                f"drop_last drops it. Choose a smaller batch_size or drop_last=False."
            )
        self.frames = frames
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment: Augmentation = augment
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass; `epoch` counts from 0."""
        if epoch < 0:
            raise DataError(f"FrameBatches.set_epoch needs epoch >= 0, got {epoch}.")
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.frames), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.frames)
        generator = epoch_generator(self.seed, self.epoch)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        shift, flip = draw_moves(self.augment, count, self.frames.frames.shape[3:], generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            frames = self.frames.frames[index]
            if self.augment == "shift":
                # The frames of a recording move together, like the channels of one image.
                frames = move(frames.flatten(1, 2), shift[index], flip[index]).view(frames.shape)
            x = frames.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
            yield x.mul_(self.frames.scale), self.frames.labels[index]


@dataclass(frozen=True)
class WindowBatches:
    """Recordings as single pictures, to train a network without time: each the mean of some frames in a row.

    What an integrating network has seen after t steps is the mean of the first t frames. So that one network
    reads a single frame, a whole recording and all in between, each recording is given by a window drawn anew
    in every epoch: its length uniform from 1 to T, its place uniform.

    Yields x: [N, C, H, W], float32; y: [N], int64.

    Args:
        batches: the recordings.
        whole: no draw, the mean of all frames: for validation.
    """

    batches: FrameBatches
    whole: bool = False

    def set_epoch(self, epoch: int) -> None:
        """Choose order, augmentation and windows of the next pass."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Another stream than that of order and augmentation, from the same seed and epoch.
        generator = epoch_generator(self.batches.seed + 2**32, self.batches.epoch)
        for frames, y in self.batches:
            yield (frames.mean(0) if self.whole else _window_means(frames, generator)), y


def _window_means(frames: Tensor, generator: torch.Generator) -> Tensor:
    """[T, N, ...] -> [N, ...] the mean of a window of each recording."""
    timesteps, samples = frames.shape[:2]
    length = torch.randint(1, timesteps + 1, (samples,), generator=generator)
    start = (torch.rand(samples, generator=generator) * (timesteps - length + 1)).long()
    t = torch.arange(timesteps).view(-1, 1)
    inside = ((t >= start) & (t < start + length)).to(frames.dtype) / length
    return torch.einsum("tn,tn...->n...", inside, frames)
