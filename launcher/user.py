"""Who calls: by name, or by number where the system knows no name, as in containers with an arbitrary user id."""

from __future__ import annotations

import getpass
import os
from pathlib import Path


def user_name() -> str:
    """Return the user's name; its number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())


def owner_name(path: Path) -> str:
    """Return the name of the user that a file belongs to, or the number of a user without one."""
    try:
        return path.owner()
    except KeyError:
        return f"uid {path.stat().st_uid}"
