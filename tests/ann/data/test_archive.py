"""CIFAR's official archives, packed and unpacked, and hostile ones."""

import gzip
import io
import pickle
import random
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch

from pmsm.ann.data import load
from pmsm.ann.data.cifar import CIFAR10, CIFAR100, cifar10, cifar100
from pmsm.errors import DataError

FOLDER = "cifar-10-batches-py"
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
LABELS = [[i % 10, 3, 9, 0] for i in range(6)]


@pytest.fixture
def files(pickled):
    """The six pickles of a tiny CIFAR-10: name in the archive -> bytes."""
    names = CIFAR10.archive.names
    return {
        f"{FOLDER}/{name}": pickled({"batch_label": name, "labels": LABELS[i], "data": PIXELS[i]})
        for i, name in enumerate(names)
    }


@pytest.fixture
def unpacked(tmp_path, cache, files):
    (tmp_path / FOLDER).mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def tarred(tmp_path, cache, files, packed):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(packed(files))
    return tmp_path


def check(train, test):
    assert torch.equal(train.images, torch.from_numpy(PIXELS[:5]).reshape(20, 3, 32, 32))
    assert torch.equal(test.images, torch.from_numpy(PIXELS[5]).reshape(4, 3, 32, 32))
    assert train.labels.tolist() == [label for batch in LABELS[:5] for label in batch]
    assert test.labels.tolist() == LABELS[5]
    assert (train.name, test.name) == ("CIFAR-10 train", "CIFAR-10 test")


def test_the_unpacked_archive_is_read_pixel_for_pixel(unpacked):
    check(*cifar10(unpacked))
    check(*load(unpacked))
    check(*load(unpacked / FOLDER))


def test_the_packed_archive_is_read_pixel_for_pixel(tarred):
    check(*load(tarred))
    assert sorted(path.name for path in tarred.iterdir()) == ["cache", "cifar-10-python.tar.gz"]


def test_the_second_call_maps_what_the_first_one_kept(tarred, cache):
    load(tarred)
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == 4  # pictures and labels of two halves
    check(*load(tarred))
    assert kept == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_labels_and_pixels_of_cifar100_are_the_fine_ones(tmp_path, cache, pickled):
    (tmp_path / "cifar-100-python").mkdir()
    batch = {"coarse_labels": [1, 2, 3, 4], "fine_labels": [19, 99, 0, 7], "data": PIXELS[0]}
    for name in CIFAR100.archive.names:
        (tmp_path / "cifar-100-python" / name).write_bytes(pickled(batch))
    train, test = cifar100(tmp_path)
    assert train.labels.tolist() == test.labels.tolist() == [19, 99, 0, 7]
    assert load(tmp_path)[0].class_count == 100


def test_a_missing_batch_is_named(unpacked):
    (unpacked / FOLDER / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\. Unpack cifar-10-python\.tar\.gz anew"):
        load(unpacked)


def test_two_sets_in_one_folder_are_not_guessed(unpacked):
    (unpacked / "cifar-100-python.tar.gz").touch()
    with pytest.raises(DataError, match="holds both CIFAR-10 and CIFAR-100"):
        load(unpacked)
    check(*cifar10(unpacked))


@pytest.mark.parametrize(
    "batch, text",
    [
        ({"labels": [1, 2, 3, 4]}, "'data' must be an array"),
        ({"labels": [1, 2, 3, 4], "data": PIXELS[0][:, :3000]}, "'data' must be an array"),
        ({"data": PIXELS[0]}, "'labels' must be a list"),
        ({"labels": [1, 2, 3], "data": PIXELS[0]}, "4 pictures and 3 labels"),
        ({"labels": [1, 2, 3, 300], "data": PIXELS[0]}, "'labels' must be a list"),
        ({"labels": [1, 2, 3, 10], "data": PIXELS[0]}, r"labels must lie in \[0, 10\)"),
    ],
    ids=["no data", "narrow", "no labels", "fewer labels", "large label", "no class"],
)
def test_a_batch_of_another_shape_is_refused(unpacked, pickled, batch, text):
    (unpacked / FOLDER / "data_batch_2").write_bytes(pickled(batch))
    with pytest.raises(DataError, match=text):
        load(unpacked)


class Bomb:
    ran = False

    def __reduce__(self):
        return (setattr, (Bomb, "ran", True))


def test_code_in_a_batch_is_refused_and_never_run(unpacked):
    (unpacked / FOLDER / "data_batch_1").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(DataError, match=r"data_batch_1', byte .* which is code"):
        load(unpacked)
    assert not Bomb.ran


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def member(name: str, **settings) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in settings.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_link_or_a_device_in_place_of_a_batch_is_refused(tmp_path, cache, kind):
    link = member(f"{FOLDER}/data_batch_1", type=kind, linkname="/etc/passwd")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(tar_of((link, b"")))
    with pytest.raises(DataError, match="must be a plain file"):
        load(tmp_path)


def test_no_path_of_an_archive_reaches_the_disk(tmp_path, cache, files):
    folder = tmp_path / "set"
    folder.mkdir()
    tricks = [(member(name, size=1), b"x") for name in ("../escaped", "/tmp/escaped", f"{FOLDER}/../escaped")]
    good = [(member(name, size=len(data)), data) for name, data in files.items()]
    (folder / "cifar-10-python.tar.gz").write_bytes(tar_of(*tricks, *good))
    check(*load(folder))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["set", "cifar-10-python.tar.gz", "cache", *(path.name for path in cache.iterdir())]
    )


def test_an_archive_of_zeros_takes_little_memory(tmp_path, cache):
    large = member(f"{FOLDER}/data_batch_1", size=2**29)
    head = large.tobuf()
    bomb = gzip.compress(head + bytes(2**20), mtime=0) + gzip.compress(bytes(2**24)) * 4
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="at most 268,435,456 bytes"):
            load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_a_truncated_archive_is_refused(tarred, keep):
    path = tarred / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz'"):
        load(tarred)


def test_every_mutation_of_an_archive_is_read_or_refused(tmp_path, cache, files):
    draw = random.Random(0)
    path = tmp_path / "cifar-10-python.tar.gz"
    plain = gzip.decompress(tar_of(*((member(name, size=len(data)), data) for name, data in files.items())))
    refused = 0
    for trial in range(250):
        data = bytearray(plain)
        for _ in range(draw.randint(1, 4)):
            # Half of the changes hit a header of the archive, where its names and sizes are.
            place = draw.randrange(512) if draw.random() < 0.5 else draw.randrange(len(data))
            data[place] = draw.choice((0, 0x31, 0x37, 0x78, 0xFF, draw.randrange(256)))
        mutated = bytearray(gzip.compress(bytes(data), 1, mtime=0))
        if trial % 3 == 0:
            mutated[draw.randrange(len(mutated))] ^= 1 << draw.randrange(8)
        path.write_bytes(mutated)
        try:
            load(tmp_path)
        except DataError:
            refused += 1
    assert 125 < refused < 250
