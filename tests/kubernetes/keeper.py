"""Holds the machine that a Kubernetes bed runs on: namespaces of its own, with all that runs, is mounted and is wired.

It is two processes. The outer one makes the namespaces, waits for their end, and takes the bed's control groups and
folder away: outside of them nothing is mounted below that folder, so nothing else is ever deleted with it. The inner
one is the first process in there, and starts and ends daemons for an owner. Its standard input is a pipe from the
owner: the kernel closes it even for a killed owner. When the inner one ends, the kernel ends every process that came
of it, shims and pods included, and with the last of them go the mounts and the network.

Run as ``-m tests.kubernetes.keeper FOLDER SOCKET``, the socket being that of the relay (see relay.py); requests and
answers are lines of JSON, one answer to each request.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.slurm.keeper import PR_SET_CHILD_SUBREAPER, leave, reap

CGROUPS = Path("/sys/fs/cgroup")
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
# A killed process leaves its control group a moment after it ended.
EMPTY_LIMIT_S = 10.0
CALL_LIMIT_S = 60.0
POLL_S = 0.02


def cgroup_name(folder: Path) -> str:
    """The name of the control group that a bed's pods are in."""
    return f"llavajob-bed-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def cgroups(folder: Path) -> list[Path]:
    """A bed's control groups: one, or one for each controller where the kernel has the first kind of them."""
    name = cgroup_name(folder)
    return [place / name for place in (CGROUPS, *CGROUPS.glob("*/")) if (place / name).is_dir()]


def make_cgroups(folder: Path) -> None:
    """Make the control groups that a bed's pods are put below."""
    first_kind = [place for place in CGROUPS.glob("*/") if (place / "cgroup.procs").exists()]
    for place in [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else first_kind:
        (place / cgroup_name(folder)).mkdir()


def remove_cgroups(folder: Path) -> None:
    """Remove a bed's control groups, once their processes are gone."""
    deadline = time.monotonic() + EMPTY_LIMIT_S
    while (left := cgroups(folder)) and time.monotonic() < deadline:
        for top in left:
            for place, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(place)
        if cgroups(folder):
            time.sleep(POLL_S)


def start(request: dict[str, Any], daemons: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Start a daemon with its output appended to its log."""
    with Path(request["log"]).open("ab") as log:
        daemons[request["start"]] = subprocess.Popen(
            request["argv"],
            env=request["env"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
            pass_fds=request["sockets"],
        )
    return {}


def end(request: dict[str, Any], daemons: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Send a daemon a signal and wait for its end."""
    daemon = daemons[request["end"]]
    daemon.send_signal(request["signal"])
    try:
        daemon.wait(timeout=request["limit_s"])
    except subprocess.TimeoutExpired as error:
        return {"error": str(error)}
    return {}


def call(request: dict[str, Any]) -> dict[str, Any]:
    """Run a command to its end."""
    command = request["call"]
    # Its exit status is for us to collect.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        done = subprocess.run(
            command,
            env=request["env"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CALL_LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        return {"error": str(error)}
    finally:
        signal.signal(signal.SIGCHLD, reap)
        reap()
    if done.returncode:
        return {"error": f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}"}
    return {"out": done.stdout}


def answer(request: dict[str, Any], daemons: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Do what one request asks for."""
    try:
        if "start" in request:
            return start(request, daemons)
        if "end" in request:
            return end(request, daemons)
        if "call" in request:
            return call(request)
        return {"up": [name for name, daemon in daemons.items() if daemon.poll() is None]}
    except OSError as error:
        return {"error": str(error)}


def serve() -> None:
    """Be the first process of the namespaces: answer requests until the owner is gone or wants to be outlived."""
    signal.signal(signal.SIGCHLD, reap)
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(request, daemons)), flush=True)
        while request.get("outlive"):
            signal.pause()


def wait_for_all() -> None:
    """Wait for every child, the adopted first process of the namespaces too: it goes after all others in them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def hold(folder: Path, sock: int) -> None:
    """Run the inner process in new namespaces; clean up when it is gone, or when told to end."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, leave)
    # What is mounted on the host later shows in the bed; nothing of the bed shows on the host.
    made = ("unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "--propagation", "slave")
    inner = (sys.executable, "-m", "tests.kubernetes.keeper")
    try:
        make_cgroups(folder)
        subprocess.run([*made, "--", *inner], pass_fds=[sock])
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait_for_all()
        remove_cgroups(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    hold(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else serve()
