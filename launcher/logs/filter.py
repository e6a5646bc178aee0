"""Which lines of a run are wanted."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timezone

from launcher.logs.lines import LogLine

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+")


@dataclass(frozen=True)
class Selection:
    """What a person asked for; what is left empty means everything.

    Raises:
        ValueError: the expression, the time or a number makes no sense, with what would.
    """

    ranks: Collection[int] = ()
    nodes: Collection[int] = ()
    attempt: int | None = None
    tail: int | None = None
    """The last so many lines that the other choices leave, as they are shown."""
    grep: str | None = None
    """A regular expression, searched for in each line."""
    since: str | None = None
    """An age such as ``90s``, ``10m``, ``1h30m`` or ``2d``, or a time such as ``2026-11-23T20:00``."""
    stages: Collection[str] = ()
    """Stages of a pipeline; their order is kept."""

    def __post_init__(self) -> None:
        if self.tail is not None and self.tail < 0:
            raise ValueError(f"the number of last lines is {self.tail}; it must not be negative")
        self.line_filter(time.time())

    def line_filter(self, now: float) -> LineFilter:
        """Return what decides about single lines."""
        pattern = None if self.grep is None else compile_grep(self.grep)
        return LineFilter(pattern, float("-inf") if self.since is None else parse_since(self.since, now))


@dataclass(frozen=True)
class LineFilter:
    """Keeps a line by its text and its time."""

    pattern: re.Pattern[str] | None = None
    since: float = float("-inf")

    def keeps(self, line: LogLine, when: float) -> bool:
        """Tell whether a line is wanted; ``when`` is its own time or that of the line it belongs to."""
        return when >= self.since and self.keeps_text(line)

    def keeps_text(self, line: LogLine) -> bool:
        return self.pattern is None or self.pattern.search(line.shown) is not None


def compile_grep(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises:
        ValueError: with the place of the mistake.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how a later Python may read it is nothing to the person who asks
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        place = getattr(error, "pos", None)
        where = "" if place is None else f" at position {place}"
        what = getattr(error, "msg", None) or str(error)
        raise ValueError(f"{pattern!r} is no regular expression: {what}{where}") from None


def parse_since(text: str, now: float) -> float:
    """Return the time that an age or a time means, in seconds since the epoch.

    A time without a zone is UTC, as the times in the logs are.

    Raises:
        ValueError: it is neither.
    """
    if _AGE.fullmatch(text.strip()):
        parts = re.findall(r"([0-9.]+)([smhdw])", text)
        return now - sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        allowed = "an age (90s, 10m, 2h, 1d) or a time in UTC (2026-11-23, 2026-11-23T20:00:00)"
        raise ValueError(f"{text!r} is no time to start from; allowed: {allowed}") from None
