"""Downloads come whole and checked, or not at all."""

import gzip
import hashlib
import http.server
import threading
from dataclasses import replace
from functools import partial

import pytest

from pmsm.ann.data import load
from pmsm.ann.data.download import REMOTES, Remote, download
from pmsm.errors import DataError

FILES = {"a.gz": b"first file " * 1000, "b.gz": b"second"}


def remote(url: str, files: dict[str, bytes] = FILES) -> dict[str, Remote]:
    known = {name: (len(data), hashlib.md5(data).hexdigest()) for name, data in files.items()}
    return {"toy": Remote(url, known)}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path):
    """A server on this machine; gives its folder and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_files_arrive_whole_with_progress(site, tmp_path):
    told = []
    target = download(
        "toy", tmp_path / "new" / "set", progress=lambda *pair: told.append(pair), remotes=remote(site[1])
    )
    assert {path.name: path.read_bytes() for path in target.iterdir()} == FILES
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_what_is_there_already_is_not_fetched_again(site, tmp_path):
    download("toy", tmp_path / "set", remotes=remote(site[1]))
    for name in FILES:
        (site[0] / name).unlink()
    download("toy", tmp_path / "set", remotes=remote(site[1]))


def test_a_file_url_is_a_mirror(site, tmp_path):
    download("toy", tmp_path / "set", remotes=remote(site[0].as_uri() + "/"))
    assert (tmp_path / "set" / "b.gz").read_bytes() == FILES["b.gz"]


@pytest.mark.parametrize(
    "sent, text",
    [
        (b"first FILE " * 1000, "MD5"),
        (b"short", "5 bytes instead of 11,000"),
        (bytes(2**22), "or more instead"),
    ],
    ids=["other", "short", "endless"],
)
def test_what_is_not_the_official_file_is_not_kept(site, tmp_path, sent, text):
    (site[0] / "a.gz").write_bytes(sent)
    with pytest.raises(DataError, match=rf"a\.gz sent is not the official file: .*{text}"):
        download("toy", tmp_path / "set", remotes=remote(site[1]))
    assert list((tmp_path / "set").iterdir()) == []


def test_a_foreign_file_in_its_place_is_not_overwritten(site, tmp_path):
    (tmp_path / "a.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.gz' is there already, but it is not the official file"):
        download("toy", tmp_path, remotes=remote(site[1]))
    assert (tmp_path / "a.gz").read_bytes() == b"mine"


def test_a_missing_page_is_an_error_that_says_what_to_fetch_by_hand(site, tmp_path):
    (site[0] / "b.gz").unlink()
    with pytest.raises(
        DataError, match=r"cannot download 'b\.gz': .*fetch http.*a\.gz \(MD5 .*b\.gz \(MD5 .*as they"
    ):
        download("toy", tmp_path / "set", remotes=remote(site[1]))


def test_without_a_connection_the_error_names_file_place_and_checksum(tmp_path):
    nowhere = {"cifar10": replace(REMOTES["cifar10"], url="http://127.0.0.1:9/")}  # port 9 answers nobody
    with pytest.raises(
        DataError,
        match=r"cannot download 'cifar-10-python\.tar\.gz'.* \(MD5 c58f3.*\), and put it into",
    ):
        download("cifar10", tmp_path, remotes=nowhere)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_set_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(
        DataError, match="no set 'svhn' to download; choose one of cifar10, cifar100, mnist, fash"
    ):
        download("svhn", tmp_path)


def test_nothing_is_downloaded_unless_asked(tmp_path):
    with pytest.raises(DataError, match=r"pmsm\.ann\.data\.download\(name, directory\)"):
        load(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_the_files_are_those_that_the_readers_look_for():
    from pmsm.ann.data.cifar import CIFAR10, CIFAR100
    from pmsm.ann.data.idx import FILES as IDX

    assert list(REMOTES["cifar10"].files) == [CIFAR10.archive.file]
    assert list(REMOTES["cifar100"].files) == [CIFAR100.archive.file]
    names = sorted(f"{name}.gz" for half in IDX.values() for name in half)
    assert sorted(REMOTES["mnist"].files) == sorted(REMOTES["fashion-mnist"].files) == names


def test_a_packed_file_is_kept_as_it_came(site, tmp_path):
    data = gzip.compress(b"pixels")
    (site[0] / "c.gz").write_bytes(data)
    download("toy", tmp_path / "set", remotes=remote(site[1], {"c.gz": data}))
    assert (tmp_path / "set" / "c.gz").read_bytes() == data
