"""Bringing files to disk for good, and the system's own error where it fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on disk.

    Raises:
        OSError: the disk failed, or was full after all.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors says about the disk as the ``OSError`` that it was."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        # The system's error number stands only in the text: "... (os error 28)".
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from error
