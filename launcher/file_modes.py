"""Who may read what a run writes: its folder is private unless its root is shared, and files go by their folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENV_UMASK = "LLAVAJOB_UMASK"
"""The umask of the shell that submitted, in octal digits: with it a run writes what lies outside of its folder."""
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
    """Mode of a new file, before the umask: who may look into its folder may read it."""
    return stat.S_IMODE(folder.stat().st_mode) & (0o666 if _is_shared(folder) else 0o644) | 0o600


def open_to_group(descriptor: int, folder: Path) -> None:
    """Give a new file in a folder that a group shares the folder's rights, whatever the umask is."""
    if _is_shared(folder):
        with suppress(OSError):  # file systems without modes
            os.fchmod(descriptor, file_mode(folder))


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, each as open as the one that it is made in."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        above = path.parent
        mode = stat.S_IMODE(above.stat().st_mode) & 0o2775 | _PRIVATE
        path.mkdir(mode=mode & 0o777 if _is_shared(above) else mode & 0o755, exist_ok=True)
        if _is_shared(above):
            with suppress(OSError):
                path.chmod(mode)


def open_tree_like(tree: Path, folder: Path) -> None:
    """Make everything in a copied tree as open as the folder that it belongs to; programs stay programs."""
    folders = stat.S_IMODE(folder.stat().st_mode) & 0o2775 | _PRIVATE
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        with suppress(OSError):
            path.chmod(folders if path.is_dir() else file_mode(folder) | (path.stat().st_mode & stat.S_IXUSR))


@contextmanager
def umask_like(folder: Path) -> Iterator[None]:
    """Have this process, and all that it starts, make files as open as a run's folder for a while."""
    before = os.umask(0o077)
    told = os.environ.get(ENV_UMASK)
    os.environ[ENV_UMASK] = told or f"{before:03o}"
    try:
        os.umask(_umask_of(folder, before))
        yield
    finally:
        os.umask(before)
        if told is None:
            del os.environ[ENV_UMASK]


def follow_folder(folder: Path) -> None:
    """Do the same for good."""
    before = os.umask(0o077)
    os.environ.setdefault(ENV_UMASK, f"{before:03o}")
    os.umask(_umask_of(folder, before))


def _umask_of(folder: Path, before: int) -> int:
    """The umask under which new files are as open as a folder; never wider than before unless a group shares it."""
    own = ~(stat.S_IMODE(folder.stat().st_mode) | _PRIVATE) & 0o777
    return own if _is_shared(folder) else own | before


def _is_shared(folder: Path) -> bool:
    """Whether a group shares a folder: what is made in it belongs to the group."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID) and not mode & stat.S_IWOTH
