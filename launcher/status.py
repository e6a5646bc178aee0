"""Where a run is, put together from its scheduler's word and the files that the runtime writes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.asking import ask, attempt_to
from launcher.backends.base import ENDED, FAILED, RUNNING, STARTING, UNKNOWN, BackendState, StepState
from launcher.failure import Failure, first_failure
from launcher.progress import Progress, read_progress
from launcher.reading import read_start
from launcher.run_folder import RunFolder
from launcher.stall import Stall, find_stall
from launcher.store import Run

_LONGEST_REPORT = 1 << 20
"""Bytes of a report that are shown."""


@dataclass
class RunStatus:
    """All that ``llavajob status`` shows."""

    run: str
    recipe: str
    backend: str
    state: str
    reason: str
    attempt: int
    attempts: int
    stage: str
    step: int | None
    total_steps: int | None
    loss: float | None
    samples_per_s: float | None
    eta_s: float | None
    """Null at a standstill, too."""
    stalled_s: float | None
    """Seconds since the last step, when that is much longer than steps took; else null."""
    step_s: float | None
    """Seconds that a step took before the standstill."""
    dir: str
    job_ids: list[str]
    created: float
    started: float | None
    ended: float | None
    stages: list[StepState] = field(default_factory=list)
    failure: Failure | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        # As asdict, without its copies of every value: a list has thousands.
        return vars(self) | {
            "stages": [dict(vars(step)) for step in self.stages],
            "failure": None if self.failure is None else dict(vars(self.failure)),
        }


def statuses(runs: Sequence[Run], whatever: bool = False) -> list[RunStatus]:
    """Return the status of every run, with one query per backend.

    Args:
        runs: which.
        whatever: call a run unknown whose scheduler cannot be asked, and say why; else that is an error.

    Raises:
        BackendError: a scheduler cannot be asked.
    """
    return [_status(run, state) for run, state in zip(runs, ask(runs, whatever), strict=True)]


def _status(run: Run, state: BackendState) -> RunStatus:
    found = attempt_to(lambda: _looked_up(run, state))
    if isinstance(found, str):
        return _together(run, replace(state, state=UNKNOWN, reason=found), Progress(), None)
    return found


def _looked_up(run: Run, state: BackendState) -> RunStatus:
    """The status with what the run's own files say."""
    stage = run.folder.stage(state.stage)
    shown = replace(state, state=_refined(state, stage))
    failure = first_failure(stage, state.attempt) if shown.state == FAILED else None
    stall = find_stall(stage, state.attempt, time.time()) if shown.state == RUNNING else None
    if stall is not None:
        shown = replace(shown, reason="; ".join(filter(None, [stall.text, shown.reason])))
    return _together(run, shown, read_progress(stage), failure, stall)


def _together(
    run: Run, state: BackendState, progress: Progress, failure: Failure | None, stall: Stall | None = None
) -> RunStatus:
    no_end_in_sight = state.state in ENDED or stall is not None
    return RunStatus(
        run=run.name,
        recipe=str(run.record.get("recipe", "")),
        backend=run.backend,
        state=state.state,
        reason=state.reason,
        attempt=state.attempt,
        attempts=state.attempts,
        stage=state.stage,
        step=progress.step,
        total_steps=progress.total_steps,
        loss=progress.loss,
        samples_per_s=progress.samples_per_s,
        eta_s=None if no_end_in_sight else progress.eta_s,
        stalled_s=stall.quiet_s if stall else None,
        step_s=stall.step_s if stall else None,
        dir=str(run.folder.root),
        job_ids=state.job_ids,
        created=run.created,
        started=state.started,
        ended=state.ended,
        stages=state.steps,
        failure=failure,
    )


def _refined(state: BackendState, stage: RunFolder) -> str:
    """A scheduler calls a job running from its first process on; for a person it runs from its first sign of work."""
    if state.state != RUNNING or not state.steps:
        return state.state
    logs = stage.attempt(state.attempt).glob("*.log")
    return RUNNING if any(path.stat().st_size for path in logs) else STARTING


def stage_progress(run: Run, states: Iterable[StepState]) -> dict[str, Progress]:
    """Return how far each stage is, by stage name."""
    return {state.stage: read_progress(run.folder.stage(state.stage)) for state in states}


def reports(folder: Path) -> list[str]:
    """Return the tables that a run's evaluations wrote."""
    paths = [path for where in ("", "stages/*/") for path in sorted(folder.glob(f"{where}eval/*/report.txt"))]
    texts = [read_start(path, _LONGEST_REPORT).decode("utf-8", "replace").rstrip("\n") for path in paths]
    return [text for text in texts if text]
