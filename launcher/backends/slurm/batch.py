"""What a batch script asks before and after each attempt: ``begin`` and ``settle``. Both print lines for its shell.

``begin`` numbers the attempt and chooses the rendezvous on the node that will be its master, never earlier: a job that
was requeued may sit on other nodes. ``settle`` says whether the job is done, failed, tries again at once on the nodes
that it holds, or is requeued.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.base import CANCELLED, FAILED, REQUEUED, RUNNING, SUCCEEDED
from launcher.backends.slurm.client import ask, insist
from launcher.backends.slurm.files import Word, load_jobs, log_tail, plan_file, read_word, write_word
from launcher.backends.slurm.settings import lead_s
from launcher.ending import Ending, judge, next_attempt, weigh
from launcher.errors import BackendError
from launcher.exits import exit_codes, expect_exits
from launcher.failure import decode_exit
from launcher.plan import Plan, Step
from launcher.plan_text import load_plan
from launcher.progress import durable_progress
from launcher.run_folder import ENV_ATTEMPT, RunFolder, append_line, read_json

PATIENCE_S = 900.0
"""How long a silent controller is asked to requeue a job that has saved its state."""
_START_S = 60.0
"""An attempt that has no more time than this beside the time to save is not worth starting."""

_SENT_S = 60.0
"""How long a job that starts at once waits for its submission to be written down."""


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
        return read_word(self.folder, self.step.name, self.number)

    def write(self, word: Word) -> None:
        write_word(self.folder, self.step.name, self.number, word)

    def event(self, event: str, **fields: object) -> None:
        what = {"time": time.time(), "event": f"run.{event}", "step": self.step.name}
        append_line(self.folder.events, {**what, **fields})

    def cancelled_by(self) -> str | None:
        request = read_json(self.folder.cancel_request)
        return None if request is None else str(request.get("by", "a user"))


def begin(batch: Batch) -> str:
    """Start an attempt: return the lines that tell the shell about it, or the end of the script."""
    job_id = os.environ["SLURM_JOB_ID"]
    if not _was_sent(batch):
        _log(f"{batch.folder.root} knows nothing of job {job_id}: its submission was interrupted, or sent anew")
        return "exit 1"
    word = batch.word()
    who = batch.cancelled_by()
    if who is not None:
        return _cancelled(batch, word, who)
    if word.state in (RUNNING, REQUEUED) and word.job_id == job_id:
        over = _account_for_loss(batch, word)
        if over:
            return over
    else:
        word = Word(job_id=job_id)
    left_s = _time_left_s(job_id)
    if (
        left_s is not None
        and word.started is not None
        and left_s < lead_s(batch.plan.settings, batch.step.grace_s) + _START_S / 2
    ):
        return _requeue(batch, word, "the time limit is near")
    word.attempt = _attempt_number(batch)
    word.state, word.reason, word.ended = RUNNING, "", None
    word.before, word.started = durable_progress(batch.stage), word.started or time.time()
    word.nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if batch.step.kind == "gang":
        expect_exits(batch.stage, batch.step, word.attempt)
    batch.write(word)
    batch.event("attempt", number=word.attempt, job=job_id, nodes=word.nodes)
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in _told(batch, word).items())


def _was_sent(batch: Batch) -> bool:
    """Whether the run's folder has this job: a job that nobody knows of must not do a known one's work as well."""
    number = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"]
    deadline = time.monotonic() + _SENT_S
    while not any(job.job_id == number for job in load_jobs(batch.folder).jobs):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _account_for_loss(batch: Batch, word: Word) -> str | None:
    """An attempt that nobody settled: Slurm itself ended it, and started the job again."""
    if word.state != RUNNING:
        return None
    ending = Ending("interrupted", "Slurm ended the job and started it again (preemption, a lost node, or by hand)")
    verdict = weigh(batch.step, batch.stage, word.attempt, ending, word.before, word.fruitless)
    word.fruitless = verdict.fruitless
    batch.event("requeued", reason=verdict.reason)
    return None if verdict.again else _failed(batch, word, verdict.reason, 1)


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
            "PET_MASTER_PORT": str(_free_port()),
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


def _free_port() -> int:
    """A port of this node, the gang's first, that no other job uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def settle(batch: Batch, srun_code: int) -> str:
    """Account for an attempt that ended; return what the shell does next."""
    word = batch.word()
    word.ended = time.time()
    ending = judge(batch.step, _codes(batch, word.attempt, srun_code))
    if ending.kind == "done":
        word.state, word.reason = SUCCEEDED, ""
        batch.write(word)
        return "exit 0"
    who = batch.cancelled_by()
    if who is not None:
        return _cancelled(batch, word, who)
    verdict = weigh(batch.step, batch.stage, word.attempt, ending, word.before, word.fruitless)
    word.fruitless = verdict.fruitless
    if not verdict.again:
        return _failed(batch, word, verdict.reason + _unsaid(batch, word), srun_code or 1)
    if ending.kind == "broken" and verdict.fruitless == 0 and _may_go_on(batch):
        batch.event("restarted", reason=verdict.reason)
        word.state, word.reason = REQUEUED, f"{verdict.reason}; starting again on the same nodes"
        batch.write(word)
        return "continue"
    return _requeue(batch, word, verdict.reason)


