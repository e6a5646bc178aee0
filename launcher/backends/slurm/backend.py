"""The Slurm backend: the commands of the launcher, on a cluster."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from launcher import console
from launcher.asking import attempt_to, judge
from launcher.backends.base import ENDED, SUCCEEDED, UNKNOWN, BackendState, StepState
from launcher.backends.seen import never_sent
from launcher.backends.slurm import client
from launcher.backends.slurm.arrays import too_large_arrays
from launcher.backends.slurm.files import Job, Jobs, load_jobs, plan_file, slurm_folder
from launcher.backends.slurm.states import open_ids, run_state
from launcher.doctor import Finding
from launcher.ending import next_attempt
from launcher.errors import BackendError, NotAnswering
from launcher.plan import Plan, Step
from launcher.plan_text import load_plan, render
from launcher.profiles import Profile
from launcher.reach import Reach
from launcher.run_folder import RunFolder, write_aside, write_json
from launcher.runtime_check import lacking_runtime
from launcher.step_word import word_file
from launcher.store import Run

CANCEL_PATIENCE_S = 300.0
_GONE_S = 120.0
"""How long Slurm may take to end what it was told to end."""
_BEHIND_S = 30.0
"""How far the accounting may be behind."""
_TELL_AGAIN_S = 5.0
_POLL_S = 0.5
_FRESH_S = 2.0
"""Answers so old still count: several commands look at the same run many times a second."""


class SlurmBackend:
    """Sends jobs with submitit, and follows them through squeue, sacct and the run's folder."""

    suffix = ".sh"
    sees_files = True

    def render(self, plan: Plan) -> str:
        from launcher.backends.slurm.script import render_scripts

        return render_scripts(plan)

    def check(self, plan: Plan) -> list[str]:
        """Say what is missing here; what only a node can tell is for doctor."""
        lacking = []
        if shutil.which("sbatch") is None:
            lacking.append("sbatch is not on PATH: this machine cannot send jobs to Slurm (use a login node)")
        else:
            lacking += too_large_arrays(plan)
        python = plan.steps[0].command[0]
        if not plan.settings["container"] and (python == sys.executable or Path(python).exists()):
            lacking += lacking_runtime(python)
        return lacking

    def where(self, plan: Plan) -> dict[str, str]:
        return {}

    def reach(self, profile: Profile) -> Reach:
        from launcher.backends.slurm.reach import JobReach

        return JobReach()

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Send every step that is not done, each to start when the one before it has succeeded."""
        write_aside(plan_file(run.folder), render(plan))
        before = load_jobs(run.folder)
        ended = {step.name: step for step in before.end.steps} if before.end else {}
        jobs = Jobs([_fresh_job(run.folder, step, ended, plan) for step in plan.steps], time.time())
        jobs.save(run.folder)
        try:
            _send_all(run.folder, plan, jobs)
        except BaseException:
            _take_back(jobs)
            raise
        return [job.job_id for job in jobs.jobs if job.job_id]

    def states(self, runs: Sequence[Run]) -> list[BackendState]:
        """One query for all runs together; none for those that have said how they ended."""
        known = [attempt_to(partial(_known, run.folder)) for run in runs]
        answer = _query([one for entry in known if not isinstance(entry, str) for one in entry[1]])
        return [
            BackendState(UNKNOWN, entry) if isinstance(entry, str) else judge(partial(_judged, run, entry[0], answer))
            for run, entry in zip(runs, known, strict=True)
        ]

    def fetch_logs(self, run: Run) -> list[str]:
        return []  # its processes write to the folder that is seen here

    def cancel(self, run: Run) -> BackendState:
        """End what waits at once; have what runs save and leave, then end it; return when nothing is left."""
        who = f"{getpass.getuser()}@{socket.gethostname()}"
        write_json(run.folder.cancel_request, {"by": who, "time": time.time()})
        numbers = [job.job_id for job in load_jobs(run.folder).jobs if job.job_id]
        grace_s = max(step.grace_s for step in load_plan(plan_file(run.folder)).steps)
        # Last first, so that no step starts because the one before it has gone.
        _scancel("--state=PENDING", *reversed(numbers))
        _let_save(numbers, grace_s)
        _scancel(*reversed(numbers))
        _wait_gone(numbers, _GONE_S)
        return self._ended(run)

    def _ended(self, run: Run) -> BackendState:
        """The end of a run whose jobs have left the queue; the accounting may be some seconds behind."""
        deadline = time.monotonic() + _BEHIND_S
        while True:
            _forget_answers()
            state = self.states([run])[0]
            if state.state in ENDED or time.monotonic() > deadline:
                return state
            time.sleep(_POLL_S)

    def examine(self, profile: Profile) -> Iterator[Finding]:
        from launcher.backends.slurm.doctor import examine

        return examine(profile)


def _fresh_job(folder: RunFolder, step: Step, ended: dict[str, StepState], plan: Plan) -> Job:
    """What is not yet sent; a step that is done, or an array without a missing shard, keeps what it was."""
    if step.name in plan.finished and step.name in ended:
        return Job(ended[step.name])
    for number in (None, *range(step.nodes)) if step.kind == "array" else (None,):
        word_file(folder, step.name, number).unlink(missing_ok=True)
    state = StepState(step.name, step.stage, step.kind, attempt=next_attempt(step, folder.stage(step.stage)))
    if step.kind == "array" and not step.members:
        state.state, state.attempt = SUCCEEDED, max(0, state.attempt - 1)
    return Job(state, members=list(step.members))


def _send_all(folder: RunFolder, plan: Plan, jobs: Jobs) -> None:
    from launcher.backends.slurm.send import send

    after = ""
    for job, step in zip(jobs.jobs, plan.steps, strict=True):
        if job.step.state == SUCCEEDED:
            continue
        job.job_id = after = send(plan, step, after)
        jobs.save(folder)


def _take_back(jobs: Jobs) -> None:
    sent = [job.job_id for job in jobs.jobs if job.job_id]
    if sent:
        _scancel(*reversed(sent))


def _known(folder: RunFolder) -> tuple[Jobs, list[str]]:
    """What was sent for a run, and the ids of what has not said how it ended."""
    jobs = load_jobs(folder)
    return jobs, [] if jobs.end else open_ids(folder, jobs)


def _judged(run: Run, jobs: Jobs, answer: client.Answer) -> BackendState:
    if jobs.end is not None:
        return jobs.end
    if not jobs.jobs:
        return never_sent(run.created)
    return _remembered(run.folder, jobs, run_state(run.folder, jobs, answer))


def _remembered(folder: RunFolder, jobs: Jobs, state: BackendState) -> BackendState:
    """Keep the end of a run in its folder: Slurm forgets, and needs not be asked again."""
    if state.state in ENDED and os.access(slurm_folder(folder), os.W_OK):
        jobs.end = state
        # Looking never needs to write: on a full disk, the next look remembers it.
        with suppress(OSError):
            jobs.save(folder)
    return state


_answers: dict[tuple[str, ...], tuple[float, client.Answer]] = {}


def _query(ids: Sequence[str]) -> client.Answer:
    key = tuple(ids)
    moment, answer = _answers.get(key, (0.0, client.Answer()))
    if time.monotonic() - moment > _FRESH_S or not moment:
        answer = client.query(ids)
        _answers.clear()
        _answers[key] = time.monotonic(), answer
    return answer


def _forget_answers() -> None:
    _answers.clear()


def _scancel(*arguments: str) -> None:
    try:
        client.insist("scancel", *arguments, patience_s=CANCEL_PATIENCE_S, say=console.say)
    except NotAnswering:
        raise
    except BackendError as error:
        # Jobs that are gone already are what is wanted.
        if "invalid job id" not in error.message.lower() and "already" not in error.message.lower():
            raise


def _let_save(numbers: Sequence[str], grace_s: float) -> None:
    """Ask the steps that run to save and leave. A step that began just now has not heard; it is told again."""
    deadline, told = time.monotonic() + grace_s, 0.0
    while time.monotonic() < deadline and (running := _active(numbers, "RUNNING")):
        if time.monotonic() - told > _TELL_AGAIN_S:
            _scancel("--signal=TERM", *running)
            told = time.monotonic()
        time.sleep(_POLL_S)


def _wait_gone(numbers: Sequence[str], most_s: float) -> None:
    deadline = time.monotonic() + most_s
    while left := _active(numbers):
        if time.monotonic() > deadline:
            raise BackendError(f"Slurm has not ended {', '.join(left)} after {most_s:.0f} s", "See: squeue --me")
        time.sleep(_POLL_S)


def _active(numbers: Sequence[str], *states: str) -> list[str]:
    """Those jobs that are still in the queue, in one of these states or any."""
    wanted = ["--states=" + ",".join(states)] if states else []
    try:
        text = client.insist(
            "squeue", "--noheader", f"--jobs={','.join(numbers)}", *wanted, "-o", "%A",
            patience_s=CANCEL_PATIENCE_S, say=console.say,
        )  # fmt: skip
    except NotAnswering:
        raise
    except BackendError as error:
        if "invalid job id" in error.message.lower():
            return []
        raise
    return sorted(set(text.split()))
