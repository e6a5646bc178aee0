"""The logs of a run that goes on: which are new, which have grown, and what they have grown by."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from launcher.logs.files import Splitter, read_at
from launcher.logs.filter import LineFilter, Selection
from launcher.logs.merge import Block, BlockMaker, unreadable
from launcher.logs.source import LogSource, Section, attempt_numbers, sources_below, stage_names

_HEAD = 256
"""Bytes by which a file is known again: its inode is not enough, as some network file systems change it at will."""
_MOST_AT_ONCE = 16 * 1024 * 1024
_SMALLEST_PIECE, _LARGEST_PIECE = 16 * 1024, 1024 * 1024
_SELDOM = 10
"""Polls between two looks at what hardly changes: logs of earlier attempts, folders that look unchanged."""
_COARSE_CLOCK = 2.0
"""Seconds within which a folder may change twice and show the same time."""


class Watch:
    """Finds what is new in the logs of a run.

    Args:
        ends: how far logs that are known already have been read.
    """

    def __init__(self, folder: Path, select: Selection, keep: LineFilter, ends: dict[LogSource, int]) -> None:
        self._discovery = Discovery(folder, select, ends)
        self._keep = keep
        self._turn = 0
        self._logs = [GrowingLog(source, keep, end) for source, end in ends.items()]
        self.sources = list(ends)
        """Every log found so far, in that order."""

    @property
    def has_more(self) -> bool:
        """Whether the last poll left something behind, to keep memory bounded."""
        return any(log.has_more for log in self._logs)

    def poll(self) -> list[Block]:
        """Return what was written since the last call."""
        self._turn += 1
        found = self._discovery.find_new()
        self.sources += found
        self._logs += [GrowingLog(source, self._keep) for source in found]
        everywhere = bool(found) or self._turn % _SELDOM == 0
        logs = self._logs if everywhere else self._current()
        return [block for log in logs if log.has_grown() for block in log.read(self._piece)]

    def drain(self) -> Iterator[list[Block]]:
        """Yield all that has been written until now, unfinished lines at last; what is written later is left out."""
        self._discovery.look_everywhere()
        yield self.poll()
        for log in self._logs:
            log.freeze()
        while self.has_more:
            yield [block for log in self._logs if log.has_more for block in log.read(self._piece)]
        yield [block for log in self._logs for block in log.close()]

    @property
    def _piece(self) -> int:
        return max(_SMALLEST_PIECE, min(_LARGEST_PIECE, _MOST_AT_ONCE // max(1, len(self._logs))))

    def _current(self) -> list[GrowingLog]:
        """Logs of the latest attempt of each stage, and those with a rest to read."""
        latest: dict[str | None, int] = {}
        for source in self.sources:
            latest[source.stage] = max(source.attempt, latest.get(source.stage, 0))
        return [log for log in self._logs if log.has_more or log.source.attempt == latest[log.source.stage]]


class GrowingLog:
    """One log, how far it has been read, and its line that is not complete yet."""

    def __init__(self, source: LogSource, keep: LineFilter, offset: int = 0) -> None:
        self.source = source
        self.has_more = False
        self._offset = offset
        self._end: int | None = None
        """Where reading stops for good; None while the run goes on."""
        self._seen: tuple[int, int, int] | None = None
        self._head = b""
        self._splitter = Splitter()
        self._maker = BlockMaker(source, keep)
        self._told = False
        if offset:
            self._recognise()

    def has_grown(self) -> bool:
        """Tell whether a look inside is worth it, without opening the file."""
        try:
            status = os.stat(self.source.path)
        except OSError:
            return False
        now = status.st_ino, status.st_size, status.st_mtime_ns
        changed, self._seen = now != self._seen, now
        return changed or self.has_more

    def read(self, most: int) -> list[Block]:
        """Return the complete lines of the next piece."""
        try:
            size, data = self._read_piece(most)
        except FileNotFoundError:
            self.has_more = False
            return []
        except OSError as error:
            return self._tell(error)
        if data is None:
            blocks = self.close()
            self._offset, self._head, self.has_more = 0, b"", True
            return blocks
        self._offset += len(data)
        self.has_more = bool(data) and self._offset < (size if self._end is None else min(size, self._end))
        return self._blocks(self._splitter.feed(data))

    def freeze(self) -> None:
        """Take the present end for the last one; opening asks a file server for it, as stat may not."""
        self._end = None
        try:
            self._end = self._read_piece(0)[0]
        except OSError:
            self._end = self._offset
        self.has_more = self._end != self._offset

    def close(self) -> list[Block]:
        """Return the line that was never completed."""
        return self._blocks(self._splitter.close())

    def _blocks(self, lines: Iterable[bytes]) -> list[Block]:
        # What follows later makes a block of its own: to wait for it would hold back the line that matters most.
        return [*self._maker.feed(lines), *self._maker.close()]

    def _read_piece(self, most: int) -> tuple[int, bytes | None]:
        """Return the file's size and its next piece; None for the piece when it has been begun anew."""
        descriptor = os.open(self.source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, _HEAD, 0) if len(self._head) < _HEAD or most else self._head
            if size < self._offset or not head.startswith(self._head):
                return size, None
            self._head = head
            end = size if self._end is None else min(size, self._end)
            return size, os.pread(descriptor, max(0, min(most, end - self._offset)), self._offset)
        finally:
            os.close(descriptor)

    def _recognise(self) -> None:
        try:
            self._head = read_at(self.source.path, 0, _HEAD)
        except OSError:
            self._head = b""

    def _tell(self, error: OSError) -> list[Block]:
        told, self._told, self.has_more = self._told, True, False
        return [] if told else [unreadable(self.source, error)]


