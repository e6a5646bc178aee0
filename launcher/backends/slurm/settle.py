"""After each attempt: the job is done, failed, starts again at once on the nodes that it holds, or is requeued."""

from __future__ import annotations

import os
import time

from launcher.backends.base import REQUEUED, SUCCEEDED
from launcher.backends.slurm.batch_job import Batch, cancelled, failed, own_id, requeue, time_left_s
from launcher.backends.slurm.files import Word, log_tail
from launcher.backends.slurm.settings import lead_s
from launcher.ending import judge, weigh
from launcher.exits import exit_codes

_START_S = 60.0
"""Starting again on the same nodes must leave so much time beside the time to save."""


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
        return cancelled(batch, word, who)
    verdict = weigh(batch.step, batch.stage, word.attempt, ending, word.before, word.fruitless)
    word.fruitless = verdict.fruitless
    if not verdict.again:
        return failed(batch, word, verdict.reason + _unsaid(batch, word), srun_code or 1)
    if ending.kind == "broken" and verdict.fruitless == 0 and _may_go_on(batch, word.attempt):
        batch.event("restarted", reason=verdict.reason)
        word.state, word.reason = REQUEUED, f"{verdict.reason}; starting again on the same nodes"
        batch.write(word)
        return "continue"
    return requeue(batch, word, verdict.reason)


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
    tail = log_tail(batch.folder, own_id())
    return f"; Slurm's log ends with: {tail}" if tail else ""


def _may_go_on(batch: Batch, attempt: int) -> bool:
    """Nodes that just made progress are good enough for another attempt, if all are there and there is time for one."""
    if None in exit_codes(batch.stage, batch.step, attempt):
        return False  # a node was lost, and a new step would wait for it
    left_s = time_left_s(os.environ["SLURM_JOB_ID"])
    return left_s is None or left_s > lead_s(batch.plan.settings, batch.step.grace_s) + _START_S
