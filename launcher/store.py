"""The runs on disk: making one, finding one by name or prefix, reading and changing its record."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import console
from launcher.errors import RequestError, RunNotFound, Unreadable, nearest
from launcher.names import LONGEST_NAME, NAME_RULE, as_name, is_name
from launcher.reading import read_object
from launcher.run_folder import RunFolder, read_json, write_json
from launcher.typed import fits

_CLOCKS_S = 60.0
"""By so much the clocks of a file server and of a submitter may differ."""
_SUFFIX_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"


@dataclass
class Run:
    """A run's folder with its record."""

    folder: RunFolder
    record: dict[str, Any]
    odd: str = ""
    """Why its record cannot be understood; empty when it can."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def backend(self) -> str:
        return str(self.record.get("backend", ""))

    @property
    def run_id(self) -> str:
        """The run's identity; empty for runs that were submitted before there was one."""
        return str(self.record.get("run_id", ""))

    @property
    def created(self) -> float:
        created = self.record.get("created", 0.0)
        return float(created) if fits(created, float) else 0.0


def submission_lock(folder: RunFolder) -> Path:
    """The lock that whoever submits or resumes a run holds until it is sent."""
    return folder.root / "submit.lock"


def original_of(run: Run) -> Path | None:
    """Return where the run itself is, if this folder is only a copy of it; a run that was moved is the run itself."""
    submitted = run.record.get("run_dir")
    if submitted is None and run.record.get("backend") in ("local", "slurm"):
        submitted = run.record.get("there")  # the version before noted no other
    if not isinstance(submitted, str) or submitted == str(run.folder.root):
        return None
    other = read_json(Path(submitted) / "run.json")
    if other is None or any(other.get(key) != run.record.get(key) for key in ("run_id", "created", "name")):
        return None
    try:
        return None if os.path.samefile(submitted, run.folder.root) else Path(submitted)
    except OSError:
        return None


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


def all_runs(roots: Iterable[Path]) -> list[Run]:
    """Every run below the roots, oldest first; a folder without a record is none.

    A root or a run that cannot be read hides no other.
    """
    found = [run_at(root / name) for root in roots for name in names_below(root)]
    return sorted((run for run in found if run is not None), key=_by_age)


def names_below(root: Path) -> list[str]:
    """Names in a root, those of runs among them; a root that cannot be read is told and has none."""
    try:
        # What begins with a dot is a run that is being made, see submission.py.
        return [name for name in os.listdir(root) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        console.say(f"The runs in {root} are left out: it cannot be read ({error.strerror})")
        return []


def run_at(folder: Path) -> Run | None:
    """Return the run whose folder this is; None when it holds no record. One that is odd is a run, too."""
    run = RunFolder(folder)
    try:
        record = read_object(run.record)
    except Unreadable as error:
        # Names that the launcher gives to no run are other people's folders, such as lost+found.
        return Run(run, {}, error.message) if is_name(run.name) else None
    return None if record is None else Run(run, record, why_odd(record))


_RECORD_TYPES = {
    "backend": str, "created": float, "recipe": str, "kind": str, "profile": str, "run_id": str, "there": str,
    "submissions": list, "values": dict,
}  # fmt: skip
_NEEDED = ("backend", "created")


def why_odd(record: dict[str, Any]) -> str:
    """Say why a record cannot be understood; empty when it can."""
    lacking = [key for key in _NEEDED if key not in record]
    if lacking:
        return f"its record run.json lacks {' and '.join(lacking)}"
    for key, kind in _RECORD_TYPES.items():
        if key in record and not fits(record[key], kind):
            return f"its record run.json has another kind of value for '{key}' than is known here"
    if not all(isinstance(entry, dict) for entry in record.get("submissions", ())):
        return "its record run.json has submissions that are not understood here"
    if not all(isinstance(values, dict) for values in record.get("values", {}).values()):
        return "its record run.json has values that are not understood here"
    return ""


def find_run(roots: Sequence[Path], name: str | None) -> Run:
    """Find a run by its name or a unique prefix of it; the latest where no name is given at all.

    Raises:
        RequestError: the name is empty: a variable that a script did not set must not mean any run.
        RunNotFound: no run or several go by that name.
    """
    if name is not None:
        _refuse_empty(name)
        for root in roots:
            exact = run_at(root / name) if _is_plain(name) else None
            if exact is not None:
                return exact
        matches = [run for root in roots for run in _beginning_with(root, name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise _several(name, matches)
    recent = _recent_runs(roots, 5)
    if not recent:
        raise RunNotFound("there are no runs yet", "Start one: llavajob submit quickstart --nodes 2 --follow")
    if name is None:
        return recent[-1]
    raise _none(name, [run.name for run in recent], [known for root in roots for known in names_below(root)])


def _beginning_with(root: Path, prefix: str) -> list[Run]:
    """The runs of a root whose names begin so; no other is read."""
    found = [run_at(root / name) for name in names_below(root) if name.startswith(prefix)]
    return [run for run in found if run is not None]


def _recent_runs(roots: Iterable[Path], count: int) -> list[Run]:
    """The runs that were made last, oldest first; records that were written before them all are not read."""
    written = [(_written(root / name), root / name) for root in roots for name in names_below(root)]
    found: list[Run] = []
    for moment, folder in sorted(written, reverse=True):
        if len(found) >= count and moment < found[-count].created - _CLOCKS_S:
            break
        run = run_at(folder)
        if run is not None:
            found.append(run)
            found.sort(key=_by_age)
            found = found[-count:]
    return found


def _written(folder: Path) -> float:
    """When a run's record was written: not before the run was made."""
    try:
        return os.stat(folder / "run.json").st_mtime
    except OSError:
        return 0.0


def _by_age(run: Run) -> tuple[float, str]:
    return run.created, run.name


def _refuse_empty(name: str) -> None:
    if not name.strip():
        raise RequestError(f"an empty name is no run's name ({name!r})", "All runs: llavajob list")


def _is_plain(name: str) -> bool:
    return not name.startswith(".") and os.sep not in name and "\0" not in name


def _several(name: str, matches: list[Run]) -> RunNotFound:
    shown = ", ".join(run.name for run in sorted(matches, key=_by_age)[-8:])
    return RunNotFound(f"'{name}' fits {len(matches)} runs: {shown}", "Type more of the name.")


def _none(name: str, recent: list[str], known: list[str]) -> RunNotFound:
    latest = ", ".join(reversed(recent))
    return RunNotFound(f"no run named '{name}'{nearest(name, known)}", f"Latest runs: {latest}. All: llavajob list")


def save(run: Run) -> None:
    """Write a run's record."""
    write_json(run.folder.record, run.record)


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
