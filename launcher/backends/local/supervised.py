"""Which process supervises a run, told so that no other process is ever taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from launcher import processes
from launcher.backends.local.state import LocalState
from launcher.run_folder import RunFolder

LOCK_NAME = "supervisor.lock"
_SAME_START_S = 2.0
"""How exactly the version before noted when a supervisor started."""


def find_supervisor(folder: RunFolder, run_id: str, state: LocalState) -> psutil.Process | None:
    """Return the process that a run's state names, if it is this very run's supervisor and still there.

    A process id is used again, a state can be copied with its folder, and anybody may write any id into a file: the
    process must have started when the state says, carry this run's folder and identity, and hold this folder's lock.
    """
    if state.pid <= 0:
        return None
    try:
        process = psutil.Process(state.pid)
    except (psutil.Error, OverflowError):  # a file may hold any number
        return None
    if not _started_then(state):
        return None
    if not _may_be_looked_at(process):
        return process if _owner(Path(f"/proc/{state.pid}")) == _owner(folder.state) else None
    if processes.Mark(folder.root, run_id).is_on(process) and _holds_no_other_lock(state.pid, folder):
        return process
    return None


def _started_then(state: LocalState) -> bool:
    ticks = processes.start_ticks(state.pid)
    if ticks is None:
        return False
    if not state.pid_started:
        return ticks == state.pid_ticks
    # A state of the version before. Both its times are of the same clock, so their difference is not.
    return abs(processes.seconds_since_boot(ticks) - (state.pid_started - state.boot_time)) < _SAME_START_S


def _may_be_looked_at(process: psutil.Process) -> bool:
    """Tell whether a process shows its environment: another user's does not."""
    try:
        process.environ()
    except psutil.AccessDenied:
        return False
    except (psutil.Error, OSError):
        return True
    return True


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _holds_no_other_lock(pid: int, folder: RunFolder) -> bool:
    """Tell a moved run's supervisor from that of the run whose copy this folder is: a copied lock is another file."""
    try:
        mine = (folder.root / LOCK_NAME).stat()
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return True
    for descriptor in descriptors:
        try:
            if LOCK_NAME not in Path(os.readlink(descriptor)).name:
                continue
            held = descriptor.stat()
        except OSError:
            continue
        # A lock that was deleted went with a folder that was moved to another file system.
        if held.st_nlink > 0 and not os.path.samestat(held, mine):
            return False
    return True
