"""Where a run on Slurm is: what its jobs said themselves, and what Slurm says of those that have not said the end."""

from __future__ import annotations

import pwd
import time
from dataclasses import replace

from launcher.backends.base import (
    ENDED,
    FAILED,
    PENDING,
    REQUEUED,
    RUNNING,
    STARTING,
    SUCCEEDED,
    UNKNOWN,
    BackendState,
    StepState,
)
from launcher.backends.seen import Seen, as_step, together, whole_run
from launcher.backends.slurm.client import Answer, Foreign
from launcher.backends.slurm.files import Job, Jobs, log_tail
from launcher.backends.slurm.words import ENDS, STATES, why_pending
from launcher.failure import decode_exit
from launcher.run_folder import RunFolder
from launcher.step_word import Word, read_word

_NEW_S = 60.0
"""So long a job may be unknown to Slurm after it was sent."""
_NO_LOG = 53
"""Slurm's way to say that it could not open a job's output file (ExitCode 0:53)."""
_LATE_S = 60.0
"""So long a file that a node wrote may not be seen here: shared file systems keep what they know of a folder."""
_SENDING_S = 300.0
"""So long a submission may take, with a controller that does not answer."""


def open_ids(run: RunFolder, jobs: Jobs) -> list[str]:
    """Ids of the jobs and members that have not said how they ended."""
    return [
        one
        for job in jobs.jobs
        if job.job_id
        for one, number in zip(job.ids(), job.numbers(), strict=True)
        if read_word(run, job.step.name, number).state not in ENDED
    ]


def run_state(run: RunFolder, jobs: Jobs, answer: Answer) -> BackendState:
    """Put a run's state together from its jobs'."""
    seen = [_step(run, jobs, job, answer) for job in jobs.jobs]
    return whole_run(run, seen, [job.job_id for job in jobs.jobs if job.job_id])


def _step(run: RunFolder, jobs: Jobs, job: Job, answer: Answer) -> tuple[StepState, str]:
    if not job.job_id:
        return _not_sent(jobs, job, answer)
    numbers = job.numbers()
    seen = [_seen(run, jobs, job, one, n, answer) for one, n in zip(job.ids(), numbers, strict=True)]
    whole = together(seen, job.members) if job.members else seen[0]
    return as_step(job.step, whole), whole.reason


def _not_sent(jobs: Jobs, job: Job, answer: Answer) -> tuple[StepState, str]:
    if job.step.state == SUCCEEDED:
        return job.step, ""
    if answer.not_here:
        return replace(job.step, state=UNKNOWN), answer.not_here
    if answer.trouble:
        return job.step, f"{answer.trouble}; whether it was sent is not known"
    if time.time() - jobs.submitted < _SENDING_S:
        return job.step, "being sent"
    return replace(job.step, state=FAILED), "it was never sent: its submission was interrupted"


def _seen(run: RunFolder, jobs: Jobs, job: Job, one: str, number: int | None, answer: Answer) -> Seen:
    word = read_word(run, job.step.name, number)
    said = Seen(word.state, word.reason, word.attempt or job.step.attempt, word.started, word.ended)
    if word.state in ENDED:
        return said
    foreign = answer.job(one)
    if foreign is not None and answer.trouble and word.state and STATES.get(foreign.state) in (PENDING, RUNNING):
        foreign = None  # the accounting is behind what the job has said since
    if foreign is None:
        return _unknown_to_slurm(said, jobs, one, answer)
    seen = _as_slurm_has_it(run, one, word, said, foreign)
    if answer.trouble and seen.state not in ENDED:
        return replace(seen, reason="; ".join(filter(None, [seen.reason, answer.trouble])))
    return seen


def _as_slurm_has_it(run: RunFolder, one: str, word: Word, said: Seen, foreign: Foreign) -> Seen:
    if foreign.state == "COMPLETING":
        return replace(said, state=said.state or RUNNING, reason=said.reason or "ending")
    state = STATES.get(foreign.state, UNKNOWN)
    if state in (PENDING, REQUEUED):
        again = bool(word.state) or state == REQUEUED
        why = why_pending(foreign.reason, foreign.start, again)
        why = f"{why}; {word.reason}" if word.reason else why
        return replace(said, state=REQUEUED if again else PENDING, reason=why)
    if state == RUNNING:
        return replace(said, state=STARTING if not word.state else word.state, started=said.started or foreign.start)
    if state == UNKNOWN:
        return replace(said, state=UNKNOWN, reason=f"Slurm says {foreign.state}, which is not known here")
    if state == SUCCEEDED:
        return _without_a_word(said, foreign)
    reason = _why_ended(run, one, foreign, word)
    return replace(said, state=state, reason=reason, ended=foreign.end or said.ended)


def _without_a_word(said: Seen, foreign: Foreign) -> Seen:
    """A batch script that is through says so before it ends: this one was left by a line such as exec or exit."""
    if foreign.end is not None and time.time() - foreign.end < _LATE_S:
        return replace(said, state=said.state or RUNNING, reason="ending")  # what it wrote may not be seen here yet
    reason = "its batch script ended with exit code 0 before its work was done (exec or exit in slurm.setup?)"
    return replace(said, state=FAILED, reason=reason, ended=foreign.end or said.ended)


def _unknown_to_slurm(said: Seen, jobs: Jobs, one: str, answer: Answer) -> Seen:
    if answer.trouble:
        return replace(said, state=said.state or PENDING, reason=f"{answer.trouble}; this is the last that was known")
    if answer.not_here:
        return replace(said, state=UNKNOWN, reason=answer.not_here)
    if said.state:
        reason = f"job {one} left Slurm without saying how it ended (killed from outside?)"
        return replace(said, state=FAILED, reason=reason)
    if time.time() - jobs.submitted < _NEW_S:
        return replace(said, state=PENDING, reason="just sent")
    return replace(said, state=FAILED, reason=f"job {one} left the queue before it started (cancelled from outside?)")


def _why_ended(run: RunFolder, one: str, foreign: Foreign, word: Word) -> str:
    """Say why a job ended that could not say so itself: Slurm's state, and the end of what its script printed."""
    known = ENDS.get(foreign.state)
    if foreign.state == "CANCELLED" and foreign.reason:
        known = f"{known} {_by_name(foreign.reason)}"
    if known is None and foreign.signal == _NO_LOG:
        known = "Slurm could not write its log: do the nodes see the runs folder? llavajob doctor finds out"
    if known is None:
        ended_by = -foreign.signal if foreign.signal else foreign.exit_code
        known = f"the batch script ended without a word: {decode_exit(ended_by)}" if ended_by else "it ended at once"
    where = f" on {foreign.nodes}" if foreign.nodes and "node" not in known else ""
    tail = "" if word.state else log_tail(run, one)
    return f"{known}{where}" + (f"; Slurm's log ends with: {tail}" if tail else "")


def _by_name(words: str) -> str:
    """Slurm's ``by 1000`` with the user's name, where this machine knows it."""
    number = words.removeprefix("by ")
    try:
        return f"by {pwd.getpwuid(int(number)).pw_name}"
    except (KeyError, ValueError):
        return f"by user {number}"
