"""The text at the head of every AEDAT file: which version it is, and where its data begin."""

import re
from pathlib import Path

from pmsm.ann.data.events.source import refuse

VERSION = re.compile(rb"#!AER-DAT(\d\.\d)\r?\n")
END = b"#!END-HEADER"

READERS = {"2.0": "read_aedat2", "3.1": "read_aedat3", "4.0": "read_aedat4"}


def check_version(data: bytes, path: Path | str, version: str) -> int:
    """The byte behind the first line, which must announce `version` ("2.0", "3.1" or "4.0").

    Raises:
        DataError: no AEDAT file, or another version; then with the reader that fits.

    Source: docs.inivation.com, AEDAT file formats, common version header: `#!AER-DATx.y`, CR LF. Without that
    line a file is of version 1.0, which this library does not read.
    """
    found = VERSION.match(data)
    if not found:
        refuse(
            path,
            0,
            f"not AEDAT {version}: it must start with '#!AER-DAT{version}' and a line end, it starts with "
            f"{data[:14]!r}",
        )
    other = found[1].decode()
    if other != version:
        reader = READERS.get(other)
        hint = f"Use pmsm.ann.data.events.{reader}" if reader else f"Readable are {', '.join(READERS)}"
        refuse(path, 9, f"it is AEDAT {other}, not {version}. {hint}")
    return found.end()


def skip_comments(data: bytes, path: Path | str, start: int, *, until_end_line: bool) -> int:
    """Where the data begin: behind the last line of the header, whose lines all start with '#'.

    Args:
        start: the byte behind the version line.
        until_end_line: the header ends with `#!END-HEADER` (3.1); otherwise with its last '#' line (2.0).

    Raises:
        DataError: the header does not end.
    """
    position = start
    while data[position : position + 1] == b"#":
        end = data.find(b"\n", position)
        if end < 0:
            refuse(path, position, "the file ends inside a line of its header. Copy it anew")
        last = data[position:end].rstrip(b"\r") == END
        position = end + 1
        if last:
            return position
    if until_end_line:
        refuse(path, position, f"the header must end with a line {END.decode()!r}, it has none")
    return position
