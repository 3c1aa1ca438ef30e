"""What a set of labelled images is, and what a batch of it holds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pmsm.ann.data.augment import Augment
from pmsm.ann.data.epochs import Epochs, batch_generator, move
from pmsm.ann.data.labels import check_labels, described
from pmsm.errors import DataError


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
        check_labels(self.labels, len(self.images), self.class_count, name=self.name, noun="images")
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
            self._refuse(f"images must be uint8 [n, C, H, W], got {described(self.images)}")
        if self.images.numel() == 0:
            self._refuse(f"it is empty: images have shape {list(self.images.shape)}")

    def _refuse(self, why: str) -> None:
        raise DataError(f"cannot use the set {self.name!r}: {why}.")


class Batches(Epochs[Images]):
    """The batches of one epoch, as often as they are asked for.

    Yields x: [N, C, H, W], float32, normalized; y: [N], int64, or with mixup or cutmix the shares of the
    classes, [N, classes], float32, that sum to one.

    Order and augmentation depend on `seed`, the epoch and the number of the batch alone, never on what was
    drawn before: a run that resumes with `set_epoch` sees bit-equal batches. Call `set_epoch(epoch)` before
    each epoch of training; without it every pass repeats the same order.

    Args:
        samples: the set.
        batch_size: N; the last batch may be smaller, unless `drop_last`.
        augment: an `Augment`, or its words joined by +: "shift", "crop-flip+autoaugment+cutout", "mixup=1.0".

    Raises:
        DataError: batch_size below 1, an unknown augmentation, or `drop_last` leaves no batch.
    """

    noun = "images"

    def __init__(
        self,
        samples: Images,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: str | Augment = "none",
        drop_last: bool = False,
    ) -> None:
        self.settings = Augment.parse(augment) if isinstance(augment, str) else augment
        if not isinstance(self.settings, Augment):
            raise DataError(
                f"Batches has no augment={augment!r}; pass an Augment, or words such as 'crop-flip'."
            )
        super().__init__(
            samples, batch_size, seed=seed, shuffle=shuffle, augment=self.settings.move, drop_last=drop_last
        )

    @property
    def images(self) -> Images:
        """The set."""
        return self.samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, settings = self.samples, self.settings
        for number, (index, shift, flip) in enumerate(self.draws(images.images.shape[2:])):
            draw = batch_generator(self.seed, self.epoch, number)
            pixels = images.images[index]
            if settings.move != "none":
                pixels = move(pixels, shift, flip)
            x = normalize(settings.on_pixels(pixels, draw), images.mean, images.std)
            yield settings.on_batch(x, images.labels[index], images.class_count, draw)
