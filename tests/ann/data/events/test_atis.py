"""40-bit events, written here from their description, good and hostile."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events import check_events, read_atis
from pmsm.errors import DataError


def encode(x: int, y: int, t: int, p: bool) -> bytes:
    return (x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big")


def write(path, *rows):
    path.write_bytes(b"".join(encode(*row) for row in rows))
    return path


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 33), st.integers(0, 33), st.integers(0, 2**23 - 1), st.booleans()),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_are_read_as_they_were_written(tmp_path, rows):
    rows.sort(key=lambda row: row[2])
    assert read_atis(write(tmp_path / "a.bin", *rows)).tolist() == rows


def test_bits_lie_where_the_description_puts_them(tmp_path):
    path = tmp_path / "a.bs2"
    path.write_bytes(bytes([7, 9, 0x80 | 0x01, 0x02, 0x03]))
    assert read_atis(path).tolist() == [(7, 9, 0x010203, True)]


def test_an_overflow_mark_delays_all_that_follow_and_is_no_event(tmp_path):
    path = write(
        tmp_path / "a.bin",
        (1, 1, 8000, True),
        (0, 240, 5, False),
        (2, 2, 10, True),
        (0, 240, 0, False),
        (3, 3, 1, False),
    )
    assert read_atis(path).tolist() == [
        (1, 1, 8000, True),
        (2, 2, 10 + 2**13, True),
        (3, 3, 1 + 2 * 2**13, False),
    ]


def test_a_larger_sensor_takes_larger_coordinates(tmp_path):
    path = write(tmp_path / "a.bin", (239, 179, 0, True))
    assert read_atis(path, (240, 180, 2)).tolist() == [(239, 179, 0, True)]


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", r"byte 0: it has 0 bytes"),
        (encode(1, 1, 1, True) + b"\x01\x02", r"byte 5: the last event has 2 of 5 bytes"),
        (encode(1, 1, 1, True) + encode(34, 1, 1, True), r"byte 5: event 1 has x = 34, outside \[0, 34\)"),
        (encode(1, 34, 1, True), r"byte 0: event 0 has y = 34"),
        (encode(1, 240, 1, True), r"byte 0: it holds no event"),
        (
            encode(1, 1, 7, True) + encode(0, 1, 3, True),
            r"byte 5: time goes backwards at event 1, from 7 to 3 .*disorder='sort'",
        ),
        # The mark is left out of the count of events, not of the bytes.
        (encode(0, 240, 0, True) + encode(99, 1, 3, True), r"byte 5: event 0 has x = 99"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_name_and_byte(tmp_path, data, text):
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot read '.*bad\.bin', {text}"):
        read_atis(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_atis(tmp_path / "absent.bin")
    with pytest.raises(DataError, match="there is no such file"):
        read_atis(tmp_path)  # a folder; a pipe, which would never end, is refused in the same line


def test_disorder_is_sorted_on_demand_and_equal_times_stay_in_order(tmp_path):
    path = write(tmp_path / "a.bin", (1, 1, 9, True), (2, 2, 3, True), (3, 3, 9, False))
    assert [row[0] for row in read_atis(path, disorder="sort").tolist()] == [2, 1, 3]
    with pytest.raises(DataError, match="no disorder='drop'"):
        read_atis(path, disorder="drop")


@given(data=st.binary(min_size=1, max_size=60))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_recording_or_a_refusal_with_a_byte(tmp_path, data):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    try:
        check_events(read_atis(path, (240, 180, 2), disorder="sort"), (240, 180, 2))
    except DataError as refusal:
        told = str(refusal)
    else:
        told = ""
    assert not told or "a.bin', byte " in told


def test_a_file_costs_memory_in_proportion_only(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(5 * 20_000))
    tracemalloc.start()
    read_atis(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * path.stat().st_size


def test_real_recordings_of_nmnist_are_read(shared_data):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = shared_data / "nmnist-sample"
    if not folder.is_dir():
        pytest.skip("needs the sample of N-MNIST")
    from pmsm.ann.data.events import decode_atis

    cell = parquet.read_table(folder / "train.parquet")["events"][0].as_py()
    events = decode_atis(cell["bytes"], cell["path"])
    assert len(events) == len(cell["bytes"]) // 5 == 4681
    # By hand from the bytes 12 10 80 03 7d.
    assert (cell["bytes"][:5].hex(), events[0].tolist()) == ("121080037d", (18, 16, 893, True))
    assert np.all(np.diff(events["t"]) >= 0)
