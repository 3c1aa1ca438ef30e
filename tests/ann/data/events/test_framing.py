"""Framing against a slow loop that counts event by event, and its laws."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsm.ann.data.events import EVENT, SOUND, Framing, to_frames
from pmsm.ann.data.events.framing import frame_events
from pmsm.errors import DataError

SIZE = (4, 6, 2)

rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(-20, 60), st.booleans()), max_size=25
).map(lambda rows: sorted(rows, key=lambda row: row[2]))


def recording(rows) -> np.ndarray:
    return np.array(list(rows), EVENT)


def spans(rows, way: str, number: int, overlap, include_incomplete: bool) -> list[tuple]:
    """From and to of each frame, times or places in the list of events, without floating point."""
    times = [row[2] for row in rows]
    begin, length = 0, len(rows)
    if way in ("time_window", "n_time_bins"):
        begin, length = (times[0], times[-1] + 1 - times[0]) if rows else (0, 0)
    if way in ("n_time_bins", "n_event_bins"):
        more = int(Fraction(overlap) * length / number)
        edges = [begin + i * length // number for i in range(number + 1)]
        return [(low, high + more) for low, high in pairwise(edges)]
    found, low = [], begin
    while low + number <= begin + length or not found:
        found.append((low, low + number))
        low += number - overlap
    if include_incomplete and found[-1][1] < begin + length:
        found.append((low, low + number))
    return found


def slow(rows, way: str, number: int, *, overlap=0, include_incomplete=False, size=SIZE, downsample=1):
    width, height, polarities = size
    found = spans(rows, way, number, overlap, include_incomplete)
    frames = np.zeros((len(found), polarities, height // downsample, width // downsample), int)
    for frame, (low, high) in enumerate(found):
        for place, (x, y, t, p) in enumerate(rows):
            if low <= (t if "time" in way else place) < high:
                frames[frame, int(p and polarities == 2), y // downsample, x // downsample] += 1
    return frames


@pytest.mark.parametrize("way", ["time_window", "event_count"])
@given(rows=rows, number=st.integers(1, 30), overlap=st.integers(0, 29), include_incomplete=st.booleans())
@settings(max_examples=60)
def test_windows_agree_with_a_slow_loop(way, rows, number, overlap, include_incomplete):
    options = dict(overlap=min(overlap, number - 1), include_incomplete=include_incomplete)
    frames = to_frames(recording(rows), SIZE, **{way: number}, **options)
    assert np.array_equal(frames, slow(rows, way, number, **options))


@pytest.mark.parametrize("way", ["n_time_bins", "n_event_bins"])
@given(rows=rows, number=st.integers(1, 9), overlap=st.sampled_from([0, 0.25, 0.5]))
@settings(max_examples=60)
def test_bins_agree_with_a_slow_loop(way, rows, number, overlap):
    frames = to_frames(recording(rows), SIZE, **{way: number}, overlap=overlap)
    assert np.array_equal(frames, slow(rows, way, number, overlap=overlap))


@given(rows=rows, number=st.integers(1, 9), polarities=st.sampled_from([1, 2]), side=st.sampled_from([1, 2]))
@settings(max_examples=60)
def test_merged_polarities_and_pooled_pixels_agree_with_a_slow_loop(rows, number, polarities, side):
    size = (*SIZE[:2], polarities)
    frames = to_frames(recording(rows), size, n_time_bins=number, downsample=side)
    assert np.array_equal(frames, slow(rows, "n_time_bins", number, size=size, downsample=side))


@pytest.mark.parametrize(
    "options",
    [
        dict(n_time_bins=7),
        dict(n_event_bins=7),
        dict(time_window=9, include_incomplete=True),
        dict(event_count=4, include_incomplete=True),
    ],
)
@given(rows=rows)
@settings(max_examples=30)
def test_without_overlap_no_event_is_lost_or_counted_twice(options, rows):
    assert to_frames(recording(rows), SIZE, **options).sum() == len(rows)


@given(rows=rows, start=st.integers(-30, 70), length=st.integers(1, 50))
@settings(max_examples=60)
def test_only_events_between_start_and_end_time_count(rows, start, length):
    options = dict(start_time=start, end_time=start + length)
    within = [row for row in rows if start <= row[2] < start + length]
    for way in ("n_time_bins", "n_event_bins"):
        assert to_frames(recording(rows), SIZE, **{way: 3}, **options).sum() == len(within)
    # Bins of time stand on start and end, not on the events between them.
    first = to_frames(recording(rows), SIZE, n_time_bins=2, **options)[0]
    assert first.sum() == sum(row[2] < start + length // 2 for row in within)


def test_frames_of_equal_options_are_equal_for_all_dtypes_of_the_recording():
    events = np.array([(1, 2, 3, 1), (0, 5, 9, 0)], EVENT)
    wide = events.astype([("x", "i8"), ("y", "i8"), ("t", "i8"), ("p", "i8")])
    one, other = (to_frames(recording, SIZE, n_time_bins=3) for recording in (events, wide))
    assert np.array_equal(one, other)
    assert one.dtype == np.int16


def test_channel_0_is_off_and_1_is_on():
    frames = to_frames(recording([(1, 2, 0, False), (3, 4, 0, True)]), SIZE, n_time_bins=1)
    assert np.argwhere(frames).tolist() == [[0, 0, 2, 1], [0, 1, 4, 3]]


def test_of_a_cochlea_only_channels_are_pooled():
    events = np.array([(0, 0, True), (699, 5, True), (698, 9, True)], SOUND)
    frames = to_frames(events, (700, 1, 1), n_event_bins=1, downsample=5)
    assert frames.shape == (1, 1, 1, 140)
    assert frames.flatten()[[0, 139]].tolist() == [1, 2]


def test_a_dvs128_is_pooled_from_128_to_32():
    events = recording([(127, 0, 0, True), (124, 3, 1, True), (123, 4, 2, True)])
    frames = to_frames(events, (128, 128, 2), n_time_bins=1, downsample=4)
    assert frames.shape == (1, 2, 32, 32)
    assert (frames[0, 1, 0, 31], frames[0, 1, 1, 30]) == (2, 1)


def test_times_from_1970_and_long_recordings_do_not_overflow():
    events = recording([(0, 0, -(2**53), True), (1, 1, 2**53, True)])
    frames = to_frames(events, SIZE, n_time_bins=1000)
    assert np.argwhere(frames)[:, 0].tolist() == [0, 999]


def test_a_count_beyond_the_dtype_is_refused_and_not_wrapped():
    events = recording([(0, 0, t, True) for t in range(300)])
    assert to_frames(events, SIZE, n_time_bins=1).max() == 300
    assert to_frames(events, SIZE, n_time_bins=2, dtype="uint8").max() == 150
    with pytest.raises(DataError, match="frame 0 has 300 events at one pixel, uint8 counts to 255"):
        to_frames(events, SIZE, n_time_bins=1, dtype="uint8")


def test_frames_that_would_fill_the_memory_are_refused_before_they_are_made():
    events = recording([(0, 0, 0, True), (0, 0, 2**50, True)])
    with pytest.raises(DataError, match=r"1,125,899,906,842,625 frames .* 2,147,483,648 are allowed"):
        to_frames(events, SIZE, time_window=1)
    with pytest.raises(DataError, match="are allowed for a recording"):
        to_frames(events, SIZE, n_event_bins=2**40)


def test_an_event_outside_the_sensor_is_refused():
    with pytest.raises(DataError, match="event 0 has x = 4"):
        to_frames(recording([(4, 0, 0, True)]), SIZE, n_time_bins=1)


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(), "exactly one of time_window, event_count, n_time_bins, n_event_bins, got none"),
        (dict(n_time_bins=1, time_window=5), "got time_window, n_time_bins"),
        (dict(n_time_bins=0), "needs n_time_bins as a whole number from 1 to 2\\^53, got 0"),
        (dict(time_window=0.5), "needs time_window as a whole number"),
        (dict(event_count=2**60), "needs event_count as a whole number"),
        (dict(n_time_bins=1, downsample=0), "needs downsample as a whole number"),
        (dict(n_time_bins=1, start_time=5, end_time=5), "start_time < end_time, got 5 and 5"),
        (dict(time_window=5, overlap=5), r"overlap as a whole number of microseconds in \[0, 5\), got 5"),
        (dict(event_count=5, overlap=0.5), r"overlap as a whole number of events in \[0, 5\), got 0\.5"),
        (dict(n_time_bins=5, overlap=1), r"overlap in \[0, 1\), a part of a bin, got 1"),
        (dict(n_time_bins=5, overlap=float("nan")), "got nan"),
        (dict(time_window=5, overlap=float("inf")), "got inf"),
        (dict(n_time_bins=5, dtype="float32"), "no dtype='float32' for counts"),
    ],
)
def test_options_outside_their_range_are_refused(options, text):
    with pytest.raises(DataError, match=text):
        Framing(**options)


def test_a_downsample_that_does_not_divide_the_sensor_is_refused():
    with pytest.raises(DataError, match="must divide width and height, got 4 for 34 x 34"):
        frame_events(recording([]), (34, 34, 2), Framing(n_time_bins=1, downsample=4))


def test_merging_needs_no_other_sensor_size():
    events = recording([(1, 2, 0, False), (1, 2, 1, True)])
    frames = frame_events(events, SIZE, Framing(n_time_bins=1, merge_polarities=True))
    assert np.array_equal(frames, to_frames(events, (*SIZE[:2], 1), n_time_bins=1))
