"""Which run holds which GPU of this machine, first come, first served. One ledger file under a lock."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.processes import is_alive
from launcher.run_folder import read_json, write_json


def state_folder() -> Path:
    """Folder for what all runs of this user on this machine share."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "llavajob"


def count_gpus() -> int:
    """Count this machine's GPUs, honouring CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def total_gpus(granted: int | None) -> int:
    """How many GPUs runs may use: what the profile grants, else all of this machine's."""
    return count_gpus() if granted is None else granted


@dataclass(frozen=True)
class Claim:
    """What a try for GPUs came to: the GPUs, or the run that stands in the way."""

    gpus: list[int] | None
    waits_for: str = ""


def try_claim(run: str, pid: int, started: float, wanted: int, total: int) -> Claim:
    """Take GPUs if enough are free and nobody waits longer; otherwise keep a place in the queue.

    Args:
        run: name of the run, shown to others that wait.
        pid, started: the supervisor; its entries lapse when it dies.
        wanted: how many GPUs, at most total.
        total: how many GPUs this machine offers.
    """
    with _ledger() as entries:
        mine = next((e for e in entries if e["pid"] == pid), None)
        if mine is None:
            mine = {"run": run, "pid": pid, "started": started, "gpus": []}
            entries.append(mine)
        ahead = entries[: entries.index(mine)]
        waiting = [entry for entry in ahead if not entry["gpus"]]
        taken = {gpu for entry in entries if entry is not mine for gpu in entry["gpus"]}
        free = [gpu for gpu in range(total) if gpu not in taken]
        if waiting or len(free) < wanted:
            holders = [entry["run"] for entry in ahead if entry["gpus"]]
            return Claim(None, waiting[-1]["run"] if waiting else ", ".join(holders) or "another run")
        mine["gpus"] = free[:wanted]
        return Claim(mine["gpus"])


def release(pid: int) -> None:
    """Give back what a supervisor holds, its place in the queue included."""
    with _ledger() as entries:
        entries[:] = [entry for entry in entries if entry["pid"] != pid]


@contextmanager
def _ledger() -> Iterator[list[dict[str, Any]]]:
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gpus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "gpus.json"
        before = (read_json(path) or {}).get("entries", [])
        entries = [entry for entry in before if is_alive((entry["pid"], entry["started"]))]
        snapshot = json.dumps(before)
        yield entries
        if json.dumps(entries) != snapshot:
            write_json(path, {"entries": entries})
