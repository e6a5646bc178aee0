"""What the logs of a run hold at this moment."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from launcher.logs.files import first_time, start_of_tail, start_of_time
from launcher.logs.filter import LineFilter, Selection
from launcher.logs.fold import fold
from launcher.logs.lines import parse_line
from launcher.logs.merge import Span, read_merged
from launcher.logs.source import LogSource, Section, find_sources
from launcher.logs.view import Line, header, lines_of, ranges

_CLOCK_SLACK = 60.0
"""Seconds by which the clocks of a node and of a file server may differ."""

Sections = dict[Section, list[LogSource]]


def read_lines(folder: Path, select: Selection) -> Iterator[Line]:
    """Yield the lines of a run that were asked for, attempt after attempt."""
    keep = select.line_filter(time.time())
    return show_sections(in_order(find_chosen(folder, select), select.stages), keep, select.tail, size_of)


def find_chosen(folder: Path, select: Selection) -> list[LogSource]:
    """Find the logs that were asked for."""
    return find_sources(folder, ranks=select.ranks, nodes=select.nodes, attempt=select.attempt, stages=select.stages)


def show_sections(
    sections: Sections, keep: LineFilter, tail: int | None, end_of: Callable[[Path], int]
) -> Iterator[Line]:
    """Yield the lines of several attempts, with headers between them; with ``tail``, the last lines only."""
    labelled = has_several(source for sources in sections.values() for source in sources)
    titled = len(sections) > 1
    shown = (
        ((section, _show(sources, keep, None, labelled, end_of)) for section, sources in sections.items())
        if tail is None
        else _last_sections(sections, keep, tail, labelled, end_of)
    )
    for section, lines in shown:
        for number, line in enumerate(lines):
            if titled and number == 0:
                yield header(section)
            yield line


def _last_sections(
    sections: Sections, keep: LineFilter, tail: int, labelled: bool, end_of: Callable[[Path], int]
) -> list[tuple[Section, list[Line]]]:
    """The last lines over all attempts; an attempt that is too old to matter is not read."""
    parts = []
    for section, sources in reversed(sections.items()):
        if tail > 0:
            lines = deque(_show(sources, keep, tail, labelled, end_of), maxlen=tail)
            parts.append((section, list(lines)))
            tail -= len(lines)
    return parts[::-1]


def _show(
    sources: Sequence[LogSource], keep: LineFilter, tail: int | None, labelled: bool, end_of: Callable[[Path], int]
) -> Iterator[Line]:
    spans = [span for source in sources for span in _span(source, keep, tail, end_of)]
    return lines_of(fold(read_merged(spans, keep)), labelled)


def _span(source: LogSource, keep: LineFilter, tail: int | None, end_of: Callable[[Path], int]) -> Iterator[Span]:
    """Yield the stretch of a log that can hold what is asked for, if any."""
    try:
        end = end_of(source.path)
        start = 0
        if keep.since > float("-inf"):
            if source.path.stat().st_mtime < keep.since - _CLOCK_SLACK:
                return
            start = start_of_time(source.path, end, keep.since)
        if tail is not None:
            start = start_of_tail(source.path, start, end, tail, lambda raw: keep.keeps_text(parse_line(raw, source)))
    except FileNotFoundError:
        return
    except OSError:
        start, end = 0, 1  # The reader meets the same error and shows it in the log's place.
    if start < end:
        yield Span(source, start, end)


def size_of(path: Path) -> int:
    """Size of a file as it is now, so that a log that grows while it is read comes to an end."""
    return path.stat().st_size


def in_order(sources: Iterable[LogSource], stages: Iterable[str] = ()) -> Sections:
    """Group logs by stage and attempt: stages as they were named, else as they began; attempts ascending."""
    groups: Sections = {}
    for source in sources:
        groups.setdefault(source.section, []).append(source)
    names = list(dict.fromkeys(section.stage for section in sorted(groups, key=lambda section: section.attempt)))
    place: dict[str | None, float] = {name: number for number, name in enumerate(stages)}
    if len(names) > 1 and not place:
        place = {name: _began(groups[min(s for s in groups if s.stage == name)]) for name in names}
    return dict(
        sorted(groups.items(), key=lambda item: (place.get(item[0].stage, 0.0), item[0].stage or "", item[0].attempt))
    )


def _began(sources: Sequence[LogSource]) -> float:
    try:
        return first_time(sources[0].path, 0)
    except OSError:
        return float("inf")


def has_several(sources: Iterable[LogSource]) -> bool:
    """Tell whether lines need to say whose they are."""
    return len({(source.node, source.rank) for source in sources}) > 1


def explain_nothing(folder: Path, select: Selection) -> str:
    """Say why a selection shows nothing, with what there is to show."""
    everything = find_sources(folder)
    if not everything:
        return "there are no logs yet"
    if find_chosen(folder, select):
        return "no line of the logs fits"
    return f"no such log; there are logs of {_overview(everything)}"


def _overview(sources: Sequence[LogSource]) -> str:
    numbers = {
        "ranks": [source.rank for source in sources if source.rank is not None],
        "nodes": [source.node for source in sources if source.node is not None],
        "attempts": [source.attempt for source in sources],
    }
    parts = [f"{name} {ranges(values)}" for name, values in numbers.items() if values]
    stages = sorted({source.stage for source in sources if source.stage is not None})
    return ", ".join([*parts, f"stages {', '.join(stages)}"] if stages else parts)
