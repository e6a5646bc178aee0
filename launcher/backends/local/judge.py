"""Where a local run is, told by what it wrote and by the processes of this machine, and only of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher import locks, processes
from launcher.backends.base import ENDED, FAILED, PENDING, UNKNOWN, BackendState
from launcher.backends.local.state import LocalState, load_state
from launcher.backends.local.supervised import LOCK_NAME, find_supervisor
from launcher.disk import full_disk
from launcher.errors import Unreadable
from launcher.machine import is_same, this_machine, was_restarted
from launcher.run_folder import RunFolder
from launcher.store import Run, original_of, submission_lock

HELLO_S = 15.0
"""How long a new supervisor may take to write its first state."""


def judge(run: Run) -> BackendState:
    """Return where a run is; unknown where this machine cannot tell."""
    try:
        return _judge(run)
    except Unreadable as error:
        return BackendState(UNKNOWN, error.message)


def _judge(run: Run) -> BackendState:
    state = load_state(run.folder)
    if state.state in ENDED and locks.is_held(submission_lock(run.folder)):
        return replace(state.shown(), state=PENDING, reason="it is being resumed", ended=None)
    if state.state in ENDED:
        return state.shown()
    away = elsewhere(run, state)
    if away:
        return replace(state.shown(), state=UNKNOWN, reason=away)
    if is_supervised(run, state):
        return state.shown()
    # Read once more: the supervisor may have ended, or spoken for the first time, between the two looks.
    state = load_state(run.folder)
    if state.state in ENDED or is_supervised(run, state):
        return state.shown()
    if _is_being_started(run, state):
        return replace(state.shown(), state=PENDING, reason="its supervisor is starting")
    return replace(state.shown(), state=FAILED, reason=_why_dead(run, state))


def elsewhere(run: Run, state: LocalState) -> str:
    """Say in words that a run lives where this process cannot look; empty where it can."""
    there, here = _place(run, state), this_machine()
    if not there or is_same(there, here) or was_restarted(there, here):
        return ""
    if there.get("host") != here["host"]:
        return f"runs on host {there.get('host')}, looked at from host {here['host']}"
    same_machine = there.get("boot_id") == here["boot_id"] and there.get("machine_id") == here["machine_id"]
    if same_machine and not locks.is_held(run.folder.root / LOCK_NAME):
        return ""  # a container that was started again: what ran in it ended with it, and let its lock go
    return f"runs on host {here['host']} in another container or machine of that name"


def is_supervised(run: Run, state: LocalState) -> bool:
    """Tell whether the run's own supervisor is there."""
    return find_supervisor(run.folder, run.run_id, state) is not None


def _place(run: Run, state: LocalState) -> Mapping[str, Any]:
    """Where the supervisor said that it runs, or else where it was to be started; empty for the version before."""
    if state.pid:
        return state.where
    where = run.record.get("where")
    return where if isinstance(where, dict) else {}


def _is_being_started(run: Run, state: LocalState) -> bool:
    """Tell whether the first word of a supervisor may still come."""
    if locks.is_held(submission_lock(run.folder)):
        return True
    if state.pid:
        return False
    return _sent_s_ago(run) < HELLO_S or bool(processes.marked(run.folder.root, run_id=run.run_id))


def _sent_s_ago(run: Run) -> float:
    try:
        return abs(time.time() - float(run.record["submissions"][-1]["time"]))
    except (KeyError, IndexError, TypeError, ValueError):
        return HELLO_S


def _why_dead(run: Run, state: LocalState) -> str:
    folder = run.folder
    original = original_of(run)
    if original is not None:
        return f"this folder is a copy; the run itself is at {original}"
    full = f"; {words}" if (words := full_disk(folder.root)) else ""
    if not state.pid:
        return f"its supervisor never started{full}"
    kept = f"{kept_state(state, folder)}{full}"
    if _was_restarted(state):
        return f"the machine was restarted{kept}"
    left = len(processes.marked(folder.root, run_id=run.run_id))
    leaving = f"; {left} of its processes are still leaving" if left else ""
    return f"its supervisor died ({'the disk is full' if full else 'killed?'}){kept}{leaving}"


def _was_restarted(state: LocalState) -> bool:
    if state.pid_started:  # of the version before, which noted the wall clock's word only
        return abs(state.boot_time - processes.boot_time()) > 5.0
    return bool(state.where) and was_restarted(state.where, this_machine())


def kept_state(state: LocalState, folder: RunFolder) -> str:
    """Say which state a run can go on from."""
    steps = folder.stage(state.stage).checkpoint_steps()
    return f"; the state of step {steps[-1]} is kept" if steps else ""
