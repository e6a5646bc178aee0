"""What the local supervisor knows of its run, kept in ``state.json`` so that any other process can read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.backends.base import PENDING, BackendState, StepState
from launcher.run_folder import RunFolder, read_json, write_json


@dataclass
class LocalState:
    """Where the run is, and who supervises it."""

    state: str = PENDING
    reason: str = ""
    attempt: int = 0
    attempts: int = 0
    stage: str = ""
    pid: int = 0
    pid_started: float = 0.0
    boot_time: float = 0.0
    started: float | None = None
    ended: float | None = None
    steps: list[StepState] = field(default_factory=list)

    def step(self, name: str) -> StepState:
        return next(step for step in self.steps if step.name == name)

    def save(self, folder: RunFolder) -> None:
        write_json(folder.state, asdict(self))

    def shown(self) -> BackendState:
        """The same as every backend shows it."""
        return BackendState(
            self.state, self.reason, self.attempt, self.attempts, self.stage, [str(self.pid)] if self.pid else [],
            list(self.steps), self.started, self.ended,
        )  # fmt: skip


def load_state(folder: RunFolder) -> LocalState:
    """Read a run's state; a run whose supervisor has not written one yet is pending."""
    values: dict[str, Any] = read_json(folder.state) or {}
    steps = [StepState(**step) for step in values.pop("steps", [])]
    return LocalState(**values, steps=steps)


def latest_plan(folder: RunFolder) -> Path:
    """The plan that a run was last submitted with."""
    record = read_json(folder.record) or {}
    return folder.rendered(record["submissions"][-1]["attempt"])
