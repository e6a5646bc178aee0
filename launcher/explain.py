"""Plans, statuses and lists as words for people."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher.backends.base import CANCELLED, ENDED, FAILED, SUCCEEDED
from launcher.durations import age, in_words
from launcher.going_on import going_on
from launcher.plain_text import one_line
from launcher.planning import accumulation, config_values, processes_per_node, world_size
from launcher.recipe import Stage
from launcher.recipe_schema import LABELS, recipe_schema
from launcher.run_folder import RunFolder
from launcher.runs import Prepared
from launcher.schema import find
from launcher.secret_values import secret_names
from launcher.status import RunStatus, reports
from launcher.tree import Key, leaves

_COUNT_UP_TO_BYTES = 1 << 28
"""Larger record files are not counted for a plan; counting takes about a second a gigabyte."""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns, the first row as the head."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def plan_text(prepared: Prepared) -> str:
    """Say what a plan comes to: ranks, batch arithmetic, steps, and where each value came from."""
    lines = [
        f"Plan of {prepared.name} on {prepared.profile.name} ({prepared.profile.backend}), in {prepared.folder.root}"
    ]
    for stage in prepared.stages:
        lines += [f"  {stage.name or stage.kind}: {line}" for line in stage_lines(stage)]
    lines.append("Values that are not defaults:")
    lines += [f"  {line}" for stage in prepared.stages for line in origin_lines(stage)]
    secrets = secret_names(prepared.profile.settings)
    if secrets:
        lines.append(f"Secrets, by name alone: {', '.join(secrets)}")
    for missing in prepared.missing:
        lines += [one_line(f"Missing: {missing.key} {missing.path} {missing.why}"), f"  get it: {missing.cure}"]
    lines += [f"Lacking here: {one_line(text)}" for text in prepared.lacking]
    lines += [f"Note: {one_line(text)}" for text in prepared.doubts]
    return "\n".join(lines)


def stage_lines(stage: Stage) -> list[str]:
    """Describe one stage of a plan."""
    nodes, each = stage.tree.values["resources"]["nodes"], processes_per_node(stage)
    ranks = f"{nodes} node{'s' * (nodes != 1)} x {each} process{'es' * (each != 1)} = {world_size(stage)} ranks"
    if stage.kind == "eval":
        shards = config_values(stage)["eval"]["shards"]
        return [f"{shards} shards, {min(shards, world_size(stage))} at once, then a merge"]
    if stage.kind != "train":
        return ["one process"]
    train = stage.tree.values["train"]
    batch = f"{train['device_batch']} per device x {accumulation(stage)} accumulation x {world_size(stage)} ranks"
    return [ranks, f"batch {batch} = {train['global_batch']} global", _steps_line(stage)]


def _steps_line(stage: Stage) -> str:
    train, records = stage.tree.values["train"], _records(stage)
    if records is None:
        return "steps unknown until the records are here" + (
            f", at most {train['max_steps']}" if train["max_steps"] else ""
        )
    # Epochs may be as large as a float: more updates than anybody counts, not infinity.
    steps = math.ceil(min(math.ceil(records / train["global_batch"]) * train["epochs"], 1e15))
    steps = min(steps, train["max_steps"] or steps)
    return f"{steps:,} steps ({records:,} records, {train['epochs']:g} epoch{'s' * (train['epochs'] != 1)})"


def _records(stage: Stage) -> int | None:
    path = Path(stage.tree.values["data"]["records"])
    try:
        if os.path.isfile(path) and 0 < path.stat().st_size <= _COUNT_UP_TO_BYTES:
            return _count(path, b'"conversations"')
    except OSError:
        pass  # it cannot be read from here; whether the job can is not known
    known = stage.tree.values.get("records")
    return int(known) if known else None


def _count(path: Path, word: bytes) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        count, at = 0, content.find(word)
        while at >= 0:
            count, at = count + 1, content.find(word, at + 1)
        return count


def origin_lines(stage: Stage) -> list[str]:
    """List a stage's values that are not the schema's defaults, with where they came from."""
    schema = recipe_schema(stage.kind)
    prefix = f"{stage.name}: " if stage.name else ""
    lines = []
    for key, value in leaves(stage.tree.values):
        if _is_told(key) and not _is_default(schema, key, value):
            lines.append(one_line(f"{prefix}{'.'.join(key)} = {value}  ({stage.tree.origin(key)})"))
    return lines


def _is_told(key: Key) -> bool:
    return key[0] not in (*LABELS, "kind", "needs", "paths", "records")


def _is_default(schema: Any, key: Key, value: Any) -> bool:
    found = find(schema, key)
    return found is None or ("default" in found and found["default"] == value)


def status_text(status: RunStatus) -> str:
    """Describe one run."""
    lines = [one_line(f"{status.run}  {status.state}  {status.reason}").rstrip()]
    lines.append(one_line(f"  recipe {status.recipe} on {status.backend}, submitted {age(status.created)} ago"))
    if len(status.stages) > 1:
        lines += [
            f"  {_stage_mark(s.state)} {one_line(s.name)}  {s.state.lower()}{_lasted(s.started, s.ended)}"
            for s in status.stages
        ]
    if status.step is not None:
        lines.append("  " + progress_text(status))
    lines.append(f"  attempt {status.attempt} ({status.attempts} in all), folder {one_line(status.dir)}")
    lines += [f"  {line}" for line in failure_lines(status)]
    lines += [f"  {line}" for report in reports(Path(status.dir)) for line in report.splitlines()]
    return "\n".join(lines + [f"  next: {line}" for line in next_commands(status)])


def _stage_mark(state: str) -> str:
    return {SUCCEEDED: "+", FAILED: "x", CANCELLED: "x"}.get(state, "-")


def _lasted(started: float | None, ended: float | None) -> str:
    return f" in {in_words(ended - started)}" if started and ended else ""


def progress_text(status: RunStatus) -> str:
    """Describe how far a run is, in one line."""
    parts = [f"step {status.step}/{status.total_steps}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.samples_per_s:
        parts.append(f"{status.samples_per_s:.1f} samples/s")
    if status.eta_s:
        parts.append(f"{in_words(status.eta_s)} to go")
    return ", ".join(parts)


def failure_lines(status: RunStatus) -> list[str]:
    """Show the first failing rank: who, what, the end of its traceback, what to do."""
    failure = status.failure
    if failure is None:
        return []
    lines = [f"first failure: {failure.summary}"]
    lines += [f"    {line}" for line in failure.traceback.strip().splitlines()[-6:]]
    rest = failure.message.splitlines()[1:]
    lines += [f"    {line}" for line in rest] + ([f"  {failure.hint}"] if failure.hint else [])
    return [one_line(line) for line in lines]


def next_commands(status: RunStatus) -> list[str]:
    """Name the commands that make sense now."""
    if status.state == SUCCEEDED:
        return []
    if status.state in ENDED:
        return [f"llavajob logs {status.run} --tail 50", going_on(status.run, RunFolder(Path(status.dir)))]
    return [f"llavajob logs {status.run} --follow", f"llavajob cancel {status.run}"]


def list_text(statuses: Iterable[RunStatus]) -> str:
    """Lay runs out in a table."""
    rows = [("RUN", "RECIPE", "BACKEND", "STATE", "STEP", "LOSS", "AGE", "REASON")]
    for s in statuses:
        step = "" if s.step is None else f"{s.step}/{s.total_steps}"
        loss = "" if s.loss is None else f"{s.loss:.4f}"
        rows.append((s.run, s.recipe, s.backend, s.state, step, loss, age(s.created), s.reason[:60]))
    return columns(rows)
