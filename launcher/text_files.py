"""Reading a small text file that a person wrote, whatever stands in its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 4 << 20
"""Recipes and profiles are far smaller; a larger file is something else, such as a data set."""
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: Path) -> str:
    """Read a text file; a pipe or a device is never waited for.

    Raises:
        ValueError: with what is wrong with the file, in words.
    """
    try:
        content = _read_bytes(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    for mark, name in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise ValueError(f"cannot be read: it is {name} text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"cannot be read: byte {error.start} (line {line}) is not UTF-8; save it as UTF-8") from None


def _read_bytes(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        kind = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(kind):
            raise ValueError("cannot be read: it is a folder; a file is needed")
        if not stat.S_ISREG(kind):
            raise ValueError("cannot be read: it is a pipe or a device; a regular file is needed")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES >> 20} MiB; recipes and profiles are smaller")
    return content
