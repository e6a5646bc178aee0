"""The runs on disk: making one, finding one by name or prefix, reading and changing its record."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RequestError, RunNotFound, nearest
from launcher.names import LONGEST_NAME, NAME_RULE, as_name, is_name
from launcher.run_folder import RunFolder, read_json, write_json

_SUFFIX_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"


@dataclass
class Run:
    """A run's folder with its record."""

    folder: RunFolder
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def run_id(self) -> str:
        """The run's identity; empty for runs that were submitted before there was one."""
        return str(self.record.get("run_id", ""))

    @property
    def created(self) -> float:
        return float(self.record.get("created", 0.0))


def check_name(name: str) -> None:
    """Refuse a name that a folder, a Slurm job or a Kubernetes object could not bear.

    Raises:
        RequestError: with a name that would do.
    """
    if not is_name(name):
        raise RequestError(f"{name!r} cannot be a run's name: {NAME_RULE}", f"This would do: --name {as_name(name)}")


def new_name(recipe: str) -> str:
    """Return a fresh name for a run of a recipe: ``finetune-7k2p``."""
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(4))
    return f"{as_name(recipe)[: LONGEST_NAME - 5]}-{suffix}"


def new_run_id() -> str:
    """Return the identity of a new run: 16 hexadecimal digits, drawn at random."""
    return secrets.token_hex(8)


def make_folder(root: Path, name: str) -> RunFolder:
    """Make the empty folder of a new run.

    Raises:
        RequestError: the name is taken, or the folder cannot be made.
    """
    folder = RunFolder(root / name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.root.mkdir()
    except FileExistsError:
        other = f"{as_name(name)[: LONGEST_NAME - 2]}-2"
        hint = f"Another name: --name {other}. To go on with that run: llavajob resume {name}"
        raise RequestError(f"there is a run named {name} already ({folder.root})", hint) from None
    except OSError as error:
        raise RequestError(
            f"cannot make the run's folder {folder.root}: {error.strerror}",
            "Set LLAVAJOB_RUNS, or runs: in a profile, to a folder that you can write to.",
        ) from None
    return folder


def all_runs(roots: Iterable[Path]) -> list[Run]:
    """Every run below the roots, oldest first; a folder without a record is none."""
    runs = []
    for root in roots:
        for entry in os.scandir(root) if root.is_dir() else ():
            record = read_json(Path(entry.path) / "run.json")
            if record is not None:
                runs.append(Run(RunFolder(Path(entry.path)), record))
    return sorted(runs, key=lambda run: (run.created, run.name))


def find_run(roots: Sequence[Path], name: str | None) -> Run:
    """Find a run by its name or a unique prefix of it; without a name, the latest.

    Raises:
        RunNotFound: no run or several go by that name.
    """
    if name:
        exact = next((root / name for root in roots if _is_plain(name) and (root / name / "run.json").is_file()), None)
        record = read_json(exact / "run.json") if exact else None
        if exact and record is not None:
            return Run(RunFolder(exact), record)
    runs = all_runs(roots)
    if not runs:
        raise RunNotFound("there are no runs yet", "Start one: llavajob submit quickstart --nodes 2 --follow")
    if not name:
        return runs[-1]
    matches = [run for run in runs if run.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    raise _not_one(name, [run.name for run in matches], [run.name for run in runs])


def _is_plain(name: str) -> bool:
    return os.sep not in name and name not in ("", ".", "..")


def _not_one(name: str, matches: list[str], known: list[str]) -> RunNotFound:
    if matches:
        shown = ", ".join(matches[-8:])
        return RunNotFound(f"'{name}' fits {len(matches)} runs: {shown}", "Type more of the name.")
    recent = ", ".join(reversed(known[-5:]))
    return RunNotFound(f"no run named '{name}'{nearest(name, known)}", f"Latest runs: {recent}. All: llavajob list")


def save(run: Run) -> None:
    """Write a run's record."""
    write_json(run.folder.record, run.record)


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
