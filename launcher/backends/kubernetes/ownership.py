"""Which objects are a run's: those that carry its id. A name tells nothing, it is used again and by others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.labels import FOLDER_ANNOTATION, RUN_ID_LABEL, RUN_LABEL
from launcher.plan import Plan
from launcher.run_folder import RunFolder, read_json
from launcher.store import Run

Object = dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """A run, as its objects name it."""

    name: str
    run_id: str
    """Empty: the run is of a version whose objects had no id."""
    folder: str
    """The run's folder as its pods see it; tells runs without an id apart. Empty: not known."""

    @property
    def selector(self) -> str:
        """What to ask the server for; ``owns`` then has the last word."""
        return f"{RUN_ID_LABEL}={self.run_id}" if self.run_id else f"{RUN_LABEL}={self.name}"

    def owns(self, obj: Object) -> bool:
        """Tell whether an object or a pod is this run's."""
        meta = obj.get("metadata") or {}
        labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
        if self.run_id or labels.get(RUN_ID_LABEL):
            return bool(labels.get(RUN_ID_LABEL) == self.run_id)
        folder = annotations.get(FOLDER_ANNOTATION)
        return labels.get(RUN_LABEL) == self.name and (not self.folder or folder == self.folder)


def owner_of_run(run: Run) -> Owner:
    """The owner of a run's objects."""
    return Owner(run.name, run.run_id, str(run.record.get("there", run.folder.root)))


def owner_of_plan(plan: Plan) -> Owner:
    """The owner of what is sent for a plan."""
    return Owner(plan.run, plan.run_id, str(plan.folder))


def owner_in(folder: RunFolder) -> Owner:
    """The owner of the objects of the run in a folder, as its record says."""
    record = read_json(folder.record)
    return Owner(folder.name, "", "") if record is None else owner_of_run(Run(folder, record))


def original_of(run: Run, submitted_in: str, inode: str) -> str:
    """Return where the run lies that a folder is a copy of; empty: it is no copy.

    A copy says of itself all that the original says. What it names in the cluster is the original's.

    Args:
        run: the run.
        submitted_in: its folder when it was submitted; empty: not recorded.
        inode: that folder's number in its file system; another one, in another place, is another folder.
    """
    root, named = run.folder.root, str(run.record.get("name", run.name))
    if submitted_in:
        moved_or_same = submitted_in == str(root) or _is_same(Path(submitted_in), root) or inode == folder_number(root)
        return "" if moved_or_same else submitted_in
    if named != run.name:
        return str(root.parent / named)
    there = Path(str(run.record.get("there", root)))
    other = read_json(there / "run.json") if there != root and not _is_same(there, root) else None
    return str(there) if other is not None and other.get("created") == run.record.get("created") else ""


def folder_number(path: Path) -> str:
    """Return a folder's number in its file system; it stays when the folder is moved there."""
    try:
        return str(path.stat().st_ino)
    except OSError:
        return ""


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
