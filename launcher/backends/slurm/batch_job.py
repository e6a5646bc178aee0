"""One job as its own batch script sees it, and what can become of it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass

from launcher.backends.base import CANCELLED, FAILED, REQUEUED
from launcher.backends.slurm.client import ask, insist
from launcher.errors import BackendError
from launcher.failure import decode_exit
from launcher.plan import Plan, Step
from launcher.run_folder import RunFolder, append_line, read_json
from launcher.step_word import Word, last_word, write_word

PATIENCE_S = 900.0
"""How long a silent controller is asked to requeue a job that has saved its state."""


@dataclass
class Batch:
    """One job (or member of an array) as its batch script sees it."""

    folder: RunFolder
    plan: Plan
    step: Step
    member: int | None

    @property
    def stage(self) -> RunFolder:
        return self.folder.stage(self.step.stage)

    @property
    def number(self) -> int | None:
        """Shard of this member."""
        return None if self.member is None else self.step.members[self.member]

    def word(self) -> Word:
        return last_word(self.folder, self.step.name, self.number)

    def write(self, word: Word) -> None:
        write_word(self.folder, self.step.name, self.number, word)

    def event(self, event: str, **fields: object) -> None:
        what = {"time": time.time(), "event": f"run.{event}", "step": self.step.name}
        append_line(self.folder.events, {**what, **fields})

    def cancelled_by(self) -> str | None:
        request = read_json(self.folder.cancel_request)
        return None if request is None else str(request.get("by", "a user"))


def job_number(batch: Batch) -> str:
    """The number that sbatch gave this job; the members of an array share it."""
    # A job that was sent from inside of an array has inherited that one's variables.
    return os.environ["SLURM_JOB_ID" if batch.member is None else "SLURM_ARRAY_JOB_ID"]


def own_id(batch: Batch) -> str:
    """How Slurm's commands name this job; scancel does not find a member of an array by its job's number."""
    number = job_number(batch)
    return number if batch.member is None else f"{number}_{batch.member}"


def time_left_s(job_id: str) -> float | None:
    """Seconds to the job's time limit; None: without one, or unknown."""
    try:
        end = ask("squeue", "--noheader", f"--jobs={job_id}", "-o", "%e|%l").strip().splitlines()[0]
    except (BackendError, IndexError):
        return None
    moment, _, limit = end.partition("|")
    return float(moment) - time.time() if moment.isdigit() and limit != "UNLIMITED" else None


def was_preempted(batch: Batch) -> bool:
    """Whether Slurm is ending this job because another one needs its nodes."""
    try:
        moment = ask("squeue", "--noheader", f"--jobs={own_id(batch)}", "-O", "PreemptTime").strip()
    except BackendError:
        return False
    return moment.isdigit()


def requeue(batch: Batch, word: Word, reason: str) -> str:
    """Have Slurm start the job again later, maybe elsewhere. A job that is being ended already is left to end."""
    job_id = os.environ["SLURM_JOB_ID"]
    word.state, word.reason = REQUEUED, reason
    batch.write(word)
    try:
        state = insist("squeue", "--noheader", f"--jobs={job_id}", "-o", "%T", patience_s=PATIENCE_S, say=log)
        if state.split() != ["RUNNING"]:
            return "exit 1"
        batch.event("requeued", reason=reason)
        insist("scontrol", "requeue", job_id, patience_s=PATIENCE_S, say=log)
    except BackendError as error:
        return failed(batch, word, f"{reason}; and it could not be requeued: {error.message}", 1)
    # Slurm ends this script now; until then it must not return, or the job would count as ended.
    return _wait(300)


def failed(batch: Batch, word: Word, reason: str, code: int) -> str:
    """Write down that the job failed; return the end of its script."""
    word.state, word.reason, word.ended = FAILED, reason, time.time()
    batch.write(word)
    batch.event("failed", reason=reason)
    log(f"{batch.step.name}: {reason} ({decode_exit(code)})")
    return f"exit {code}"


def cancelled(batch: Batch, word: Word, who: str) -> str:
    """Write down that the job was cancelled, and have Slurm know it; return the end of its script."""
    word.state, word.reason, word.ended = CANCELLED, f"cancelled by {who}", time.time()
    batch.write(word)
    return f"scancel --quiet {shlex.quote(own_id(batch))}; {_wait(30)}"


def _wait(seconds: int) -> str:
    """Wait in the shell itself: a ``sleep`` can outlive a script that is killed."""
    return f"read -rt {seconds} <> <(:); exit 1"


def log(text: str) -> None:
    """Say something in Slurm's log of the job; stdout belongs to the shell."""
    print(text, file=sys.stderr, flush=True)
