"""Which llavajob.yaml holds here: the nearest one upwards that is the user's own.

A profile names the Python that runs jobs, so a file that somebody else put into a folder above, such as /tmp, would
decide what this user runs. As with git's ``safe.directory``, only the user's own files count, and the search ends at
the home folder or the top of the repository.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from launcher import console, paths
from launcher.errors import RequestError

PROJECT_FILE = "llavajob.yaml"


def find_project_file() -> Path | None:
    """Return the project's profiles; a file that is not the user's own is named on stderr and passed by."""
    try:
        here = paths.current()
    except RequestError:
        return None
    for folder in (here, *here.parents):
        path = folder / PROJECT_FILE
        if _is_file(path):
            reason = _why_ignored(path)
            if not reason:
                return path
            hint = f"If you trust it: LLAVAJOB_PROFILES={path}"
            console.say_once(f"{path} is ignored: {reason}. {hint}")
        if _is_top(folder):
            return None
    return None


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _why_ignored(path: Path) -> str:
    """Say why a file is not the user's own; empty when it is."""
    try:
        found = [path.lstat(), path.stat()]
    except OSError as error:
        return str(error.strerror)
    user = os.geteuid()
    for status in found:
        if status.st_uid != user:
            return f"it belongs to user {status.st_uid}, not to you ({user})"
    if found[1].st_mode & stat.S_IWOTH:
        return "everybody may write to it"
    return ""


def _is_top(folder: Path) -> bool:
    """Whether the search ends here: at the home folder or the top of a repository."""
    try:
        is_home = folder == paths.home()
    except RequestError:
        is_home = False
    return is_home or os.path.lexists(folder / ".git")
