"""Starts daemons for an owner, and ends all that came of them once the owner is gone.

PR_SET_PDEATHSIG is lost when a daemon changes its user, and a daemon's double fork hides its children from their
starter. So the keeper makes itself a subreaper: whatever a kept daemon starts, a slurmstepd and a job's own daemons
included, stays below it. Its standard input is a pipe from the owner: the kernel closes it even for a killed owner.

Run as ``keeper.py FOLDER``; requests and answers are lines of JSON, one answer to each request.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import psutil

PR_SET_CHILD_SUBREAPER = 36
# Each waits up to a second for the killed to go.
END_ROUNDS = 30


def bystanders() -> set[int]:
    """The caller and those above it: never part of a bed, though a shell may well carry its SLURM_CONF."""
    return {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}


def strays(folder: Path) -> list[psutil.Process]:
    """Processes that were started with the SLURM_CONF of a folder, whoever started them."""
    marker, spared = str(folder / "slurm.conf"), bystanders()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in spared and process.environ().get("SLURM_CONF") == marker:
                found.append(process)
    return found


def mentions(folder: Path) -> list[psutil.Process]:
    """Processes with a folder in their command line or as their working directory."""
    spared = bystanders()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = (*process.cmdline(), process.cwd())
            if process.pid not in spared and any(f"{folder}/" in f"{text}/" for text in told):
                found.append(process)
    return found


def offspring(process: psutil.Process) -> list[psutil.Process]:
    """Everything below a process."""
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to those that still run."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def end_all(folder: Path, with_strays: bool) -> list[psutil.Process]:
    """Kill what is below this process, again until nothing is left; the processes that would not end."""
    left: list[psutil.Process] = []
    for _ in range(END_ROUNDS):
        left = offspring(psutil.Process()) + (strays(folder) if with_strays else [])
        if not left:
            break
        kill(left)
        psutil.wait_procs(left, timeout=1)
    return left


def reap(*_: object) -> None:
    """Collect every child that ended, adopted ones too."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def spawn(request: dict[str, Any]) -> dict[str, Any]:
    """Start one daemon with its output appended to its log."""
    as_user = {"user": request["user"], "group": request["user"], "extra_groups": []} if request["user"] else {}
    with Path(request["log"]).open("ab") as log:
        try:
            process = subprocess.Popen(
                request["argv"],
                env=request["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **as_user,
            )
        except OSError as error:
            return {"error": str(error)}
    return {"pid": process.pid}


def serve() -> bool:
    """Answer requests until the owner is gone; True when it asked to be outlived."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = {} if request.get("outlive") else spawn(request)
        print(json.dumps(answer), flush=True)
        if request.get("outlive"):
            return True
    return False


def leave(*_: object) -> NoReturn:
    """Answer SIGTERM."""
    raise SystemExit(0)


def main() -> None:
    """Keep the daemons of one folder, and take the folder away with them."""
    folder = Path(sys.argv[1])
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGTERM, leave)
    # A bed kept by hand is ended from a shell that carries its SLURM_CONF, beside others that do: spare those.
    outlive = False
    try:
        outlive = serve()
        while outlive:
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = end_all(folder, with_strays=not outlive)
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"still there: {left}" if left else 0)


if __name__ == "__main__":
    main()
