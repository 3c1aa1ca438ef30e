"""IDX files, good and hostile."""

import gzip
import random
import struct
import tracemalloc

import pytest
import torch

from pmsm.ann.data.idx import FASHION, FILES, MNIST, fashion_mnist, load_idx, mnist, read_idx
from pmsm.errors import DataError


def encode(array: torch.Tensor, *, magic: bytes | None = None, sizes: tuple[int, ...] | None = None) -> bytes:
    sizes = tuple(array.shape) if sizes is None else sizes
    head = bytes([0, 0, 8, array.dim()]) if magic is None else magic
    return head + struct.pack(f">{len(sizes)}I", *sizes) + bytes(array.flatten().tolist())


def write_set(directory, first=FASHION.first, *, compress=True):
    """A tiny set with the first test labels that tell which one it is."""
    labels = torch.tensor(first, dtype=torch.uint8)
    pixels = torch.arange(10 * 28 * 28).remainder(251).to(torch.uint8).view(10, 28, 28)
    for image_name, label_name in FILES.values():
        for name, array in ((image_name, pixels), (label_name, labels)):
            data = encode(array)
            path = directory / (f"{name}.gz" if compress else name)
            path.write_bytes(gzip.compress(data) if compress else data)
    return pixels, labels


@pytest.mark.parametrize("compress", [True, False])
def test_a_set_is_read_as_it_was_written(tmp_path, compress):
    pixels, labels = write_set(tmp_path, compress=compress)
    for half in fashion_mnist(tmp_path):
        assert torch.equal(half.images[:, 0], pixels)
        assert torch.equal(half.labels, labels.long())


@pytest.mark.parametrize("kind", [FASHION, MNIST], ids=lambda kind: kind.name)
def test_the_set_is_recognised_by_its_first_test_labels(tmp_path, kind):
    write_set(tmp_path, kind.first)
    train, test = load_idx(tmp_path)
    assert (train.name, test.name) == (f"{kind.name} train", f"{kind.name} test")
    assert train.classes == kind.classes


def test_another_set_under_the_same_names_is_refused(tmp_path):
    write_set(tmp_path, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
    with pytest.raises(DataError, match="neither MNIST nor Fashion-MNIST"):
        load_idx(tmp_path)


def test_asking_for_mnist_in_the_folder_of_fashion_mnist_is_refused(tmp_path):
    write_set(tmp_path)
    with pytest.raises(DataError, match="does not hold MNIST"):
        mnist(tmp_path)


def test_missing_files_are_named_with_all_expected_ones(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"lacks train-labels-idx1-ubyte\. Expected .* t10k-labels-idx1-ubyte"
    ):
        fashion_mnist(tmp_path)


def test_images_and_labels_of_different_number_are_refused(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encode(torch.arange(9).byte())))
    with pytest.raises(DataError, match=r"holds 10 images, .* 9 labels"):
        fashion_mnist(tmp_path)


def test_truncated_gzip_is_refused_by_name(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(encode(torch.arange(100).byte()))[:-20])
    with pytest.raises(DataError, match=r"labels\.gz': broken or truncated gzip"):
        read_idx(path, 1)


@pytest.mark.parametrize("content", [b"", b"not gzip at all", b"\x1f\x8b\x08\x00garbage garbage garbage"])
def test_what_is_no_gzip_is_refused(tmp_path, content):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.gz"):
        read_idx(path, 1)


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", "starts with nothing"),
        (b"\x89PNG....", "starts with 89 50 4e 47"),
        (encode(torch.zeros(2).byte(), magic=b"\x00\x00\x0d\x01"), "starts with 00 00 0d 01"),  # float32
        (encode(torch.zeros(2, 2, 2).byte()), "starts with 00 00 08 03"),  # images instead of labels
        (b"\x00\x00\x08\x01\x00", "ends inside its header"),
        (encode(torch.zeros(0).byte()), "announces 0 bytes"),
        (encode(torch.zeros(5).byte(), sizes=(6,)), "announces 6 = 6 bytes, it holds only 5"),
        (encode(torch.zeros(5).byte(), sizes=(4,)), "announces 4 = 4 bytes, it holds more"),
    ],
)
def test_a_file_that_is_not_what_it_announces_is_refused(tmp_path, data, text):
    path = tmp_path / "labels"
    path.write_bytes(data)
    with pytest.raises(DataError, match=text):
        read_idx(path, 1)


@pytest.mark.parametrize(
    "sizes, text",
    [((2**20,), "it holds only 5"), ((2**30,), "more than 100 times"), ((2**32 - 1,), "are allowed")],
)
def test_a_huge_announced_count_costs_no_memory(tmp_path, sizes, text):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(encode(torch.zeros(5).byte(), sizes=sizes)))
    tracemalloc.start()
    with pytest.raises(DataError, match=text):
        read_idx(path, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20  # two gigabytes were announced; one megabyte is read at a time


def test_real_fashion_mnist_is_complete_and_its_constants_are_right(shared_data):
    train, test = fashion_mnist(shared_data / "fashion-mnist")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.equal(train.labels.bincount(), torch.full((10,), 6_000))
    x = train.images.double() / 255
    assert abs(x.mean() - train.mean[0]) < 5e-5  # the constants have four digits
    assert abs(x.std(correction=0) - train.std[0]) < 5e-5


def test_mnist_without_training_files_is_a_clear_error(shared_data):
    with pytest.raises(DataError, match="lacks train-images-idx3-ubyte, train-labels-idx1-ubyte"):
        mnist(shared_data / "mnist")


def test_a_gzip_that_unpacks_without_end_is_refused_unread(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(
        gzip.compress(encode(torch.zeros(1, 1, 1).byte(), sizes=(2**10, 2**8, 2**9)) + bytes(2**24))
    )
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 100 times the"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [False, True])
def test_every_mutation_is_read_or_refused(tmp_path, compress):
    good = encode(torch.arange(10 * 28 * 28).remainder(251).to(torch.uint8).view(10, 28, 28))
    path = tmp_path / ("images.gz" if compress else "images")
    data, draw, refused = gzip.compress(good, mtime=0) if compress else good, random.Random(0), 0
    for _ in range(300):
        mutated = bytearray(data)
        place = draw.randrange(16 if draw.random() < 0.7 else len(mutated))
        mutated[place] ^= 1 << draw.randrange(8)
        if draw.random() < 0.2:
            del mutated[draw.randrange(len(mutated)) :]
        path.write_bytes(mutated)
        try:
            read_idx(path, 3)
        except DataError:
            refused += 1
    assert refused > 100
