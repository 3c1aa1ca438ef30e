"""Data sets for the demo, the tests and the published tables: one function each, all giving (train, test).

Recordings of event cameras are in `pmsm.ann.data.events`.
"""

from pathlib import Path

from pmsm.ann.data.digits import digits
from pmsm.ann.data.idx import FILES, fashion_mnist, has_idx_files, load_idx, mnist
from pmsm.ann.data.images import Augmentation, Batches, Images
from pmsm.ann.data.parquet import Progress, cifar10, cifar100, has_parquet_files, load_parquet
from pmsm.errors import DataError

__all__ = [
    "load",
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "Images",
    "Batches",
    "Augmentation",
]


def load(directory: str | Path | None = None, *, progress: Progress | None = None) -> tuple[Images, Images]:
    """The training and test images of the set that lies in `directory`; without one, scikit-learn's digits.

    Args:
        directory: a folder with the four IDX files of MNIST or Fashion-MNIST, or with the parquet files of
            CIFAR-10 or CIFAR-100.
        progress: called with the pictures decoded so far and their total, the first time a set is decoded.

    Raises:
        DataError: no such folder, no set in it, or a damaged one.
        MissingExtraError: the set needs scikit-learn or pyarrow, and it is not installed.
    """
    if directory is None:
        return digits()
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{str(directory)!r} is not a folder. Give the folder that holds the data set.")
    if has_idx_files(directory):
        return load_idx(directory)
    if has_parquet_files(directory):
        return load_parquet(directory, progress=progress)
    raise DataError(
        f"no data set in {str(directory)!r}. Looked for MNIST or Fashion-MNIST ("
        f"{', '.join(name for names in FILES.values() for name in names)}, with or without .gz) and for "
        f"CIFAR-10 or CIFAR-100 (train*.parquet, test*.parquet)."
    )
