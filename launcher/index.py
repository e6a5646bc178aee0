"""What is known of ended runs, kept in the user's cache so that a list need not read thousands of files again.

It is a cache and nothing else: it may be deleted at any time, and may be missing, damaged or not writable. Each entry
holds the time, size and number of every file that it was made from, and counts only while all of them are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launcher.backends.base import StepState
from launcher.errors import Unreadable
from launcher.failure import Failure
from launcher.reading import open_regular
from launcher.status import RunStatus

_FORMAT = 1
_MOST_BYTES = 1 << 28
_SETTLED_S = 2.0
"""A file that changed more recently may change again without another time."""
_FIELDS = tuple(f.name for f in fields(RunStatus))
_SHAPE = [_FORMAT, *([f.name for f in fields(kind)] for kind in (RunStatus, StepState, Failure))]
"""Another version's index is made anew."""
Stamp = list[int]
"""Time in nanoseconds, size and inode of a file; all 0 where there is none."""


@dataclass
class Index:
    """The entries of one root."""

    root: Path
    entries: dict[str, list[Any]]
    """By the run's name: a stamp for each file, by its path below the run's folder, and the status as plain values."""
    changed: bool = False

    def look(self, name: str) -> RunStatus | None:
        """Return an ended run's status; None when it is not known or its files have changed."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        folder = f"{self.root}/{name}/"
        for path, stamp in entry[0].items():
            if _stamp(folder + path) != stamp:
                del self.entries[name]
                self.changed = True
                return None
        return _status(entry[1])

    def keep(self, name: str, status: RunStatus, paths: Iterable[str]) -> None:
        """Remember an ended run's status, unless its files have changed just now."""
        folder = f"{self.root}/{name}/"
        stamps = {path: _stamp(folder + path) for path in paths}
        newest = max((stamp[0] for stamp in stamps.values()), default=0)
        if newest / 1e9 < time.time() - _SETTLED_S:
            self.entries[name] = [stamps, _values(status)]
            self.changed = True

    def save(self, names: Iterable[str]) -> None:
        """Write what has changed, without runs that are gone; where that cannot be done, the next list reads more."""
        present = set(names)
        gone = [name for name in self.entries if name not in present]
        for name in gone:
            del self.entries[name]
        if not (self.changed or gone):
            return
        body = json.dumps(self.entries).encode()
        place = _place(self.root)
        if place is None:
            return
        aside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_head(body) + body)
                os.replace(aside, place)
            except OSError:
                aside.unlink(missing_ok=True)


def load_index(root: Path) -> Index:
    """Read the index of a root; an empty one where there is none that can be trusted."""
    place = _place(root)
    data = b"" if place is None else _read_own(place)
    head, _, body = data.partition(b"\n")
    if head + b"\n" != _head(body):
        return Index(root, {})
    return Index(root, json.loads(body))


def _head(body: bytes) -> bytes:
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return json.dumps([_SHAPE, digest]).encode() + b"\n"


def _place(root: Path) -> Path | None:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        return None
    key = hashlib.blake2b(os.fsencode(os.path.abspath(root)), digest_size=12).hexdigest()
    return Path(cache) / "llavajob" / f"runs-{key}.json"


def _read_own(place: Path) -> bytes:
    """Read a file of this user's own; nothing where there is none."""
    try:
        with os.fdopen(open_regular(place), "rb") as file:
            status = os.fstat(file.fileno())
            return file.read() if status.st_uid == os.geteuid() and status.st_size < _MOST_BYTES else b""
    except (OSError, Unreadable):
        return b""


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return [0, 0, 0]
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def _values(status: RunStatus) -> list[Any]:
    values = status.as_json()
    return [values[name] for name in _FIELDS]


def _status(values: list[Any]) -> RunStatus:
    status = RunStatus(*values)
    status.stages = [StepState(**step) for step in status.stages]  # type: ignore[arg-type]
    if status.failure is not None:
        status.failure = Failure(**status.failure)  # type: ignore[arg-type]
    return status
