"""Finding and ending the processes of a run: by the mark in their environment, so that no orphan is missed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from launcher.run_folder import ENV_RUN, ENV_RUN_ID, read_json

_NOTHING: Mapping[str, str] = {}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine's start; None when it is gone.

    Together with its id this names one process: ids are used again, and no change of the clock moves the ticks.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_ticks_without_proc(pid)
    # The second field, the command's name in parentheses, may hold anything: fields are counted from its end.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _start_ticks_without_proc(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round((process.create_time() - psutil.boot_time()) * _TICKS_PER_S)
    except psutil.Error:
        return None


def seconds_since_boot(ticks: int) -> float:
    """A process's start in seconds since the machine's start."""
    return ticks / _TICKS_PER_S


def boot_time() -> float:
    """When this machine was started, in seconds since the epoch, by the clock as it is now."""
    return float(psutil.boot_time())


def marked(
    folder: Path, spare: Iterable[int] = (), also: Mapping[str, str] = _NOTHING, run_id: str = ""
) -> list[psutil.Process]:
    """Return every process that carries the run's mark: agents, ranks, data workers, orphans.

    Args:
        folder: the run's folder.
        spare: process ids to leave out; this process and its ancestors always are.
        also: more environment variables that must have these values.
        run_id: the run's identity; empty for runs of versions that had none.
    """
    me = psutil.Process()
    left_out = {os.getpid(), *(parent.pid for parent in me.parents()), *spare}
    mark = Mark(folder, run_id, also)
    return [p for p in psutil.process_iter() if p.pid not in left_out and mark.is_on(p)]


class Mark:
    """What the processes of one run have in their environment."""

    def __init__(self, folder: Path, run_id: str, also: Mapping[str, str] = _NOTHING) -> None:
        self._folder = folder
        self._run_id = run_id
        self._wanted = {**also, ENV_RUN_ID: run_id} if run_id else also
        self._known: dict[tuple[str, int], bool] = {}
        """Folders that users' processes carried, and whether they are the run's: many processes carry the same."""

    def is_on(self, process: psutil.Process) -> bool:
        """Tell whether a process belongs to the run. One that may not be looked at does not."""
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            environment = process.environ()
            user = process.uids().effective
        except (psutil.Error, OSError):
            return False
        carried = environment.get(ENV_RUN)
        if not carried or any(environment.get(name) != value for name, value in self._wanted.items()):
            return False
        if (carried, user) not in self._known:
            self._known[carried, user] = self._is_this_run(Path(carried), user)
        return self._known[carried, user]

    def _is_this_run(self, carried: Path, user: int) -> bool:
        if carried == self._folder:
            return True
        try:
            if carried.samefile(self._folder):  # by a link or another mount
                return True
        except OSError:
            pass
        # The folder was moved, unless the run still is where its processes say: then this folder is a copy of it. A
        # record can be forged with another user's run id; that user's processes are not this folder's.
        try:
            owned = self._folder.stat().st_uid == user
        except OSError:
            return False
        return bool(self._run_id) and owned and (read_json(carried / "run.json") or {}).get("run_id") != self._run_id


def end_all(
    folder: Path,
    grace_s: float,
    spare: Iterable[int] = (),
    polite: bool = True,
    also: Mapping[str, str] = _NOTHING,
    run_id: str = "",
) -> int:
    """End every marked process: SIGTERM, then SIGKILL after the grace; return how many had to be killed.

    Runs until none is left, also when processes fork while they are being ended.
    """
    spare = tuple(spare)
    if polite:
        _signal(marked(folder, spare, also, run_id), signal.SIGTERM)
    wait_gone(folder, grace_s if polite else 0.0, spare, also, run_id)
    killed = 0
    while left := marked(folder, spare, also, run_id):
        killed += len(left)
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=2)
    return killed


def wait_gone(
    folder: Path, most_s: float, spare: Iterable[int] = (), also: Mapping[str, str] = _NOTHING, run_id: str = ""
) -> bool:
    """Wait until no marked process is left, at most so long."""
    deadline = time.monotonic() + most_s
    spare = tuple(spare)
    while marked(folder, spare, also, run_id):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
