"""What happens to the pictures of a training batch: one setting for all of it, drawn on whole batches."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmsm.ann.data.autoaugment import autoaugment
from pmsm.errors import DataError

Move = Literal["none", "shift", "crop-flip"]
MOVES: tuple[Move, ...] = ("none", "shift", "crop-flip")

# What a word of `Augment.parse` stands for, and its value where none is given.
WORDS: dict[str, float | bool] = {
    "autoaugment": True,
    "cutout": 0.5,  # 16 of 32 pixels, as arXiv:1708.04552 for CIFAR-10; 0.25 for CIFAR-100
    "erase": 0.5,  # arXiv:1708.04896, section 4
    "mixup": 0.2,  # arXiv:1710.09412, section 3.1, from 0.1 to 0.4 on ImageNet; 1.0 on CIFAR
    "cutmix": 1.0,  # arXiv:1905.04899, section 4.1
}

# Of what random erasing takes: shares of the area, and height / width; arXiv:1708.04896, section 4.
ERASED_AREA, ERASED_ASPECT, ATTEMPTS = (0.02, 0.4), (0.3, 1 / 0.3), 10


@dataclass(frozen=True)
class Augment:
    """What happens to the pictures of a batch, in this order; nothing by default.

    Args:
        move: "shift" moves each picture by up to an eighth of its height, what enters is black; "crop-flip"
            also mirrors half of them; on 32x32 that is the 4-pixel padding, crop and flip of
            arXiv:1512.03385, section 4.2.
        autoaugment: the policy for CIFAR, `autoaugment`.
        cutout: side of a square with its center anywhere, cut off at the border, as a share of the height, in
            [0, 1]; it becomes the mean, 0 once normalized. Source: arXiv:1708.04552.
        erase: probability that a rectangle becomes normal noise; 0.02 to 0.4 of the area, sides 0.3 to 3.3.
            Source: arXiv:1708.04896.
        mixup: alpha > 0 blends each picture with another of the batch, one share
            lambda ~ Beta(alpha, alpha) for the batch. Source: arXiv:1710.09412.
        cutmix: alpha > 0 puts a rectangle of another picture into each; its area is 1 - lambda,
            lambda ~ Beta(alpha, alpha). Source: arXiv:1905.04899. With both, a coin chooses one for each
            batch.

    With mixup or cutmix, labels are shares of the classes, [N, classes], that sum to one.

    Raises:
        DataError: a value outside its range.
    """

    move: Move = "none"
    autoaugment: bool = False
    cutout: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.move not in MOVES:
            raise DataError(f"no move={self.move!r}; choose one of {MOVES}.")
        for name, high in (("cutout", 1.0), ("erase", 1.0), ("mixup", math.inf), ("cutmix", math.inf)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value <= high and math.isfinite(value)):
                raise DataError(f"Augment needs 0 <= {name} <= {high}, got {value!r}.")

    @classmethod
    def parse(cls, text: str) -> "Augment":
        """The setting that words joined by + stand for, each with its usual value or one of yours.

        Raises:
            DataError: an unknown or repeated word, or a value that is no number.

        >>> Augment.parse("crop-flip+autoaugment+cutout=0.25")
        Augment(move='crop-flip', autoaugment=True, cutout=0.25, erase=0.0, mixup=0.0, cutmix=0.0)
        """
        settings: dict[str, Any] = {}
        for word in text.split("+"):
            name, equals, value = word.strip().partition("=")
            key = "move" if name in MOVES else name
            if key in settings or (key != "move" and name not in WORDS) or (equals and name not in WORDS):
                raise DataError(
                    f"no augment={text!r}: {word!r} is unknown or repeated. Join words with +: one of "
                    f"{', '.join(MOVES)}, then any of {', '.join(WORDS)}, such as 'crop-flip+cutout=0.5'."
                )
            settings[key] = name if key == "move" else _number(value, text) if equals else WORDS[name]
        settings["autoaugment"] = bool(settings.get("autoaugment", False))
        return cls(**settings)

    def __str__(self) -> str:
        """What `parse` would read."""
        others = [field.name for field in fields(self) if field.name not in ("move", "autoaugment")]
        words = [f"{name}={getattr(self, name):g}" for name in others if getattr(self, name)]
        return "+".join([self.move] + ["autoaugment"] * self.autoaugment + words)

    @property
    def soft_labels(self) -> bool:
        """Whether labels become shares of the classes."""
        return bool(self.mixup or self.cutmix)

    def on_pixels(self, pixels: Tensor, draw: np.random.Generator) -> Tensor:
        """What comes before normalization but for the move; uint8 [N, C, H, W] to the same."""
        return autoaugment(pixels, draw) if self.autoaugment else pixels

    def on_batch(
        self, x: Tensor, y: Tensor, classes: int, draw: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """What comes behind normalization.

        Args:
            x: [N, C, H, W], float32; changed in place.
            y: [N], int64, in [0, classes).

        Returns:
            x, and y: [N], int64, or [N, classes], float32, with `soft_labels`.
        """
        if self.cutout:
            x = cutout(x, round(self.cutout * x.shape[2]), draw)
        if self.erase:
            x = erase(x, self.erase, draw)
        if not self.soft_labels:
            return x, y
        shares = F.one_hot(y, classes).to(torch.float32)
        by_area = bool(self.cutmix) and (not self.mixup or draw.random() < 0.5)
        return cutmix(x, shares, self.cutmix, draw) if by_area else mixup(x, shares, self.mixup, draw)


def cutout(x: Tensor, side: int, draw: np.random.Generator) -> Tensor:
    """A square of `side` pixels of each picture becomes 0, in place; [N, C, H, W]."""
    height, width = x.shape[2:]
    top, left = (
        torch.from_numpy(draw.integers(length, size=len(x))) - side // 2 for length in (height, width)
    )
    return x.masked_fill_(_inside(x, top, left, torch.tensor(side), torch.tensor(side)), 0)


def erase(x: Tensor, probability: float, draw: np.random.Generator) -> Tensor:
    """A rectangle of some pictures becomes normal noise, in place; [N, C, H, W].

    Of ten rectangles drawn for a picture, the first that fits into it is taken; where none does, it stays.
    """
    count, _, height, width = x.shape
    (least, most), (flat, tall), shape = ERASED_AREA, ERASED_ASPECT, (count, ATTEMPTS)
    area = draw.uniform(least, most, shape) * height * width
    aspect = np.exp(draw.uniform(math.log(flat), math.log(tall), shape))
    high, wide = np.sqrt(area * aspect).round(), np.sqrt(area / aspect).round()
    fits = (high < height) & (wide < width)
    first, row = fits.argmax(1), np.arange(count)
    high, wide = high[row, first], wide[row, first]
    high[~fits.any(1) | (draw.random(count) >= probability)] = 0
    top, left = draw.random(count) * (height - high + 1), draw.random(count) * (width - wide + 1)
    box = (torch.from_numpy(side.astype(np.int64)) for side in (top, left, high, wide))
    noise = torch.from_numpy(draw.standard_normal(x.shape, dtype=np.float32))
    return torch.where(_inside(x, *box), noise, x, out=x)


def mixup(x: Tensor, y: Tensor, alpha: float, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """lambda x + (1 - lambda) x', and y alike, x' the batch in another order; lambda ~ Beta(alpha, alpha)."""
    share = float(draw.beta(alpha, alpha))
    order = torch.from_numpy(draw.permutation(len(x)))
    return torch.lerp(x[order], x, share), torch.lerp(y[order], y, share)


def cutmix(x: Tensor, y: Tensor, alpha: float, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One rectangle, the same for all, from the batch in another order; y by the area that it really has."""
    height, width = x.shape[2:]
    cut = math.sqrt(1 - float(draw.beta(alpha, alpha)))
    order = torch.from_numpy(draw.permutation(len(x)))
    (top, bottom), (left, right) = (_cut(length, cut, draw) for length in (height, width))
    x[:, :, top:bottom, left:right] = x[order, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return x, torch.lerp(y[order], y, share)


def _cut(length: int, share: float, draw: np.random.Generator) -> tuple[int, int]:
    """First and last + 1 of `share` of the length about a center anywhere, cut off at the border."""
    half, center = int(length * share) // 2, int(draw.integers(length))
    return max(center - half, 0), min(center + half, length)


def _inside(x: Tensor, top: Tensor, left: Tensor, high: Tensor, wide: Tensor) -> Tensor:
    """[N, 1, H, W], bool: the rectangle of each picture."""
    rows, columns = (torch.arange(side) for side in x.shape[2:])
    top, left, high, wide = (value.view(-1, 1) for value in (top, left, high, wide))
    in_rows, in_columns = (rows >= top) & (rows < top + high), (columns >= left) & (columns < left + wide)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise DataError(f"no augment={text!r}: {value!r} is no number. Write such as cutout=0.5.") from None
