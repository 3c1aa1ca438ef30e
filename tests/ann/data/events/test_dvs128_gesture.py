"""DVS128-Gesture: lists of trials, tables of labels, and the cuts they ask for."""

import struct

import pytest

from pmsm.ann.data.events import Framing, dvs128_gesture, read_gestures
from pmsm.errors import DataError

HEAD = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
TABLE = "class,startTime_usec,endTime_usec\n1,100,200\n11,200,250\n"


def write_recording(path, times):
    events = b"".join(struct.pack("<Ii", (t % 128) << 17 | 5 << 2 | 2 | 1, t) for t in times)
    packet = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(times), len(times), len(times))
    path.write_bytes(HEAD + packet + events)


@pytest.fixture
def folder(tmp_path):
    """One recording for training and one for testing, an event every 10 microseconds, two gestures each."""
    for half, name in (("train", "user01_led"), ("test", "user24_lab")):
        (tmp_path / f"trials_to_{half}.txt").write_text(f"{name}.aedat\n\n")
        (tmp_path / f"{name}_labels.csv").write_text(TABLE)
        write_recording(tmp_path / f"{name}.aedat", range(0, 400, 10))
    return tmp_path


def test_recordings_are_cut_at_the_stated_times_which_count_from_their_start(folder):
    train, test = dvs128_gesture(folder)
    assert (train.name, train.class_count, train.sensor_size) == ("DVS128-Gesture train", 11, (128, 128, 2))
    assert (train.classes[0], train.classes[10]) == ("hand clapping", "other gestures")
    for half in (train, test):
        assert half.labels.tolist() == [0, 10]
        assert half.recordings[0]["t"].tolist() == list(range(0, 100, 10))
        assert half.recordings[1]["t"].tolist() == list(range(0, 50, 10))
        assert half.recordings[1]["x"][0] == 200 % 128


def test_the_cuts_of_a_recording_do_not_share_memory(folder):
    recordings = dvs128_gesture(folder)[0].recordings
    recordings[0]["t"][:] = 7
    assert recordings[0]["t"].tolist() == list(range(0, 100, 10))


def test_the_set_is_framed_and_pooled_to_32_pixels(folder):
    frames = dvs128_gesture(folder)[0].to_frames(Framing(n_time_bins=4, downsample=4))
    assert frames.frames.shape == (2, 4, 2, 32, 32)
    assert frames.frames.sum((1, 2, 3, 4)).tolist() == [10, 5]


def test_the_folder_inside_is_found(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    folder.rename(outside / "DvsGesture")
    assert len(dvs128_gesture(outside)[0]) == 2


@pytest.mark.parametrize(
    "table, text",
    [
        ("", r"byte 0: it has 0 bytes"),
        ("class,start,end\n1,2,3\n", r"byte 0: its first line must be 'class,startTime_usec,endTime_usec'"),
        ("class,startTime_usec,endTime_usec\n", r"byte 34: it holds no gesture"),
        (TABLE + "1,2\n", r"byte 55: a row must be three whole numbers, .* it is '1,2'"),
        (TABLE + "a,2,3\n", r"byte 55: a row must be three whole numbers"),
        (TABLE + "12,2,3\n", r"byte 55: a row needs class 1 to 11 and 0 <= start < end, it is '12,2,3'"),
        (TABLE + "1,3,3\n", r"byte 55: a row needs"),
        (TABLE + "1,-3,3\n", r"byte 55: a row needs"),
        (TABLE + "1,0," + "9" * 30 + "\n", r"byte 55: a row needs"),
        (TABLE + "1,0," + "9" * 9000 + "\n", r"byte 55: a row must be three whole numbers"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_name_and_byte(tmp_path, table, text):
    path = tmp_path / "user01_led_labels.csv"
    path.write_text(table)
    with pytest.raises(DataError, match=rf"cannot read '.*user01_led_labels\.csv', {text}"):
        read_gestures(path)


def test_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "user01_led_labels.csv"
    path.write_bytes(TABLE.replace("\n", "\r\n").encode())
    assert [(g.path.name, *g[1:]) for g in read_gestures(path)] == [
        ("user01_led.aedat", 0, 100, 200),
        ("user01_led.aedat", 10, 200, 250),
    ]


def test_a_gesture_without_an_event_is_refused_on_access(folder):
    write_recording(folder / "user01_led.aedat", range(0, 150, 10))
    recordings = dvs128_gesture(folder)[0].recordings
    assert len(recordings[0]) == 5
    with pytest.raises(
        DataError, match=r"led\.aedat' has no event from 200 to 250 .*gesture 11; its last .*140"
    ):
        recordings[1]


def test_a_missing_list_is_named_with_what_is_expected(folder):
    (folder / "trials_to_test.txt").unlink()
    with pytest.raises(DataError, match=r"lacks trials_to_test\.txt\. DVS128-Gesture is read from"):
        dvs128_gesture(folder)


def test_a_missing_table_or_recording_is_named(folder):
    (folder / "user01_led.aedat").unlink()
    train, _ = dvs128_gesture(folder)
    with pytest.raises(DataError, match=r"user01_led\.aedat': there is no such file"):
        train.recordings[0]
    (folder / "user01_led_labels.csv").unlink()
    with pytest.raises(DataError, match=r"user01_led_labels\.csv': there is no such file"):
        dvs128_gesture(folder)


@pytest.mark.parametrize("name", ["../secret.aedat", "..\\secret.aedat", "user01_led.txt"])
def test_a_list_leads_nowhere_else(folder, name):
    (folder / "trials_to_train.txt").write_text(name)
    with pytest.raises(DataError, match=r"must list names such as user01_led\.aedat"):
        dvs128_gesture(folder)
