"""After each attempt: the job is done, failed, starts again at once on the nodes that it holds, or is requeued."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

from launcher.backends.base import REQUEUED, SUCCEEDED
from launcher.backends.slurm.batch_job import Batch, cancelled, failed, own_id, requeue, time_left_s, was_preempted
from launcher.backends.slurm.files import log_tail
from launcher.backends.slurm.settings import lead_s
from launcher.ending import Ending, judge, weigh
from launcher.exits import exit_codes
from launcher.failure import decode_exit
from launcher.node_process import NodePart
from launcher.run_folder import EXIT_INTERRUPTED
from launcher.step_word import Word

_START_S = 60.0
"""Starting again on the same nodes must leave so much time beside the time to save."""


def settle(batch: Batch, srun_code: int) -> str:
    """Account for an attempt that ended; return what the shell does next."""
    word = batch.word()
    word.ended = time.time()
    if batch.step.kind != "gang":
        # What a killed task leaves on this node is ended here: not every site lets Slurm find it.
        NodePart(batch.folder, batch.plan.run_id, batch.step, word.attempt, batch.number or 0).end_orphans(0)
    ending = _ending(batch, word.attempt, srun_code)
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


def _ending(batch: Batch, attempt: int, srun_code: int) -> Ending:
    """How the attempt ended: what its nodes left behind, and srun's exit code for those that left nothing."""
    if batch.number is not None:
        ending = judge(batch.step, [(batch.number, srun_code)])
    elif srun_code == 0:
        return Ending("done")
    else:
        ending = _gang_ending(batch, exit_codes(batch.stage, batch.step, attempt), srun_code)
    gave_way = srun_code in (EXIT_INTERRUPTED, 128 + signal.SIGTERM) and ending.kind != "final" and was_preempted(batch)
    return replace(ending, reason="gave way to a job of higher priority") if gave_way else ending


def _gang_ending(batch: Batch, codes: Sequence[int | None], srun_code: int) -> Ending:
    told = [(number, code) for number, code in enumerate(codes) if code is not None]
    silent = [str(number) for number, code in enumerate(codes) if code is None]
    ending = judge(batch.step, told)
    word = batch.word()
    if silent and word.reason and ending.kind != "final":
        # The other nodes noticed who fell silent, and left because of it.
        return Ending("broken", word.reason, lost=True)
    if not silent or ending.kind in ("broken", "final"):
        return ending if ending.kind != "done" else judge(batch.step, [(0, srun_code)])
    if srun_code <= 128:
        # srun returns the largest code: it may be that of a node which did say so.
        return judge(batch.step, [(int(silent[0]), srun_code if srun_code not in codes else 1)])
    who = f"node {silent[0]}" if len(silent) == 1 else f"nodes {', '.join(silent)}"
    why = "a node was lost, or the step was killed from outside, often because memory ran out"
    return Ending(
        "broken", f"{who} ended without a word ({why}); srun: {decode_exit(srun_code).split(':')[0]}", lost=True
    )


def _unsaid(batch: Batch, word: Word) -> str:
    """What srun printed, where nothing was started that could have said more."""
    if any(batch.stage.attempt(word.attempt).glob("node*.log")):
        return ""
    tail = log_tail(batch.folder, own_id(batch))
    return f"; Slurm's log ends with: {tail}" if tail else ""


def _may_go_on(batch: Batch, attempt: int) -> bool:
    """Nodes that just made progress are good enough for another attempt, if all are there and there is time for one."""
    if None in exit_codes(batch.stage, batch.step, attempt):
        return False  # a node was lost, and a new step would wait for it
    left_s = time_left_s(os.environ["SLURM_JOB_ID"])
    return left_s is None or left_s > lead_s(batch.plan.settings, batch.step.grace_s) + _START_S
