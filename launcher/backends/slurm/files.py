"""The Slurm backend's own files in a run's folder, so that a run's state outlives the scheduler's memory.

slurm/plan.yaml   what the batch scripts read
slurm/jobs.json   which job was sent for which step; the end, once it is known
slurm/*_log.out   what batch scripts and submitit print
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.backends.base import BackendState, StepState
from launcher.reading import read_end, read_object
from launcher.run_folder import RunFolder, write_json
from launcher.typed import build

_TAIL_BYTES = 2000


def slurm_folder(run: RunFolder) -> Path:
    return run.root / "slurm"


def plan_file(run: RunFolder) -> Path:
    return slurm_folder(run) / "plan.yaml"


def log_tail(run: RunFolder, one: str) -> str:
    """The last lines that a job, or member of an array, printed outside of what it ran; empty: none."""
    data = read_end(slurm_folder(run) / f"{one}_0_log.out", _TAIL_BYTES)
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines[-2:]))


@dataclass
class Job:
    """One step and the Slurm job that was sent for it."""

    step: StepState
    job_id: str = ""
    """Empty: nothing was sent, because the step was done before."""
    members: list[int] = field(default_factory=list)
    """Shards of an array, by the index that Slurm gives them."""
    ticket: str = ""
    """Name of this submission of the step, which its job carries. Empty: a version before there was one sent it."""

    def ids(self) -> list[str]:
        """Job ids as Slurm lists them, one per member of an array."""
        return [f"{self.job_id}_{index}" for index in range(len(self.members))] if self.members else [self.job_id]

    def numbers(self) -> list[int | None]:
        """Shards in the order of the ids; one None for what is no array."""
        return [*self.members] or [None]


@dataclass
class Jobs:
    """What a submission sent, and how the run ended once that is known."""

    jobs: list[Job] = field(default_factory=list)
    submitted: float = 0.0
    end: BackendState | None = None

    def save(self, run: RunFolder) -> None:
        write_json(slurm_folder(run) / "jobs.json", asdict(self))


def load_jobs(run: RunFolder) -> Jobs:
    """Read what was sent for a run.

    Raises:
        Unreadable: what stands in the file's place cannot be understood.
    """
    path = slurm_folder(run) / "jobs.json"
    return build(Jobs, read_object(path) or {}, path)
