"""Each operation against Pillow or torchvision, and the policy against torchvision's table."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pmsm.ann.data.autoaugment import OPERATIONS, PAIRS, autoaugment, warp
from pmsm.ann.models import torchvision
from pmsm.errors import DataError

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")

GEOMETRIC = ("ShearX", "ShearY")
BLENDED = ("Brightness", "Color", "Contrast", "Sharpness")


def pictures(channels: int = 3) -> torch.Tensor:
    """Noise, a smooth picture, one of a single color, and one of few values."""
    pixels = torch.randint(0, 256, (4, channels, 32, 32)).to(torch.uint8)
    coarse = torch.rand(1, channels, 4, 4) * 200 + 20
    pixels[1] = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")[0].to(torch.uint8)
    pixels[2] = 7
    pixels[3] = pixels[3] // 128 * 90 + 40
    return pixels


def theirs(name: str):
    """torchvision's operation at a level from -9 to 9, on a batch."""
    torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.autoaugment import AutoAugment, _apply_op

    magnitudes, _ = AutoAugment()._augmentation_space(10, (32, 32))[name]

    def apply(pixels: torch.Tensor, level: int) -> torch.Tensor:
        size = float(magnitudes[abs(level)]) * (1 if level >= 0 else -1) if magnitudes.ndim else 0.0
        done = [_apply_op(one, name, size, InterpolationMode.NEAREST, None) for one in pixels]
        return torch.stack(done)

    return apply


@needs_torchvision
def test_the_policy_is_torchvisions():
    torchvision()
    from torchvision.transforms.autoaugment import AutoAugment, AutoAugmentPolicy

    wanted = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    assert len(PAIRS) == 25
    for pair, other in zip(PAIRS, wanted, strict=True):
        for (name, chance, level), (their_name, their_chance, their_level) in zip(pair, other, strict=True):
            assert (name, chance) == (their_name, their_chance)
            assert their_level in (level, None)  # None where the operation has no magnitude


@needs_torchvision
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in GEOMETRIC])
def test_each_operation_is_torchvisions(name):
    pixels, apply = pictures(), theirs(name)
    signed = name in ("TranslateX", "TranslateY", "Rotate", *BLENDED)
    for level in range(-9 if signed else 0, 10):
        got = OPERATIONS[name](pixels, torch.full((4,), level / 9, dtype=torch.float64))
        wanted = apply(pixels, level)
        assert got.dtype == torch.uint8
        apart = (got.int() - wanted.int()).abs()
        # Their magnitudes are rounded to float32 first: a blend that falls on a whole level may be one less.
        assert apart.max() <= (1 if name in BLENDED else 0)
        assert (apart > 0).float().mean() <= 0.4  # one picture, a quarter, has one value only


@given(
    matrix=st.lists(st.integers(-40, 40).map(lambda k: k / 16), min_size=6, max_size=6),
    scale=st.sampled_from([1, 4]),
)
def test_a_warp_is_pillows_affine_transform(matrix, scale):
    # Sixteenths are exact in float64, so both find the same pixels.
    matrix[2], matrix[5] = matrix[2] * scale, matrix[5] * scale
    pixels = torch.arange(1, 13 * 11 + 1).remainder(251).to(torch.uint8).view(1, 1, 13, 11)
    got = warp(pixels, torch.tensor([matrix], dtype=torch.float64))
    picture = Image.fromarray(pixels[0, 0].numpy())
    wanted = picture.transform((11, 13), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    assert torch.equal(got[0, 0], torch.from_numpy(np.array(wanted)))


@pytest.mark.parametrize("level", [-9, -2, 5])
def test_shears_are_pillows(level):
    pixels = pictures()
    magnitude = torch.full((4,), level / 9, dtype=torch.float64)
    shear = 0.3 * level / 9
    for name, matrix in {"ShearX": (1, shear, 0, 0, 1, 0), "ShearY": (1, 0, 0, shear, 1, 0)}.items():
        got = OPERATIONS[name](pixels, magnitude)
        for one, pixel in zip(got, pixels, strict=True):
            picture = Image.fromarray(pixel.permute(1, 2, 0).numpy())
            wanted = picture.transform((32, 32), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
            differ = (one.permute(1, 2, 0) != torch.from_numpy(np.array(wanted))).float().mean()
            assert (
                differ <= 0.04
            )  # Pillow adds up fixed-point steps: a point between two pixels may go either way


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_picture_of_a_batch_has_its_own_magnitude(name):
    pixels, magnitude = pictures(), torch.tensor([-1.0, 0.5, 0.25, 1.0], dtype=torch.float64)
    whole = OPERATIONS[name](pixels, magnitude)
    for i in range(4):
        assert torch.equal(whole[i : i + 1], OPERATIONS[name](pixels[i : i + 1], magnitude[i : i + 1]))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_draws_alone_decide(channels):
    pixels = pictures(channels).repeat(8, 1, 1, 1)
    before = pixels.clone()
    first, again = (autoaugment(pixels, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(pixels, before)
    assert first.shape == pixels.shape
    assert not torch.equal(first, autoaugment(pixels, np.random.default_rng(6)))


def test_every_operation_of_the_policy_is_there():
    assert {name for pair in PAIRS for name, _, _ in pair} <= set(OPERATIONS)


def test_pictures_of_two_channels_are_refused():
    with pytest.raises(DataError, match="needs 1 or 3 channels, the pictures have 2"):
        autoaugment(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), np.random.default_rng(0))
