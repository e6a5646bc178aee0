"""The local backend: no cluster, the same commands. What other processes see and do through a run's folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import psutil

from launcher import asking, console, locks, processes
from launcher.backends.base import CANCELLED, ENDED, BackendState
from launcher.backends.local import gpu_queue
from launcher.backends.local.judge import HELLO_S, elsewhere, is_supervised, judge, kept_state
from launcher.backends.local.state import LocalState, latest_plan, load_state, reserve_file
from launcher.backends.local.supervised import LOCK_NAME, find_supervisor
from launcher.disk import NO_ROOM, full_disk
from launcher.doctor import Finding
from launcher.errors import BackendError, RequestError, Unreadable
from launcher.file_modes import umask_like
from launcher.machine import this_machine
from launcher.plan import Plan
from launcher.plan_text import load_plan, render
from launcher.profiles import Profile
from launcher.reach import Reach
from launcher.run_folder import ENV_RUN, ENV_RUN_ID, RunFolder, write_json
from launcher.runtime_check import ask_runtime, lacking_runtime
from launcher.secret_values import lacking_secrets, secret_values
from launcher.store import Run, submission_lock
from launcher.user import user_name

_UNKNOWN_GRACE_S = 60.0
"""How long a run may take to save where its plan does not say."""


class LocalBackend:
    """Runs everything on this machine, under a detached supervisor per run."""

    suffix = ".yaml"
    sees_files = True

    def render(self, plan: Plan) -> str:
        return render(plan)

    def check(self, plan: Plan) -> list[str]:
        """Find what this machine lacks: the Python that is named, and enough GPUs."""
        missing = lacking_runtime(plan.steps[0].command[0]) + lacking_secrets(plan.settings)
        wanted = max((step.gpus_per_node * step.parallel for step in plan.steps), default=0)
        if wanted:
            missing += _lacking_gpus(wanted, gpu_queue.total_gpus(plan.settings["gpus"]))
        return missing

    def where(self, plan: Plan) -> dict[str, str]:
        return this_machine()

    def reach(self, profile: Profile) -> Reach:
        return Reach()

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Start the supervisor, detached, and wait for its first sign; a supervisor that gives none is ended."""
        folder, secrets = run.folder.root, secret_values(plan.settings)
        if locks.is_held(folder / LOCK_NAME):
            raise BackendError("this run has a supervisor already", f"See: llavajob status {run.name}")
        # What a supervisor that was killed left behind would write beside the new attempt.
        left = processes.marked(folder, run_id=plan.run_id)
        if left:
            console.say(f"Ending {len(left)} processes that an earlier attempt left ...")
            processes.end_all(folder, max(step.grace_s for step in plan.steps), run_id=plan.run_id)
        if not run.folder.state.exists():
            LocalState().save(run.folder)
        with umask_like(folder), (folder / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher.backends.local.supervisor", str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **secrets, ENV_RUN: str(folder), ENV_RUN_ID: plan.run_id}, cwd="/",
            )  # fmt: skip
        try:
            if _has_spoken(run, process):
                return [str(process.pid)]
            _end(run, process)
        except KeyboardInterrupt:
            _end(run, process)
            interrupted = BackendError("interrupted; nothing of it is left")
            interrupted.exit_code = 130
            raise interrupted from None
        except BaseException:
            _end(run, process)
            raise
        log_tail = (folder / "supervisor.log").read_text(encoding="utf-8", errors="replace")[-500:]
        raise BackendError("the run's supervisor did not start", full_disk(folder) or log_tail.strip())

    def states(self, runs: Sequence[Run]) -> list[BackendState]:
        return [asking.judge(partial(judge, run)) for run in runs]

    def fetch_logs(self, run: Run) -> list[str]:
        return []  # its processes write to the folder that is seen here

    def cancel(self, run: Run) -> BackendState:
        """Ask the supervisor to end the run; where it is dead, end what it left."""
        _wait_sent(run)
        if not run.folder.record.exists():
            raise RequestError(f"{run.name} was not sent after all; nothing of it is left")
        state = _readable_state(run.folder)
        away = elsewhere(run, state)
        if away:
            raise RequestError(f"{run.name} {away}", f"There: llavajob cancel {run.name}")
        who = f"{user_name()}@{socket.gethostname()}"
        _request_cancel(run.folder, who)
        supervisor = find_supervisor(run.folder, run.run_id, state)
        if supervisor is not None:
            _tell(supervisor)
            deadline = time.monotonic() + _longest_grace_s(run.folder) + HELLO_S
            while is_supervised(run, state) and time.monotonic() < deadline:
                time.sleep(0.05)
        # A supervisor that is still there by now hangs; it carries the mark and goes with the rest.
        processes.end_all(run.folder.root, 10.0, run_id=run.run_id)
        return self._settle(run.folder, who)

    def examine(self, profile: Profile) -> Iterator[Finding]:
        """Look at the Python and the GPUs of this machine."""
        lacking = ask_runtime(profile.python)
        yield Finding("runtime", lacking[0] if lacking else profile.python, not lacking)
        gpus = gpu_queue.total_gpus(profile.settings["gpus"])
        yield Finding(
            "GPUs", str(gpus) if gpus else "none; recipes run on CPU with --gpus-per-node 0", bool(gpus) or None
        )
        if gpus:
            yield _claims_finding()

    def _settle(self, folder: RunFolder, who: str) -> BackendState:
        state = _readable_state(folder)
        if state.state not in ENDED:
            state.state, state.ended = CANCELLED, time.time()
            state.reason = f"cancelled by {who}{kept_state(state, folder)}"
            try:
                state.save(folder)
            except OSError as error:
                state.reason += f"; that could not be written down ({error.strerror})"
        return state.shown()


