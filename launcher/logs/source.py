"""The log files of a run: where they lie and whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launcher.reading import read_start
from launcher.run_folder import RunFolder

_NAME = re.compile(r"(node|rank)([0-9]{1,9})\.log")


class Section(NamedTuple):
    """One attempt of a run or of one stage of a pipeline: its lines are shown together."""

    stage: str | None
    attempt: int


@dataclass(frozen=True)
class LogSource:
    """One log file: a node's (``node`` is set) or a rank's or a shard's (``rank`` is set)."""

    path: Path
    attempt: int
    stage: str | None = None
    node: int | None = None
    rank: int | None = None
    shard: bool = False
    """Whether the rank is the shard of an evaluation."""

    def __hash__(self) -> int:
        # A source is looked up for every line; a path keeps its text and a text its hash.
        return hash(str(self.path))

    @property
    def section(self) -> Section:
        return Section(self.stage, self.attempt)

    @property
    def order(self) -> tuple[int, str, int, int]:
        """Place among others when nothing else decides: attempt, stage, nodes, then ranks."""
        kind, number = (0, self.node) if self.node is not None else (1, self.rank or 0)
        return self.attempt, self.stage or "", kind, number


def find_sources(
    folder: Path,
    *,
    ranks: Collection[int] = (),
    nodes: Collection[int] = (),
    attempt: int | None = None,
    stages: Collection[str] = (),
) -> list[LogSource]:
    """Find the log files of a run. Nothing named means everything; ranks and nodes add up."""
    return [
        source
        for section, below in find_sections(folder, attempt=attempt, stages=stages)
        for source in sources_below(below, section, ranks=ranks, nodes=nodes)
    ]


def find_sections(
    folder: Path, *, attempt: int | None = None, stages: Collection[str] = ()
) -> list[tuple[Section, Path]]:
    """Find the attempts of a run and of its stages, each with its folder."""
    found = []
    for stage in stage_names(folder):
        if stages and stage not in stages:
            continue
        root = RunFolder(folder).stage(stage or "")
        numbers = attempt_numbers(root.root / "attempts")
        found += [(Section(stage, n), root.attempt(n)) for n in numbers if attempt is None or n == attempt]
    return found


def stage_names(folder: Path) -> list[str | None]:
    """The run itself (None), then its stages by name."""
    return [None, *sorted(entry.name for entry in _entries(folder / "stages"))]


def attempt_numbers(folder: Path) -> list[int]:
    """Numbers of the attempts that left a folder; ``01`` is no attempt's name."""
    names = (entry.name for entry in _entries(folder))
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name)


def sources_below(
    folder: Path, section: Section, *, ranks: Collection[int] = (), nodes: Collection[int] = ()
) -> list[LogSource]:
    """Find the log files of one attempt, nodes first."""
    found, shards = [], _holds_shards(folder)
    for entry in _entries(folder):
        match = _NAME.fullmatch(entry.name)
        if not match or not _is_log(entry, match[1], int(match[2])):
            continue
        number = int(match[2])
        wanted, field = (nodes, "node") if match[1] == "node" else (ranks, "rank")
        if number in wanted or not (ranks or nodes):
            one = LogSource(folder / entry.name, section.attempt, section.stage, shard=shards, **{field: number})
            found.append(one)
    return sorted(found, key=lambda source: source.order)


def _holds_shards(attempt: Path) -> bool:
    """Tell whether an attempt is an evaluation's, by the first line of its config."""
    first = read_start(attempt.parents[1] / "config.yaml", 64).partition(b"\n")[0]
    return first.strip() == b"kind: eval"


def _is_log(entry: os.DirEntry[str], kind: str, number: int) -> bool:
    """Tell whether an entry has the one name that its rank or node has, and is a file: a pipe would never end."""
    name = f"node{number}.log" if kind == "node" else f"rank{number:04d}.log"
    try:
        return entry.name == name and entry.is_file()
    except OSError:  # a link to itself
        return False


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return
