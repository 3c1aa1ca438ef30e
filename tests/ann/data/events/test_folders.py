"""The split of sets that come without one."""

from pathlib import Path

import pytest

from pmsm.ann.data.events.folders import split_by_name
from pmsm.errors import DataError

FILES = [[Path(f"set/{name}/{i}.bin") for i in range(count)] for name, count in (("cat", 30), ("dog", 7))]


def test_a_split_takes_its_share_of_each_class_and_loses_nothing():
    train, test = split_by_name(FILES, 0.2, 0)
    assert [len(found) for found in test] == [6, 1]
    for whole, one, other in zip(FILES, train, test, strict=True):
        assert sorted([*one, *other]) == sorted(whole)


def test_a_split_depends_on_seed_and_names_only():
    elsewhere = [[Path("/other/place") / path.relative_to("set") for path in found[::-1]] for found in FILES]
    names = [{(path.parent.name, path.name) for path in found} for found in split_by_name(FILES, 0.2, 0)[1]]
    again = [
        {(path.parent.name, path.name) for path in found} for found in split_by_name(elsewhere, 0.2, 0)[1]
    ]
    assert names == again
    assert split_by_name(FILES, 0.2, 0) != split_by_name(FILES, 0.2, 1)


def test_a_split_is_the_published_one():
    # By sha256sum: of 0/dog/0.bin ... 0/dog/6.bin it is 0/dog/1.bin whose hash is lowest.
    assert split_by_name(FILES[1:], 0.1, 0)[1] == [[Path("set/dog/1.bin")]]


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
def test_a_share_that_leaves_a_half_empty_is_refused(share):
    with pytest.raises(DataError, match="0 < test_share < 1"):
        split_by_name(FILES, share, 0)


def test_a_class_of_one_recording_cannot_be_split():
    with pytest.raises(DataError, match=r"cannot split '.*cat': it holds one recording only"):
        split_by_name([FILES[0][:1]], 0.5, 0)


def test_both_halves_hold_every_class_however_small_the_share():
    for share in (0.001, 0.999):
        assert all(found for half in split_by_name(FILES, share, 0) for found in half)
