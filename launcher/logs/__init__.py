"""The logs of a run: every rank's and node's lines merged by time, said once where several say the same.

``source`` finds the files, ``files`` reads pieces of them, ``lines`` understands one line, ``merge`` and ``fold``
make one stream of many, ``filter`` says what is wanted; ``reading`` shows what is there, ``follow`` what comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.logs.filter import Selection
from launcher.logs.follow import follow as follow_lines
from launcher.logs.reading import explain_nothing, read_lines
from launcher.logs.source import LogSource, find_sources

__all__ = ["LogSource", "Selection", "explain_nothing", "find_sources", "follow", "read"]


def read(folder: Path, select: Selection, *, colour: bool = False) -> Iterator[str]:
    """Yield the lines of a run's logs that are there now, ready to print.

    Args:
        folder: the run's folder, or a stage's.
        colour: mark levels and headers; only for a terminal.
    """
    return (line.render(colour) for line in read_lines(folder, select))


def follow(
    folder: Path,
    select: Selection,
    *,
    is_over: Callable[[], bool],
    wait: Callable[[float], None] = time.sleep,
    colour: bool = False,
) -> Iterator[str]:
    """Yield the lines that are there now and then those that come, until the run is over and all is read."""
    return (line.render(colour) for line in follow_lines(folder, select, is_over=is_over, wait=wait))
