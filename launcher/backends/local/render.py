"""A plan as the text that the local supervisor reads, and back."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from launcher.plan import Plan, Step
from launcher.run_folder import RunFolder, read_json
from launcher.yaml_text import dump

FORMAT = 1
_HEAD = "# Local run plan: what the supervisor starts, in order. Node numbers and ports are given at start.\n"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(plan: Plan) -> str:
    """Return the plan's text: equal plans give equal bytes."""
    document = {
        "format": FORMAT,
        "run": plan.run,
        "folder": str(plan.folder),
        "backend": plan.backend,
        "gpus": plan.gpus,
        "steps": [_plain(step) for step in plan.steps],
        "configs": plan.configs,
    }
    return _HEAD + dump(document)


def parse(text: str) -> Plan:
    """Read a rendered plan."""
    document = yaml.load(text, Loader=_LOADER)
    names = {f.name for f in fields(Step)}
    steps = [
        Step(**{**{k: v for k, v in step.items() if k in names}, "command": tuple(step["command"])})
        for step in document["steps"]
    ]
    folder = Path(document["folder"])
    return Plan(document["run"], folder, document["backend"], document["gpus"], tuple(steps), document["configs"])


def load_plan(folder: RunFolder) -> Plan:
    """Read the plan that a run was last submitted with."""
    record = read_json(folder.record) or {}
    return parse(folder.rendered(record["submissions"][-1]["attempt"]).read_text(encoding="utf-8"))


def _plain(step: Step) -> dict[str, Any]:
    return {**asdict(step), "command": list(step.command)}
