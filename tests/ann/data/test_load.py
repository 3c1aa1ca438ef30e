"""Which set lies in a folder."""

import pytest

from pmsm.ann.data import load
from pmsm.errors import DataError


def test_without_a_folder_the_digits_are_loaded():
    pytest.importorskip("sklearn")
    train, test = load()
    assert (train.name, test.name) == ("digits train", "digits test")


def test_fashion_mnist_is_recognised_in_its_folder(shared_data):
    train, _ = load(shared_data / "fashion-mnist")
    assert train.name == "Fashion-MNIST train"


def test_a_folder_without_a_set_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*train\*\.parquet"):
        load(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "absent")
