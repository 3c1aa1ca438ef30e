"""Which set a command line names."""

import pytest

from pmsm.ann.data.events import load_events
from pmsm.errors import DataError


@pytest.mark.parametrize(
    "name, text",
    [
        ("nmnist", "N-MNIST is read from"),
        ("ncaltech101", "N-Caltech101 is read from"),
        ("cifar10dvs", "CIFAR10-DVS is read from"),
        ("dvs128gesture", "DVS128-Gesture is read from"),
        ("shd", "SHD is read from"),
    ],
)
def test_every_set_is_reached_by_its_name_and_says_what_it_expects(tmp_path, name, text):
    with pytest.raises(DataError, match=text):
        load_events(f"{name}:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "nmnist", "nmnist:", "mnist:here", ":here"])
def test_what_names_no_set_is_refused_with_the_names_there_are(spec):
    with pytest.raises(
        DataError, match="Write one of nmnist, ncaltech101, cifar10dvs, dvs128gesture, shd, a colon"
    ):
        load_events(spec)


def test_a_place_may_hold_a_colon(tmp_path):
    with pytest.raises(DataError, match="'here:there' is not a folder"):
        load_events("nmnist:here:there")
