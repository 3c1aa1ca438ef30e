"""Files are read up to a size; what is written whole or not at all is tested where it is written."""

import pytest

from pmsm.errors import DataError
from pmsm.files import read_bounded


def test_a_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(b"1234")
    assert read_bounded(path, 4, "a picture", DataError) == b"1234"
    with pytest.raises(DataError, match="picture': 4 bytes, a picture has 3 at most"):
        read_bounded(path, 3, "a picture", DataError)


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    with pytest.raises(DataError, match=r"cannot read '.*none': No such file or directory"):
        read_bounded(tmp_path / "none", 1, "a picture", DataError)