def _codes(batch: Batch, attempt: int, srun_code: int) -> list[tuple[int, int]]:
    """Exit codes of the nodes; a node that left none ended with the step, and srun speaks for it."""
    if batch.number is not None:
        return [(batch.number, srun_code)]
    codes = exit_codes(batch.stage, batch.step, attempt)
    if srun_code == 0:
        return [(0, 0)]
    # srun returns the largest code: where a node was lost without a word, that code may be another node's.
    lost = srun_code if srun_code not in codes else 1
    return [(number, lost if code is None else code) for number, code in enumerate(codes)]


def _unsaid(batch: Batch, word: Word) -> str:
    """What srun printed, where nothing was started that could have said more."""
    if any(batch.stage.attempt(word.attempt).glob("node*.log")):
        return ""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    one = f"{array}_{batch.member}" if array else os.environ["SLURM_JOB_ID"]
    tail = log_tail(batch.folder, one)
    return f"; Slurm's log ends with: {tail}" if tail else ""


def _may_go_on(batch: Batch) -> bool:
    """Nodes that just made progress are good enough for another attempt, if there is time for one."""
    left_s = _time_left_s(os.environ["SLURM_JOB_ID"])
    return left_s is None or left_s > lead_s(batch.plan.settings, batch.step.grace_s) + _START_S


def _time_left_s(job_id: str) -> float | None:
    """Seconds to the job's time limit; None: without one, or unknown."""
    try:
        end = ask("squeue", "--noheader", f"--jobs={job_id}", "-o", "%e|%l").strip().splitlines()[0]
    except (BackendError, IndexError):
        return None
    moment, _, limit = end.partition("|")
    return float(moment) - time.time() if moment.isdigit() and limit != "UNLIMITED" else None


def _requeue(batch: Batch, word: Word, reason: str) -> str:
    """Have Slurm start the job again later, maybe elsewhere. A job that is being ended already is left to end."""
    job_id = os.environ["SLURM_JOB_ID"]
    word.state, word.reason = REQUEUED, reason
    batch.write(word)
    try:
        state = insist("squeue", "--noheader", f"--jobs={job_id}", "-o", "%T", patience_s=PATIENCE_S, say=_log)
        if state.split() != ["RUNNING"]:
            return "exit 1"
        batch.event("requeued", reason=reason)
        insist("scontrol", "requeue", job_id, patience_s=PATIENCE_S, say=_log)
    except BackendError as error:
        return _failed(batch, word, f"{reason}; and it could not be requeued: {error.message}", 1)
    # Slurm ends this script now; until then it must not return, or the job would count as ended.
    return "sleep 300; exit 1"


def _failed(batch: Batch, word: Word, reason: str, code: int) -> str:
    word.state, word.reason, word.ended = FAILED, reason, time.time()
    batch.write(word)
    batch.event("failed", reason=reason)
    _log(f"{batch.step.name}: {reason} ({decode_exit(code)})")
    return f"exit {code}"


def _cancelled(batch: Batch, word: Word, who: str) -> str:
    word.state, word.reason, word.ended = CANCELLED, f"cancelled by {who}", time.time()
    batch.write(word)
    return 'scancel --quiet "$SLURM_JOB_ID"; sleep 30; exit 1'


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Answer a batch script: ``begin FOLDER STEP`` or ``settle FOLDER STEP EXIT_CODE_OF_SRUN``."""
    what, folder, name, *rest = arguments
    plan = load_plan(plan_file(RunFolder(Path(folder))))
    step = next(step for step in plan.steps if step.name == name)
    index = os.environ.get("SLURM_ARRAY_TASK_ID") if step.kind == "array" else None
    batch = Batch(RunFolder(plan.folder), plan, step, None if index is None else int(index))
    print(begin(batch) if what == "begin" else settle(batch, int(rest[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
