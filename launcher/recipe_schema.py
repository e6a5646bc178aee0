"""The keys of a recipe that the launcher itself reads; the rest of a recipe is the runtime's config."""

from __future__ import annotations

from functools import cache
from typing import Any

from launcher.schema import job_kinds, job_schema


def _text(doc: str, default: str | None = "") -> dict[str, Any]:
    return {"type": "string", "description": doc} | ({} if default is None else {"default": default})


def _count(doc: str, default: int, least: int = 0, most: int | None = None) -> dict[str, Any]:
    bounds = {"minimum": least} | ({} if most is None else {"maximum": most})
    return {"type": "integer", **bounds, "default": default, "description": doc}


def _map(doc: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": "string"}, "default": {}, "description": doc}


MOST_NODES = 100_000
"""More than any cluster has; also the most shards of an evaluation. Far larger numbers are typing errors, and what is
planned and rendered for each node or shard would not end."""

RESOURCES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "description": "What the job runs on.",
    "default": {},
    "properties": {
        "nodes": _count("Machines; on the local backend, groups of processes on this one.", 1, 1, MOST_NODES),
        "gpus_per_node": _count("GPUs on each node, one process each; 0: processes on CPU.", 0, 0, 1024),
        "processes_per_node": _count("Processes on each node when gpus_per_node is 0.", 1, 1, 4096),
        "threads_per_process": {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 4096}, {"type": "null"}],
            "default": None,
            "description": "CPU threads of each process (OMP_NUM_THREADS); null: the cores divided by the processes.",
        },
    },
}

RETRIES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "description": "When a broken attempt is followed by another.",
    "default": {},
    "properties": {
        "without_progress": _count(
            "Attempts in a row that may end without a new step before the run fails.", 2, 0, 10_000
        ),
        "grace_s": _count(
            "Seconds that processes get to save their state after SIGTERM before SIGKILL.", 120, 1, 7 * 86400
        ),
    },
}

LABELS = ("base", "description", "hardware", "hours", "expected", "scores")
"""What a recipe says of itself alone; none of it is inherited."""

_LABELS: dict[str, Any] = {
    "base": _text("Recipe that this one extends: a shipped name or a path next to this file."),
    "description": _text("What the recipe is for, in a line."),
    "hardware": _text("What it was made for."),
    "hours": _text("How long it takes there."),
    "expected": _text("What comes out."),
    "scores": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0},
        "default": {},
        "description": "Published scores of what comes out, by benchmark, in percent.",
    },
    "records": {
        "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
        "default": None,
        "description": "How many records the data holds; plans the steps where the file is not here.",
    },
    "paths": _map("Folders that other keys refer to as ${paths.NAME}; a profile may set them."),
    "environment": _map("Environment variables of every process."),
    "needs": _map("For a key that names a file or folder: how to get it, told when it is missing."),
    "resources": RESOURCES,
    "retries": RETRIES,
}


LAUNCHER_KEYS = frozenset(_LABELS)
"""Keys that stay out of the runtime's config."""


@cache
def recipe_schema(kind: str) -> dict[str, Any]:
    """The schema of a whole recipe of one kind."""
    if kind == "pipeline":
        stages = {"type": "object", "additionalProperties": {"type": "object"}, "description": "Recipes, in order."}
        own = {"seed": _count("Seed of every stage.", 0), "stages": stages}
        return _object(kind, own, ["stages"])
    runtime = job_schema(kind)
    own = {name: child for name, child in runtime["properties"].items() if name not in ("kind", "run_dir")}
    required = [name for name in runtime.get("required", ()) if name in own]
    return _object(kind, own, required)


def kinds() -> list[str]:
    """Every kind of recipe."""
    return [*job_kinds(), "pipeline"]


def _object(kind: str, own: dict[str, Any], required: list[str]) -> dict[str, Any]:
    labels = dict(_LABELS)
    if kind == "eval":
        # An evaluation is not started again behind a person's back; what was answered is kept either way.
        retries = {**RETRIES, "properties": {**RETRIES["properties"]}}
        retries["properties"]["without_progress"] = {**RETRIES["properties"]["without_progress"], "default": 0}
        labels["retries"] = retries
    kind_schema = {"const": kind, "description": "What the recipe does."}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"kind": kind_schema, **labels, **own},
        "required": ["kind", *required],
    }
