"""How framed recordings become batches that a resumed run repeats bit for bit."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pmsm.ann.data.epochs import Epochs, epoch_generator, move
from pmsm.ann.data.events.sets import Frames


class FrameBatches(Epochs[Frames]):
    """The batches of one epoch of framed recordings, as often as they are asked for.

    Yields x: [T, N, C, H, W], float32, events times the set's scale; y: [N], int64.

    Order and augmentation depend on `seed` and the epoch alone, as with `pmsm.ann.data.Batches`: call
    `set_epoch(epoch)` before each epoch of training; without it every pass repeats the same order.

    Args:
        samples: the set.
        batch_size: N; the last batch may be smaller, unless `drop_last`.
        augment: "shift" moves each recording, all its frames alike, by up to an eighth of its height.

    Raises:
        DataError: batch_size below 1, an unknown augmentation, or `drop_last` leaves no batch.
    """

    augmentations = ("none", "shift")  # no mirror: a mirrored gesture is another gesture
    noun = "recordings"

    @property
    def frames(self) -> Frames:
        """The set."""
        return self.samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, shift, flip in self.draws(self.samples.frames.shape[3:]):
            frames = self.samples.frames[index]
            if self.augment == "shift":
                # The frames of a recording move together, like the channels of one image.
                frames = move(frames.flatten(1, 2), shift, flip).view(frames.shape)
            x = frames.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
            yield x.mul_(self.samples.scale), self.samples.labels[index]


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
