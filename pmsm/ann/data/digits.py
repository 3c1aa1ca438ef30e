"""The 1,797 handwritten digits that scikit-learn ships: a real data set without a download."""

import torch

from pmsm.ann.data.images import Images
from pmsm.errors import import_extra

CLASSES = tuple("0123456789")

# Measured over all pixels of the 1,442 training images, divided by 255.
MEAN, STD = (0.3052,), (0.3760,)

TEST_EVERY = 5  # of each class, every fifth image is for testing


def digits() -> tuple[Images, Images]:
    """1,442 training and 355 test images, grey, 8x8, 10 classes, the same split in every run.

    Of each class, every fifth image in scikit-learn's order is for testing, so both sets are balanced. The 17
    grey levels are stretched to 0..255.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its test set).
    """
    bunch = import_extra("sklearn.datasets", "demo").load_digits()
    pixels = (torch.from_numpy(bunch.images) * (255 / 16) + 0.5).floor().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    test = _every_nth_of_each_class(labels)
    train_images = Images(pixels[~test], labels[~test], CLASSES, MEAN, STD, "digits train")
    return train_images, Images(pixels[test], labels[test], CLASSES, MEAN, STD, "digits test")


def _every_nth_of_each_class(labels: torch.Tensor) -> torch.Tensor:
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[torch.nonzero(labels == label).flatten()[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return chosen
