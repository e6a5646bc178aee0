"""Letting pods write to the run's folder where submit makes it here, and pods run as another user.

Where the folder of runs belongs to a group of the pods, each run's folder is given to that group as well. Nothing is
opened to anybody else.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

_SUBFOLDERS = ("steps",)
"""What both pods and submit write to: it has to be submit's, or a resume could not clean up there."""
_PODS_OWN = frozenset({"checkpoints"})


def pod_groups(settings: dict[str, Any]) -> list[int]:
    """Groups that the pods of a profile are in, as far as it names them."""
    who = settings["run_as"]
    return [group for group in (who["fs_group"], who["group"]) if group is not None]


def is_other_user(settings: dict[str, Any]) -> bool:
    """Tell whether pods may run as another user than we do, one who is not root."""
    return settings["run_as"]["user"] not in (os.getuid(), 0)


def share_folder(folder: Path, settings: dict[str, Any]) -> bool:
    """Have pods write below a run's folder that was made here.

    Args:
        folder: the run's folder; its parent is the folder of runs.
        settings: what the profile says to Kubernetes, complete.

    Returns:
        False where the pods run as another user, and the folder of runs belongs to no group of theirs.
    """
    if not is_other_user(settings):
        return True
    group = folder.parent.stat().st_gid
    if group not in pod_groups(settings):
        return False
    for name in _SUBFOLDERS:
        (folder / name).mkdir(exist_ok=True)
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in _PODS_OWN]
        _share(Path(place), group, stat.S_IRGRP | stat.S_IWGRP | stat.S_IXGRP | stat.S_ISGID)
        for name in files:
            _share(Path(place, name), group, stat.S_IRGRP)
    return True


def _share(path: Path, group: int, bits: int) -> None:
    """Give one of our files or folders to a group; what pods made is theirs already."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid():
        return
    try:
        if found.st_gid != group:
            os.chown(path, -1, group)
        path.chmod(stat.S_IMODE(found.st_mode) | bits)
    except PermissionError:
        # We are not in that group: pods say what they cannot write.
        return


def not_shared(folder: Path, settings: dict[str, Any]) -> str:
    """What to say where pods run as another user and nothing gives them the right to write."""
    user, groups = settings["run_as"]["user"], pod_groups(settings)
    who = "the image's user" if user is None else f"user {user}"
    cure = f"kubernetes.run_as.user: {os.getuid()}"
    if groups:
        cure += f", or give the folder to their group: chgrp {groups[0]} {folder}; chmod 2775 {folder}"
    return f"pods run as {who} and may not be able to write to {folder}, which is yours. Set {cure}"
