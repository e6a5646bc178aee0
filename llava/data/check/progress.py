"""How far is the check? A bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from llava.logs import LOG

if TYPE_CHECKING:
    from rich.progress import Progress

_EVERY_S = 10.0


class Bar:
    """Counts what is done of one thing.

    Args:
        what: its name, in the plural.
        total: how many there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._started = self._said = time.monotonic()
        self._seconds: float | None = None
        self._bar = _rich_bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task(what, total=total, rate="") if self._bar else None

    def advance(self, more: int) -> None:
        """So many more are done."""
        self._done += more
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{self.per_minute:,}/min")
        elif time.monotonic() - self._said > _EVERY_S:
            self._said = time.monotonic()
            LOG.info("%s", f"{self._done:,} of {self._total:,} {self._what}, {self.per_minute:,} a minute")

    @property
    def per_minute(self) -> int:
        """Speed so far, or of all when it is over."""
        seconds = time.monotonic() - self._started if self._seconds is None else self._seconds
        return round(60 * self._done / seconds) if seconds else 0

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.stop()


def _rich_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
