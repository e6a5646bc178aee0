"""What several ranks say alike, said once.

A block joins the same text of other ranks when that text was said at most WINDOW seconds before, and after
everything its own rank has said so far. So every rank's lines can be read off the folded ones, in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from launcher.logs.lines import LogLine
from launcher.logs.merge import Block
from launcher.logs.source import LogSource

WINDOW = 2.0
"""Seconds; ranks that wait for each other at every step drift apart by less."""
_MOST_ENTRIES = 4096
_MOST_CHARACTERS = 8 * 1024 * 1024


@dataclass
class Folded:
    """Lines with everyone who said them; times are those of the first."""

    lines: tuple[LogLine, ...]
    sources: list[LogSource] = field(default_factory=list)


@dataclass
class _Entry:
    place: int
    key: str
    time: float
    born: float
    folded: Folded


def fold(blocks: Iterable[Block]) -> Iterator[Folded]:
    """Fold blocks that come ordered by time; nothing is lost, doubled or, for one source, reordered."""
    window = Window()
    for block in blocks:
        yield from window.leave(block.time - WINDOW)
        window.add(block, block.time)
    yield from window.leave(float("inf"))


class Window:
    """What was said lately and may be said again by another rank."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._alike: dict[str, list[_Entry]] = {}
        self._last_place: dict[LogSource, int] = {}
        self._next_place = 0
        self._characters = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, block: Block, born: float) -> None:
        """Take a block in; ``born`` is what its age is counted from."""
        key = _key(block.lines)
        alike = self._alike.setdefault(key, [])
        entry = self._find(alike, block) or self._open(alike, key, block, born)
        entry.folded.sources.append(block.source)
        self._last_place[block.source] = entry.place

    def leave(self, before: float) -> Iterator[Folded]:
        """Yield what was born before a moment, and what is more than the memory to be held."""
        while self._entries and (self._entries[0].born < before or self._is_full()):
            entry = self._entries.popleft()
            self._characters -= len(entry.key)
            alike = self._alike[entry.key]
            del alike[0]
            if not alike:
                del self._alike[entry.key]
            yield entry.folded

    def _find(self, alike: list[_Entry], block: Block) -> _Entry | None:
        after = self._last_place.get(block.source, -1)
        for number in range(bisect_right(alike, after, key=_place), len(alike)):
            if abs(alike[number].time - block.time) <= WINDOW:
                return alike[number]
        return None

    def _open(self, alike: list[_Entry], key: str, block: Block, born: float) -> _Entry:
        entry = _Entry(self._next_place, key, block.time, born, Folded(block.lines))
        alike.append(entry)
        self._next_place += 1
        self._characters += len(key)
        self._entries.append(entry)
        return entry

    def _is_full(self) -> bool:
        return len(self._entries) > _MOST_ENTRIES or self._characters > _MOST_CHARACTERS


def _place(entry: _Entry) -> int:
    return entry.place


def _key(lines: tuple[LogLine, ...]) -> str:
    """The text without its time, but with whether it had one."""
    first = lines[0]
    mark = "T" if first.stamp else "-"
    return mark + (first.text if len(lines) == 1 else "\n".join(line.text for line in lines))
