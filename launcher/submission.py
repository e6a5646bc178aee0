"""Making and removing a run's folder in one step each: where a submission breaks off, there is a whole run or none."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher import locks, processes
from launcher.errors import RequestError
from launcher.file_modes import make_root, restrict_run_folder, umask_like
from launcher.names import LONGEST_NAME, as_name
from launcher.run_folder import RunFolder
from launcher.store import Run, submission_lock

_ASIDE = ".llavajob-"
"""Folders with such names hold a run that is being made, or removed; nobody takes them for runs."""
_ABANDONED_S = 60.0
"""A folder without a record that did not change for so long does not block its name."""
_FORGOTTEN_S = 3600.0
"""After so long without a change, what a killed command left out of sight is cleared away."""
_FIRST_FILES = frozenset(
    {
        "attempts", "cancel.json", "code", "code.diff", "config.yaml", "events.jsonl", "jobs.json", "kubernetes",
        "slurm", "stages", "state.json", "submit.lock", "supervisor.lock", "supervisor.log",
    }
)  # fmt: skip
"""What a folder holds in which a submission broke off, and no work of anybody."""


class Draft:
    """The folder of a run that is being made, out of sight until it is whole."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._final = RunFolder(root / name)
        self.folder = RunFolder(root / f"{_ASIDE}{name}-{secrets.token_hex(4)}")
        self.placed = False

    def place(self) -> RunFolder:
        """Move the folder to its name.

        Raises:
            RequestError: the name is taken.
        """
        try:
            os.rename(self.folder.root, self._final.root)
        except OSError:
            if not os.path.lexists(self._final.root):
                raise
            if not _is_abandoned(self._final):
                raise _taken(self._final) from None
            remove(self._final)
            os.rename(self.folder.root, self._final.root)
        self.placed = True
        return self._final


@contextmanager
def draft(root: Path, name: str, private: bool = True) -> Iterator[Draft]:
    """Make the folder of a new run, and hold its submission's lock for a block of code.

    What was not placed by the block's end is removed, whatever ends the block.

    Args:
        root: the folder that runs are kept in.
        name: the run's.
        private: whether others are kept out, except the group that the root is shared with.

    Raises:
        RequestError: the name is taken, or the folder cannot be made.
    """
    made = Draft(root, name)
    try:
        if private:
            make_root(root)
        root.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(root)
        if os.path.lexists(root / name) and not _is_abandoned(RunFolder(root / name)):
            raise _taken(RunFolder(root / name))
        made.folder.root.mkdir()
        if private:
            restrict_run_folder(made.folder.root)
    except OSError as error:
        raise RequestError(
            f"cannot make the run's folder {root / name}: {error.strerror}",
            "Set LLAVAJOB_RUNS, or runs: in a profile, to a folder that you can write to.",
        ) from None
    try:
        with umask_like(made.folder.root), locks.hold(submission_lock(made.folder)):
            yield made
    finally:
        if not made.placed:
            shutil.rmtree(made.folder.root, ignore_errors=True)


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end this process by an exception for a block of code, so that drafts are removed."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup's choice stays
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def resubmission(run: Run) -> Iterator[None]:
    """Hold the lock of a run's submission, so that it is sent by one command at a time.

    Raises:
        RequestError: another command is sending it.
    """
    try:
        with umask_like(run.folder.root), locks.hold(submission_lock(run.folder)):
            yield
    except locks.Held:
        hint = f"See how it goes: llavajob status {run.name}"
        raise RequestError(f"{run.name} is being submitted or resumed by another command right now", hint) from None


def remove(folder: RunFolder) -> bool:
    """Remove the folder of a run that was not sent; leave it where a supervisor holds it, and say so by False."""
    if locks.is_held(folder.root / "supervisor.lock"):
        return False
    # Out of sight first: a removal that breaks off must not leave half a run.
    aside = folder.root.with_name(f"{_ASIDE}{folder.name}-{secrets.token_hex(4)}")
    try:
        os.rename(folder.root, aside)
    except OSError:
        aside = folder.root
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _taken(folder: RunFolder) -> RequestError:
    name = folder.name
    other = f"Another name: --name {as_name(name)[: LONGEST_NAME - 2]}-2"
    if folder.record.is_file():
        text = f"there is a run named {name} already ({folder.root})"
        return RequestError(text, f"{other}. To go on with that run: llavajob resume {name}")
    text = f"{folder.root} is there already, and is no run"
    return RequestError(text, f"{other}. If nothing in it is needed, remove it.")


def _clear_abandoned(root: Path) -> None:
    """Remove what commands left that were killed while they made or removed a run."""
    for entry in os.scandir(root):
        path = Path(entry.path)
        if not entry.name.startswith(_ASIDE) or not entry.is_dir(follow_symlinks=False):
            continue
        if not locks.is_held(path / "submit.lock") and _is_old(path, _FORGOTTEN_S):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(folder: RunFolder) -> bool:
    """Tell whether a folder is what a broken submission left: no record, no work, nobody who still writes or runs."""
    if folder.root.is_symlink() or not folder.root.is_dir() or os.path.lexists(folder.record):
        return False
    names = {entry.name for entry in os.scandir(folder.root)}
    if not names:
        return True
    if not all(name in _FIRST_FILES or name.endswith(".tmp") for name in names):
        return False
    held = locks.is_held(submission_lock(folder)) or locks.is_held(folder.root / "supervisor.lock")
    return (
        not held and _is_old(folder.root, _ABANDONED_S) and not processes.marked(folder.root) and not _has_work(folder)
    )


def _has_work(folder: RunFolder) -> bool:
    kinds = ("checkpoints", "model", "metrics.jsonl", "eval")
    places = [folder.root, *folder.root.glob("stages/*")]
    return any((place / kind).exists() for place in places for kind in kinds)


def _is_old(folder: Path, after_s: float) -> bool:
    """Tell whether nothing at the top of a folder changed for a while."""
    try:
        newest = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return False
    return abs(time.time() - newest) > after_s
