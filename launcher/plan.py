"""What is to be started: the nouns that planning, rendering and every backend share."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

StepKind = Literal["gang", "array", "task", "merge"]
SHARD = "{shard}"
"""Stands in an array step's command for the member's number, which each scheduler gives at start."""


@dataclass(frozen=True)
class Step:
    """One thing a scheduler starts: a gang of nodes, an array of shards, a single task, or the merge of an array."""

    name: str
    stage: str
    kind: StepKind
    nodes: int
    """Nodes of a gang; members of an array; 1 for a task or a merge."""
    processes_per_node: int
    gpus_per_node: int
    per_node: int
    """How many of them fit on one node: 1 for a gang's; a shard or a task takes what one process of a gang takes."""
    parallel: int
    """How many nodes or members run at once."""
    threads_per_process: int | None
    command: tuple[str, ...]
    environment: dict[str, str]
    retries: int
    """Attempts in a row that may end without a new step."""
    grace_s: int
    attempt: int = 0
    """Number of the next attempt as it was submitted; a gang that is started again counts on from it."""
    members: tuple[int, ...] = ()
    """Shards of an array that are to run."""


@dataclass(frozen=True)
class Plan:
    """A whole run, ready to be rendered by any backend."""

    run: str
    run_id: str
    """Identity of the run, made at submit and kept by every resume: names are used again, by others too. Empty in a
    dry run."""
    folder: Path
    backend: str
    settings: dict[str, Any]
    """What the profile says to this backend, such as a partition."""
    steps: tuple[Step, ...]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Contents of each stage's config.yaml, by its path."""
    finished: tuple[str, ...] = ()
    """Steps of a resumed run that are done already."""
    code: Path | None = None
    """Copy of the code that runs; null: the code as installed."""
    launcher_python: str = sys.executable
    """The Python that the launcher itself runs in."""
