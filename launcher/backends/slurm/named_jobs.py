"""A guard before Slurm's commands: without an id, scancel means every job of the user, squeue and sacct every job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from launcher.errors import BackendError

_ID = re.compile(r"[1-9][0-9]*(_[0-9]+)?")
_LISTS = ("--jobs=", "--name=", "--jobid=")
_OF_ONE_JOB = frozenset({"requeue", "requeuehold", "hold", "uhold", "release", "suspend", "resume", "top"})
"""What scontrol does to the job that it is given."""


def is_id(text: str) -> bool:
    """Whether a text is the number of a job, or of a member of an array."""
    return _ID.fullmatch(text) is not None


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Return ids that a command may be given.

    Raises:
        BackendError: there is none, or something among them is not the id of a job.
    """
    found = list(ids)
    wrong = [one for one in found if not is_id(one)]
    if wrong:
        raise BackendError(f"{wrong[0]!r} is not the id of a Slurm job", "Look at slurm/jobs.json in the run's folder.")
    if not found:
        raise BackendError("no Slurm job is named, and without a name Slurm would take all of them")
    return found


def require_named(command: Sequence[str]) -> None:
    """Refuse a command that acts on jobs, or asks about some, and names none.

    Raises:
        BackendError: it names none, or something that is not the id of a job.
    """
    for argument in command[1:]:
        option = next((option for option in _LISTS if argument.startswith(option)), None)
        if option in ("--jobs=", "--jobid="):
            checked_ids(argument.removeprefix(option).split(","))
        elif option is not None and not argument.removeprefix(option).strip():
            checked_ids([])
    if command[0] == "scancel":
        checked_ids(argument for argument in command[1:] if not argument.startswith("--"))
    if command[0] == "scontrol" and len(command) > 1 and command[1] in _OF_ONE_JOB:
        checked_ids(command[2:])
