"""Folders of runs that never ran, with whatever a test puts into them, and the command called in this process."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main

RECORD = {
    "format": 1, "name": "x", "created": 1_700_000_000.0, "recipe": "train", "kind": "train", "backend": "local",
    "profile": "local", "submissions": [{"time": 1_700_000_000.0, "attempt": 0, "job_ids": []}], "values": {},
    "run_id": "0123456789abcdef", "there": "/nowhere", "place": [], "origins": {}, "recipe_tree": {}, "source": "x",
    "folder": "/nowhere",
}  # fmt: skip
STEP = {"name": "train", "stage": "", "kind": "gang", "state": "FAILED", "attempt": 0, "started": 1.0, "ended": 2.0}
END = {
    "state": "FAILED", "reason": "it broke", "attempt": 0, "attempts": 1, "stage": "", "job_ids": ["7"],
    "steps": [STEP], "started": 1.0, "ended": 2.0,
}  # fmt: skip
STATE = {key: value for key, value in END.items() if key != "job_ids"} | {
    "pid": 99999999, "pid_started": 1.0, "boot_time": 1.0,
}  # fmt: skip
OWN_FILE = {
    "local": ("state.json", STATE),
    "slurm": (
        "slurm/jobs.json",
        {"jobs": [{"step": STEP, "job_id": "7", "members": []}], "submitted": 1.0, "end": END},
    ),
    "kubernetes": ("kubernetes/sent.json", {"context": "c", "namespace": "n", "parts": [{"step": STEP}], "end": END}),
}
METRICS = {"step": 3, "total_steps": 5, "loss": 0.5, "samples_per_s": 9.0, "eta_s": 4.0, "time": 1.0}


@dataclass
class Done:
    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Call the command in this process; what is left of any exception is a traceback."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["llavajob", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runs folder that other users may enter."""
    # In memory where there is such a place: these tests make thousands of small files.
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    folder.chmod(0o755)
    monkeypatch.setenv("LLAVAJOB_RUNS", str(folder / "runs"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(folder)
    yield folder / "runs"
    shutil.rmtree(folder)


def make_run(root: Path, folder: str, backend: str = "local", own: Any = None, **record: Any) -> Path:
    """Make the folder of a run that failed, with a file of each kind."""
    run = root / folder
    path, values = OWN_FILE[backend]
    contents: dict[str, Any] = {
        "run.json": RECORD | {"name": folder, "backend": backend} | record,
        path: values if own is None else own,
        "metrics.jsonl": METRICS,
        "attempts/0/errors/rank0000.json": {
            "rank": 0,
            "node": 0,
            "host": "h",
            "exit_code": 1,
            "message": "oh",
            "time": 1,
        },
    }
    for place, content in contents.items():
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        (run / place).write_text(json.dumps(content) + "\n")
    (run / "attempts/0/rank0000.log").write_text("2026-01-01T00:00:00.000Z INFO hello\n")
    return run
