"""Folded lines as they are shown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from launcher.logs.clean import clean
from launcher.logs.fold import Folded
from launcher.logs.source import LogSource, Section

_COLOURS = {"ERROR": "31", "CRITICAL": "1;31", "FATAL": "1;31", "WARNING": "33", "WARN": "33", "DEBUG": "2"}
_HEADER_COLOUR = "1;36"


class Line(NamedTuple):
    """One line to show."""

    kind: Literal["text", "header"]
    text: str
    level: str | None = None
    label: str = ""
    """Who said it: ``[ranks 0-3,7]``; empty for a single log."""
    sources: tuple[LogSource, ...] = ()

    def render(self, colour: bool = False) -> str:
        """Return the line as text, with colours for its level or as a header if they are wanted."""
        text = _paint(self) if colour else self.text
        return f"{self.label} {text}" if self.label else text


def header(section: Section) -> Line:
    """Return the line that begins an attempt or a stage."""
    if section.stage is None:
        return Line("header", f"── attempt {section.attempt} ──")
    # A folder's name may hold anything, bytes that are no text among it.
    name = f"stage {clean(os.fsencode(section.stage).decode('utf-8', 'replace'))}"
    return Line("header", f"── {name}, attempt {section.attempt} ──" if section.attempt else f"── {name} ──")


def lines_of(folded: Iterable[Folded], labelled: bool) -> Iterator[Line]:
    """Yield every physical line, each with who said it."""
    for entry in folded:
        name = label(entry.sources) if labelled else ""
        sources = tuple(entry.sources)
        for line in entry.lines:
            yield Line("text", line.shown, line.level, name, sources)


def label(sources: Iterable[LogSource]) -> str:
    """Return who said something: ``[rank 2]``, ``[ranks 0-3,7]``, ``[node 0, ranks 0-7]``, ``[shard 3]``."""
    members = list(sources)
    kinds = {
        "node": [source.node for source in members if source.node is not None],
        "rank": [source.rank for source in members if source.rank is not None and not source.shard],
        "shard": [source.rank for source in members if source.rank is not None and source.shard],
    }
    return "[" + ", ".join(_names(kind, numbers) for kind, numbers in kinds.items() if numbers) + "]"


def _names(kind: str, numbers: list[int]) -> str:
    return f"{kind} {numbers[0]}" if len(numbers) == 1 else f"{kind}s {ranges(numbers)}"


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers shortly: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _paint(line: Line) -> str:
    code = _HEADER_COLOUR if line.kind == "header" else _COLOURS.get(line.level or "")
    if not code:
        return line.text
    if line.kind == "header" or line.level is None or line.level not in line.text:
        return f"\x1b[{code}m{line.text}\x1b[0m"
    before, level, after = line.text.partition(line.level)
    return f"{before}\x1b[{code}m{level}\x1b[0m{after}"
