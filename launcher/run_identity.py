"""Whose a run's folder is: the id of the run that used it first, in a file that is written once.

RUN/run_id   16 hexadecimal digits, as in the plan and in run.json

A run's name is used again, by others too: on a volume that several people mount, or from two machines. So the first
process of a run writes the run's id into its folder before it uses anything there, and every later one compares.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from pathlib import Path

from launcher.errors import RequestError
from launcher.file_modes import file_mode, open_to_group
from launcher.run_folder import read_json

ID_FILE = "run_id"
_TRACES = ("events.jsonl", "metrics.jsonl", "checkpoints", "steps", "stages", "model")
"""What a run leaves in its folder; what submitting writes there is not among it."""
_SETTLE_S = 5.0
"""So long a file that another process is just writing may look empty, or be listed without being readable."""
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL})


class FolderTaken(RequestError):
    """The folder of a run belongs to another run."""


def claim_folder(folder: Path, run_id: str) -> None:
    """Make sure that a folder is this run's, and write so where nobody has.

    Safe to be called by every process of a run, at the same time and on several machines.

    Args:
        folder: the run's folder; made where it is missing.
        run_id: the run's id; empty for a plan without one, made by an older version or sent by hand: it writes nothing
            and goes on in any folder that belongs to no run with an id.

    Raises:
        FolderTaken: it belongs to another run; nothing was changed.
        OSError: it cannot be read or written.
    """
    owner = folder_owner(folder)
    if owner and owner != run_id:
        raise _taken(folder, owner, run_id)
    if not run_id:
        return
    # The file may have come since the owner was looked up, so it is never taken for one's own unread.
    there = (folder / ID_FILE).exists()
    if not there and not owner and any(_holds_something(folder / name) for name in _TRACES):
        raise FolderTaken(
            f"the folder {folder} holds a run without an id, of an older version or started by hand, "
            f"and this is run {run_id}",
            "Take another name: --name; or remove that folder, if nobody needs it.",
        )
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
        _write_once(folder / ID_FILE, run_id)
    owner = _settled(folder / ID_FILE)
    if owner != run_id:
        raise _taken(folder, owner, run_id)


def folder_owner(folder: Path) -> str:
    """Return the id of the run that a folder belongs to; empty: of none that has an id."""
    path = folder / ID_FILE
    if path.exists():
        return _settled(path)
    return str((read_json(folder / "run.json") or {}).get("run_id") or "")


def _taken(folder: Path, owner: str, run_id: str) -> FolderTaken:
    this = f"this is run {run_id}" if run_id else "this plan has no id"
    return FolderTaken(
        f"the folder {folder} belongs to another run (id {owner or 'unreadable'}), and {this}",
        "Take another name: --name; or keep runs in another folder.",
    )


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _write_once(path: Path, text: str) -> None:
    """Write a file that is not there yet; one that is there stays as it is."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _create(aside, text)
        try:
            # A link appears with its content, and on network file systems for one of several writers only.
            os.link(aside, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _create(path, text)
    except FileExistsError:
        return
    finally:
        aside.unlink(missing_ok=True)


def _create(path: Path, text: str) -> None:
    mode = file_mode(path.parent) & 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        open_to_group(descriptor, path.parent)
        os.write(descriptor, f"{text}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settled(path: Path) -> str:
    """Read the id in a file that is there, and that another process may just be writing."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        try:
            text = path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            text = ""
        if text or time.monotonic() >= deadline:
            return text
        time.sleep(0.05)
