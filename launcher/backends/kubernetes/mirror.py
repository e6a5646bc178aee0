"""The submitter's copy of a run's logs and small files, made of what pods tell where their folder cannot be seen.

Exact by construction: a line has the place of its first byte with it, a small file the time of its writing. What is
here already is left as it is, so overlapping, repeated and late reads and several readers at once change nothing.

pods/POD.log       what a pod printed beside the run's files, each line with its time
pods/mirror.json   stretches that are missing; how old small files are
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.gaps import Gaps
from launcher.backends.kubernetes.told import Line, Whole, hear
from launcher.file_modes import file_mode, make_folders
from launcher.run_folder import RunFolder, read_json, write_aside, write_json

_STAMP = re.compile(
    rb"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2}) "
)


class Mirror:
    """Takes in what pods print.

    Args:
        folder: the run's folder here.
        apart: whether pods write to another; else the run's files are here anyway, and only the rest is kept.
    """

    def __init__(self, folder: RunFolder, apart: bool = True) -> None:
        self._folder = folder
        self._apart = apart
        self._pods = folder.root / "pods"

    def take(self, data: bytes, pod: str, over: bool = False) -> str | None:
        """Take in a part of a pod's log; return the time of its last line.

        Args:
            data: as ``kubectl logs --timestamps`` gives it, from the start of a line on.
            pod: the pod's name.
            over: whether the container has ended: a line without an end will have none.

        Raises:
            OSError: the copy cannot be written.
        """
        lines: dict[str, list[Line]] = {}
        wholes, rest, last = list[Whole](), list[bytes](), None
        for stamp, raw in split_log(data, over):
            told, last = hear(raw), stamp or last
            if told is None and stamp:  # without a time it is the node that speaks, not the container
                rest.append(f"{stamp} ".encode() + raw.removesuffix(b"\n"))
            if isinstance(told, Line):
                lines.setdefault(told.path, []).append(told)
            if isinstance(told, Whole):
                wholes.append(told)
        with self.alone():
            if self._apart and (lines or wholes):
                self._write(lines, wholes)
            self._keep(pod, rest)
        return last

    def lacks(self, data: bytes) -> bool:
        """Tell whether a part of a pod's log tells what follows something that is not here."""
        ends: dict[str, int] = {}
        for _, raw in split_log(data, over=False) if self._apart else ():
            told = hear(raw)
            if isinstance(told, Line):
                end = ends[told.path] if told.path in ends else _size(self._folder.root / told.path)
                if told.offset > end:
                    return True
                ends[told.path] = max(end, told.offset + len(told.data))
        return False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other readers of the run waiting, in this process and others."""
        make_folders(self._pods)
        lock_file = os.open(self._pods / ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, file_mode(self._pods))
        with open(lock_file, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, lines: dict[str, list[Line]], wholes: Iterable[Whole]) -> None:
        place = self._pods / "mirror.json"
        kept: dict[str, Any] = {"gaps": {}, "times": {}, **(read_json(place) or {})}
        gaps, times = Gaps(kept["gaps"]), dict(kept["times"])
        for path, some in lines.items():
            self._append(self._folder.root / path, some, gaps)
        for whole in wholes:
            if whole.time_ns >= times.get(whole.path, 0):
                _put(self._folder.root / whole.path, whole.text)
                times[whole.path] = whole.time_ns
        now = {"gaps": gaps.by_path, "times": times}
        if now != kept:
            write_json(place, now)

    def _append(self, target: Path, lines: Iterable[Line], gaps: Gaps) -> None:
        """Write what the file does not have; one write for each stretch without a gap."""
        make_folders(target.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(target, flags, file_mode(target.parent))
        try:
            size = os.fstat(descriptor).st_size
            fresh: list[bytes] = []
            at = size
            for line in lines:
                if line.offset < size:
                    gaps.heal(descriptor, line)
                if line.offset > size:
                    _write_all(descriptor, b"".join(fresh), at)
                    gaps.fill(descriptor, line.path, size, line.offset)
                    fresh, at, size = [], line.offset, line.offset
                fresh.append(line.data[size - line.offset :])
                size = max(size, line.offset + len(line.data))
            _write_all(descriptor, b"".join(fresh), at)
        finally:
            os.close(descriptor)

    def _keep(self, pod: str, lines: list[bytes]) -> None:
        """Keep lines that tell no file: their times tell which are here already."""
        if not lines:
            return
        path = self._pods / f"{pod}.log"
        have = set(path.read_bytes().split(b"\n")) if path.exists() else set()
        fresh = b"".join(line + b"\n" for line in lines if line not in have)
        if fresh:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, file_mode(self._pods))
            with open(descriptor, "ab") as file:
                file.write(fresh)


def split_log(data: bytes, over: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a container's log with their times in UTC; an unfinished one only from an ended container."""
    *lines, rest = data.split(b"\n")
    for raw in [line + b"\n" for line in lines] + ([rest] if over and rest else []):
        match = _STAMP.match(raw)
        stamp = _in_utc(match) if match else ""
        yield stamp, raw[match.end() :] if match and stamp else raw


def _in_utc(match: re.Match[bytes]) -> str:
    """A time as all nodes would write it: container runtimes use the zone of their node. Empty: there is no such."""
    whole, fraction, zone = (part.decode() for part in match.groups(b""))
    try:
        there = datetime.fromisoformat(whole + zone.replace("Z", "+00:00"))
        whole = there.astimezone(timezone.utc).replace(tzinfo=None).isoformat()
    except (ValueError, OverflowError):
        return ""
    return f"{whole}.{fraction:0<9}Z"


def _put(target: Path, text: str) -> None:
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        write_aside(target, text)


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