def _claims_finding() -> Finding:
    """Look at the folder in which runs claim GPUs, as a run would."""
    try:
        folder = gpu_queue.ledger_folder()
    except OSError as error:
        return Finding("GPU claims", str(error), False)
    if gpu_queue.is_shared(folder):
        return Finding("GPU claims", str(folder))
    cure = f"Other users' runs are not seen. Set {gpu_queue.ENV_LEDGER} to a folder that all of them can write to."
    return Finding("GPU claims", f"{folder}, this user's alone", None, cure)


def _has_spoken(run: Run, process: subprocess.Popen[bytes]) -> bool:
    """Wait for a new supervisor's first state; tell whether it came."""
    ticks = processes.start_ticks(process.pid)
    deadline = time.monotonic() + HELLO_S
    while time.monotonic() < deadline:
        state = load_state(run.folder)
        if (state.pid, state.pid_ticks) == (process.pid, ticks):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return False


def _end(run: Run, process: subprocess.Popen[bytes]) -> None:
    """End a supervisor and all that it may have started."""
    process.kill()
    process.wait()
    processes.end_all(run.folder.root, 0.0, polite=False, run_id=run.run_id)


def _wait_sent(run: Run) -> None:
    """Let whoever submits or resumes the run finish: then its supervisor has spoken, or there is none."""
    deadline = time.monotonic() + 2 * HELLO_S
    while locks.is_held(submission_lock(run.folder)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _readable_state(folder: RunFolder) -> LocalState:
    """A run's state; a run whose state cannot be understood must be ended all the same, by its processes' marks."""
    try:
        return load_state(folder)
    except Unreadable:
        return LocalState()


def _request_cancel(folder: RunFolder, who: str) -> None:
    request = {"by": who, "time": time.time()}
    try:
        write_json(folder.cancel_request, request)
        return
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
    try:
        reserve_file(folder).unlink(missing_ok=True)
        write_json(folder.cancel_request, request)
    except OSError as error:
        # The supervisor is told by a signal as well; it only cannot say who asked.
        console.say(f"cannot write {folder.cancel_request}: {error.strerror}")


def _longest_grace_s(folder: RunFolder) -> float:
    try:
        return max(step.grace_s for step in load_plan(latest_plan(folder)).steps)
    except Exception:  # whatever is wrong with a stored plan, the run is to be ended
        return _UNKNOWN_GRACE_S


def _tell(supervisor: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        supervisor.send_signal(signal.SIGTERM)


def _lacking_gpus(wanted: int, have: int) -> list[str]:
    if have >= wanted:
        return []
    here = f"this machine has {have}" if have else "this machine has none"
    return [f"{wanted} GPUs are asked for and {here}; on CPU: --gpus-per-node 0, elsewhere: --on PROFILE"]
