"""How a set becomes batches that a resumed run repeats bit for bit: order and moves of each epoch."""

from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmsm.errors import DataError


class Samples(Protocol):
    """A set with a name."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Samples)


class Epochs(Generic[S]):
    """Base of the batches: a subclass says which movements there are and what a batch holds.

    Args:
        samples: the set.
        batch_size: samples in a batch; the last may be smaller, unless `drop_last`.
        seed, shuffle, augment: what is drawn in each epoch.

    Raises:
        DataError: batch_size below 1, an unknown augmentation, or `drop_last` leaves no batch.
    """

    augmentations: ClassVar[tuple[str, ...]] = ("none", "shift", "crop-flip")
    noun: ClassVar[str]

    def __init__(
        self,
        samples: S,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: str = "none",
        drop_last: bool = False,
    ) -> None:
        name = type(self).__name__
        if batch_size < 1:
            raise DataError(f"{name} needs batch_size >= 1, got {batch_size}.")
        if augment not in self.augmentations:
            raise DataError(f"{name} has no augment={augment!r}; choose one of {self.augmentations}.")
        if seed < 0:
            raise DataError(f"{name} needs seed >= 0, got {seed}.")
        if drop_last and len(samples) < batch_size:
            raise DataError(
                f"{samples.name!r} has {len(samples)} {self.noun}, less than one batch of {batch_size}, and "
                f"drop_last drops it. Choose a smaller batch_size or drop_last=False."
            )
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass; `epoch` counts from 0."""
        if epoch < 0:
            raise DataError(f"{type(self).__name__}.set_epoch needs epoch >= 0, got {epoch}.")
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.samples), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError

    def draws(self, size: torch.Size) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batch after batch of this epoch: which samples [N], how far each moves [N, 2], and whether it is
        mirrored [N]; `size` is their height and width.
        """
        count = len(self.samples)
        generator = epoch_generator(self.seed, self.epoch)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        reach = 0 if self.augment == "none" else min(max(1, size[0] // 8), *(side - 1 for side in size))
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
        coin = torch.randint(0, 2, (count,), generator=generator).bool()
        flip = coin if self.augment == "crop-flip" else torch.zeros_like(coin)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            yield index, shift[index], flip[index]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator whose stream depends on the pair alone."""
    # torch's CPU generator keeps the lower 32 bits of its seed only, so the pair is hashed, not packed.
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return torch.Generator().manual_seed(state)


def batch_generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """A generator whose stream depends on the triple alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, number]))


def move(pixels: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Each image moved by its own whole number of pixels, then mirrored left to right where `flip` says so.

    Args:
        pixels: [N, C, H, W]; what enters at a border is 0, black.
        shift: [N, 2], int64, pixels down and to the right; shorter than the image.
        flip: [N], bool.

    Returns:
        [N, C, H, W], dtype of `pixels`, contiguous.

    >>> move(
    ...     torch.tensor([[[[1, 2, 3]]]]), torch.tensor([[0, 1]]), torch.tensor([False])
    ... )
    tensor([[[[0, 1, 2]]]])
    """
    samples, channels, height, width = pixels.shape
    border = int(shift.abs().max()) if samples else 0
    rows = torch.arange(height) + border - shift[:, :1]
    columns = torch.arange(width) + border - shift[:, 1:]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    return F.pad(pixels, (border,) * 4)[
        torch.arange(samples).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(samples, 1, height, 1),
        columns.view(samples, 1, 1, width),
    ]
