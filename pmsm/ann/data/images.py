"""What a set of labelled images is, and how it becomes batches that a resumed run repeats bit for bit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmsm.errors import DataError

Augmentation = Literal["none", "shift", "crop-flip"]


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Grey values as the network sees them: (pixels / 255 - mean) / std, per channel.

    Args:
        pixels: [N, C, H, W], uint8.
        mean, std: C numbers each, in units of the full range (0 black, 1 white).

    Returns:
        [N, C, H, W], float32.
    """
    shape = (1, len(mean), 1, 1)
    x = pixels.to(torch.float32).div_(255)
    return x.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


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


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one size, and the constants that normalize them.

    Args:
        images: [n, C, H, W], uint8, 0 black to 255 white.
        labels: [n], int64, in [0, number of classes).
        classes: the names of the classes, or only their number.
        mean, std: C numbers each, of the *training* set, in units of the full range.
        name: what reports call the set.

    `dataclasses.replace(images, mean=..., std=...)` normalizes as someone else's weights expect.

    Raises:
        DataError: no image, one class only, wrong shape or type, a label without a class, std not positive.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] | int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def __post_init__(self) -> None:
        self._check_images()
        self._check_labels()
        channels = self.images.shape[1]
        if not len(self.mean) == len(self.std) == channels or not all(std > 0 for std in self.std):
            self._refuse(
                f"mean and positive std need {channels} numbers each, one for each channel, "
                f"got mean={self.mean} and std={self.std}"
            )

    @property
    def class_count(self) -> int:
        """Number of classes, the width of the network's output."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor | slice) -> "Images":
        """The same set with only the images at `index` (whole numbers, a mask, or a slice).

        Raises:
            DataError: fewer than two classes are left.
        """
        return replace(self, images=self.images[index], labels=self.labels[index])

    def _check_images(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            self._refuse(f"images must be uint8 [n, C, H, W], got {_kind(self.images)}")
        if self.images.numel() == 0:
            self._refuse(f"it is empty: images have shape {list(self.images.shape)}")

    def _check_labels(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            self._refuse(f"labels must be int64 [{len(self.images)}], got {_kind(self.labels)}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.class_count:
            self._refuse(f"labels must lie in [0, {self.class_count}), got {low} to {high}")
        if low == high:
            self._refuse(
                f"all {len(self)} images are of class {low}; a classifier needs at least two classes"
            )

    def _refuse(self, why: str) -> None:
        raise DataError(f"cannot use the image set {self.name!r}: {why}.")


class Batches:
    """The batches of one epoch, as often as they are asked for.

    Yields x: [N, C, H, W], float32, normalized; y: [N], int64.

    Order and augmentation depend on `seed` and the epoch alone, never on what was drawn before: a run that
    resumes with `set_epoch` sees bit-equal batches. Call `set_epoch(epoch)` before each epoch of training;
    without it every pass repeats the same order.

    Args:
        images: the set.
        batch_size: N; the last batch may be smaller, unless `drop_last`.
        augment: "shift" moves each image by up to an eighth of its height, "crop-flip" also mirrors half of
            them; on 32x32 that is the 4-pixel padding, crop and flip of arXiv:1512.03385, section 4.2.

    Raises:
        DataError: batch_size below 1, an unknown augmentation, or `drop_last` leaves no batch.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augmentation = "none",
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"Batches needs batch_size >= 1, got {batch_size}.")
        if augment not in get_args(Augmentation):
            raise DataError(f"Batches has no augment={augment!r}; choose one of {get_args(Augmentation)}.")
        if seed < 0:
            raise DataError(f"Batches needs seed >= 0, got {seed}.")
        if drop_last and len(images) < batch_size:
            raise DataError(
                f"{images.name!r} has {len(images)} images, less than one batch of {batch_size}, and "
                f"drop_last drops it. Choose a smaller batch_size or drop_last=False."
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment: Augmentation = augment
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass; `epoch` counts from 0."""
        if epoch < 0:
            raise DataError(f"Batches.set_epoch needs epoch >= 0, got {epoch}.")
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.images)
        generator = epoch_generator(self.seed, self.epoch)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        shift, flip = draw_moves(self.augment, count, self.images.images.shape[2:], generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            pixels = self.images.images[index]
            if self.augment != "none":
                pixels = move(pixels, shift[index], flip[index])
            yield normalize(pixels, self.images.mean, self.images.std), self.images.labels[index]


def draw_moves(
    augment: Augmentation, count: int, size: torch.Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """How far each image of the set moves ([count, 2]) and whether it is mirrored ([count])."""
    reach = 0 if augment == "none" else min(max(1, size[0] // 8), *(side - 1 for side in size))
    shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    coin = torch.randint(0, 2, (count,), generator=generator).bool()
    return shift, coin if augment == "crop-flip" else torch.zeros_like(coin)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator whose stream depends on the pair alone."""
    # torch's CPU generator keeps the lower 32 bits of its seed only, so the pair is hashed, not packed.
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return torch.Generator().manual_seed(state)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
