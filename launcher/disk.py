"""Whether a disk is full, for those who have to say why something could not be written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL_BYTES = 16 * 1024
"""With less room than this, a small file cannot be counted on to be written."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def full_disk(folder: Path) -> str:
    """Say in words that the disk of a folder is full; empty where it is not, or cannot be asked."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"no space is left on the disk of {folder}: make room there" if free < _FULL_BYTES else ""
