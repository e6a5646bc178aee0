"""Before each attempt: its number and its rendezvous, chosen on the node that will be its master, never earlier.

A job that was requeued may sit on other nodes, and a port that was free at submission may be taken.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import time

from launcher.backends.base import REQUEUED, RUNNING
from launcher.backends.slurm.batch_job import Batch, cancelled, failed, job_number, log, own_id, requeue, time_left_s
from launcher.backends.slurm.client import ask
from launcher.backends.slurm.files import Job, load_jobs, slurm_folder
from launcher.backends.slurm.identity import Owner
from launcher.backends.slurm.settings import lead_s
from launcher.backends.slurm.setup_lines import setup_lines
from launcher.backends.slurm.setup_log import read_log, silent_module_error, why_setup_failed
from launcher.ending import Ending, next_attempt, weigh
from launcher.errors import BackendError
from launcher.exits import expect_exits
from launcher.ports import free_port
from launcher.progress import durable_progress
from launcher.run_folder import ENV_ATTEMPT
from launcher.step_word import Word

_START_S = 30.0
"""An attempt that has no more time than this beside the time to save is not worth starting."""
_SENT_S = 60.0
"""How long a job that starts at once waits for its submission to be written down."""
_ENDED_FROM_OUTSIDE = (128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def begin(batch: Batch) -> str:
    """Start an attempt: return the lines that tell the shell about it, or the end of the script."""
    job_id = os.environ["SLURM_JOB_ID"]
    if not _was_sent(batch):
        log(f"{batch.folder.root} knows nothing of job {job_id}: its submission was interrupted, or sent anew")
        return "exit 1"
    _complete(batch)
    word = batch.word()
    who = batch.cancelled_by()
    if who is not None:
        return cancelled(batch, word, who)
    if setup_lines(batch.plan.settings):
        error = silent_module_error(_log(batch), len(batch.plan.settings["modules"]))
        if error:
            return failed(batch, _word_of(batch, job_id), error, 1)
    if word.state in (RUNNING, REQUEUED) and word.job_id == job_id:
        over = _account_for_loss(batch, word)
        if over:
            return over
    else:
        word = Word(job_id=job_id)
    left_s = time_left_s(job_id)
    if (
        left_s is not None
        and word.started is not None
        and left_s < lead_s(batch.plan.settings, batch.step.grace_s) + _START_S
    ):
        return requeue(batch, word, "the time limit is near")
    word.attempt = _attempt_number(batch)
    word.state, word.reason, word.ended = RUNNING, "", None
    word.before, word.started = durable_progress(batch.stage), word.started or time.time()
    word.nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if batch.step.kind == "gang":
        expect_exits(batch.stage, batch.step, word.attempt)
    batch.write(word)
    batch.event("attempt", number=word.attempt, job=job_id, nodes=word.nodes)
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in _told(batch, word).items())


def setup_failed(batch: Batch, code: int, line: int) -> str:
    """Write down that a set-up line failed; return the end of the script.

    Args:
        batch: the job.
        code: exit code of the line.
        line: its number, from 1; 0 where the shell could not read the lines.
    """
    if not _was_sent(batch) or code in _ENDED_FROM_OUTSIDE:
        return f"exit {code or 1}"
    who = batch.cancelled_by()
    word = _word_of(batch, os.environ["SLURM_JOB_ID"])
    if who is not None:
        return cancelled(batch, word, who)
    lines = setup_lines(batch.plan.settings)
    return failed(batch, word, why_setup_failed(_log(batch), lines, code, line), code or 1)


def _log(batch: Batch) -> str:
    return read_log(batch.folder, own_id(batch))


def _word_of(batch: Batch, job_id: str) -> Word:
    """What this job said before; nothing but its number where that was another one."""
    word = batch.word()
    word = word if word.job_id == job_id else Word(job_id=job_id)
    word.started = word.started or time.time()
    return word


def _was_sent(batch: Batch) -> bool:
    """Whether the run's folder has this job: a job that nobody knows of must not do a known one's work as well."""
    number = job_number(batch)
    deadline = time.monotonic() + _SENT_S
    while True:
        known = _known(batch)
        if known is not None and known.job_id:
            return known.job_id == number
        if time.monotonic() > deadline:
            return known is not None and _adopt(batch, known, number)
        time.sleep(0.2)


def _complete(batch: Batch) -> None:
    """Write the file that tells submitit what to call, where the submission was ended before it had this name."""
    path = slurm_folder(batch.folder) / f"{own_id(batch)}_submitted.pkl"
    if not path.exists():
        from launcher.backends.slurm.send import write_call

        write_call(batch.plan, batch.step, batch.number, path)


def _known(batch: Batch) -> Job | None:
    """What the run's folder has of this step's job."""
    return next((job for job in load_jobs(batch.folder).jobs if job.step.name == batch.step.name), None)


def _adopt(batch: Batch, known: Job, number: str) -> bool:
    """Write this job's number down where its submission ended before it could; whether it was this job's."""
    if not batch.plan.run_id or not known.ticket:
        return False
    try:
        trace = ask("squeue", "--noheader", f"--jobs={number}", "-o", "%k")
    except BackendError:
        return False
    if not Owner(batch.plan.run_id, str(batch.plan.folder)).sent(known.ticket, trace):
        return False
    claim = slurm_folder(batch.folder) / f"adopted-{known.ticket}"
    try:
        # One submission may have made two jobs: the first that comes here is the run's.
        claim.symlink_to(number)
    except FileExistsError:
        return str(claim.readlink()) == number
    jobs = load_jobs(batch.folder)
    for job in jobs.jobs:
        if job.ticket == known.ticket:
            job.job_id = number
    jobs.save(batch.folder)
    batch.event("adopted", job=number)
    return True


def _account_for_loss(batch: Batch, word: Word) -> str | None:
    """An attempt that nobody settled: Slurm itself ended it, and started the job again."""
    if word.state != RUNNING:
        return None
    ending = Ending("interrupted", "Slurm ended the job and started it again (preemption, a lost node, or by hand)")
    verdict = weigh(batch.step, batch.stage, word.attempt, ending, word.before, word.fruitless)
    word.fruitless = verdict.fruitless
    batch.event("requeued", reason=verdict.reason)
    return None if verdict.again else failed(batch, word, verdict.reason, 1)


def _attempt_number(batch: Batch) -> int:
    """A number of this step's own; the members of an array share the one that their submission was given."""
    if batch.step.kind != "array":
        return next_attempt(batch.step, batch.stage)
    jobs = load_jobs(batch.folder).jobs
    return next((job.step.attempt for job in jobs if job.step.name == batch.step.name), 0)


def _told(batch: Batch, word: Word) -> dict[str, str]:
    told = {ENV_ATTEMPT: str(word.attempt)}
    if batch.step.kind == "gang":
        told |= {
            "PET_NNODES": str(batch.step.nodes),
            "PET_NPROC_PER_NODE": str(batch.step.processes_per_node),
            "PET_MASTER_ADDR": _address(),
            "PET_MASTER_PORT": str(free_port()),
        }
    return told


def _address() -> str:
    """This node's address for the others: its Slurm name where that resolves, else what Slurm reaches it by."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
        return name
    except OSError:
        pass
    try:
        words = ask("scontrol", "show", "node", name).split()
    except BackendError:
        return socket.gethostname()
    return next((w.partition("=")[2] for w in words if w.startswith("NodeAddr=")), socket.gethostname())
