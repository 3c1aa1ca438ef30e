"""The policy of AutoAugment for CIFAR, on whole batches: each operation once, on all that drew it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmsm.errors import DataError

# Source: arXiv:1805.09501, appendix, table of CIFAR-10: 25 pairs of (operation, probability, level 0 to 9).
POLICY = """
Invert 0.1 7, Contrast 0.2 6; Rotate 0.7 2, TranslateX 0.3 9; Sharpness 0.8 1, Sharpness 0.9 3;
ShearY 0.5 8, TranslateY 0.7 9; AutoContrast 0.5 8, Equalize 0.9 2; ShearY 0.2 7, Posterize 0.3 7;
Color 0.4 3, Brightness 0.6 7; Sharpness 0.3 9, Brightness 0.7 9; Equalize 0.6 5, Equalize 0.5 1;
Contrast 0.6 7, Sharpness 0.6 5; Color 0.7 7, TranslateX 0.5 8; Equalize 0.3 7, AutoContrast 0.4 8;
TranslateY 0.4 3, Sharpness 0.2 6; Brightness 0.9 6, Color 0.2 8; Solarize 0.5 2, Invert 0.0 3;
Equalize 0.2 0, AutoContrast 0.6 0; Equalize 0.2 8, Equalize 0.6 4; Color 0.9 9, Equalize 0.6 6;
AutoContrast 0.8 4, Solarize 0.2 8; Brightness 0.1 3, Color 0.7 0; Solarize 0.4 5, AutoContrast 0.9 3;
TranslateY 0.9 9, TranslateY 0.7 9; AutoContrast 0.9 2, Solarize 0.8 3; Equalize 0.8 8, Invert 0.1 3;
TranslateY 0.7 9, AutoContrast 0.9 1
"""


def autoaugment(pixels: Tensor, draw: np.random.Generator) -> Tensor:
    """One of the 25 pairs of operations on each picture, each with its probability and a random sign.

    Args:
        pixels: [N, C, H, W], uint8, C = 1 or 3.
        draw: gives 5 N numbers.

    Returns:
        [N, C, H, W], uint8; what a shear, a rotation or a translation leaves empty is black.

    Raises:
        DataError: another number of channels.
    """
    if pixels.shape[1] not in (1, 3):
        raise DataError(f"autoaugment needs 1 or 3 channels, the pictures have {pixels.shape[1]}.")
    count = len(pixels)
    chosen, chance = draw.integers(len(PAIRS), size=count), draw.random((count, 2))
    sign = 2.0 * draw.integers(2, size=(count, 2)) - 1
    pixels = pixels.clone()
    for place in (0, 1):
        drawn = [PAIRS[pair][place] for pair in chosen]
        happens = chance[:, place] < np.array([probability for _, probability, _ in drawn])
        for name in OPERATIONS:
            index = [i for i, one in enumerate(drawn) if one[0] == name and happens[i]]
            if index:
                magnitude = torch.from_numpy(np.array([sign[i, place] * drawn[i][2] / 9 for i in index]))
                pixels[index] = OPERATIONS[name](pixels[index], magnitude)
    return pixels


# Each operation takes pixels [n, C, H, W], uint8, and magnitudes [n] in [-1, 1], level / 9 with a sign;
# what full magnitude means follows arXiv:1805.09501, table 6.


def shear_x(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Rows move by up to 0.3 times their distance from the top."""
    return warp(pixels, _matrix(xy=0.3 * magnitude))


