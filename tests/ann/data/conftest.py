"""Small sets in the layouts of the large ones."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder where decoded pixels are kept, of this test alone."""
    monkeypatch.setenv("PMSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class PythonTwo:
    """Writes a dictionary as cPickle of Python 2 did, protocol 2: the operations of CIFAR's own files."""

    def __init__(self) -> None:
        self.kept = 0

    def write(self, value: dict) -> bytes:
        """One file."""
        return b"\x80\x02" + self.code(value) + b"."

    def keep(self) -> bytes:
        """Each container and string goes into the memo."""
        self.kept += 1
        return b"q" + bytes([self.kept]) if self.kept < 256 else b"r" + self.kept.to_bytes(4, "little")

    def code(self, value: object) -> bytes:
        """One value."""
        if isinstance(value, dict):
            start = b"}" + self.keep() + b"("
            return start + b"".join(self.code(key) + self.code(one) for key, one in value.items()) + b"u"
        if isinstance(value, list):
            return b"]" + self.keep() + b"(" + b"".join(self.code(one) for one in value) + b"e"
        if isinstance(value, str):
            data = value.encode()
            return b"U" + bytes([len(data)]) + data + self.keep()
        if isinstance(value, np.ndarray):
            return self.array(value)
        assert isinstance(value, int)
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    def array(self, value: np.ndarray) -> bytes:
        """What an array's __reduce__ gave: a call, and a state."""
        call = b"cnumpy.core.multiarray\n_reconstruct\n" + self.keep() + b"cnumpy\nndarray\n" + self.keep()
        call += b"K\x00\x85" + self.keep() + self.code("b") + b"\x87" + self.keep() + b"R" + self.keep()
        kind = b"cnumpy\ndtype\n" + self.keep() + self.code("u1") + b"K\x00K\x01\x87" + self.keep()
        kind += (
            b"R" + self.keep() + b"(K\x03" + self.code("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
        )
        shape = b"".join(self.code(side) for side in value.shape) + b"\x86" + self.keep()
        pixels = b"T" + value.nbytes.to_bytes(4, "little") + value.tobytes() + self.keep()
        return call + b"(K\x01" + shape + kind + self.keep() + b"b\x89" + pixels + b"t" + self.keep() + b"b"


@pytest.fixture
def pickled() -> Callable[[dict], bytes]:
    """A function that writes a dictionary as CIFAR's authors did."""
    return lambda value: PythonTwo().write(value)


@pytest.fixture
def packed() -> Callable[[dict[str, bytes]], bytes]:
    """A function that packs files of these names into a .tar.gz."""

    def pack(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return gzip.compress(buffer.getvalue(), mtime=0)

    return pack


@pytest.fixture
def coded() -> Callable[..., bytes]:
    """A function that codes pixels [H, W, 3] as a picture."""

    def code(pixels: np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **settings)
        return buffer.getvalue()

    return code
