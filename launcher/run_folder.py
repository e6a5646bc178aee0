"""The run's folder as the launcher sees it: every path in one place, every file written aside or appended to.

``llava/run_folder.py`` is its twin; a test holds the two equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Unreadable
from launcher.file_modes import file_mode, make_folders, open_to_group
from launcher.reading import parse_json, read_end, read_object

ENV_RUN = "LLAVAJOB_RUN"
"""Marks every process of a run: the run's folder."""
ENV_RUN_ID = "LLAVAJOB_RUN_ID"
"""Marks every process of a run as well: the run's id, because a folder's name may be used again."""
ENV_ATTEMPT = "LLAVAJOB_ATTEMPT"
"""Number of this stay on the machines, from 0."""
ENV_ATTEMPT_DIR = "LLAVAJOB_ATTEMPT_DIR"
"""Folder for this attempt's logs and errors."""
ENV_NODE = "LLAVAJOB_NODE"
"""Number of this node within the job, from 0."""

EXIT_BAD_REQUEST = 2
EXIT_FINAL = 3
EXIT_INTERRUPTED = 175
"""The runtime's exit codes that a backend must tell apart; see ``llava/errors.py``."""


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run (or one stage of a pipeline)."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def cancel_request(self) -> Path:
        return self.root / "cancel.json"

    @property
    def code_diff(self) -> Path:
        return self.root / "code.diff"

    @property
    def code(self) -> Path:
        return self.root / "code"

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

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def benchmark(self, name: str) -> Path:
        return self.root / "eval" / name

    def stage(self, name: str) -> RunFolder:
        return RunFolder(self.root / "stages" / name) if name else self

    def attempt(self, number: int) -> Path:
        return self.root / "attempts" / str(number)

    def rendered(self, attempt: int, suffix: str = ".yaml") -> Path:
        """What was sent: YAML, or ``.sh`` for batch scripts."""
        return self.attempt(attempt) / f"rendered{suffix}"

    def node_log(self, attempt: int, node: int) -> Path:
        return self.attempt(attempt) / f"node{node}.log"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / f"rank{rank:04d}.log"

    def rank_error(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / "errors" / f"rank{rank:04d}.json"

    def attempt_numbers(self) -> list[int]:
        """Numbers of the attempts that left a folder, ascending."""
        folder = self.root / "attempts"
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if _is_number(name))

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        found = self.checkpoints.glob("step-*/COMPLETE")
        return sorted(int(path.parent.name[5:]) for path in found if _is_number(path.parent.name[5:]))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in a single write; a torn last line is closed first."""
    make_folders(path.parent)
    data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, file_mode(path.parent))
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            open_to_group(descriptor, path.parent)
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + data if torn else data)
    finally:
        os.close(descriptor)


def last_lines(path: Path, most_bytes: int = 65536) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines at the end of a file, newest first; torn lines are passed over."""
    for line in reversed(read_end(path, most_bytes).splitlines()):
        record = parse_json(line)
        if isinstance(record, dict):
            yield record


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None when the file is missing, cannot be read or is no object."""
    try:
        return read_object(path)
    except Unreadable:
        return None


def write_aside(path: Path, text: str) -> None:
    """Write a whole file next to its place and move it in, so that a reader never sees half of it."""
    make_folders(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, file_mode(path.parent))
        with open(descriptor, "w", encoding="utf-8") as file:
            open_to_group(descriptor, path.parent)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value aside and move it in place."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # the name of a folder here may be no UTF-8; JSON's escapes keep it as it is
        text = json.dumps(value, indent=1)
    write_aside(path, text + "\n")
