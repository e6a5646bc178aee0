"""The lines of a run as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.logs.files import end_of_lines
from launcher.logs.filter import Selection
from launcher.logs.fold import Window
from launcher.logs.merge import Block
from launcher.logs.reading import find_chosen, has_several, in_order, show_sections, size_of
from launcher.logs.source import LogSource, Section
from launcher.logs.view import Line, header, lines_of
from launcher.logs.watch import Watch

GATHER = 0.2
"""Seconds for which a line waits for other ranks to say the same."""
SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
_ROUNDS = 10
"""Batches in a row after which to ask whether the run is over, although lines keep coming."""


def follow(
    folder: Path, select: Selection, *, is_over: Callable[[], bool], wait: Callable[[float], None] = time.sleep
) -> Iterator[Line]:
    """Yield the lines that are there, then those that come, until the run is over and all is read.

    Args:
        is_over: asked when nothing has come; once it says yes, the logs are read once more to their ends.
        wait: called with the seconds to pause.
    """
    keep = select.line_filter(time.time())
    sections = in_order(find_chosen(folder, select), select.stages)
    ends = {source: _end_of(source) for sources in sections.values() for source in sources}
    by_path = {source.path: end for source, end in ends.items()}
    # Without lines, the next one needs no header only if there is one place where it can belong.
    current = next(iter(sections)) if len(sections) == 1 else None
    for line in show_sections(sections, keep, select.tail, by_path.__getitem__):
        current = line.sources[0].section if line.sources else current
        yield line
    watch = Watch(folder, select, keep, ends)
    desk = _Desk(watch, current)
    yield from _until_over(watch, desk, is_over, wait)
    for batch in watch.drain():
        yield from desk.show(batch)
    yield from desk.close()


def _until_over(
    watch: Watch, desk: _Desk, is_over: Callable[[], bool], wait: Callable[[float], None]
) -> Iterator[Line]:
    """Yield what comes; pause ever longer while nothing does."""
    pause, rounds = SHORTEST_PAUSE, 0
    while True:
        batch = watch.poll()
        yield from desk.show(batch)
        rounds = rounds + 1 if batch or desk.holds or watch.has_more else 0
        if rounds % _ROUNDS == 0 and is_over():
            return
        if not watch.has_more:
            wait(GATHER if rounds else pause)
        pause = SHORTEST_PAUSE if rounds else min(2 * pause, LONGEST_PAUSE)


class _Desk:
    """Turns batches into lines: holds them for a round, and knows which headers and names the reader has seen."""

    def __init__(self, watch: Watch, current: Section | None) -> None:
        self._watch = watch
        self._current = current
        self._labelled = False
        self._window = Window()
        self._round = 0

    @property
    def holds(self) -> bool:
        """Whether lines wait for other ranks to say the same."""
        return bool(self._window)

    def show(self, batch: list[Block]) -> Iterator[Line]:
        """Take in a batch, by attempt and then by time, and yield what came before it."""
        self._round += 1
        if batch:
            yield from self._take(batch)
        yield from self._leave(self._round)

    def close(self) -> Iterator[Line]:
        """Yield what was held."""
        return self._leave(float("inf"))

    def _take(self, batch: list[Block]) -> Iterator[Line]:
        self._labelled = self._labelled or has_several(self._watch.sources)
        sections = self._sections()
        batch.sort(key=lambda block: (sections[block.source.section], block.time, block.source.order))
        for block in batch:
            section = block.source.section
            if section != self._current:
                yield from self.close()
                if len(sections) > 1:
                    yield header(section)
                self._current, self._window = section, Window()
            self._window.add(block, self._round)

    def _leave(self, before: float) -> Iterator[Line]:
        return lines_of(self._window.leave(before), self._labelled)

    def _sections(self) -> dict[Section, int]:
        """Attempts with their places, in the order in which they were found."""
        found = dict.fromkeys(source.section for source in self._watch.sources)
        return {section: place for place, section in enumerate(found)}


def _end_of(source: LogSource) -> int:
    try:
        return end_of_lines(source.path, size_of(source.path))
    except OSError:
        return 0
