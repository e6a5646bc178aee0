"""What the local supervisor knows of its run, kept in ``state.json`` so that any other process can read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from launcher.backends.base import PENDING, STATES, BackendState, StepState
from launcher.errors import BackendError
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
    pid_ticks: int = 0
    """When the supervisor started, in clock ticks since the machine's start."""
    pid_started: float = 0.0
    boot_time: float = 0.0
    """How the version before told the same, by the wall clock; zero since."""
    where: dict[str, str] = field(default_factory=dict)
    """The supervisor's machine, see machine.py."""
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
    """Read a run's state; a run whose supervisor has not written one yet is pending. Unknown keys are passed over.

    Raises:
        BackendError: what stands there cannot be understood.
    """
    values = read_json(folder.state)
    if values is None:
        if folder.state.exists():
            raise BackendError("its state.json cannot be read as JSON")
        return LocalState()
    steps = values.pop("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise BackendError(f"its state.json cannot be understood: steps is {steps!r}")
    state = LocalState(**_known(values, LocalState()))
    state.steps = [StepState(**_known(step, StepState("", "", "task"))) for step in steps if "name" in step]
    if state.state not in STATES:
        raise BackendError(f"its state.json cannot be understood: state is {state.state!r}")
    return state


def _known(values: dict[str, Any], example: LocalState | StepState) -> dict[str, Any]:
    """The values of the fields that this version knows, each checked against the type of its default."""
    if isinstance(example, StepState):
        values = {"stage": "", "kind": "task", **values}
    known = {}
    for one in fields(example):
        if one.name not in values or one.name == "steps":
            continue
        value, default = values[one.name], getattr(example, one.name)
        allowed: tuple[type, ...] = (type(default),)
        if default is None:
            allowed = (float, int, type(None))
        elif isinstance(default, float):
            allowed = (float, int)
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise BackendError(f"its state.json cannot be understood: {one.name} is {value!r}")
        known[one.name] = value
    return known


def reserve_file(folder: RunFolder) -> Path:
    """Room on the disk that is kept for the run's last words."""
    return folder.root / ".reserve"


def latest_plan(folder: RunFolder) -> Path:
    """The plan that a run was last submitted with."""
    record = read_json(folder.record) or {}
    return folder.rendered(record["submissions"][-1]["attempt"])