def shear_y(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Columns move by up to 0.3 times their distance from the left."""
    return warp(pixels, _matrix(yx=0.3 * magnitude))


def translate_x(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Up to 150 of 331 parts of the width, in whole pixels, to the right where positive."""
    return warp(pixels, _matrix(x=-(magnitude * 150 / 331 * pixels.shape[3]).trunc()))


def translate_y(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Up to 150 of 331 parts of the height, in whole pixels, down where positive."""
    return warp(pixels, _matrix(y=-(magnitude * 150 / 331 * pixels.shape[2]).trunc()))


def rotate(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Up to 30 degrees about the center, counterclockwise where positive."""
    angle = -torch.deg2rad(30 * magnitude.double())
    cos, sin = angle.cos(), angle.sin()
    x, y = pixels.shape[3] / 2, pixels.shape[2] / 2
    return warp(pixels, _matrix(cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def brightness(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with black: 1 +- 0.9 times as bright."""
    return blend(pixels, torch.zeros(()), magnitude)


def color(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with grey: 1 +- 0.9 times as colorful."""
    return blend(pixels, grey(pixels), magnitude)


def contrast(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the mean grey of the picture: 1 +- 0.9 times the contrast."""
    return blend(pixels, grey(pixels).mean((1, 2, 3), keepdim=True), magnitude)


def sharpness(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with a smoothed picture, (5 x pixel + 8 neighbors) / 13 inside the border."""
    channels, smooth = pixels.shape[1], pixels.float()
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5
    inside = F.conv2d(smooth, (kernel / 13).expand(channels, 1, 3, 3), groups=channels).round()
    smooth = torch.cat((smooth[:, :, :1], F.pad(inside, (1, 1)), smooth[:, :, -1:]), 2)
    smooth[..., 0], smooth[..., -1] = pixels[..., 0], pixels[..., -1]
    return blend(pixels, smooth, magnitude)


def posterize(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the 8 to 4 highest bits."""
    dropped = (4 * magnitude.abs()).round().long()
    return pixels & (255 >> dropped << dropped).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Invert what is at least as bright as the threshold, 255 to 0."""
    threshold = (255 * (1 - magnitude.abs())).float().view(-1, 1, 1, 1)
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def autocontrast(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to 0..255; one of a single value stays."""
    low, high = (bound(pixels.float()) for bound in (_lowest, _highest))
    flat = high == low
    stretched = (pixels - low) * (255 / torch.where(flat, 1, high - low))
    return torch.where(flat, pixels, stretched.clamp(0, 255).to(torch.uint8))


def equalize(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """Make the histogram of each channel as flat as whole grey levels allow."""
    values = pixels.flatten(0, 1).flatten(1).long()  # [channels of all pictures, H W]
    places = values + 256 * torch.arange(len(values)).unsqueeze(1)
    counts = torch.bincount(places.flatten(), minlength=256 * len(values)).view(-1, 256)
    brightest = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - brightest) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256), table.clamp(0, 255))
    return table.gather(1, values).to(torch.uint8).view(pixels.shape)


def invert(pixels: Tensor, magnitude: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - pixels


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
}


def _pairs() -> list[list[tuple[str, float, int]]]:
    pairs = [[one.split() for one in pair.split(",")] for pair in POLICY.split(";")]
    return [[(name, float(chance), int(level)) for name, chance, level in pair] for pair in pairs]


PAIRS = _pairs()


def warp(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Each picture read at (a x + b y + c, d x + e y + f), nearest pixel; pixel centers are at 1/2, 3/2, ...

    Args:
        pixels: [n, C, H, W].
        matrix: [n, 6], float64: a to f.

    Returns:
        [n, C, H, W]; 0 where it is read outside.
    """
    count, channels, height, width = pixels.shape
    a, b, c, d, e, f = matrix.view(count, 6, 1, 1).unbind(1)
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in (height, width))
    column, row = ((p * x + q * y[:, None] + r).floor().long() for p, q, r in ((a, b, c), (d, e, f)))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.where(inside, row * width + column, 0).flatten(1).unsqueeze(1)
    found = pixels.flatten(2).gather(2, index.expand(-1, channels, -1)).view(pixels.shape)
    return found * inside.unsqueeze(1)


def blend(pixels: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """`other` at ratio 0, `pixels` at 1, beyond them above; the ratio is 1 + 0.9 magnitude; rounded down."""
    ratio = 1 + 0.9 * magnitude.double().view(-1, 1, 1, 1)
    return (ratio.float() * pixels + (1 - ratio).float() * other).clamp(0, 255).to(torch.uint8)


def grey(pixels: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 in whole levels; [n, 3, H, W] -> [n, 1, H, W], float32."""
    if pixels.shape[1] == 1:
        return pixels.float()
    red, green, blue = pixels.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor().unsqueeze(1)


def _matrix(
    xx: Tensor | float = 1.0, xy: Tensor | float = 0.0, x: Tensor | float = 0.0,
    yx: Tensor | float = 0.0, yy: Tensor | float = 1.0, y: Tensor | float = 0.0,
) -> Tensor:  # fmt: skip
    """Rows of six, the identity where nothing else is given."""
    entries = [torch.as_tensor(entry, dtype=torch.float64) for entry in (xx, xy, x, yx, yy, y)]
    return torch.stack(torch.broadcast_tensors(*entries), -1)


def _lowest(values: Tensor) -> Tensor:
    return values.amin((2, 3), keepdim=True)


def _highest(values: Tensor) -> Tensor:
    return values.amax((2, 3), keepdim=True)
