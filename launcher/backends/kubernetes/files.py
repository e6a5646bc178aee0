"""The Kubernetes backend's own file in a run's folder: what was sent, and how the run ended once that is known.

kubernetes/sent.json   the submission's place, its steps and their objects
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from launcher.backends.base import BackendState, StepState
from launcher.reading import read_object
from launcher.run_folder import RunFolder, write_json
from launcher.typed import build


@dataclass
class Part:
    """One step, and the object that stands for it."""

    step: StepState
    kind: str = ""
    """Kind of its object; empty: the step was done before."""
    name: str = ""
    members: list[int] = field(default_factory=list)
    """Shards of an array, by the index that its pods have."""
    deleting: bool = False
    """Whether its object was seen being deleted before it had ended."""


@dataclass
class Sent:
    """What a submission sent."""

    context: str = ""
    namespace: str = ""
    conductor: str = ""
    """Name of the Job that starts the steps; empty: there is one step, sent as it is."""
    parts: list[Part] = field(default_factory=list)
    submitted: float = 0.0
    complete: bool = False
    """Whether all was created that was to be."""
    end: BackendState | None = None
    where: dict[str, str] = field(default_factory=dict)
    """The server's address and what tells its cluster from others; empty for runs of older versions."""
    folder: str = ""
    """The run's folder at that time, to tell a copy of it; empty for runs of older versions."""
    inode: str = ""
    """Number of that folder in its file system; as text, because some file systems use all 64 bits."""

    @property
    def place(self) -> dict[str, str]:
        """What a client needs to know."""
        return {"context": self.context, "namespace": self.namespace}

    def save(self, run: RunFolder) -> None:
        write_json(run.root / "kubernetes" / "sent.json", asdict(self))


def load_sent(run: RunFolder) -> Sent:
    """Read what was sent for a run.

    Raises:
        Unreadable: what stands in the file's place cannot be understood.
    """
    path = run.root / "kubernetes" / "sent.json"
    return build(Sent, read_object(path) or {}, path)
