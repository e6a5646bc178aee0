"""Who may read what a run writes: its folder is private unless its root is shared, and files go by their folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PRIVATE = 0o700


def make_root(root: Path) -> None:
    """Make the folder that runs are kept in, where it is not there: others may look in, but not write."""
    if root.is_dir():
        return
    root.mkdir(parents=True, exist_ok=True)
    # Under a generous umask it would pass for a folder that a group shares.
    with suppress(OSError):
        root.chmod(stat.S_IMODE(root.stat().st_mode) & ~0o022)


def restrict_run_folder(folder: Path) -> None:
    """Close a new run's folder to others; below a root that a group shares, the group keeps its rights."""
    root = folder.parent.stat()
    shared = root.st_mode & (stat.S_IWGRP | stat.S_ISGID) and not root.st_mode & stat.S_IWOTH
    mode = _PRIVATE
    if shared:
        try:
            os.chown(folder, -1, root.st_gid)
            mode |= stat.S_ISGID | (root.st_mode & stat.S_IRWXG)
        except OSError:
            pass  # who is no member of the group cannot share with it
    with suppress(OSError):  # file systems without modes
        folder.chmod(mode)


def file_mode(folder: Path) -> int:
    """Mode of a new file: who may look into its folder may read it."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666 | 0o600


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, each as open as the one that it is made in."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        with suppress(OSError):
            path.chmod(stat.S_IMODE(path.parent.stat().st_mode) & 0o2777 | _PRIVATE)


def umask_of(folder: Path) -> int:
    """The umask with which everything that is made below a folder is as open as the folder."""
    return ~(folder.stat().st_mode | _PRIVATE) & 0o777


def follow_folder(folder: Path) -> None:
    """Have this process, and all that it starts, make files as open as a run's folder."""
    with suppress(OSError):
        os.umask(umask_of(folder))


@contextmanager
def umask_like(folder: Path) -> Iterator[None]:
    """Do the same for a while."""
    before = os.umask(umask_of(folder))
    try:
        yield
    finally:
        os.umask(before)
