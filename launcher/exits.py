"""The exit codes that nodes and shards leave in an attempt's folder."""

from __future__ import annotations

import time
from pathlib import Path

from launcher.plan import Step
from launcher.run_folder import RunFolder, read_json, write_json


def exit_file(stage: RunFolder, attempt: int, number: int) -> Path:
    """Where a node or shard leaves its exit code."""
    return stage.attempt(attempt) / "exits" / f"node{number:04d}.json"


def write_exit(stage: RunFolder, step: Step, attempt: int, number: int, code: int) -> None:
    """Leave a node's or shard's exit code, with the number of nodes or shards that there were."""
    write_json(exit_file(stage, attempt, number), {"code": code, "of": step.nodes, "time": time.time()})


def expect_exits(stage: RunFolder, step: Step, attempt: int) -> None:
    """Make empty records for the nodes of an attempt.

    A network file system may deny for a minute that a file is there which was looked for before; what a file that was
    always there says now, it knows.
    """
    for number in range(step.nodes):
        write_json(exit_file(stage, attempt, number), {})


def exit_codes(stage: RunFolder, step: Step, attempt: int) -> list[int | None]:
    """Exit codes of an attempt's nodes or shards, None for those that left none."""
    found = [read_json(exit_file(stage, attempt, number)) or {} for number in range(step.nodes)]
    return [record.get("code") for record in found]


def missing_shards(stage: RunFolder, step: Step) -> tuple[int, ...]:
    """Shards of an array that have not answered all in any attempt; all of them where their number was another."""
    done = set()
    for attempt in stage.attempt_numbers():
        for number in step.members:
            record = read_json(exit_file(stage, attempt, number)) or {}
            if record.get("code") == 0 and record.get("of") == step.nodes:
                done.add(number)
    return tuple(number for number in step.members if number not in done)
