"""Where a run is, put together from its scheduler's word and the files that the runtime writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.backends.base import ENDED, FAILED, RUNNING, STARTING, UNKNOWN, BackendState, StepState, get_backend
from launcher.errors import BackendError
from launcher.failure import Failure, first_failure
from launcher.progress import Progress, read_progress
from launcher.run_folder import RunFolder
from launcher.store import Run


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
    dir: str
    job_ids: list[str]
    created: float
    started: float | None
    ended: float | None
    stages: list[StepState] = field(default_factory=list)
    failure: Failure | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def statuses(runs: Sequence[Run], whatever: bool = False) -> list[RunStatus]:
    """Return the status of every run, with one query per backend.

    Args:
        runs: which.
        whatever: call a run unknown whose scheduler cannot be asked, and say why; else that is an error.

    Raises:
        BackendError: a scheduler cannot be asked.
    """
    by_name: dict[str, RunStatus] = {}
    for backend in sorted({str(run.record["backend"]) for run in runs}):
        mine = [run for run in runs if run.record["backend"] == backend]
        states = _states_or_why_not if whatever else get_backend(backend).states
        for run, state in zip(mine, states(mine), strict=True):
            by_name[str(run.folder.root)] = _status(run, state)
    return [by_name[str(run.folder.root)] for run in runs]


def _states_or_why_not(runs: Sequence[Run]) -> list[BackendState]:
    """The states of a backend's runs; where it cannot be asked about all at once, of each by itself."""
    backend = get_backend(str(runs[0].record["backend"]))
    try:
        return backend.states(runs)
    except BackendError as error:
        if len(runs) == 1:
            return [BackendState(UNKNOWN, error.message)]
    return [_states_or_why_not([run])[0] for run in runs]


def _status(run: Run, state: BackendState) -> RunStatus:
    stage = run.folder.stage(state.stage)
    progress = read_progress(stage)
    shown = _refined(state, stage)
    failure = first_failure(stage, state.attempt) if shown == FAILED else None
    ended = shown in ENDED
    return RunStatus(
        run=run.name,
        recipe=str(run.record.get("recipe")),
        backend=str(run.record.get("backend")),
        state=shown,
        reason=state.reason,
        attempt=state.attempt,
        attempts=state.attempts,
        stage=state.stage,
        step=progress.step,
        total_steps=progress.total_steps,
        loss=progress.loss,
        samples_per_s=progress.samples_per_s,
        eta_s=None if ended else progress.eta_s,
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
    return [path.read_text(encoding="utf-8").rstrip("\n") for path in paths]