class Discovery:
    """Finds logs as they appear: new ranks, attempts, stages."""

    def __init__(self, folder: Path, select: Selection, known: Iterable[LogSource]) -> None:
        self._folder = folder
        self._select = select
        self._known = set(known)
        self._stage_names: list[str | None] = [None]
        self._attempts: dict[str | None, list[int]] = {}
        self._listings: dict[Path, _Listing] = {}

    def look_everywhere(self) -> None:
        """Make the next look list every folder, changed or not."""
        self._listings.clear()

    def find_new(self) -> list[LogSource]:
        """Return the logs that were not there before."""
        found = [source for section, folder in self._sections() for source in self._look(section, folder)]
        self._known.update(found)
        return found

    def _sections(self) -> Iterator[tuple[Section, Path]]:
        stages = self._folder / "stages"
        if self._has_changed(stages):
            self._stage_names = stage_names(self._folder)
        for stage in self._stage_names:
            if self._select.stages and stage not in self._select.stages:
                continue
            attempts = (stages / stage if stage is not None else self._folder) / "attempts"
            if self._has_changed(attempts):
                self._attempts[stage] = attempt_numbers(attempts)
            for number in self._attempts.get(stage, ()):
                if self._select.attempt is None or self._select.attempt == number:
                    yield Section(stage, number), attempts / str(number)

    def _look(self, section: Section, folder: Path) -> list[LogSource]:
        if not self._has_changed(folder):
            return []
        present = sources_below(folder, section, ranks=self._select.ranks, nodes=self._select.nodes)
        return [source for source in present if source not in self._known]

    def _has_changed(self, folder: Path) -> bool:
        return self._listings.setdefault(folder, _Listing(folder)).has_changed()


class _Listing:
    """Tells when to list a folder again: listing hundreds of files on a shared file system is not free."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: int | None = None
        self._looks = 0

    def has_changed(self) -> bool:
        try:
            changed = os.stat(self._folder).st_mtime_ns
        except OSError:
            return False
        self._looks += 1
        if changed == self._seen and self._looks < _SELDOM:
            return False
        # A folder that changed just now may change again without showing it.
        recent = time.time() - changed / 1e9 < _COARSE_CLOCK
        self._seen, self._looks = (None if recent else changed), 0
        return True
