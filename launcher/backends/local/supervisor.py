"""The scheduler of one run on this machine: ``python -m launcher.backends.local.supervisor RUN_FOLDER``.

It runs detached from the shell that submitted, starts each step's processes, restarts them while they make progress,
ends them all on cancel, and keeps ``state.json`` true. It never imports the runtime.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from launcher import locks, processes
from launcher.backends.base import CANCELLED, ENDED, FAILED, PENDING, REQUEUED, RUNNING, SUCCEEDED, StepState
from launcher.backends.local import gpu_queue
from launcher.backends.local.attempt import Attempt
from launcher.backends.local.launch import Site
from launcher.backends.local.state import latest_plan, load_state, reserve_file
from launcher.backends.local.supervised import LOCK_NAME
from launcher.disk import NO_ROOM, full_disk
from launcher.ending import Ending, next_attempt, weigh
from launcher.machine import this_machine
from launcher.plan import Plan, Step
from launcher.plan_text import load_plan
from launcher.progress import durable_progress
from launcher.run_folder import RunFolder, append_line, read_json

POLL_S = 0.1


_RESERVE_BYTES = 32 * 1024
"""What the last state and event need on a disk that is full by then."""


class Stopped(Exception):
    """Cancel was asked for, or the supervisor was told to end."""


class Supervisor:
    """Runs the steps of a plan in order."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.state = load_state(folder)
        self._reserve = reserve_file(folder)
        self.claim: gpu_queue.GpuClaim | None = None
        self.told_to_end = False

    def run(self) -> None:
        """Carry the run to its end."""
        self._begin()
        try:
            for step in self.plan.steps:
                if self.state.step(step.name).state != SUCCEEDED:
                    self._run_step(step)
                if self.state.state in ENDED:
                    return
            self._end(SUCCEEDED, "")
        except Stopped:
            self._stopped()
        except OSError as error:
            self._note_traceback()
            self._end(FAILED, _os_error(error))
        except Exception as error:
            self._note_traceback()
            self._end(FAILED, f"the supervisor broke: {type(error).__name__}: {error}")
        finally:
            processes.end_all(self.folder.root, 0.0, polite=False, run_id=self.plan.run_id)
            if self.claim is not None:
                self.claim.release()

    def _begin(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        known = {step.name: step for step in self.state.steps}
        steps = [known.get(step.name) or StepState(step.name, step.stage, step.kind) for step in self.plan.steps]
        self.state.steps = steps
        self.state.pid, self.state.pid_ticks = os.getpid(), processes.start_ticks(os.getpid()) or 0
        self.state.pid_started = self.state.boot_time = 0.0
        self.state.where = this_machine()
        self.state.started, self.state.ended = self.state.started or time.time(), None
        # Without room for the end of a run there is no point in its beginning.
        self._reserve.write_bytes(bytes(_RESERVE_BYTES))
        self._set(PENDING, "")

    def _note_signal(self, number: int, frame: object) -> None:
        self.told_to_end = True

    def _check_stop(self) -> None:
        if self.told_to_end or self.folder.cancel_request.exists():
            raise Stopped

    def _run_step(self, step: Step) -> None:
        record = self.state.step(step.name)
        stage = self.folder.stage(step.stage)
        fruitless = 0
        while True:
            self._check_stop()
            gpus = self._wait_for_gpus(step)
            before = durable_progress(stage)
            record.attempt = next_attempt(step, stage)
            ending = self._attempt(step, record, gpus)
            if ending.kind == "done":
                record.state, record.ended = SUCCEEDED, time.time()
                self._set(RUNNING, "")
                return
            self._check_stop()
            verdict = weigh(step, stage, record.attempt, ending, before, fruitless)
            if not verdict.again:
                self._fail(step, record, verdict.reason)
                return
            fruitless = verdict.fruitless
            self._event("requeued", step=step.name, reason=verdict.reason)
            record.state = REQUEUED
            self._set(REQUEUED, f"{verdict.reason}; starting again")

    def _attempt(self, step: Step, record: StepState, gpus: list[str]) -> Ending:
        record.state, record.started, record.ended = RUNNING, record.started or time.time(), None
        self.state.attempt, self.state.stage = record.attempt, step.stage
        self.state.attempts += step.kind != "merge"
        self._set(RUNNING, "")
        self._event("attempt", step=step.name, number=record.attempt)
        claim = self.claim.descriptor if self.claim else None
        site = Site(self.folder, self.plan.run_id, record.attempt, gpus, self.plan.code, claim)
        attempt = Attempt(step, site, self._check_stop)
        try:
            return attempt.run()
        except Stopped:
            self._set(self.state.state, "ending: saving the state")
            attempt.end_nodes()
            raise

    def _wait_for_gpus(self, step: Step) -> list[str]:
        wanted = step.gpus_per_node * step.parallel
        if not wanted:
            return []
        total = gpu_queue.total_gpus(self.plan.settings["gpus"])
        if self.claim is None:
            self.claim = gpu_queue.GpuClaim(self.folder.name, gpu_queue.gpu_names(total))
        shown = ""
        while True:
            grant = self.claim.try_take(wanted)
            if grant.gpus is not None:
                return grant.gpus
            reason = f"waits for {wanted} of {total} GPUs, behind {grant.waits_for}"
            if reason != shown:
                self._set(PENDING, reason)
                shown = reason
            self._check_stop()
            time.sleep(POLL_S * 5)

    def _fail(self, step: Step, record: StepState, reason: str) -> None:
        record.state, record.ended = FAILED, time.time()
        where = f"{step.name}: " if len(self.plan.steps) > 1 else ""
        self._end(FAILED, where + reason)

    def _stopped(self) -> None:
        request = read_json(self.folder.cancel_request)
        for step in self.state.steps:
            if step.state in (RUNNING, REQUEUED):
                step.state, step.ended = CANCELLED, time.time()
        saved = self._saved()
        if request is not None:
            self._end(CANCELLED, f"cancelled by {request.get('by', 'a user')}{saved}")
        else:
            self._end(FAILED, f"the supervisor was told to end (did the machine shut down?){saved}")

    def _saved(self) -> str:
        steps = self.folder.stage(self.state.stage).checkpoint_steps()
        return f"; state saved at step {steps[-1]}" if steps else ""

    def _end(self, state: str, reason: str) -> None:
        self.state.ended = time.time()
        full = full_disk(self.folder.root)
        if state == FAILED and full and "disk" not in reason:
            reason = f"{reason}; {full}"
        with suppress(OSError):
            # The room that was kept for this moment: a full disk must not hide how the run ended.
            self._reserve.unlink(missing_ok=True)
        with suppress(OSError):
            self._event(state.lower(), reason=reason)
        # The run is over for every reader from here on, so nothing of it may be left running.
        processes.end_all(self.folder.root, 0.0, polite=False, run_id=self.plan.run_id)
        with suppress(OSError):  # then whoever looks is told that the supervisor is gone, and the disk full
            self._set(state, reason)

    def _note_traceback(self) -> None:
        with suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()

    def _set(self, state: str, reason: str) -> None:
        self.state.state, self.state.reason = state, reason
        self.state.save(self.folder)

    def _event(self, event: str, **fields: object) -> None:
        append_line(self.folder.events, {"time": time.time(), "event": f"run.{event}", **fields})


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in NO_ROOM:
        return f"the disk is full: {error.strerror}{where}; make room there, then resume"
    return f"the supervisor broke: {error.strerror or error}{where}"


def take_lock(folder: RunFolder) -> int | None:
    """Make sure that a run has one supervisor: return the lock's descriptor, or None when another holds it."""
    try:
        return locks.open_locked(folder.root / LOCK_NAME)
    except locks.Held:
        return None


def main(arguments: list[str]) -> int:
    """Supervise the run in a folder to its end."""
    folder = RunFolder(Path(arguments[0]))
    lock = take_lock(folder)
    if lock is None:
        print("this run has a supervisor already", file=sys.stderr)
        return 1
    try:
        Supervisor(folder, load_plan(latest_plan(folder))).run()
    except OSError as error:
        print(_os_error(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
