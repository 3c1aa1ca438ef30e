"""Pickles are read as data, and whatever else they could be is refused."""

import hashlib
import pickle
import pickletools
import random
import tracemalloc

import numpy as np
import pytest

from pmsm.ann.data.cifar import CIFAR10, CIFAR100
from pmsm.ann.data.pickles import MAX_OPERATIONS, read_pickle
from pmsm.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
BATCH = {
    "batch_label": "training batch 1 of 5",
    "labels": [6, 9, 9, 4, 1, 300],
    "data": PIXELS,
    "filenames": [f"leptodactylus_pentadactylus_s_00000{i}.png" for i in range(6)],
}


COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
vehicles_1 vehicles_2
"""


class Bomb:
    """Whoever unpickles it runs code."""

    ran = False

    def __reduce__(self):
        return (setattr, (Bomb, "ran", True))


def test_a_batch_comes_back_as_it_was_written(pickled):
    found = read_pickle(pickled(BATCH), "batch")
    assert np.array_equal(found["data"], PIXELS)
    assert found["labels"] == BATCH["labels"]
    assert found["filenames"] == [name.encode() for name in BATCH["filenames"]]


def test_the_tests_write_byte_for_byte_what_the_authors_of_cifar_wrote(pickled):
    names = list(CIFAR10.classes)
    meta = pickled({"num_cases_per_batch": 10_000, "label_names": names, "num_vis": 3072})
    # Of batches.meta in the official archive, as torchvision 0.28 checks it.
    assert hashlib.md5(meta).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"
    assert read_pickle(meta, "batches.meta")["label_names"] == [name.encode() for name in names]
    meta = pickled({"fine_label_names": list(CIFAR100.classes), "coarse_label_names": COARSE.split()})
    assert hashlib.md5(meta).hexdigest() == "7973b15100ade9c7d40fb424638fde48"  # and of CIFAR-100's meta


def test_arrays_are_written_as_pickle_itself_reads_them(pickled):
    found = pickle.loads(pickled(BATCH), encoding="latin-1")
    assert np.array_equal(found["data"], PIXELS)
    assert found["labels"] == BATCH["labels"]


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_refused_and_never_run(protocol):
    with pytest.raises(DataError, match="nothing in them is ever executed"):
        read_pickle(pickle.dumps({"data": Bomb()}, protocol=protocol), "bomb")
    assert not Bomb.ran


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(U\x02lstR.",
        b"cbuiltins\neval\n(U\x011tR.",
        b"(U\x02lsios\nsystem\n.",
        b"cnumpy\nload\nU\x01x\x85R.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nndarray\n)R.",
        b"cnumpy\nndarray\n)\x81.",
        b"\x82\x01.",
        b"P1\n.",
    ],
    ids=["system", "eval", "INST", "load", "scalar", "ndarray", "NEWOBJ", "EXT1", "PERSID"],
)
def test_every_way_to_name_code_is_refused(code):
    with pytest.raises(DataError, match="cannot read 'toy', byte"):
        read_pickle(b"\x80\x02}U\x01a" + code[:-1] + b"s.", "toy")


@pytest.mark.parametrize(
    "change, text",
    [
        ((b"u1", b"O8"), "calls what is no array"),
        ((b"M\x00\x0c", b"M\x01\x0c"), "shape, type and length"),
        ((b"K\x06M\x00\x0c", b"J\x00\x00\x00\x80M\x00\x0c"), "shape, type and length"),
        ((b"b\x89T", b"b\x88T"), "shape, type and length"),
        ((b"\x80\x02}", b"\x80\x04}"), "protocol 4, not 2"),
    ],
    ids=["objects", "longer", "negative", "by columns", "protocol"],
)
def test_an_array_that_is_not_what_it_says_is_refused(pickled, change, text):
    data = pickled(BATCH)
    assert data.count(change[0]) >= 1
    with pytest.raises(DataError, match=text):
        read_pickle(data.replace(*change), "batch")


@pytest.mark.parametrize("data", [b"", b".", b"\x80\x02].", b"\x80\x02}(.", b"\x80\x02}}.", b"\x80\x02}.x"])
def test_what_is_not_one_dictionary_is_refused(data):
    with pytest.raises(DataError, match="cannot read 'toy'"):
        read_pickle(data, "toy")


@pytest.mark.parametrize(
    "code",
    [
        b"r\xff\xff\xff\x7f",  # a memo of two thousand million entries
        b"T\xff\xff\xff\x7f",  # a string of two GiB
        b"\x8e" + b"\xff" * 7 + b"\x7f",  # BINBYTES8
        b"\x96" + b"\xff" * 7 + b"\x7f",  # BYTEARRAY8, which `pickle` allocates at once
        b"\x8b\xff\xff\xff\x7f",  # LONG4
        b"(" * 20_000,
    ],
    ids=["memo", "string", "bytes", "bytearray", "long", "marks"],
)
def test_a_small_file_takes_little_memory(code):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_pickle(b"\x80\x02}U\x01a" + code, "bomb")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22


def test_a_file_of_nothing_but_lists_is_refused():
    with pytest.raises(DataError, match="more than 524,288 operations"):
        read_pickle(b"\x80\x02" + b"]" * (MAX_OPERATIONS + 10), "bomb")


def test_deep_nesting_is_no_recursion():
    data = b"\x80\x02}U\x01a" + b"N" + b"\x85" * 100_000 + b"s."
    assert list(read_pickle(data, "deep")) == ["a"]


def test_every_mutation_is_read_or_refused_and_never_run(pickled):
    small = pickled({"labels": [1, 2, 300], "data": PIXELS[:2, :8], "filenames": ["a", "b"]})
    draw = random.Random(0)
    operations = [code.code.encode("latin-1") for code in pickletools.opcodes]
    refused = 0
    for _ in range(600):
        data = bytearray(small)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(data))
            match draw.randrange(4):
                case 0:
                    data[place] ^= 1 << draw.randrange(8)
                case 1:
                    data[place : place + 1] = draw.choice(operations)
                case 2:
                    data[place:place] = draw.choice(operations)
                case _:
                    del data[place : place + draw.randint(1, 8)]
        try:
            found = read_pickle(bytes(data), "mutated")
        except DataError:
            refused += 1
        else:
            assert all(isinstance(key, str) for key in found)
    assert 300 < refused < 600  # most; a flip in pixels or names is no damage that shows
