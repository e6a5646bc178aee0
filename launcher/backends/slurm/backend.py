"""The Slurm backend: the commands of the launcher, on a cluster."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml

from launcher import console, patience
from launcher.asking import judge
from launcher.backends.base import CANCELLED, ENDED, SUCCEEDED, UNKNOWN, BackendState, StepState
from launcher.backends.seen import never_sent
from launcher.backends.slurm import client
from launcher.backends.slurm.arrays import too_large_arrays
from launcher.backends.slurm.client_environment import ignored_options
from launcher.backends.slurm.files import Job, Jobs, load_jobs, plan_file, slurm_folder
from launcher.backends.slurm.identity import new_ticket
from launcher.backends.slurm.named_jobs import checked_ids
from launcher.backends.slurm.owned import (
    all_seen,
    find_unsent,
    missing_ids,
    own_answer,
    queued_numbers,
    unsent,
    why_not_here,
)
from launcher.backends.slurm.place import place_here, require_one_cluster
from launcher.backends.slurm.states import open_ids, run_state
from launcher.doctor import Finding
from launcher.ending import next_attempt
from launcher.errors import BackendError, NotAnswering, SubmissionUnknown, Unreadable
from launcher.file_modes import umask_like
from launcher.plan import Plan, Step
from launcher.plan_text import load_plan, render
from launcher.profiles import Profile
from launcher.reach import Reach
from launcher.run_folder import RunFolder, write_aside, write_json
from launcher.runtime_check import lacking_runtime
from launcher.secret_values import lacking_secrets, secrets_in_environment
from launcher.step_word import word_file
from launcher.store import Run
from launcher.user import user_name

T = TypeVar("T")
CANCEL_PATIENCE_S = 300.0
_GONE_S = 120.0
"""How long Slurm may take to end what it was told to end."""
_BEHIND_S = 30.0
"""How far the accounting may be behind."""
_GRACE_S = 60.0
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
        return lacking + lacking_secrets(plan.settings)

    def where(self, plan: Plan) -> dict[str, str]:
        """The cluster; empty while its controller is silent: sending goes on asking, and the record is told then."""
        require_one_cluster()
        try:
            return place_here()
        except NotAnswering:
            return {}

    def reach(self, profile: Profile) -> Reach:
        from launcher.backends.slurm.reach import JobReach

        return JobReach()

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Send every step that is not done, each to start when the one before it has succeeded."""
        ignored = ignored_options()
        if ignored:
            console.say(f"Not heeded: {', '.join(ignored)}; what is sent is what the profile and the recipe say")
        write_aside(plan_file(run.folder), render(plan))
        ended = {step.name: step for step in self.states([run])[0].steps} if plan.finished else {}
        jobs = Jobs([_fresh_job(run.folder, step, ended, plan) for step in plan.steps], time.time())
        jobs.save(run.folder)
        try:
            # sbatch hands its environment and umask on to the job, and Slurm keeps them for every requeue, apart from
            # the script.
            with secrets_in_environment(plan.settings), umask_like(run.folder.root):
                _send_all(run.folder, plan, jobs)
        except SubmissionUnknown:
            raise
        except BaseException as error:
            _take_back(jobs, error)
            raise
        if not run.record.get("where"):
            run.record["where"] = self.where(plan)
        return [job.job_id for job in jobs.jobs if job.job_id]

    def states(self, runs: Sequence[Run]) -> list[BackendState]:
        """One query for all runs together; none for those that have said how they ended."""
        known = [_read_jobs(run) for run in runs]
        ids: list[str] = []
        for run, jobs in zip(runs, known, strict=True):
            if isinstance(jobs, Jobs) and jobs.end is None:
                ids += open_ids(run.folder, jobs)
        answer = _query(ids)
        return [
            judge(partial(_state, run, jobs, answer)) if isinstance(jobs, Jobs) else jobs
            for run, jobs in zip(runs, known, strict=True)
        ]

    def fetch_logs(self, run: Run) -> list[str]:
        return []  # its processes write to the folder that is seen here

    def cancel(self, run: Run) -> BackendState:
        """End what waits at once; have what runs save and leave, then end it; return when nothing is left.

        Raises:
            BackendError: the run's jobs are not this cluster's, or belong to the run that this is a copy of.
        """
        jobs = _read_jobs(run)
        if isinstance(jobs, BackendState):
            raise BackendError(f"{run.name} cannot be cancelled: {jobs.reason}", "Look for its job: squeue --me")
        numbers = _numbers_to_end(run, jobs)
        who = f"{user_name()}@{socket.gethostname()}"
        write_json(run.folder.cancel_request, {"by": who, "time": time.time()})
        # What a submission makes from now on finds the request; what it made before has no number yet.
        numbers += _insist(lambda: find_unsent(run, jobs))
        if not numbers:
            return self._end_without_jobs(run, who)
        _scancel(numbers, "--state=PENDING")
        _let_save(numbers, _grace_s(run))
        _scancel(numbers)
        _wait_gone(numbers, _GONE_S)
        return self._ended(run)

    def _end_without_jobs(self, run: Run, who: str) -> BackendState:
        """The end of a run of which this cluster, which is its own, has no job: without one it could not be resumed."""
        _forget_answers()
        state = self.states([run])[0]
        if state.state in ENDED:
            return state
        jobs, moment = load_jobs(run.folder), time.time()
        steps = [
            step if step.state in ENDED else replace(step, state=CANCELLED, ended=moment)
            for step in (state.steps or [job.step for job in jobs.jobs])
        ]
        why = f"; {state.reason}" if state.state == UNKNOWN else ""
        end = replace(state, state=CANCELLED, reason=f"cancelled by {who}{why}", steps=steps, ended=moment)
        _remember(run.folder, jobs, end)
        return end

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
    return Job(state, members=list(step.members), ticket=new_ticket())


