"""CIFAR-10 and CIFAR-100, from the official python archive or from parquet files; decoded once and mapped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pmsm.ann.data.archive import Archive, find_archive
from pmsm.ann.data.images import Images
from pmsm.ann.data.parquet import columns_of, decoded, files_of, folder_of, read_labels
from pmsm.ann.data.store import Progress, as_tensor, digest_of, store, stored
from pmsm.errors import DataError

SIDE = 32

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Kind:
    """One of the two sets: its names in parquet files and in the archive, and its constants."""

    name: str
    label: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    archive: Archive


# Mean and std measured over all pixels of 50,000 training images coded in AVIF of quality 90, divided by 255.
# The usual means of CIFAR-10's uncoded images, .4914 .4822 .4465, are half a grey level away.
CIFAR10 = Kind(
    "CIFAR-10", "label", tuple(CIFAR10_CLASSES.split()), (0.4893, 0.4840, 0.4439), (0.2469, 0.2432, 0.2612),
    Archive(
        "cifar-10-python.tar.gz", "cifar-10-batches-py", "labels",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    ),
)  # fmt: skip
CIFAR100 = Kind(
    "CIFAR-100", "fine_label", tuple(CIFAR100_CLASSES.split()),
    (0.5057, 0.4885, 0.4385), (0.2670, 0.2560, 0.2756),
    Archive(
        "cifar-100-python.tar.gz", "cifar-100-python", "fine_labels",
        {"train": ("train",), "test": ("test",)},
    ),
)  # fmt: skip


def cifar10(directory: str | Path, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """CIFAR-10: 50,000 and 10,000 images, RGB, 32x32, 10 classes.

    Read from the official python archive (`cifar-10-python.tar.gz`, or its folder `cifar-10-batches-py`), or
    from `train*.parquet` and `test*.parquet` with the columns `img` = {bytes, path} and `label`. The first
    call decodes every picture and keeps the pixels in `$PMSM_CACHE` or `~/.cache/pmsm`, under the hash of the
    files, mapped into memory; where that cannot be written, it decodes each time.

    Raises:
        DataError: a file or column is missing, a picture is broken or of another size, a label out of range,
            or a pickle holds anything but numbers and text.
        MissingExtraError: the files are parquet, and pyarrow is not installed.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    return _read_set(Path(directory), CIFAR10, progress)


def cifar100(directory: str | Path, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """CIFAR-100, like `cifar10`, with the 100 fine classes: `cifar-100-python`, the column `fine_label`."""
    return _read_set(Path(directory), CIFAR100, progress)


def has_cifar_files(directory: Path) -> bool:
    """Whether `directory` holds the archive, or a parquet file that could be part of a set."""
    archived = any(find_archive(directory, kind.archive) for kind in (CIFAR10, CIFAR100))
    return archived or folder_of(directory) is not None


def load_cifar(directory: Path, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """CIFAR-10 or CIFAR-100, told apart by the names in the archive, or by the label column.

    Raises:
        DataError: neither, both, or any error of the set itself.
    """
    kinds = [kind for kind in (CIFAR10, CIFAR100) if find_archive(directory, kind.archive)]
    if len(kinds) > 1:
        raise DataError(
            f"{str(directory)!r} holds both CIFAR-10 and CIFAR-100. Give the folder of one, such as "
            f"{str(directory / CIFAR10.archive.folder)!r}, or call cifar10 or cifar100 of pmsm.ann.data."
        )
    if kinds:
        return _read_set(directory, kinds[0], progress)
    folder = folder_of(directory) or directory
    columns = columns_of((files_of(folder, "train") or files_of(folder, "test"))[0])
    for kind in (CIFAR100, CIFAR10):
        if {"img", kind.label} <= set(columns):
            return _read_set(directory, kind, progress)
    raise DataError(
        f"the parquet files in {str(folder)!r} are neither CIFAR-10 (columns img, label) nor CIFAR-100 "
        f"(img, fine_label): they have {', '.join(columns)}. Rename the columns, or build "
        f"pmsm.ann.data.Images yourself."
    )


def _read_set(directory: Path, kind: Kind, progress: Progress | None) -> tuple[Images, Images]:
    read = _from_archive(directory, kind) or _from_parquet(directory, kind)
    train, test = (_images(kind, half, *read(half, progress)) for half in ("train", "test"))
    return train, test


Reader = Callable[[str, Progress | None], tuple[np.ndarray, np.ndarray]]


def _images(kind: Kind, half: str, pixels: np.ndarray, labels: np.ndarray) -> Images:
    name = f"{kind.name} {half}"
    return Images(as_tensor(pixels), torch.from_numpy(labels), kind.classes, kind.mean, kind.std, name)


def _from_archive(directory: Path, kind: Kind) -> Reader | None:
    source = find_archive(directory, kind.archive)
    if source is None:
        return None
    key = digest_of(source.files())

    def read(half: str, progress: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        """Pictures, mapped from the cache, and labels of "train" or "test"; unpacked when first asked for."""
        name = f"{kind.name}-{half}-archive"
        labels = stored(f"{name}-labels", key, "int64", (None,))
        pixels = stored(name, key, "uint8", (None, 3, SIDE, SIDE))
        if labels is None or pixels is None or len(labels) != len(pixels):
            whole, labels = source.read(half, progress)
            pixels = store(name, key, "uint8", whole.shape, lambda: iter([whole]))
            store(f"{name}-labels", key, "int64", labels.shape, partial(_once, labels))
        return pixels, np.array(labels)

    return read


def _once(array: np.ndarray) -> Iterator[np.ndarray]:
    yield array


def _from_parquet(directory: Path, kind: Kind) -> Reader:
    folder = folder_of(directory) or directory
    files = {half: files_of(folder, half) for half in ("train", "test")}
    missing = [f"{half}*.parquet" for half, found in files.items() if not found]
    if missing:
        raise DataError(
            f"{str(folder)!r} lacks {' and '.join(missing)}. {kind.name} is read from train*.parquet and "
            f"test*.parquet with the columns img and {kind.label}, or from the official archive "
            f"({kind.archive.file} or its folder {kind.archive.folder})."
        )

    def read(half: str, progress: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        """Pictures, mapped from the cache, and labels of "train" or "test"; decoded when first asked for."""
        labels = np.concatenate([read_labels(file, kind.label) for file in files[half]])
        shape, name, key = (len(labels), 3, SIDE, SIDE), f"{kind.name}-{half}", digest_of(files[half])
        pixels = stored(name, key, "uint8", shape)
        if pixels is None:
            blocks = partial(decoded, files[half], "img", len(labels), (SIDE, SIDE), progress)
            pixels = store(name, key, "uint8", shape, blocks)
        return pixels, labels

    return read
