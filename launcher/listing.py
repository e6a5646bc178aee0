"""The list of all runs: ended ones as they are remembered, the others as they are now."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path

from launcher.backends.base import ENDED, FAILED
from launcher.errors import Unreadable
from launcher.index import Index, load_index
from launcher.reading import read_object
from launcher.status import RunStatus, statuses
from launcher.store import Run, names_below, run_at

_OWN_FILES = {"local": "state.json", "slurm": "slurm/jobs.json", "kubernetes": "kubernetes/sent.json"}
"""Where each backend writes down how a run ended."""


def list_all(roots: Sequence[Path]) -> list[RunStatus]:
    """Return the status of every run below the roots, oldest first; one that cannot be judged is unknown."""
    # Hundreds of thousands of small objects are made, and none of them is garbage: looking for it takes longest.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _list_all(roots)
    finally:
        if collects:
            gc.enable()


def _list_all(roots: Sequence[Path]) -> list[RunStatus]:
    indexes = [load_index(root) for root in roots]
    found: list[RunStatus] = []
    read: list[tuple[Run, Index]] = []
    names = [names_below(root) for root in roots]
    for index, below in zip(indexes, names, strict=True):
        for name in below:
            remembered = index.look(name)
            if remembered is not None:
                found.append(remembered)
            elif run := run_at(index.root / name):
                read.append((run, index))
    fresh = statuses([run for run, _ in read], whatever=True)
    for (run, index), status in zip(read, fresh, strict=True):
        if status.state in ENDED and _has_written_its_end(run):
            index.keep(run.name, status, _made_from(run, status))
    for index, below in zip(indexes, names, strict=True):
        index.save(below)
    return sorted([*found, *fresh], key=lambda status: (status.created, status.run))


def _has_written_its_end(run: Run) -> bool:
    """Tell whether a run's end stands in its folder: one that is only concluded may look different later."""
    try:
        values = read_object(run.folder.root / _OWN_FILES[run.backend]) or {}
    except Unreadable:
        return False
    end = values if run.backend == "local" else values.get("end")
    return isinstance(end, dict) and end.get("state") in ENDED


def _made_from(run: Run, status: RunStatus) -> list[str]:
    """The files that a status was made from, below the run's folder."""
    stage = run.folder.stage(status.stage)
    paths = [stage.metrics]
    if status.state == FAILED:
        paths.append(stage.attempt(status.attempt) / "errors")
    return ["run.json", _OWN_FILES[run.backend], *(os.path.relpath(path, run.folder.root) for path in paths)]
