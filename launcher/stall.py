"""Whether a run that goes on has made no step for much longer than its steps took.

A stopped process, a dead file system or a deadlock leaves a run that looks as before: only its metrics do not grow.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from launcher.durations import in_words
from launcher.run_folder import RunFolder, last_lines
from launcher.typed import fits

_SHORTEST_S = 30.0
"""Less silence is never told: a slow disk or a busy machine makes as much."""
_STEPS = 10
"""So many times as long as a step took must it be silent."""
_LINES = 3
"""And so many times as long as from one line of metrics to the next, because not every step writes one."""
_PAUSES = 2
"""And so many times as long as the longest pause before, such as that for a checkpoint, ..."""
_LONGEST_PAUSE_S = 600.0
"""... but not for ever, because the pause may have been a standstill itself."""
_CLOCKS_S = 5.0
"""By so much a time may lie ahead before its clock counts as wrong."""


@dataclass(frozen=True)
class Stall:
    """A standstill."""

    quiet_s: float
    """Since the last step."""
    step_s: float
    """How long a step took before."""
    word: str = "step"

    @property
    def text(self) -> str:
        """What to tell people."""
        return f"no {self.word} for {in_words(self.quiet_s)} (a {self.word} took {_short(self.step_s)})"


def find_stall(stage: RunFolder, attempt: int, now: float) -> Stall | None:
    """Return a stage's standstill; None while steps come, before there is anything to compare with, and at the end.

    Args:
        stage: the stage that runs.
        attempt: number of the attempt that runs; what earlier ones wrote tells nothing about it.
        now: the time here.
    """
    lines = [line for line in last_lines(stage.metrics) if _is_known(line) and line.get("attempt", attempt) == attempt]
    lines.reverse()
    if not lines:
        return None
    if fits(lines[-1].get("shard"), int):
        found, word = _of_shards(lines), "row"
    else:
        found, word = _of_training(lines), "step"
    if found is None:
        return None
    step_s, limit_s = found
    quiet_s = _quiet_s(now, lines[-1]["time"], stage)
    return Stall(quiet_s, step_s, word) if quiet_s > max(limit_s, _SHORTEST_S, _STEPS * step_s) else None


def _is_known(line: dict[str, Any]) -> bool:
    return fits(line.get("time"), float) and fits(line.get("step"), int) and fits(line.get("total_steps"), int)


def _of_training(lines: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """How long a step took, and the silence that is usual between lines."""
    last = lines[-1]
    if last["step"] >= last["total_steps"]:
        return None  # saving the result
    found = _paces([lines])
    return found if found is not None else _of_one_line(last)


def _of_one_line(line: dict[str, Any]) -> tuple[float, float] | None:
    """The first line says how long is left; the next one comes after as many steps as it did at most."""
    eta_s: Any = line.get("eta_s")
    if not fits(eta_s, float) or eta_s <= 0:
        return None
    step_s = eta_s / (line["total_steps"] - line["step"])
    return step_s, _LINES * step_s * line["step"]


def _of_shards(lines: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """The same for the rows of an evaluation, over all its shards."""
    shards: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if fits(line.get("shard"), int):
            shards.setdefault(line["shard"], []).append(line)
    if all(of_one[-1]["step"] >= of_one[-1]["total_steps"] for of_one in shards.values()):
        return None  # merging
    return _paces(shards.values())


def _paces(series: Iterable[Sequence[dict[str, Any]]]) -> tuple[float, float] | None:
    """How long a step took in the middle, and the silence that is usual between the lines of one writer."""
    pauses, each = [], []
    for lines in series:
        for before, after in pairwise(lines):
            took, steps = after["time"] - before["time"], after["step"] - before["step"]
            if took > 0 and steps > 0:
                pauses.append(took)
                each.append(took / steps)
    if not pauses:
        return None
    longest = min(_PAUSES * max(pauses), _LONGEST_PAUSE_S)
    return statistics.median(each), max(_LINES * statistics.median(pauses), longest)


def _signs(stage: RunFolder) -> Iterator[Path]:
    """Files that are written beside steps: an event is told, a checkpoint is on its way."""
    yield stage.events
    for aside in stage.checkpoints.glob(".step-*.tmp-*"):
        yield aside
        yield from aside.iterdir()


def _quiet_s(now: float, told: float, stage: RunFolder) -> float:
    """Seconds since the last sign of life.

    The time in a line is of the node's clock, that of a file perhaps of a file server's: the later one of both counts,
    so that a clock that is behind raises no alarm; one that is ahead of now is wrong and does not count.
    """
    moments = [told, _written(stage.metrics), *map(_written, _signs(stage))]
    return max(0.0, now - max((one for one in moments if one <= now + _CLOCKS_S), default=now))


def _written(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _short(seconds: float) -> str:
    if seconds >= 10:
        return in_words(seconds)
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{max(1, round(1000 * seconds))} ms"
