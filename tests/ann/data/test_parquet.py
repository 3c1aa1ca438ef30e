"""Parquet files of coded pictures, good and hostile, and the cache of their pixels."""

import io
import os
import random
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from pmsm.ann.data import load
from pmsm.ann.data.cifar import cifar10, cifar100, load_cifar
from pmsm.errors import DataError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = [row % 10 for row in range(12)]


def encode(pixels: np.ndarray, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def write(path, codes, labels=LABELS, *, label="label", **settings):
    rows = [{"bytes": code, "path": None} for code in codes]
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    parquet.write_table(arrow.table({"img": arrow.array(rows, kind), label: labels}), path, **settings)


@pytest.fixture
def folder(tmp_path, cache):
    """A whole little CIFAR-10 of lossless pictures."""
    for half in ("train", "test"):
        write(tmp_path / f"{half}.parquet", [encode(pixels) for pixels in PIXELS])
    return tmp_path


def spoil(folder, row, code):
    """Replace one picture of the training half."""
    codes = [encode(pixels) for pixels in PIXELS]
    codes[row] = code
    write(folder / "train.parquet", codes)


def test_lossless_pictures_come_back_pixel_for_pixel(folder):
    for half in cifar10(folder):
        assert torch.equal(half.images, torch.from_numpy(PIXELS.transpose(0, 3, 1, 2)))
        assert half.labels.tolist() == LABELS


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG"])
def test_every_coding_in_use_is_decoded(folder, kind):
    flat = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    spoil(folder, 3, encode(flat, kind))
    train, _ = cifar10(folder)
    error = train.images[3].int() - torch.tensor([200, 100, 50]).view(3, 1, 1)
    assert error.abs().max() <= 4  # lossy codings keep a flat color within a few grey levels


def test_shards_are_read_in_the_order_of_their_names(folder):
    (folder / "train.parquet").unlink()
    for shard, rows in enumerate((slice(0, 5), slice(5, 12))):
        path = folder / f"train-0000{shard}-of-00002.parquet"
        write(path, [encode(pixels) for pixels in PIXELS[rows]], LABELS[rows])
    train, test = cifar10(folder)
    assert torch.equal(train.images, test.images)
    assert torch.equal(train.labels, test.labels)


def test_the_label_column_tells_cifar100_from_cifar10(folder):
    assert load_cifar(folder)[0].name == "CIFAR-10 train"
    for half in ("train", "test"):
        write(folder / f"{half}.parquet", [encode(pixels) for pixels in PIXELS], label="fine_label")
    train, _ = load_cifar(folder)
    assert (train.name, train.class_count) == ("CIFAR-100 train", 100)


def test_progress_counts_to_the_number_of_pictures(folder):
    seen = []
    cifar10(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(12, 12), (12, 12)]  # one block each for training and test


def test_the_second_call_reads_the_cache_and_agrees(folder, cache):
    first, _ = cifar10(folder)
    assert len(list(cache.iterdir())) == 2
    decoded = []
    second, _ = cifar10(folder, progress=lambda done, total: decoded.append(done))
    assert decoded == []
    assert torch.equal(first.images, second.images)


def test_a_changed_file_is_decoded_anew(folder):
    before, _ = cifar10(folder)
    spoil(folder, 0, encode(255 - PIXELS[0]))
    after, _ = cifar10(folder)
    assert torch.equal(after.images[0], 255 - before.images[0])


def test_a_damaged_cache_is_decoded_anew(folder, cache):
    before = cifar10(folder)[0].images.clone()  # not mapped: the file behind it is about to shrink
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    after, _ = cifar10(folder)
    assert torch.equal(before, after.images)


def test_without_a_writable_cache_it_decodes_each_time(folder, cache):
    cache.write_text("a file where the folder should be: not even root can write below it")
    train, _ = cifar10(folder)
    assert len(train) == 12
    assert cache.is_file()


def test_nothing_is_written_beside_the_data(folder):
    before = sorted(os.listdir(folder))
    cifar10(folder)
    assert sorted(os.listdir(folder)) == sorted([*before, "cache"])


@pytest.mark.parametrize(
    "code, text",
    [
        (encode(PIXELS[0])[:200], "cannot decode the picture"),
        (encode(PIXELS[0], "WEBP", lossless=True)[:300], "cannot decode the picture"),
        (b"no picture", "cannot decode the picture"),
        (b"", "cannot decode the picture"),
        (encode(PIXELS[0], "BMP"), "Supported are PNG, JPEG, WEBP, AVIF"),
        (encode(PIXELS[0][:16]), r"must be 32x32, it has size \(32, 16\)"),
        (
            encode(np.zeros((5000, 5000), np.uint8)),
            r"it has size \(5000, 5000\)",
        ),  # before a pixel is decoded
        (None, "with the coded picture in bytes"),
    ],
    ids=["cut png", "cut webp", "text", "nothing", "bmp", "half", "huge", "null"],
)
def test_a_corrupt_picture_is_refused_with_its_row(folder, code, text):
    spoil(folder, 7, code)
    with pytest.raises(DataError, match=rf"train\.parquet', row 7: .*{text}"):
        cifar10(folder)


def test_an_empty_file_is_refused(folder):
    write(folder / "test.parquet", [], arrow.array([], arrow.int64()))
    with pytest.raises(DataError, match=r"test\.parquet': it has 0 rows"):
        cifar10(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train\.parquet': not parquet, damaged or truncated"):
        cifar10(folder)


def test_damage_inside_a_file_is_refused(folder):
    path = folder / "train.parquet"
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.parquet'"):
        cifar10(folder)


@pytest.mark.parametrize(
    "labels",
    [
        [None, *LABELS[1:]],
        [0.5] * 12,
        ["cat"] * 12,
        [-1, *LABELS[1:]],
        arrow.array([2**63] * 12, arrow.uint64()),
    ],
    ids=["null", "float", "text", "negative", "beyond int64"],
)
def test_labels_that_are_no_whole_numbers_are_refused(folder, labels):
    write(folder / "train.parquet", [encode(pixels) for pixels in PIXELS], labels)
    with pytest.raises(DataError, match="row 0: label must be a whole number"):
        cifar10(folder)


@pytest.mark.parametrize("labels, text", [([3] * 12, "of class 3"), ([10, *LABELS[1:]], "got 0 to 10")])
def test_one_class_or_a_label_without_a_class_is_refused(folder, labels, text):
    write(folder / "train.parquet", [encode(pixels) for pixels in PIXELS], labels)
    with pytest.raises(DataError, match=text):
        cifar10(folder)


def test_missing_columns_are_refused_with_those_present(folder):
    with pytest.raises(DataError, match="must have one column 'fine_label'; it has img, label"):
        cifar100(folder)


def test_a_folder_named_like_a_partition_is_no_column(folder):
    nested = folder / "label=3"
    nested.mkdir()
    for half in ("train", "test"):
        (folder / f"{half}.parquet").rename(nested / f"{half}.parquet")
    assert cifar10(nested)[0].labels.tolist() == LABELS


def test_missing_files_are_refused_with_their_pattern(folder):
    (folder / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks test\*\.parquet"):
        load_cifar(folder)


def test_event_recordings_are_not_taken_for_pictures(shared_data):
    with pytest.raises(DataError, match=r"neither CIFAR-10 .* they have events, label"):
        load_cifar(shared_data / "nmnist-sample")


@pytest.mark.parametrize("names", [(0,), (1,), (0, 1, 1)], ids=str)
def test_shards_that_are_no_whole_set_are_refused(folder, names):
    (folder / "train.parquet").rename(folder / "train-00000-of-00003.parquet")
    for shard in set(names) - {0}:
        shutil.copy(folder / "test.parquet", folder / f"train-{shard:05d}-of-00003.parquet")
    with pytest.raises(DataError, match=r"shards of 'train' .* missing: .*train-00002-of-00003\.parquet"):
        load_cifar(folder)


def test_shards_of_two_sets_are_not_mixed(folder):
    shutil.copy(folder / "test.parquet", folder / "train-00000-of-00001.parquet")
    with pytest.raises(
        DataError, match=r"whole set: there are train-00000-of-00001\.parquet, train\.parquet"
    ):
        load_cifar(folder)


@pytest.mark.parametrize("name", ["data", "plain_text"])
def test_a_copy_of_a_repository_is_read_from_its_folder(folder, name):
    (folder / name).mkdir()
    for half in ("train", "test"):
        (folder / f"{half}.parquet").rename(folder / name / f"{half}-00000-of-00001.parquet")
    assert load(folder)[0].labels.tolist() == LABELS


def test_a_picture_repeated_without_end_is_refused_before_it_is_copied(folder):
    code = encode(PIXELS[0]) + random.Random(0).randbytes(2**20)  # stored once, named by every row
    write(folder / "train.parquet", [code] * 12)
    with pytest.raises(DataError, match=r"a picture has 1,0.* bytes; 65,536 are allowed"):
        cifar10(folder)


def test_a_file_that_unpacks_without_end_is_refused_unread(folder):
    write(folder / "train.parquet", [bytes(2**22 + i) for i in range(12)], compression="zstd")
    assert (folder / "train.parquet").stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 32 times its size"):
            cifar10(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**22  # less than one of the twelve pictures
    finally:
        tracemalloc.stop()


def test_every_mutation_of_a_file_is_read_or_refused(folder):
    path, draw, refused = folder / "train.parquet", random.Random(0), 0
    good = path.read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for _ in range(250):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            low = footer if draw.random() < 0.6 else 0
            data[draw.randrange(low, len(data))] = draw.randrange(256)
        if draw.random() < 0.1:
            del data[draw.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            cifar10(folder)
        except DataError:
            refused += 1
    assert refused > 125


def test_pictures_may_be_a_column_of_bytes(folder):
    codes = arrow.array([encode(pixels) for pixels in PIXELS], arrow.binary())
    parquet.write_table(arrow.table({"img": codes, "label": LABELS}), folder / "train.parquet")
    train, test = cifar10(folder)
    assert torch.equal(train.images, test.images)
