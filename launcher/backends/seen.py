"""From what is seen of each step, or of each shard, to where the whole run is: the same on every cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.backends.base import (
    CANCELLED,
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
from launcher.run_folder import RunFolder, read_json

SENDING_S = 300.0
"""So long a submission may take, with a scheduler that does not answer."""
_ORDER = (RUNNING, STARTING, REQUEUED, PENDING, UNKNOWN, FAILED, CANCELLED, SUCCEEDED)


@dataclass(frozen=True)
class Seen:
    """One step as its scheduler and its own word have it, or one shard of an array."""

    state: str
    reason: str = ""
    attempt: int = 0
    started: float | None = None
    ended: float | None = None


def together(seen: Sequence[Seen], numbers: Sequence[int]) -> Seen:
    """The shards of an array as one: it goes on as long as one of them does.

    Args:
        seen: each shard.
        numbers: their numbers.
    """
    state = min((one.state for one in seen), key=_ORDER.index)
    worst = [(n, one) for n, one in zip(numbers, seen, strict=True) if one.state in (FAILED, CANCELLED)]
    telling = next((one.reason for one in seen if one.state == state and one.reason), "")
    if worst:
        number, first = worst[0]
        more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
        telling = f"shard {number}: {first.reason.removeprefix(f'shard {number}: ')}{more}"
    over = sum(one.state in ENDED for one in seen)
    if over and state == PENDING:
        telling = "; ".join(filter(None, [f"{over} of {len(seen)} shards have ended", telling]))
    return Seen(
        state, telling, max(one.attempt for one in seen), min((s.started for s in seen if s.started), default=None),
        max((one.ended for one in seen if one.ended), default=None) if state in ENDED else None,
    )  # fmt: skip


def as_step(step: StepState, seen: Seen) -> StepState:
    """A step with what was seen of it."""
    ended = seen.ended if seen.state in ENDED else None
    return replace(step, state=seen.state, attempt=seen.attempt, started=seen.started, ended=ended)


def whole_run(run: RunFolder, seen: Sequence[tuple[StepState, str]], job_ids: list[str]) -> BackendState:
    """Put a run's state together from its steps and the reason of each."""
    steps = [step for step, _ in seen]
    current = next((n for n, step in enumerate(steps) if step.state != SUCCEEDED), len(steps) - 1)
    step, reason = seen[current]
    state = step.state
    if len(steps) > 1 and reason:
        reason = f"{step.name}: {reason}"
    request = read_json(run.cancel_request)
    if request is not None and state in (FAILED, CANCELLED):
        state, reason = CANCELLED, f"cancelled by {request.get('by', 'a user')}"
    if state == CANCELLED:
        reason += _kept(run, step)
    ended = [s.ended for s in steps if s.ended]
    return BackendState(
        state, reason, step.attempt, _attempts(run, steps), step.stage, job_ids, steps,
        min((s.started for s in steps if s.started), default=None),
        max(ended, default=time.time()) if state in ENDED else None,
    )  # fmt: skip


def never_sent(created: float) -> BackendState:
    """The state of a run with a record and nothing that was sent: a submission says what it sends before it sends it.

    Args:
        created: when the record was made.
    """
    if time.time() - created < SENDING_S:
        return BackendState(PENDING, "being sent")
    return BackendState(FAILED, "it was never sent: its submission was interrupted", ended=created)


def _attempts(run: RunFolder, steps: Sequence[StepState]) -> int:
    stages = {step.stage for step in steps if step.kind != "merge"}
    return sum(
        any(stage.attempt(n).glob("node*.log"))
        for stage in (run.stage(name) for name in stages)
        for n in stage.attempt_numbers()
    )


def _kept(run: RunFolder, step: StepState) -> str:
    steps = run.stage(step.stage).checkpoint_steps()
    return f"; state saved at step {steps[-1]}" if steps else ""
