"""How a file reaches the disk, whole or not at all, and how one is read, up to a size."""

import os
import tempfile
from pathlib import Path

from pmsm.errors import PMSMError


def write_atomic(path: str | Path, data: bytes | str, error: type[PMSMError] = PMSMError) -> None:
    """Write `data` under a temporary name in the folder of `path`, then rename it into place.

    A full disk, a crash or Ctrl-C leaves what stood at `path` untouched and no half-written file behind.

    Raises:
        error: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as cause:
        raise error(
            f"cannot write {str(path)!r}: {cause.strerror}. What stood there before is untouched; "
            f"free some space or choose another folder, then repeat."
        ) from cause
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def read_bounded(path: Path, most_bytes: int, kind: str, error: type[PMSMError] = PMSMError) -> bytes:
    """The bytes of a file whose size is looked at before any of them is read.

    Args:
        kind: what the file should be, for a refusal.

    Raises:
        error: the file cannot be read, or has more than `most_bytes`.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise error(
                f"cannot read {str(path)!r}: {size:,} bytes, {kind} has {most_bytes:,} at most. Copy it "
                f"anew, or remove it."
            )
        return path.read_bytes()
    except OSError as cause:
        raise error(f"cannot read {str(path)!r}: {cause.strerror or cause}.") from cause


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
