"""Reading files that somebody else may have made: never waits, never reads without end, always says what is wrong.

A run's folder may hold anything in the place of a file: a pipe, a device, a folder, a link to itself, megabytes of
nonsense. Whoever looks at many runs must come past such a one.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from launcher.errors import Unreadable

MOST_BYTES = 64 << 20
"""Larger files are none of the launcher's own."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
)


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        Unreadable: something else stands there.
        OSError: it is missing or cannot be opened.
    """
    # Opening some devices acts on them, so the kind is looked at first; and once more in case it was changed since.
    _require_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return what a regular file holds.

    Raises:
        Unreadable: something else stands there, or it is larger than ``most`` bytes.
        OSError: it is missing or cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise Unreadable(f"{path} holds more than {most >> 20} MiB")
        return file.read(most)


def read_start(path: Path, size: int) -> bytes:
    """Return the first bytes of a regular file; nothing where there is none that can be read."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read(size)
    except (OSError, Unreadable):
        return b""


def read_end(path: Path, size: int) -> bytes:
    """Return the last bytes of a regular file; nothing where there is none that can be read."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
    except (OSError, Unreadable):
        return b""


def read_object(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None when there is no such file.

    Raises:
        Unreadable: what stands there cannot be read, or is no JSON object.
    """
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise Unreadable(f"{path} is a link to nothing") from None
        return None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    value = parse_json(data)
    if not isinstance(value, dict):
        raise Unreadable(f"{path} holds no JSON object" if data.strip() else f"{path} is empty")
    return value


def parse_json(data: bytes) -> Any:
    """Return a JSON value; None also for what is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    what = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise Unreadable(f"{path} is {what} in the place of a file")
