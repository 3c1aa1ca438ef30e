"""How one coded picture becomes pixels of the wanted size, refusing what is damaged, foreign or oversized."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from pmsm.errors import DataError

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "AVIF",
)  # every other decoder of Pillow stays out of reach of a hostile file

MAX_PIXELS = 2**26  # of a picture that is resized; ImageNet's largest have half as many

MAX_ASPECT = 16  # of the sides of a picture that is resized: a longer one would be blown up lengthwise

Interpolation = Literal["bilinear", "bicubic"]

T = TypeVar("T")


@dataclass(frozen=True)
class Crop:
    """Resize the shorter side to `resize` pixels, then cut the square of `size` pixels from the middle.

    Args:
        size: side of the result, >= 1.
        resize: >= size; 256 and 224 are the usual pair, 8 : 7.
        interpolation: of the resize, antialiased; both as torchvision does on Pillow's images.

    Raises:
        DataError: size below 1, resize below size, above 2,048 pixels, or an unknown interpolation.
    """

    size: int
    resize: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize <= 2048:
            raise DataError(
                f"a crop needs 1 <= size <= resize <= 2048, got size={self.size} and resize={self.resize}."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise DataError(
                f"no interpolation={self.interpolation!r}; choose 'bilinear', as torchvision's weights "
                f"expect, or 'bicubic', as timm's vision transformers do."
            )

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The cut, in the mode of `picture`."""
        width, height = picture.size
        short = min(width, height)
        scaled = (self.resize * width // short, self.resize * height // short)
        if max(scaled) > MAX_ASPECT * self.resize:
            raise DataError(f"its sides {width} x {height} differ by more than {MAX_ASPECT} to 1")
        left, top = (round((side - self.size) / 2) for side in scaled)
        if scaled != picture.size:
            picture = picture.resize(scaled, Image.Resampling[self.interpolation.upper()])
        return picture.crop((left, top, left + self.size, top + self.size))


def decode_picture(code: bytes, where: str, size: tuple[int, int], crop: Crop | None = None) -> np.ndarray:
    """One picture in RGB; its announced size is checked before any pixel is decoded.

    Args:
        code: PNG, JPEG, WebP or AVIF.
        where: names the picture in a refusal.
        size: the (width, height) that it must have; with `crop` any up to 2^26 pixels is taken.

    Returns:
        [3, H, W], uint8.

    Raises:
        DataError: damaged, of another format or size.
    """

    def pixels(picture: Image.Image) -> np.ndarray:
        """[3, H, W], uint8, once the announced size has been accepted."""
        width, height = picture.size
        if crop is None and picture.size != size:
            raise DataError(f"{where}: the picture must be {size[0]}x{size[1]}, it has size {picture.size}.")
        if width * height > MAX_PIXELS:
            raise DataError(f"{where}: the picture has size {picture.size}, above {MAX_PIXELS:,} pixels.")
        colors = _rgb(picture)
        try:
            return np.asarray(colors if crop is None else crop(colors)).transpose(2, 0, 1)
        except DataError as cause:
            raise DataError(f"{where}: cannot crop the picture: {cause}.") from cause

    return _opened(code, where, pixels)


def picture_size(code: bytes, where: str) -> tuple[int, int]:
    """Announced (width, height); no pixel is decoded.

    Raises:
        DataError: damaged, or of another format.
    """
    return _opened(code, where, lambda picture: picture.size)


def _opened(code: bytes, where: str, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(code), formats=FORMATS) as picture:
            return read(picture)
    # What Pillow's decoders raise on damaged bytes; which one depends on where the damage is.
    except (
        OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
        RuntimeError, struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
    ) as cause:  # fmt: skip
        raise DataError(
            f"{where}: cannot decode the picture ({cause}). Supported are {', '.join(FORMATS)}; "
            f"AVIF needs Pillow >= 11.3. Copy the file anew if it is damaged."
        ) from cause


def _rgb(picture: Image.Image) -> Image.Image:
    # A palette with transparency goes by RGBA: Pillow warns of the direct way. The colors are the same.
    by_alpha = picture.mode == "P" and "transparency" in picture.info
    return (picture.convert("RGBA") if by_alpha else picture).convert("RGB")
