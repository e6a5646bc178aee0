"""How an attempt ended, and what that means for the next one: the same on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.failure import decode_exit, first_failure
from launcher.plan import Step
from launcher.progress import durable_progress
from launcher.run_folder import EXIT_BAD_REQUEST, EXIT_FINAL, EXIT_INTERRUPTED, RunFolder

LOST_PEER_GRACE_S = 20.0
"""How long nodes may take to notice that another broke: Gloo ranks notice at once, NCCL may wait far longer."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended."""

    kind: Literal["done", "interrupted", "broken", "final"]
    reason: str = ""
    lost: bool = False
    """Whether a node ended without a word, so that what the others met is only the echo of it."""


@dataclass(frozen=True)
class Verdict:
    """What follows from an ending that is not ``done``."""

    again: bool
    """Whether another attempt may bring more."""
    reason: str
    fruitless: int
    """Attempts in a row, this one included, that brought no new step."""


def judge(step: Step, codes: Sequence[tuple[int, int]]) -> Ending:
    """Say how an attempt ended.

    Args:
        step: what ran.
        codes: number and exit code of each node or shard.
    """
    bad = [(number, code) for number, code in codes if code != 0]
    if not bad:
        return Ending("done")
    what = {"gang": "node", "array": "shard", "task": "task", "merge": "task"}[step.kind]
    worst = next((b for b in bad if b[1] != EXIT_INTERRUPTED), bad[0])
    reason = f"{what} {worst[0]}: {decode_exit(worst[1])}"
    if any(code in (EXIT_BAD_REQUEST, EXIT_FINAL) for _, code in bad):
        return Ending("final", reason)
    if worst[1] == EXIT_INTERRUPTED:
        return Ending("interrupted", "interrupted, state saved" if step.kind == "gang" else reason)
    return Ending("broken", reason)


def weigh(step: Step, stage: RunFolder, attempt: int, ending: Ending, before: int, fruitless: int) -> Verdict:
    """Decide whether an attempt that did not get done is followed by another.

    Args:
        step: what ran.
        stage: its folder.
        attempt: number of the attempt that ended.
        ending: how it ended.
        before: durable progress when it began.
        fruitless: attempts in a row before it that brought no new step.
    """
    fruitless = 0 if durable_progress(stage) > before else fruitless + 1
    failure = first_failure(stage, attempt)
    reason = failure.summary if failure and not (ending.lost and failure.echo) else ending.reason
    over = ending.kind == "final" or step.retries == 0 or fruitless >= step.retries
    if over and fruitless > 1:
        reason += f" ({fruitless} attempts in a row without a new step)"
    return Verdict(not over, reason, fruitless)


def next_attempt(step: Step, stage: RunFolder) -> int:
    """A new number for every stay on the machines; the merge belongs to the attempt of its shards."""
    numbers = stage.attempt_numbers()
    used = [n for n in numbers if any(stage.attempt(n).glob("node*.log"))]
    if step.kind == "merge" and used:
        return used[-1]
    return used[-1] + 1 if used else 0
