"""The run's folder as the runtime sees it: every path in one place, every file written aside or appended to.

``launcher/run_folder.py`` is its twin; a test holds the two equal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENV_RUN = "LLAVAJOB_RUN"
"""Marks every process of a run: the run's folder."""
ENV_ATTEMPT = "LLAVAJOB_ATTEMPT"
"""Number of this stay on the machines, from 0."""
ENV_ATTEMPT_DIR = "LLAVAJOB_ATTEMPT_DIR"
"""Folder for this attempt's logs and errors; unset when run by hand: logs go to the terminal."""
ENV_NODE = "LLAVAJOB_NODE"
"""Number of this node within the job, from 0."""


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run (or one stage of a pipeline)."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def left_out(self) -> Path:
        return self.root / "left_out.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def benchmark(self, name: str) -> Path:
        return self.root / "eval" / name

    def attempt(self, number: int) -> Path:
        return self.root / "attempts" / str(number)

    def node_log(self, attempt: int, node: int) -> Path:
        return self.attempt(attempt) / f"node{node}.log"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / f"rank{rank:04d}.log"

    def rank_error(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / "errors" / f"rank{rank:04d}.json"

    def add_event(self, event: str, **fields: Any) -> None:
        append_line(self.events, {"time": time.time(), "event": event, "attempt": current_attempt(), **fields})

    def add_metrics(self, **fields: Any) -> None:
        append_line(self.metrics, {"time": time.time(), "attempt": current_attempt(), **fields})


def current_attempt() -> int:
    """Number of the attempt this process belongs to; 0 by hand."""
    return int(os.environ.get(ENV_ATTEMPT, "0"))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that lines of several processes do not mix.

    A torn last line (its writer was killed) is closed first, so that it spoils nothing but itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + data if torn else data)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a file; a torn line (the writer was killed) is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def write_aside(path: Path, text: str | bytes) -> None:
    """Write a whole file next to its place and move it in, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = text.encode() if isinstance(text, str) else text
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
