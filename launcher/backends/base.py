"""What every backend can do, and the states that foreign states are mapped to."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from launcher.doctor import Finding
from launcher.errors import Unreadable
from launcher.plan import Plan, StepKind
from launcher.profiles import Profile
from launcher.reach import Reach
from launcher.store import Run

PENDING, STARTING, RUNNING, REQUEUED = "PENDING", "STARTING", "RUNNING", "REQUEUED"
SUCCEEDED, FAILED, CANCELLED, UNKNOWN = "SUCCEEDED", "FAILED", "CANCELLED", "UNKNOWN"
STATES = (PENDING, STARTING, RUNNING, REQUEUED, SUCCEEDED, FAILED, CANCELLED, UNKNOWN)
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED})


@dataclass
class StepState:
    """Where one step of a run is."""

    name: str
    stage: str
    kind: StepKind
    state: str = PENDING
    attempt: int = 0
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class BackendState:
    """Where a run is, as its scheduler sees it."""

    state: str
    reason: str = ""
    """Why it waits or how it ended, in words."""
    attempt: int = 0
    """Number of the current (or last) attempt of the current step."""
    attempts: int = 0
    """How many attempts there were, over all steps."""
    stage: str = ""
    """Stage that is running or was last."""
    job_ids: list[str] = field(default_factory=list)
    steps: list[StepState] = field(default_factory=list)
    started: float | None = None
    ended: float | None = None


class Backend(Protocol):
    """One scheduler. Rendering is pure: the same plan gives the same text on any machine."""

    suffix: str
    """File name ending of what is rendered."""
    sees_files: bool
    """Whether what runs there sees the files that are seen here, so that inputs can be looked for."""

    def render(self, plan: Plan) -> str:
        """Return exactly what ``submit`` will send."""

    def check(self, plan: Plan) -> list[str]:
        """Return what this place lacks for the plan, seen from here before anything is sent."""

    def where(self, plan: Plan) -> dict[str, str]:
        """Return where the run will live: this machine, a cluster, an API server. Asked before anything is sent.

        It is kept in the record as ``where``; only from the same place can be told that a run is not there any more.

        Raises:
            BackendError: the place does not answer.
        """

    def reach(self, profile: Profile) -> Reach:
        """Return what the processes of runs there see of this machine's files."""

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Send a run, new or resumed, as it was rendered; return its job ids.

        Raises:
            SubmissionUnknown: the run may have been sent; its folder and record are kept.
            BackendError: the scheduler refused or did not answer; nothing of the run is left there.
        """

    def states(self, runs: Sequence[Run]) -> list[BackendState]:
        """Return the states of runs, in one query whatever their number."""

    def fetch_logs(self, run: Run) -> list[str]:
        """Bring what the run's processes wrote into its folder here, where they write to another; never raises.

        Returns:
            in words what could not be brought.
        """

    def cancel(self, run: Run) -> BackendState:
        """End a run and everything that belongs to it; return when it is gone."""

    def examine(self, profile: Profile) -> Iterator[Finding]:
        """Look at what this place offers and lacks for a profile."""


_MODULES = {
    "local": "launcher.backends.local.backend:LocalBackend",
    "slurm": "launcher.backends.slurm.backend:SlurmBackend",
    "kubernetes": "launcher.backends.kubernetes.backend:KubernetesBackend",
}


def get_backend(name: str) -> Backend:
    """Return a backend; its module is imported only now, because cluster clients are slow to import.

    Raises:
        Unreadable: a record names one that this version does not have.
    """
    if name not in _MODULES:
        raise Unreadable(f"no backend is called '{name}' here; there are {', '.join(_MODULES)}")
    module, _, attribute = _MODULES[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
