"""A plan as text, and back: what the local supervisor starts, and what the batch script of a Slurm job reads."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from launcher.plan import Plan, Step
from launcher.yaml_text import dump

FORMAT = 2
_HEAD = "# Run plan: what is started, in order. Node numbers, addresses and ports are given at start.\n"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(plan: Plan) -> str:
    """Return the plan's text: equal plans give equal bytes."""
    document = {
        "format": FORMAT,
        "run": plan.run,
        "folder": str(plan.folder),
        "backend": plan.backend,
        "settings": plan.settings,
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
    place = Path(document["folder"]), document["backend"], document["settings"]
    return Plan(document["run"], *place, tuple(steps), document["configs"])


def load_plan(path: Path) -> Plan:
    """Read a plan that was stored."""
    return parse(path.read_text(encoding="utf-8"))


def _plain(step: Step) -> dict[str, Any]:
    return {**asdict(step), "command": list(step.command)}
