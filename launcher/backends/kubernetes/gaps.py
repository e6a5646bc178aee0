"""Stretches of a mirrored file that no pod told: filled with a line that says so, and with the truth when it comes."""

from __future__ import annotations

import os

from launcher.backends.kubernetes.told import Line

_TAIL = 128
"""Bytes at the end of a stretch that hold the words."""
_MOST_WRITTEN = 1024 * 1024
"""What is missing beyond this stays a hole in the file, which takes no room."""


class Gaps:
    """The gaps of a run's files.

    Args:
        by_path: from where to where, by the file's path; changed in place.
    """

    def __init__(self, by_path: dict[str, list[list[int]]]) -> None:
        self.by_path = {path: [[*gap] for gap in gaps] for path, gaps in by_path.items()}

    def fill(self, descriptor: int, path: str, start: int, end: int) -> None:
        """Make a file longer by a stretch that is missing."""
        os.ftruncate(descriptor, end)
        os.pwrite(descriptor, b" " * min(end - start, _MOST_WRITTEN), start)
        _say_missing(descriptor, start, end)
        self.by_path.setdefault(path, []).append([start, end])

    def heal(self, descriptor: int, line: Line) -> None:
        """Write what of a line is missing."""
        gaps = self.by_path.get(line.path)
        if not gaps:
            return
        left = []
        for start, end in gaps:
            first, last = max(start, line.offset), min(end, line.offset + len(line.data))
            if first >= last:
                left.append([start, end])
                continue
            os.pwrite(descriptor, line.data[first - line.offset : last - line.offset], first)
            for still in ([start, first], [last, end]):
                if still[0] < still[1]:
                    _say_missing(descriptor, *still)
                    left.append(still)
        self.by_path[line.path] = left
        if not left:
            del self.by_path[line.path]


def _say_missing(descriptor: int, start: int, end: int) -> None:
    """End a stretch with the words; what lies before them is blank.

    They follow a carriage return: as with a progress bar, a reader shows them alone.
    """
    count = end - start
    words = f"\r[{count} bytes are not here: the cluster dropped them]\n".encode()
    tail = (words if len(words) <= count else b"\n").rjust(min(count, _TAIL))
    os.pwrite(descriptor, tail, end - len(tail))
