"""Several logs as one, ordered by time, in bounded memory."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from launcher.logs.files import FORWARD_BLOCK, first_time, read_forwards
from launcher.logs.filter import LineFilter
from launcher.logs.lines import LogLine, parse_line
from launcher.logs.source import LogSource

MOST_LINES = 200
"""Lines of a block; a longer one (a flood without times) goes on in the next block, right after it."""
_MOST_READ_AHEAD = 16 * 1024 * 1024
_SMALLEST_READ = 8 * 1024


class Block(NamedTuple):
    """A line with a time and the lines without one that follow it."""

    time: float
    """Never less than that of the block before it in the same log, so that no log is reordered."""
    lines: tuple[LogLine, ...]
    source: LogSource


class Span(NamedTuple):
    """A stretch of one log."""

    source: LogSource
    start: int
    end: int


class BlockMaker:
    """Gathers the lines of one log into blocks and drops those that are not wanted.

    Args:
        fallback: gives the time of lines before the first one with a time.
    """

    def __init__(self, source: LogSource, keep: LineFilter, fallback: Callable[[], float] = time.time) -> None:
        self._source = source
        self._keep = keep
        self._fallback = fallback
        self._time: float | None = None
        self._lines: list[LogLine] = []

    def feed(self, raws: Iterable[bytes]) -> Iterator[Block]:
        """Yield the blocks that are complete; the last one may go on."""
        for raw in raws:
            line = parse_line(raw, self._source)
            if self._lines and (line.time is not None or len(self._lines) >= MOST_LINES):
                yield from self.close()
            when = self._advance(line.time)
            if self._keep.keeps(line, when):
                self._lines.append(line)

    def close(self) -> Iterator[Block]:
        """Yield the block that was open; what follows it makes one of its own."""
        if self._lines:
            yield Block(self._time or 0.0, tuple(self._lines), self._source)
            self._lines = []

    def _advance(self, when: float | None) -> float:
        if when is not None:
            self._time = when if self._time is None else max(self._time, when)
        elif self._time is None:
            self._time = self._fallback()
        return self._time


def merge(streams: Sequence[Iterable[Block]]) -> Iterator[Block]:
    """Merge blocks by time; at equal times by attempt, stage, node and rank."""
    return (block for _, _, block in heapq.merge(*map(_keyed, streams)))


def _keyed(stream: Iterable[Block]) -> Iterator[tuple[float, tuple[int, str, int, int], Block]]:
    for block in stream:
        # Two streams never share an order, so blocks themselves are never compared.
        yield block.time, block.source.order, block


def read_merged(spans: Sequence[Span], keep: LineFilter) -> Iterator[Block]:
    """Read stretches of several logs and merge them."""
    size = min(FORWARD_BLOCK, max(_SMALLEST_READ, _MOST_READ_AHEAD // max(1, len(spans))))
    return merge([_read_span(span, keep, size) for span in spans])


def _read_span(span: Span, keep: LineFilter, size: int) -> Iterator[Block]:
    maker = BlockMaker(span.source, keep, lambda: first_time(span.source.path, span.start))
    try:
        for lines in read_forwards(span.source.path, span.start, span.end, size):
            yield from maker.feed(lines)
    except FileNotFoundError:
        pass  # Removed while it was read: what was there has been shown.
    except OSError as error:
        yield from maker.close()
        yield unreadable(span.source, error)
    yield from maker.close()


def unreadable(source: LogSource, error: OSError) -> Block:
    """Return a block that says, in the log's place, why it cannot be read."""
    text = f"(cannot read {source.path.name}: {error.strerror or error})"
    return Block(time.time(), (LogLine(None, "ERROR", text, source),), source)
