"""Looked at before a run is sent, ended or judged: is this the run itself, is it on this cluster, is its name free?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.client import Client, taken_by
from launcher.backends.kubernetes.files import Sent
from launcher.backends.kubernetes.ownership import Owner, original_of
from launcher.backends.kubernetes.place import elsewhere
from launcher.errors import BackendError, RequestError
from launcher.store import Run


class NameTaken(BackendError):
    """Somebody else's object has a name that the run would have."""

    exit_code = 2


def require_own(run: Run, sent: Sent) -> None:
    """Refuse to act through a copy of a run's folder: what it names belongs to the original."""
    original = original_of(run, sent.folder, sent.inode)
    if original:
        root, name = Path(original).parent, Path(original).name
        raise RequestError(
            f"{run.folder.root} is a copy of the run at {original}: what runs belongs to that one",
            f"Go on there: LLAVAJOB_RUNS={root} llavajob status {name}. A folder that was moved works where it was.",
        )


def require_place(run: Run, sent: Sent, here: dict[str, str], context: str) -> None:
    """Refuse to act on another cluster than the run's."""
    reason = runs_elsewhere(run, sent, here)
    if reason:
        named = f"context '{context}' of a kubeconfig" if context else "a kubeconfig"
        raise RequestError(f"{run.name} {reason}", f"Set KUBECONFIG to {named} that leads there, and try again.")


def runs_elsewhere(run: Run, sent: Sent, here: dict[str, str]) -> str:
    """Say that a run is on another cluster than the one that is asked; empty: it is this one."""
    recorded = run.record.get("where")
    return elsewhere(sent.where, here) or elsewhere(recorded if isinstance(recorded, dict) else {}, here)


def require_free(client: Client, owner: Owner, obj: dict[str, Any]) -> None:
    """Refuse a name that somebody else's object has, before anything is deleted or created."""
    found = client.get(str(obj["kind"]), str(obj["metadata"]["name"]))
    if found is not None and not owner.owns(found):
        raise NameTaken(
            f"{taken_by(found)}; it belongs to another run, and is left alone",
            "Take another name: --name. A run that was cancelled or failed can be resumed when the name is free again.",
        )
