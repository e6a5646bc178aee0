"""How far a run is: read from the files that the runtime appends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.run_folder import RunFolder, last_lines
from launcher.typed import fits


@dataclass(frozen=True)
class Progress:
    """The latest of a stage's metrics; None where the stage has said nothing yet."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None


def read_progress(stage: RunFolder) -> Progress:
    """Return how far a stage is; shards count together."""
    lines = list(last_lines(stage.metrics))
    if not lines:
        return Progress()
    if "shard" in lines[0]:
        return _shards(lines)
    newest = lines[0]
    return Progress(
        _whole(newest, "step"), _whole(newest, "total_steps"), _number(newest, "loss"),
        _number(newest, "samples_per_s"), _number(newest, "eta_s"),
    )  # fmt: skip


def _shards(lines: list[dict[str, Any]]) -> Progress:
    newest: dict[int, dict[str, Any]] = {}
    for line in lines:
        shard = _whole(line, "shard")
        if shard is not None:
            newest.setdefault(shard, line)
    done = sum(_whole(line, "step") or 0 for line in newest.values())
    total = sum(_whole(line, "total_steps") or 0 for line in newest.values())
    speed = sum(_number(line, "samples_per_s") or 0.0 for line in newest.values())
    return Progress(done, total, None, speed or None, (total - done) / speed if speed else None)


def _whole(line: dict[str, Any], key: str) -> int | None:
    value = line.get(key)
    return value if fits(value, int) else None


def _number(line: dict[str, Any], key: str) -> float | None:
    """A number of a metrics line; a loss may be NaN or infinite, and is told as such."""
    value = line.get(key)
    if fits(value, float) or (key == "loss" and isinstance(value, float)):
        return value
    return None


def durable_progress(stage: RunFolder) -> int:
    """What a restart would keep: the newest complete checkpoint's step, or the answers given so far."""
    steps = stage.checkpoint_steps()
    if steps:
        return steps[-1]
    answers = stage.root.glob("eval/**/answers/*.jsonl")
    return sum(path.stat().st_size for path in answers)
