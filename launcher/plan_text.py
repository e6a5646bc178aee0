"""A plan as text, and back: what the local supervisor starts, and what the batch script of a Slurm job reads."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import Unreadable
from launcher.plan import Plan, Step
from launcher.reading import read_regular
from launcher.yaml_text import dump

FORMAT = 2
_HEAD = "# Run plan: what is started, in order. Node numbers, addresses and ports are given at start.\n"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(plan: Plan) -> str:
    """Return the plan's text: equal plans give equal bytes."""
    document = {
        "format": FORMAT,
        "run": plan.run,
        "run_id": plan.run_id,
        "folder": str(plan.folder),
        "backend": plan.backend,
        "settings": plan.settings,
        "steps": [_plain(step) for step in plan.steps],
        "finished": list(plan.finished),
        "code": plan.code and str(plan.code),
        "launcher_python": plan.launcher_python,
        "configs": plan.configs,
    }
    return _HEAD + dump(document)


def parse(text: str) -> Plan:
    """Read a rendered plan."""
    document = yaml.load(text, Loader=_LOADER)
    steps = tuple(_step(values) for values in document["steps"])
    code = document["code"]
    return Plan(
        document["run"], document.get("run_id", ""), Path(document["folder"]), document["backend"],
        document["settings"], steps, document["configs"], tuple(document["finished"]), code and Path(code),
        document["launcher_python"],
    )  # fmt: skip


def load_plan(path: Path) -> Plan:
    """Read a plan that was stored.

    Raises:
        Unreadable: it is missing, cannot be read or is no plan.
    """
    try:
        return parse(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unreadable(f"{path} cannot be understood as a run's plan") from None


def _plain(step: Step) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(step).items()}


def _step(values: dict[str, Any]) -> Step:
    known: dict[str, Any] = {f.name: values[f.name] for f in fields(Step) if f.name in values}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return Step(**known)
