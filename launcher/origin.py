"""What was the state of things at submission: code version, versions, who, where, with what command."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.secret_looks import mask
from launcher.user import user_name


def describe_origin() -> dict[str, Any]:
    """Return the facts about this submission that belong into its record."""
    return {
        "command": shlex.join(["llavajob", *map(mask, sys.argv[1:])]),
        "folder": str(Path.cwd()),
        "user": user_name(),
        "host": socket.gethostname(),
        "git_commit": git_commit(Path.cwd()),
        "versions": {"llavajob": __version__, "python": platform.python_version()},
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit that a folder's git checkout is at; None outside of one."""
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
