"""What a recording is, and what is none."""

import numpy as np
import pytest

from pmsm.ann.data.events import EVENT, SOUND, Recordings, check_events, make_events
from pmsm.errors import DataError

SIZE = (4, 3, 2)


def recording(*rows) -> np.ndarray:
    return np.array(list(rows), EVENT)


def test_the_layout_is_that_of_tonic():
    assert EVENT.names == ("x", "y", "t", "p")
    assert [EVENT[name] for name in EVENT.names] == [np.int16, np.int16, np.int64, np.bool_]
    assert SOUND.names == ("x", "t", "p")


def test_columns_become_a_recording():
    x, y, t, p = (np.arange(3) + i for i in range(4))
    events = make_events(x, y, t, p > 3)
    assert events.tolist() == [(0, 1, 2, False), (1, 2, 3, True), (2, 3, 4, True)]
    assert make_events(x, None, t, p > 3).dtype == SOUND


def test_a_recording_of_the_sensor_is_accepted_and_so_is_an_empty_one():
    check_events(recording((0, 0, -5, True), (3, 2, -5, False), (1, 1, 7, True)), SIZE)
    check_events(recording(), SIZE)
    check_events(np.zeros(2, SOUND), (700, 1, 1))


def test_arrays_of_tonic_with_other_whole_numbers_are_accepted():
    wide = np.dtype([("t", int), ("x", int), ("y", int), ("p", int)])
    check_events(np.array([(5, 3, 2, 1)], wide), SIZE)


@pytest.mark.parametrize(
    "events, text",
    [
        (recording((0, 0, 0, True), (4, 0, 1, True)), r"event 1 has x = 4, outside \[0, 4\)"),
        (recording((0, 3, 0, True)), r"event 0 has y = 3, outside \[0, 3\)"),
        (recording((-1, 0, 0, True)), r"event 0 has x = -1"),
        (recording((0, 0, 9, True), (0, 0, 8, True)), r"backwards at event 1, from 9 to 8 .*np\.argsort"),
        (recording((0, 0, 2**53 + 1, True)), "t must lie within 2\\^53"),
        (np.zeros(3), r"structured array \[n\] .* got float64 \[3\]"),
        (np.zeros((2, 2), EVENT), "structured array"),
        ([1, 2], "got list"),
        (np.zeros(1, SOUND), "need the fields p, t, x, y; this array has x, t, p"),
        (np.zeros(1, [("x", float), ("y", int), ("t", int), ("p", int)]), "'x' must hold whole numbers"),
        (np.full(1, -1, [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "i2")]), "x = -1"),
        (np.array([(0, 0, 0, -1)], [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "i2")]), "Write -1 as 0"),
    ],
)
def test_what_is_no_recording_of_the_sensor_is_refused_with_its_reason(events, text):
    with pytest.raises(DataError, match=text):
        check_events(events, SIZE)


@pytest.mark.parametrize("size", [(4, 3), (0, 3, 2), (4, 3, 3), (4.0, 3, 2), (40_000, 3, 2), [4, 3, 2]])
def test_a_sensor_of_no_size_is_refused(size):
    with pytest.raises(DataError, match=r"sensor_size must be \(W, H, P\)"):
        check_events(recording(), size)


def test_recordings_are_read_on_access_only():
    seen = []

    def read(key):
        seen.append(key)
        return np.zeros(key, EVENT)

    recordings = Recordings([1, 2, 3], read)
    assert (len(recordings), seen) == (3, [])
    assert len(recordings[-1]) == 3
    assert [len(events) for events in recordings[:2]] == [1, 2]
    assert [len(events) for events in recordings] == [1, 2, 3]
    assert seen == [3, 1, 2, 1, 2, 3]
