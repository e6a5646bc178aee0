"""Bytes of a log to text that is safe to print: no escape sequence, control character or overlong line survives."""

from __future__ import annotations

import re

from launcher.plain_text import SEQUENCES

LONGEST_LINE = 16 * 1024
"""Bytes of a line that are shown."""

# Control characters but the tab, line separators of Unicode, and what turns the direction of the text after it.
_HARMFUL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Return what a line of text shows, without anything that would steer a terminal."""
    if not _HARMFUL.search(text):
        return text
    # A progress bar rewrites its line after each carriage return; only its last state is worth a line.
    shown = text.rstrip("\r").rpartition("\r")[2]
    return _HARMFUL.sub("", SEQUENCES.sub("", shown))


def shorten(raw: bytes) -> bytes:
    """Cap a physical line."""
    return raw if len(raw) <= LONGEST_LINE else Partial(raw).text()


class Partial:
    """A line of which pieces are known; holds its two ends only, however long it grows."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = b""
        self._cut = 0
        """Bytes left out between the two ends."""
        self.append(data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def append(self, piece: bytes) -> None:
        self._set(self._data + piece)

    def prepend(self, piece: bytes) -> None:
        self._set(piece + self._data)

    def text(self) -> bytes:
        """The line, at most LONGEST_LINE bytes of it and a mark: the last state of a progress bar, else the start."""
        if not self._cut and len(self._data) <= LONGEST_LINE:
            return self._data
        end = self._data[LONGEST_LINE:] if self._cut else self._data
        _, turn, last = end.rstrip(b"\r").rpartition(b"\r")
        line, length = (last, len(last)) if turn else (self._data, len(self._data) + self._cut)
        over = length - LONGEST_LINE
        return line[:LONGEST_LINE] + f" … ({over} more bytes)".encode() if over > 0 else line

    def _set(self, data: bytes) -> None:
        # NULs are holes of a sparse file or of a write that got lost; they would push the text out of both ends.
        data = data.replace(b"\0", b"")
        over = len(data) - 2 * LONGEST_LINE
        if over > 0:
            self._cut += over
            data = data[:LONGEST_LINE] + data[-LONGEST_LINE:]
        self._data = data
