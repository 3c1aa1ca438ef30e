"""Coded pictures, good and hostile, and how they are brought to one size."""

import random
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from pmsm.ann.data.pictures import Crop, decode_picture, picture_size
from pmsm.ann.models import torchvision
from pmsm.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_lossless_picture_comes_back_pixel_for_pixel(coded, kind):
    code = coded(PIXELS, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode_picture(code, "toy", (32, 24)), PIXELS.transpose(2, 0, 1))
    assert picture_size(code, "toy") == (32, 24)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert decode_picture(path.read_bytes(), "toy", (32, 24)).shape == (3, 24, 32)


def test_a_palette_with_transparency_keeps_its_colors(tmp_path):
    picture = Image.fromarray(PIXELS).quantize(8)
    picture.save(tmp_path / "picture.png", transparency=bytes([0, 128] + [255] * 6))
    got = decode_picture((tmp_path / "picture.png").read_bytes(), "toy", (32, 24))
    assert np.array_equal(got, np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(24, 32), (57, 31), (13, 100), (40, 40), (20, 21)], ids=str)
def test_resize_and_crop_are_torchvisions(coded, shape, interpolation):
    torchvision()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    mode = InterpolationMode(interpolation)
    wanted = Compose([Resize(20, interpolation=mode), CenterCrop(15)])(Image.fromarray(pixels))
    got = decode_picture(coded(pixels), "toy", (15, 15), Crop(15, 20, interpolation))
    assert np.array_equal(got, np.asarray(wanted).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "settings, text",
    [
        (dict(size=0, resize=8), "1 <= size <= resize <= 2048, got size=0 and resize=8"),
        (dict(size=9, resize=8), "got size=9 and resize=8"),
        (dict(size=9, resize=4096), "resize=4096"),
        (dict(size=8, resize=8, interpolation="nearest"), "no interpolation='nearest'"),
    ],
)
def test_a_crop_that_makes_no_sense_is_refused(settings, text):
    with pytest.raises(DataError, match=text):
        Crop(**settings)


def huge_png(width: int, height: int) -> bytes:
    """A picture of a few bytes that announces any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(2**15, 2**12), (9000, 10_000), (2**31 - 1, 2**31 - 1), (30_000, 30_000)])
@pytest.mark.parametrize("crop", [None, Crop(8, 8)])
def test_a_bomb_is_refused_before_a_pixel_is_decoded(size, crop):
    with pytest.raises(DataError, match="toy: "):
        decode_picture(huge_png(*size), "toy", (32, 32), crop)


def test_an_extreme_panorama_is_refused(coded):
    with pytest.raises(DataError, match="sides 400 x 2 differ by more than 16 to 1"):
        decode_picture(coded(np.zeros((2, 400, 3), np.uint8)), "toy", (8, 8), Crop(8, 8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_every_mutation_of_a_picture_is_decoded_or_refused(coded, kind):
    good, draw, refused = coded(PIXELS, kind), random.Random(0), 0
    for _ in range(250):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(min(len(data), 64)) if draw.random() < 0.5 else draw.randrange(len(data))
            data[place] = draw.randrange(256)
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        try:
            pixels = decode_picture(bytes(data), "mutated", (32, 24))
        except DataError:
            refused += 1
        else:
            assert pixels.shape == (3, 24, 32)
    assert refused > 25  # PNG has checksums and refuses most, JPEG shows wrong pixels instead
