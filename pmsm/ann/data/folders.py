"""Pictures that lie as one folder per class, ImageNet among them: brought to one size once, and mapped."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch

from pmsm.ann.data.images import Images
from pmsm.ann.data.pictures import Crop, decode_picture, picture_size
from pmsm.ann.data.store import Progress, as_tensor, in_threads, store, stored
from pmsm.errors import DataError
from pmsm.files import read_bounded

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")  # in small or capital letters
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there

MAX_FILE_BYTES = 2**26  # of one picture; ImageNet's largest have a quarter
BLOCK = 64  # pictures that one thread decodes before it reports
MEASURED_PIXELS = 2**25  # at most, evenly over the training set, for its mean and std

# The usual constants of ImageNet's training pictures, which published weights expect.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CROP = Crop(size=224, resize=256)

LAYOUT = "Expected are train/CLASS/*.png and test/CLASS/*.png (or val/; .png, .jpg, .webp, .avif)."


def has_image_folders(directory: Path) -> bool:
    """Whether `directory` holds train/CLASS/."""
    return bool(_folders(directory / "train"))


def image_folder(
    directory: str | Path, *, crop: Crop | None = None, progress: Progress | None = None
) -> tuple[Images, Images]:
    """Training and test set from train/CLASS/ and test/CLASS/ (or val/), RGB; classes are sorted by name.

    The first call decodes every picture and keeps the pixels in `$PMSM_CACHE` or `~/.cache/pmsm`, mapped into
    memory, under a hash of the files' names, sizes and times of change; where that cannot be written, in
    memory. Mean and std are measured on the training pictures, on 2^25 pixels evenly over them at most.

    Args:
        crop: brings every picture to one size; without it all must have one already.
        progress: called with the pictures decoded so far and their total.

    Raises:
        DataError: a folder or class is missing or empty, or a picture is damaged or of another size.
    """
    directory = Path(directory)
    classes, train = _listed(directory, "train")
    half = next((name for name in TEST_NAMES if (directory / name).is_dir()), "test")
    test_classes, test = _listed(directory, half)
    if unknown := sorted(set(test_classes) - set(classes)):
        raise DataError(
            f"{str(directory / half)!r} has the classes {', '.join(unknown[:8])}, which "
            f"{str(directory / 'train')!r} lacks. {LAYOUT}"
        )
    size = (crop.size, crop.size) if crop else _size_of_first(train)
    halves = {"train": train, half: test}
    pixels = [_pixels(name, files, size, crop, progress) for name, files in halves.items()]
    mean, std = _measured(pixels[0])
    sets, number = [], {name: label for label, name in enumerate(classes)}
    for name, files, array in zip(("train", "test"), (train, test), pixels, strict=True):
        labels = torch.tensor([number[path.parent.name] for path in files])
        sets.append(Images(as_tensor(array), labels, classes, mean, std, f"{directory.name} {name}"))
    return sets[0], sets[1]


def imagenet(
    directory: str | Path, *, crop: Crop = IMAGENET_CROP, progress: Progress | None = None
) -> tuple[Images, Images]:
    """ImageNet (ILSVRC-2012) from train/n01440764/*.JPEG and val/n01440764/*.JPEG, like `image_folder`.

    Labels are the ranks of the WordNet ids, as in published weights, whose mean and std the sets have. At 224
    pixels the cache takes 193 GB.

    Raises:
        DataError: as `image_folder`, or the folders are not named by WordNet ids.

    Source: arXiv:1409.0575.
    """
    train, test = image_folder(directory, crop=crop, progress=progress)
    names = train.classes if isinstance(train.classes, tuple) else ()
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        raise DataError(
            f"the classes of {str(directory)!r} are no WordNet ids such as n01440764: "
            f"{', '.join(names[:4])}. Read other sets with pmsm.ann.data.image_folder."
        )
    named = [replace(half, mean=IMAGENET_MEAN, std=IMAGENET_STD) for half in (train, test)]
    return replace(named[0], name="ImageNet train"), replace(named[1], name="ImageNet val")


def load_folders(
    directory: Path, *, crop: Crop | None = None, progress: Progress | None = None
) -> tuple[Images, Images]:
    """`imagenet` where every class is a WordNet id, and `image_folder` elsewhere."""
    if all(re.fullmatch(r"n\d{8}", name) for name in _folders(directory / "train")):
        return imagenet(directory, crop=crop or IMAGENET_CROP, progress=progress)
    return image_folder(directory, crop=crop, progress=progress)


def _listed(directory: Path, half: str) -> tuple[tuple[str, ...], list[Path]]:
    """Sorted classes, and their pictures in the order of classes and names."""
    folder = directory / half
    if not folder.is_dir():
        raise DataError(f"{str(directory)!r} has no folder {half!r}. {LAYOUT}")
    classes = _folders(folder)
    files = {name: _pictures(folder / name) for name in classes}
    empty = [name for name, found in files.items() if not found]
    if empty or not files:
        raise DataError(
            f"{str(folder)!r} has no picture in {', '.join(empty[:8]) or 'it: there is no class'}. {LAYOUT}"
        )
    return tuple(classes), [folder / name / file for name, found in files.items() for file in found]


def _folders(directory: Path) -> list[str]:
    """Sorted names of the folders in `directory`, without the hidden ones."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _pictures(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    return sorted(name for name in found if name[0] != ".")


def _pixels(
    half: str, files: list[Path], size: tuple[int, int], crop: Crop | None, progress: Progress | None
) -> np.ndarray:
    key = hashlib.sha256(f"{PIL.__version__} {size} {crop}".encode())
    for path in files:
        status = path.stat()
        name = f"{half}/{path.parent.name}/{path.name}"
        key.update(f"{name}\0{status.st_size} {status.st_mtime_ns}\n".encode())
    shape, digest = (len(files), 3, size[1], size[0]), key.hexdigest()[:20]
    found = stored("folder", digest, "uint8", shape)
    if found is not None:
        return found
    return store("folder", digest, "uint8", shape, partial(_decoded, files, size, crop, progress))


def _decoded(
    files: list[Path], size: tuple[int, int], crop: Crop | None, progress: Progress | None
) -> Iterator[np.ndarray]:
    def decode(start: int) -> np.ndarray:
        """The pictures from `start` on, as many as a thread takes at once."""
        some = files[start : start + BLOCK]
        return np.stack([decode_picture(_picture(path), repr(str(path)), size, crop) for path in some])

    done = 0
    for block in in_threads(decode, range(0, len(files), BLOCK)):
        done += len(block)
        yield block
        if progress is not None:
            progress(done, len(files))


def _size_of_first(files: list[Path]) -> tuple[int, int]:
    width, height = picture_size(_picture(files[0]), repr(str(files[0])))
    if width * height > 512 * 512:
        raise DataError(
            f"{str(files[0])!r} has {width} x {height} pixels. Bring all pictures to one size: "
            f"pmsm.ann.data.load(directory, crop=Crop(size=224, resize=256))."
        )
    return width, height


def _picture(path: Path) -> bytes:
    return read_bounded(path, MAX_FILE_BYTES, "a picture", DataError)


def _measured(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel, in units of the full range, to four digits."""
    count = max(1, MEASURED_PIXELS // (pixels.shape[2] * pixels.shape[3]))
    some = pixels[:: -(-len(pixels) // count)]
    counts = np.stack([np.bincount(some[:, channel].ravel(), minlength=256) for channel in range(3)])
    share, value = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    std = np.sqrt(np.maximum(share @ value**2 - mean**2, 0))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
