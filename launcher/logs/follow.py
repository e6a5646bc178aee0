"""The lines of a run as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from launcher.logs.files import end_of_lines
from launcher.logs.filter import Selection
from launcher.logs.fold import fold
from launcher.logs.merge import Block
from launcher.logs.reading import has_several, in_order, show_sections, size_of
from launcher.logs.source import LogSource, Section, find_sources
from launcher.logs.view import Line, header, lines_of
from launcher.logs.watch import Watch

GATHER = 0.2
"""Seconds to wait for the other ranks once something has come, so that what they say alike can be folded."""
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
    found = find_sources(folder, ranks=select.ranks, nodes=select.nodes, attempt=select.attempt, stages=select.stages)
    sections = in_order(found, select.stages)
    ends = {source: _end_of(source) for sources in sections.values() for source in sources}
    by_path = {source.path: end for source, end in ends.items()}
    # Without lines, the next one needs no header only if there is one place where it can belong.
    current = next(iter(sections)) if len(sections) == 1 else None
    for line in show_sections(sections, keep, select.tail, by_path.__getitem__):
        current = line.sources[0].section if line.sources else current
        yield line
    watch = Watch(folder, select, keep, ends)
    desk = _Desk(watch, current)
    for batch in _batches(watch, is_over, wait):
        yield from desk.show(batch)


def _batches(watch: Watch, is_over: Callable[[], bool], wait: Callable[[float], None]) -> Iterator[list[Block]]:
    """Yield what comes, gathered over a short while; then, when the run is over, the rest."""
    pause, rounds = SHORTEST_PAUSE, 0
    while True:
        batch = watch.poll()
        if batch and not watch.has_more:
            wait(GATHER)
            batch += watch.poll()
        if batch:
            yield batch
        rounds = rounds + 1 if batch or watch.has_more else 0
        if rounds % _ROUNDS == 0 and is_over():
            break
        if not rounds:
            wait(pause)
        pause = SHORTEST_PAUSE if rounds else min(2 * pause, LONGEST_PAUSE)
    yield from watch.drain()


class _Desk:
    """Turns batches into lines and remembers what the reader has seen of headers and names."""

    def __init__(self, watch: Watch, current: Section | None) -> None:
        self._watch = watch
        self._current = current
        self._labelled = False

    def show(self, batch: list[Block]) -> Iterator[Line]:
        """Yield the lines of a batch: by attempt, then by time."""
        sections = self._sections()
        self._labelled = self._labelled or has_several(self._watch.sources)
        batch.sort(key=lambda block: (sections.index(block.source.section), block.time, block.source.order))
        for section, blocks in groupby(batch, key=lambda block: block.source.section):
            if section != self._current and len(sections) > 1:
                yield header(section)
            self._current = section
            yield from lines_of(fold(blocks), self._labelled)

    def _sections(self) -> list[Section]:
        """Attempts in the order in which they were found."""
        return list(dict.fromkeys(source.section for source in self._watch.sources))


def _end_of(source: LogSource) -> int:
    try:
        return end_of_lines(source.path, size_of(source.path))
    except OSError:
        return 0
