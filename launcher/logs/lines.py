"""One physical line of a log: its time, its level, its text."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from launcher.logs.clean import clean
from launcher.logs.source import LogSource

_TIME = r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z"
_STAMP = re.compile(_TIME + r"(?: ((?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b)?|$)")
_RAW_STAMP = re.compile(rb"(?:\A|(?<=\n))\0*" + _TIME.encode() + rb"(?=[ \r\n])")


class LogLine(NamedTuple):
    """A line as read: ``stamp`` and ``text`` are what stood there."""

    time: float | None
    """Seconds since the epoch; None for a line that carries no time and belongs to the line before it."""
    level: str | None
    text: str
    """What follows the time, the level included."""
    source: LogSource
    stamp: str = ""

    @property
    def shown(self) -> str:
        return f"{self.stamp} {self.text}" if self.stamp and self.text else self.stamp or self.text


def parse_line(raw: bytes, source: LogSource) -> LogLine:
    """Read one physical line, without its line end."""
    text = clean(raw.decode("utf-8", "replace"))
    match = _STAMP.match(text)
    time = _seconds(match[1], match[2]) if match else None
    if match is None or time is None:
        return LogLine(None, None, text, source)
    end = match.start(3) if match[3] else match.end()
    return LogLine(time, match[3], text[end:], source, text[:end].rstrip(" "))


def first_stamp(data: bytes, *, at_line_start: bool, since: float = float("-inf")) -> tuple[int, float] | None:
    """Find the first line of a piece of a file with a time not before ``since``: its place and its time.

    Args:
        at_line_start: whether the piece begins where a line does.
    """
    for match in _RAW_STAMP.finditer(data):
        if match.start() == 0 and not at_line_start:
            continue
        time = _seconds(match[1].decode(), match[2].decode() if match[2] else None)
        if time is not None and time >= since:
            return match.start(), time
    return None


def _seconds(whole: str, fraction: str | None) -> float | None:
    start = _epoch(whole)
    if start is None or not fraction:
        return start
    return start + float(f"0.{fraction}")


@lru_cache(maxsize=4096)
def _epoch(text: str) -> float | None:
    """Seconds since the epoch of a time in UTC; None when there is no such time, such as February the 30th."""
    try:
        return datetime.fromisoformat(text + "+00:00").timestamp()
    except (ValueError, OverflowError):
        return None
