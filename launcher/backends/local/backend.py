"""The local backend: no cluster, the same commands. What other processes see and do through a run's folder."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from launcher import processes
from launcher.backends.base import CANCELLED, ENDED, FAILED, BackendState
from launcher.backends.local import gpu_queue
from launcher.backends.local.state import LocalState, latest_plan, load_state
from launcher.doctor import Finding
from launcher.errors import BackendError
from launcher.machine import this_machine
from launcher.plan import Plan
from launcher.plan_text import load_plan, render
from launcher.profiles import Profile
from launcher.run_folder import ENV_RUN, RunFolder, write_json
from launcher.runtime_check import lacking_runtime
from launcher.store import Run

_HELLO_S = 15.0
"""How long a new supervisor may take to write its first state."""


class LocalBackend:
    """Runs everything on this machine, under a detached supervisor per run."""

    suffix = ".yaml"
    sees_files = True

    def render(self, plan: Plan) -> str:
        return render(plan)

    def check(self, plan: Plan) -> list[str]:
        """Find what this machine lacks: the Python that is named, and enough GPUs."""
        missing = lacking_runtime(plan.steps[0].command[0])
        wanted = max((step.gpus_per_node * step.parallel for step in plan.steps), default=0)
        if wanted:
            missing += _lacking_gpus(wanted, gpu_queue.total_gpus(plan.settings["gpus"]))
        return missing

    def where(self, plan: Plan) -> dict[str, str]:
        return this_machine()

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Start the supervisor, detached, and wait for its first sign."""
        if not run.folder.state.exists():
            LocalState().save(run.folder)
        previous = load_state(run.folder).pid
        with (run.folder.root / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher.backends.local.supervisor", str(run.folder.root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, ENV_RUN: str(run.folder.root)}, cwd="/",
            )  # fmt: skip
        deadline = time.monotonic() + _HELLO_S
        while time.monotonic() < deadline:
            pid = load_state(run.folder).pid
            if pid == process.pid and pid != previous:
                return [str(pid)]
            if process.poll() is not None:
                break
            time.sleep(0.02)
        log_tail = (run.folder.root / "supervisor.log").read_text(encoding="utf-8", errors="replace")[-500:]
        raise BackendError("the run's supervisor did not start", log_tail.strip())

    def states(self, runs: Sequence[Run]) -> list[BackendState]:
        return [self._state(run.folder) for run in runs]

    def _state(self, folder: RunFolder) -> BackendState:
        state = load_state(folder)
        if state.state in ENDED or _supervised(state):
            return state.shown()
        # Read once more: the supervisor may have ended between the two looks.
        state = load_state(folder)
        if state.state in ENDED:
            return state.shown()
        return replace(state.shown(), state=FAILED, reason=_why_dead(state, folder))

    def fetch_logs(self, run: Run) -> list[str]:
        return []  # its processes write to the folder that is seen here

    def cancel(self, run: Run) -> BackendState:
        """Ask the supervisor to end the run; where it is dead, end what it left."""
        state = load_state(run.folder)
        who = f"{getpass.getuser()}@{socket.gethostname()}"
        write_json(run.folder.cancel_request, {"by": who, "time": time.time()})
        if _supervised(state):
            _tell(state.pid)
            longest_grace_s = max(step.grace_s for step in load_plan(latest_plan(run.folder)).steps)
            deadline = time.monotonic() + longest_grace_s + _HELLO_S
            while _supervised(state) and time.monotonic() < deadline:
                time.sleep(0.05)
        # A supervisor that is still there by now hangs; it carries the mark and goes with the rest.
        processes.end_all(run.folder.root, 10.0)
        return self._settle(run.folder, who)

    def examine(self, profile: Profile) -> Iterator[Finding]:
        """Look at the Python and the GPUs of this machine."""
        lacking = lacking_runtime(profile.python)
        yield Finding("runtime", lacking[0] if lacking else profile.python, not lacking)
        gpus = gpu_queue.total_gpus(profile.settings["gpus"])
        yield Finding(
            "GPUs", str(gpus) if gpus else "none; recipes run on CPU with --gpus-per-node 0", bool(gpus) or None
        )

    def _settle(self, folder: RunFolder, who: str) -> BackendState:
        state = load_state(folder)
        if state.state not in ENDED:
            state.state, state.ended = CANCELLED, time.time()
            state.reason = f"cancelled by {who}{_kept(state, folder)}"
            state.save(folder)
        return state.shown()


def _supervised(state: LocalState) -> bool:
    return state.pid > 0 and processes.is_alive((state.pid, state.pid_started))


def _tell(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _why_dead(state: LocalState, folder: RunFolder) -> str:
    if not state.pid:
        return "its supervisor never started"
    kept = _kept(state, folder)
    if abs(state.boot_time - processes.boot_time()) > 5.0:
        return f"the machine was restarted{kept}"
    left = len(processes.marked(folder.root))
    leaving = f"; {left} of its processes are still leaving" if left else ""
    return f"its supervisor died (killed?){kept}{leaving}"


def _kept(state: LocalState, folder: RunFolder) -> str:
    steps = folder.stage(state.stage).checkpoint_steps()
    return f"; the state of step {steps[-1]} is kept" if steps else ""


def _lacking_gpus(wanted: int, have: int) -> list[str]:
    if have >= wanted:
        return []
    here = f"this machine has {have}" if have else "this machine has none"
    return [f"{wanted} GPUs are asked for and {here}; on CPU: --gpus-per-node 0, elsewhere: --on PROFILE"]
