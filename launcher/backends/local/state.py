"""What the local supervisor knows of its run, kept in ``state.json`` so that any other process can read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.backends.base import PENDING, STATES, BackendState, StepState
from launcher.errors import Unreadable
from launcher.reading import read_object
from launcher.run_folder import RunFolder, write_json
from launcher.typed import build


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
    """Read a run's state; a run whose supervisor has not written one yet is pending.

    Raises:
        Unreadable: what stands in the file's place cannot be understood.
    """
    state = build(LocalState, read_object(folder.state) or {}, folder.state)
    if state.state not in STATES:
        raise Unreadable(f"{folder.state}: its state is called '{state.state}', which is not known here")
    return state


def reserve_file(folder: RunFolder) -> Path:
    """Room on the disk that is kept for the run's last words."""
    return folder.root / ".reserve"


def latest_plan(folder: RunFolder) -> Path:
    """The plan that a run was last submitted with.

    Raises:
        Unreadable: the run's record does not say which.
    """
    record = read_object(folder.record) or {}
    try:
        return folder.rendered(int(record["submissions"][-1]["attempt"]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise Unreadable(f"{folder.record} names no submission") from None
