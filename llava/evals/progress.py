"""How far is this shard? One line in metrics.jsonl every two seconds at most, and one at the end."""

from __future__ import annotations

import time
from types import TracebackType

from llava.run_folder import RunFolder

_EVERY_S = 2.0


class Progress:
    """Counts a shard's answered rows.

    Args:
        folder: the run.
        shard: number of the shard.
        total: rows of this shard, over all models.
        done: of them, answered by earlier starts.
    """

    def __init__(self, folder: RunFolder, shard: int, total: int, done: int) -> None:
        self._folder = folder
        self._shard = shard
        self._total = total
        self._done = done
        self._new = 0
        self._seconds = 0.0
        self._resumed_at = self._written_at = time.monotonic()

    def start(self) -> None:
        """A model has been loaded: time from here on counts for the speed."""
        self._resumed_at = self._written_at = time.monotonic()

    def add(self, rows: int) -> bool:
        """Count rows.

        Returns:
            whether a line was written.
        """
        now = time.monotonic()
        self._seconds += now - self._resumed_at
        self._resumed_at = now
        self._new += rows
        if now - self._written_at < _EVERY_S:
            return False
        self._write()
        return True

    def _write(self) -> None:
        self._written_at = time.monotonic()
        speed = self._new / self._seconds if self._seconds else 0.0
        step = self._done + self._new
        self._folder.add_metrics(shard=self._shard, step=step, total_steps=self._total, samples_per_s=round(speed, 3))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write()
