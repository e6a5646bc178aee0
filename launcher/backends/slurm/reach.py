"""Which paths the jobs of a cluster probably do not see: those on this machine's own disk or in its memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from launcher.reach import Reach

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_SHARED = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "vxfs", "wekafs",
})  # fmt: skip
_OWN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run")
_MOUNTS = Path("/proc/self/mountinfo")


class JobReach(Reach):
    """Jobs see what is shared. Only doubts are told: this machine may be the node, and share what others do not."""

    def doubt(self, path: Path) -> str:
        real = _resolved(path)
        kind = _file_system(real, _MOUNTS)
        if kind in _SHARED or kind.startswith("fuse"):
            return ""
        if kind in _IN_MEMORY:
            return f"is in this machine's memory ({kind}): jobs on other nodes do not see it"
        own = next((folder for folder in _own_folders() if real.is_relative_to(folder)), None)
        if own is None:
            return ""
        return f"is below {own}, which each node has for itself (and a job perhaps, too): jobs do not see it"

    def elsewhere(self, path: Path) -> str:
        return f"a folder on a file system that the nodes share, such as {path.name} in your home"


def _own_folders() -> list[Path]:
    named = os.environ.get("TMPDIR", "")
    return [Path(folder) for folder in (*_OWN_FOLDERS, *([named] if os.path.isabs(named) else []))]


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that a path is on, or will be; empty where that cannot be told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        place = Path(_unescaped(fields.split(" ")[4]))
        # Of two mounts at one place the later one is seen.
        if path.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), rest.split(" ")[0]
    return kind


def _unescaped(text: str) -> str:
    r"""Read a path of mountinfo, in which a space stands as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
