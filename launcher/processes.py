"""Finding and ending the processes of a run: by the mark in their environment, so that no orphan is missed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from launcher.run_folder import ENV_RUN

_NOTHING: Mapping[str, str] = {}
Identity = tuple[int, float]
"""Process id and start time: together they name one process, because ids are used again."""


def identity(pid: int) -> Identity | None:
    """Return who a process id is now, or None when nobody."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else (pid, process.create_time())
    except psutil.Error:
        return None


def is_alive(who: Identity) -> bool:
    """Tell whether that very process still runs."""
    now = identity(who[0])
    return now is not None and abs(now[1] - who[1]) < 0.05


def boot_time() -> float:
    """When this machine was started, in seconds since the epoch."""
    return float(psutil.boot_time())


def marked(folder: Path, spare: Iterable[int] = (), also: Mapping[str, str] = _NOTHING) -> list[psutil.Process]:
    """Return every process that carries the run's mark: agents, ranks, data workers, orphans.

    Args:
        folder: the run's folder, as it stands in the mark.
        spare: process ids to leave out; this process and its ancestors always are.
        also: more environment variables that must have these values.
    """
    me = psutil.Process()
    left_out = {os.getpid(), *(parent.pid for parent in me.parents()), *spare}
    mark = {ENV_RUN: str(folder), **also}
    return [p for p in psutil.process_iter() if p.pid not in left_out and _carries(p, mark)]


def _carries(process: psutil.Process, mark: Mapping[str, str]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        environment = process.environ()
        return all(environment.get(name) == value for name, value in mark.items())
    except (psutil.Error, OSError):
        return False


def end_all(
    folder: Path,
    grace_s: float,
    spare: Iterable[int] = (),
    polite: bool = True,
    also: Mapping[str, str] = _NOTHING,
) -> int:
    """End every marked process: SIGTERM, then SIGKILL after the grace; return how many had to be killed.

    Runs until none is left, also when processes fork while they are being ended.
    """
    spare = tuple(spare)
    if polite:
        _signal(marked(folder, spare, also), signal.SIGTERM)
    wait_gone(folder, grace_s if polite else 0.0, spare, also)
    killed = 0
    while left := marked(folder, spare, also):
        killed += len(left)
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=2)
    return killed


def wait_gone(folder: Path, most_s: float, spare: Iterable[int] = (), also: Mapping[str, str] = _NOTHING) -> bool:
    """Wait until no marked process is left, at most so long."""
    deadline = time.monotonic() + most_s
    spare = tuple(spare)
    while marked(folder, spare, also):
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