def _send_all(folder: RunFolder, plan: Plan, jobs: Jobs) -> None:
    from launcher.backends.slurm.send import send

    after = ""
    for job, step in zip(jobs.jobs, plan.steps, strict=True):
        if job.step.state == SUCCEEDED:
            continue
        job.job_id = after = send(plan, step, job.ticket, after)
        jobs.save(folder)
        if folder.cancel_request.exists():
            # Somebody cancelled the run while it was being sent, and may not have seen this job.
            _scancel([job.job_id])
            return


def _take_back(jobs: Jobs, error: BaseException) -> None:
    """End what was sent of a submission that failed.

    Raises:
        SubmissionUnknown: it could not be ended, so that it goes on.
    """
    sent = [job.job_id for job in jobs.jobs if job.job_id]
    if not sent:
        return
    try:
        _scancel(sent)
    except BackendError as refused:
        why = getattr(error, "message", "") or "interrupted"
        words = f"{why}; and what was sent before could not be taken back (job {', '.join(sent)}): {refused.message}"
        raise SubmissionUnknown(words) from error


def _read_jobs(run: Run) -> Jobs | BackendState:
    """What was sent for a run, or what is wrong with its file: one odd folder must not hide the other runs."""
    try:
        jobs = load_jobs(run.folder)
        numbers = [job.job_id for job in jobs.jobs if job.job_id]
        if numbers:
            checked_ids(numbers)
        open_ids(run.folder, jobs)
        return jobs
    except (BackendError, Unreadable) as error:
        return BackendState(UNKNOWN, error.message)


def _state(run: Run, jobs: Jobs, answer: client.Answer) -> BackendState:
    if jobs.end is not None:
        return jobs.end
    if not jobs.jobs:
        return never_sent(run.created)
    mine = own_answer(run, jobs, answer)
    # A silent controller is not asked once more for each run.
    if not mine.trouble and (unsent(jobs) or missing_ids(run, jobs, mine)):
        try:
            elsewhere = why_not_here(run)
            if not elsewhere and find_unsent(run, jobs):
                mine = own_answer(run, jobs, client.query(open_ids(run.folder, jobs)))
            mine.not_here = elsewhere or mine.not_here
        except BackendError as error:
            mine.trouble = error.message
    state = run_state(run.folder, jobs, mine)
    # A verdict is written down only from what was seen: Slurm forgets, and needs not be asked again.
    if state.state in ENDED and all_seen(run, jobs, mine):
        _remember(run.folder, jobs, state)
    return state


def _remember(folder: RunFolder, jobs: Jobs, state: BackendState) -> None:
    if os.access(slurm_folder(folder), os.W_OK):
        jobs.end = state
        # Looking never needs to write: on a full disk, the next look remembers it.
        with suppress(OSError):
            jobs.save(folder)


def _numbers_to_end(run: Run, jobs: Jobs) -> list[str]:
    """Numbers of the run's own jobs that Slurm knows.

    Raises:
        BackendError: this is not the place to end the run from.
    """
    numbers = sorted({job.job_id for job in jobs.jobs if job.job_id}, key=int)
    in_queue = _insist(lambda: client.queued(numbers)) if numbers else {}
    own = queued_numbers(jobs, own_answer(run, jobs, client.Answer(in_queue)))
    # Jobs that carry the run's mark are here, also where the cluster's controller has moved.
    elsewhere = "" if own else _insist(lambda: why_not_here(run))
    if elsewhere:
        raise BackendError(f"{run.name} cannot be cancelled from here: {elsewhere}", "Cancel it there.")
    return own


def _insist(call: Callable[[], T]) -> T:
    return patience.insist(call, CANCEL_PATIENCE_S, console.say)


def _grace_s(run: Run) -> float:
    """How long the run may take to save; ending it must not need a plan that can be read."""
    try:
        return max(step.grace_s for step in load_plan(plan_file(run.folder)).steps)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, Unreadable):
        return _GRACE_S


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


def _scancel(numbers: Sequence[str], *options: str) -> None:
    """End jobs, the last first: otherwise a step would start because the one before it has gone."""
    named = checked_ids(reversed(numbers))
    try:
        client.insist("scancel", *options, *named, patience_s=CANCEL_PATIENCE_S, say=console.say)
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
            _scancel(running, "--signal=TERM")
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
            "squeue", "--noheader", f"--jobs={','.join(checked_ids(numbers))}", *wanted, "-o", "%A",
            patience_s=CANCEL_PATIENCE_S, say=console.say,
        )  # fmt: skip
    except NotAnswering:
        raise
    except BackendError as error:
        if "invalid job id" in error.message.lower():
            return []
        raise
    return sorted(set(text.split()))
