"""Data sets for the demo, the tests and the published tables: one function each, all giving (train, test).

Recordings of event cameras are in `pmsm.ann.data.events`.
"""

from pathlib import Path

from pmsm.ann.data.augment import Augment
from pmsm.ann.data.cifar import CIFAR10, CIFAR100, cifar10, cifar100, has_cifar_files, load_cifar
from pmsm.ann.data.digits import digits
from pmsm.ann.data.download import REMOTES, download
from pmsm.ann.data.folders import has_image_folders, image_folder, imagenet, load_folders
from pmsm.ann.data.idx import FILES, fashion_mnist, has_idx_files, load_idx, mnist
from pmsm.ann.data.images import Batches, Images
from pmsm.ann.data.pictures import Crop
from pmsm.ann.data.store import Progress
from pmsm.errors import DataError

__all__ = [
    "load",
    "download",
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "image_folder",
    "imagenet",
    "Crop",
    "Images",
    "Batches",
    "Augment",
]


_download = download


def load(
    directory: str | Path | None = None,
    *,
    crop: Crop | None = None,
    download: str | None = None,
    progress: Progress | None = None,
) -> tuple[Images, Images]:
    """The training and test images of the set that lies in `directory`; without one, scikit-learn's digits.

    Args:
        directory: a folder with the four IDX files of MNIST or Fashion-MNIST; the official python archive of
            CIFAR-10 or CIFAR-100, packed or not, or their parquet files; or train/CLASS/ and test/CLASS/.
        crop: brings pictures in folders to one size.
        download: "cifar10", "cifar100", "mnist" or "fashion-mnist": fetch its official files into `directory`
            first, unless they are there; nothing is ever downloaded without it.
        progress: called with the pictures decoded so far and their total, the first time a set is decoded.

    Raises:
        DataError: no such folder, no set in it, or a damaged one; or the download failed.
        MissingExtraError: the set needs scikit-learn or pyarrow, and it is not installed.
    """
    if directory is None:
        return digits()
    directory = Path(directory)
    if download is not None:
        _download(download, directory)
    if not directory.is_dir():
        raise DataError(
            f"{str(directory)!r} is not a folder. Give the folder that holds the data set, or fetch it: "
            f"pmsm.ann.data.download(name, directory) with a name of {', '.join(REMOTES)}."
        )
    if has_idx_files(directory):
        return load_idx(directory)
    if has_cifar_files(directory):
        return load_cifar(directory, progress=progress)
    if has_image_folders(directory):
        return load_folders(directory, crop=crop, progress=progress)
    idx = ", ".join(name for names in FILES.values() for name in names)
    archives = ", ".join(f"{kind.archive.file}, {kind.archive.folder}/" for kind in (CIFAR10, CIFAR100))
    raise DataError(
        f"no data set in {str(directory)!r}. Looked for MNIST or Fashion-MNIST ({idx}, with or without .gz), "
        f"for CIFAR-10 or CIFAR-100 ({archives}, or train*.parquet, test*.parquet), and for pictures in "
        f"train/CLASS/ and test/CLASS/. To fetch one: pmsm.ann.data.download(name, directory) with a name of "
        f"{', '.join(REMOTES)}."
    )
