"""What is decoded once is mapped ever after, whole or not at all."""

import threading
import time

import numpy as np
import pytest

from pmsm.ann.data import store as store_module
from pmsm.ann.data.store import MAX_MEMORY_BYTES, as_tensor, in_threads, store, stored
from pmsm.errors import DataError

BLOCKS = [np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(3, dtype=np.uint8).reshape(1, 3) + 100]


def test_blocks_are_kept_in_order_and_mapped(cache):
    array = store("toy", "key", "uint8", (3, 3), lambda: iter(BLOCKS))
    assert np.array_equal(array, np.concatenate(BLOCKS))
    assert isinstance(array, np.memmap)
    assert np.array_equal(stored("toy", "key", "uint8", (None, 3)), array)


@pytest.mark.parametrize("dtype, shape", [("int8", (3, 3)), ("uint8", (4, 3)), ("uint8", (3, 3, 1))])
def test_another_shape_or_type_is_not_taken(cache, dtype, shape):
    store("toy", "key", "uint8", (3, 3), lambda: iter(BLOCKS))
    assert stored("toy", "key", dtype, shape) is None
    assert stored("toy", "other", "uint8", (3, 3)) is None


def test_a_set_larger_than_memory_is_mapped_as_a_tensor_that_is_only_read(cache):
    store("large", "key", "uint8", (3, 3), lambda: iter(BLOCKS))
    shape = (2 * MAX_MEMORY_BYTES // 1024 + 1, 1024)
    with (cache / "large-key.npy").open("wb") as file:  # a hole: it takes no space on the disk
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + shape[0] * shape[1])
    array = stored("large", "key", "uint8", (None, 1024))
    assert array is not None
    assert not array.flags.writeable
    assert as_tensor(array)[[0, -1]].sum() == 0


def test_a_decoder_that_fails_leaves_nothing_behind(cache):
    def blocks():
        yield BLOCKS[0]
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        store("toy", "key", "uint8", (3, 3), blocks)
    assert list(cache.iterdir()) == []


def test_a_set_for_neither_cache_nor_memory_is_refused_before_it_is_decoded(cache):
    shape = (MAX_MEMORY_BYTES * 2**20, 3)  # more than any disk has
    with pytest.raises(DataError, match="Set the environment variable PMSM_CACHE"):
        store("toy", "key", "uint8", shape, lambda: iter(BLOCKS))


def test_threads_keep_the_order_and_do_not_run_far_ahead(monkeypatch):
    started, lock = [], threading.Lock()

    def work(task: int) -> int:
        with lock:
            started.append(task)
        time.sleep(0.001 * (task % 3))
        return task * task

    results = in_threads(work, range(200))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    threads = store_module.os.cpu_count() or 1
    assert len(started) <= 3 + 3 * threads + 1
    assert list(results) == [task * task for task in range(3, 200)]


def test_an_error_in_a_thread_arrives():
    def work(task: int) -> int:
        if task == 5:
            raise DataError("damaged")
        return task

    with pytest.raises(DataError, match="damaged"):
        list(in_threads(work, range(100)))
