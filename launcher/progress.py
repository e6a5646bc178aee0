"""How far a run is: read from the files that the runtime appends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.run_folder import RunFolder, last_lines


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
        newest.get("step"), newest.get("total_steps"), newest.get("loss"), newest.get("samples_per_s"), _eta(newest)
    )


def _shards(lines: list[dict[str, Any]]) -> Progress:
    newest: dict[Any, dict[str, Any]] = {}
    for line in lines:
        newest.setdefault(line.get("shard"), line)
    done = sum(int(line.get("step") or 0) for line in newest.values())
    total = sum(int(line.get("total_steps") or 0) for line in newest.values())
    speed = sum(float(line.get("samples_per_s") or 0.0) for line in newest.values())
    return Progress(done, total, None, speed or None, (total - done) / speed if speed else None)


def _eta(line: dict[str, Any]) -> float | None:
    value = line.get("eta_s")
    return float(value) if value is not None else None


def durable_progress(stage: RunFolder) -> int:
    """What a restart would keep: the newest complete checkpoint's step, or the answers given so far."""
    steps = stage.checkpoint_steps()
    if steps:
        return steps[-1]
    answers = stage.root.glob("eval/**/answers/*.jsonl")
    return sum(path.stat().st_size for path in answers)
