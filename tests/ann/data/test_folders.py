"""Pictures in one folder per class, ImageNet among them."""

import os

import numpy as np
import pytest
import torch

from pmsm.ann.data import Crop, image_folder, imagenet, load
from pmsm.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 16, 16, 3), dtype=np.uint8)
CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path, cache, coded):
    """Two classes of three pictures, training and test."""
    root = tmp_path / "pets"
    for half, name in enumerate(("train", "test")):
        for label, label_name in enumerate(CLASSES):
            (root / name / label_name).mkdir(parents=True)
            for i, pixels in enumerate(PIXELS[half, label]):
                (root / name / label_name / f"{i}.png").write_bytes(coded(pixels))
    return root


def test_pictures_come_back_in_the_order_of_classes_and_names(folder):
    for half, images in enumerate(load(folder)):
        wanted = PIXELS[half].reshape(6, 16, 16, 3).transpose(0, 3, 1, 2)
        assert torch.equal(images.images, torch.from_numpy(wanted.copy()))
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert images.classes == CLASSES
        assert images.name == ("pets train", "pets test")[half]


def test_mean_and_std_are_those_of_the_training_pictures(folder):
    train, test = image_folder(folder)
    values = train.images.double() / 255
    assert train.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=5e-5)  # four digits
    assert train.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=5e-5)
    assert (test.mean, test.std) == (train.mean, train.std)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_test_set_may_be_called_otherwise(folder, name):
    (folder / "test").rename(folder / name)
    assert len(load(folder)[1]) == 6


def test_the_second_call_maps_what_the_first_one_kept(folder):
    first, _ = load(folder)
    told = []
    second, _ = load(folder, progress=lambda done, total: told.append(done))
    assert told == []
    assert torch.equal(first.images, second.images)


def test_a_changed_picture_is_decoded_anew(folder, coded):
    load(folder)
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(coded(255 - PIXELS[0, 0, 1]))
    os.utime(path, ns=(1, 1))
    assert torch.equal(load(folder)[0].images[1], torch.from_numpy(255 - PIXELS[0, 0, 1]).permute(2, 0, 1))


def test_writing_to_the_pixels_leaves_the_file_as_it_is(folder):
    first, _ = load(folder)
    first.images.zero_()
    assert load(folder)[0].images.any()


def test_progress_counts_to_the_number_of_pictures(folder):
    told = []
    load(folder, progress=lambda done, total: told.append((done, total)))
    assert told == [(6, 6), (6, 6)]


def test_pictures_of_several_sizes_need_a_crop(folder, coded):
    (folder / "train" / "dog" / "0.png").write_bytes(coded(PIXELS[0, 1, 0][:12]))
    with pytest.raises(DataError, match=r"dog/0\.png': the picture must be 16x16, it has size \(16, 12\)"):
        load(folder)
    train, test = load(folder, crop=Crop(8, 10))
    assert train.images.shape == test.images.shape == (6, 3, 8, 8)


def test_a_large_picture_asks_for_a_crop_with_the_code(folder, coded):
    (folder / "train" / "cat" / "0.png").write_bytes(coded(np.zeros((600, 500, 3), np.uint8)))
    with pytest.raises(DataError, match=r"load\(directory, crop=Crop\(size=224, resize=256\)\)"):
        load(folder)


def test_hidden_and_foreign_files_are_no_pictures(folder):
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "train" / "cat" / "notes.txt").write_bytes(b"")
    (folder / "train" / ".hidden").mkdir()
    assert len(load(folder)[0]) == 6


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda root: (root / "test").rename(root / "other"), "has no folder 'test'"),
        (lambda root: (root / "train" / "bird").mkdir(), "has no picture in bird"),
        (lambda root: (root / "test" / "dog").rename(root / "test" / "fish"), "has the classes fish, which"),
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b""), r"cat/1\.png': cannot decode"),
    ],
    ids=["no test", "empty class", "unknown class", "damaged"],
)
def test_a_folder_that_is_no_set_is_refused(folder, spoil, text):
    spoil(folder)
    with pytest.raises(DataError, match=text):
        load(folder)


def test_without_a_cache_the_pixels_stay_in_memory(folder, cache):
    cache.write_text("a file where the folder should be")
    assert len(load(folder)[0]) == 6


def test_imagenet_is_known_by_its_class_names(folder, coded):
    for half in ("train", "test"):
        for i, name in enumerate(CLASSES):
            (folder / half / name).rename(folder / half / f"n0144076{i}")
    (folder / "test").rename(folder / "val")
    train, test = load(folder)
    assert (train.name, test.name) == ("ImageNet train", "ImageNet val")
    assert train.images.shape == (6, 3, 224, 224)
    assert train.mean == (0.485, 0.456, 0.406)


def test_other_folders_are_not_taken_for_imagenet(folder):
    with pytest.raises(DataError, match="no WordNet ids such as n01440764: cat, dog"):
        imagenet(folder, crop=Crop(8, 8))


def test_real_pictures_of_imagenet_are_brought_to_one_size(shared_data, tmp_path, cache):
    parquet = pytest.importorskip("pyarrow.parquet")
    with parquet.ParquetFile(shared_data / "imagenet-sample" / "sample.parquet") as file:
        rows = next(file.iter_batches(8)).to_pylist()
    for half in ("train", "val"):
        for i, row in enumerate(rows):
            (tmp_path / half / row["wnid"]).mkdir(parents=True, exist_ok=True)
            (tmp_path / half / row["wnid"] / f"{i}.JPEG").write_bytes(row["image"]["bytes"])
    train, _ = imagenet(tmp_path)
    assert train.images.shape == (8, 3, 224, 224)
    assert train.class_count == len({row["wnid"] for row in rows})
