"""Reading a log that may hold gigabytes: forwards by blocks, backwards by blocks, and by time.

No file is kept open between two blocks: a run may have more ranks than a process may have open files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.logs.clean import Partial, shorten
from launcher.logs.lines import first_stamp

FORWARD_BLOCK = 256 * 1024
_FIRST_BLOCK = 16 * 1024
"""Reading backwards begins with little: with hundreds of ranks, a few lines of each are enough."""
_PROBE = 64 * 1024
_FURTHEST = 1024 * 1024
"""How far a line with a time is looked for before going on without one."""


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Read a piece of a file; less, or nothing, at its end."""
    # Non-blocking, so that a pipe put in the place of a log cannot hang the reader.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


class Splitter:
    """Cuts a stream of bytes into capped lines and holds back the last line until it is complete."""

    def __init__(self) -> None:
        self._partial = Partial()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that these bytes complete."""
        first, *others = data.split(b"\n")
        self._partial.append(first)
        if not others:
            return []
        lines = [self._partial.text(), *map(shorten, others[:-1])]
        self._partial = Partial(others[-1])
        return lines

    def close(self) -> list[bytes]:
        """Return the line without an end, if there is one."""
        rest, self._partial = self._partial, Partial()
        return [rest.text()] if rest else []


def read_forwards(path: Path, start: int, end: int, block: int = FORWARD_BLOCK) -> Iterator[list[bytes]]:
    """Yield the lines between two places of a file, a block's worth at a time, a torn last line included."""
    splitter = Splitter()
    while start < end:
        data = read_at(path, start, min(block, end - start))
        if not data:
            break
        start += len(data)
        if data.count(0) == len(data):
            # NULs are never shown, and a hole of a sparse file may be a thousand times as large as all logs.
            start = min(end, max(start, _next_data(path, start)))
            continue
        yield splitter.feed(data)
    yield splitter.close()


def _next_data(path: Path, offset: int) -> int:
    """Place from which a file holds anything; the same place where the file system cannot tell."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        return os.fstat(descriptor).st_size if error.errno == errno.ENXIO else offset
    finally:
        os.close(descriptor)


def read_backwards(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines between two places of a file, last first, each with its place.

    Only the blocks that the caller gets to are read.
    """
    line, at = Partial(), end
    for place, data in _blocks_backwards(path, start, end):
        first, *others = data.split(b"\n")
        for piece in reversed(others):
            line.prepend(piece)
            at -= len(piece)
            if at < end:
                yield at, line.text()
            line = Partial()
            at -= 1
        line.prepend(first)
        at = place
    if at < end:
        yield at, line.text()


def _blocks_backwards(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    size = _FIRST_BLOCK
    while end > start:
        place = max(start, end - size)
        yield place, read_at(path, place, end - place)
        end, size = place, min(2 * size, FORWARD_BLOCK)


def end_of_lines(path: Path, end: int) -> int:
    """Place after the last complete line before ``end``."""
    for place, data in _blocks_backwards(path, 0, end):
        found = data.rfind(b"\n")
        if found >= 0:
            return place + found + 1
    return 0


def start_of_tail(path: Path, start: int, end: int, count: int, keep: Callable[[bytes], bool]) -> int:
    """Place from which at least the last ``count`` lines that are kept follow.

    It is a line with a time where one is near, so that lines without a time before it get theirs.
    """
    found, enough, place = 0, None, end
    if count == 0:
        return end
    for place, raw in read_backwards(path, start, end):
        found += keep(raw)
        if found < count:
            continue
        enough = place if enough is None else enough
        if first_stamp(raw + b"\n", at_line_start=True):
            return place
        if enough - place > _FURTHEST:
            return enough
    return place


def start_of_time(path: Path, end: int, since: float) -> int:
    """Place of the first line with a time not before ``since``, found by halving; a little before it in doubt."""
    low, high = 0, end
    while high - low > _PROBE:
        middle = (low + high) // 2
        found = _next_stamp(path, middle, high)
        # A stretch without any time tells nothing: to look before it costs reading, never a line.
        if found is None or found[1] >= since:
            high = middle
        else:
            low = found[0]
    size = min(high + _PROBE, end) - low
    found = first_stamp(read_at(path, low, size), at_line_start=True, since=since)
    return low + found[0] if found else low


def first_time(path: Path, start: int) -> float:
    """Time of the first line with one, from a line's start; where there is none, when the file was last written."""
    found = _next_stamp(path, start, start + _FURTHEST, at_line_start=True)
    return found[1] if found else path.stat().st_mtime


def _next_stamp(path: Path, start: int, end: int, at_line_start: bool = False) -> tuple[int, float] | None:
    size = _FIRST_BLOCK
    while True:
        data = read_at(path, start, min(size, end - start))
        found = first_stamp(data, at_line_start=at_line_start)
        if found:
            return start + found[0], found[1]
        if size >= _FURTHEST or len(data) < size:
            return None
        size *= 8
