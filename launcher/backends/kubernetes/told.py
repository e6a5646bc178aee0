"""How pods tell the files of a run in their logs, and which files may be told.

::

    metrics.jsonl@1234 {"step": 7}            a line of a file that only grows, with the place of its first byte
    attempts/0/rank0000.log@9426- Epoch 3:    the same without a line's end: a piece of a long line, or a line left torn
    steps/train.json=1700000000123456789 {}   a small file as it was written whole, with the time (ns) of its writing

Places and times make what is told twice, late or out of order harmless: a reader knows what it has.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

LONGEST_PIECE = 8192
"""Bytes of a line that are told at once: container runtimes cut lines at 16 KiB, and a cut line has a torn start."""
LARGEST_WHOLE = 64 * 1024
"""Bytes of a file that is told whole."""

_STAGE = r"(?:stages/[a-z0-9][a-z0-9-]{0,62}/)?"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_GROWING = rf"{_STAGE}(?:(?:metrics|events)\.jsonl|attempts/[0-9]{{1,9}}/(?:node|rank)[0-9]{{1,9}}\.log)"
_WHOLE = rf"""(?x:
    steps/{_NAME}\.json
    | {_STAGE}attempts/[0-9]{{1,9}}/(?:exits/node|errors/rank)[0-9]{{1,9}}\.json
    | {_STAGE}checkpoints/step-[0-9]{{1,12}}/COMPLETE
    | {_STAGE}eval/{_NAME}/(?:scores\.json|report\.txt)
)"""
# Thirteen digits are ten terabytes, and nineteen a time: what has more is no place and no time.
_LINE = re.compile(rf"({_GROWING})@([0-9]{{1,13}})(-?) ".encode())
_FILE = re.compile(rf"({_WHOLE})=([0-9]{{1,19}}) ".encode())


class Line(NamedTuple):
    """A line of a file, or a piece of one, with the place of its first byte."""

    path: str
    """Relative to the run's folder."""
    offset: int
    data: bytes
    """With the line's end, where it has one."""


class Whole(NamedTuple):
    """A small file as it was at a time."""

    path: str
    """Relative to the run's folder."""
    time_ns: int
    value: Any
    """What a JSON file says; a text file's text."""

    @property
    def text(self) -> str:
        """What the file holds."""
        return self.value if self.path.endswith(".txt") else json.dumps(self.value, indent=1, ensure_ascii=False) + "\n"


def say_line(line: Line) -> bytes:
    """Put a line, or a piece of one, into words."""
    mark, end = (b"", b"") if line.data.endswith(b"\n") else (b"-", b"\n")
    return b"%s@%d%s %s%s" % (line.path.encode(), line.offset, mark, line.data, end)


def say_whole(path: str, time_ns: int, data: bytes) -> bytes | None:
    """Put a small file into words; None when it is too large, or no JSON where it should be."""
    if len(data) > LARGEST_WHOLE:
        return None
    try:
        # A marker is told by being there.
        value = data.decode() if path.endswith(".txt") else json.loads(data.strip() or b"{}")
        return f"{path}={time_ns} {json.dumps(value, ensure_ascii=False)}\n".encode()
    except ValueError:
        return None


def hear(raw: bytes) -> Line | Whole | None:
    """Read a line of a pod's log, its end included; None for what tells no file that may be told.

    Without its end, which a killed pod may not have said any more, it is a piece of a line.
    """
    match = _LINE.match(raw)
    if match:
        data = raw[match.end() :]
        return Line(match[1].decode(), int(match[2]), data.removesuffix(b"\n") if match[3] else data)
    match = _FILE.match(raw)
    if not match:
        return None
    try:
        value = json.loads(raw[match.end() :])
    except ValueError:
        return None
    path = match[1].decode()
    return Whole(path, int(match[2]), value) if isinstance(value, str if path.endswith(".txt") else dict) else None
