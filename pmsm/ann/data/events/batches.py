"""How framed recordings become batches that a resumed run repeats bit for bit."""

from collections.abc import Iterator
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
