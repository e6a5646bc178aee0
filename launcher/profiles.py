"""Profiles: where runs go. The user's file, then the project's file over it, then what is built in below both."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError, RequestError, nearest
from launcher.recipe import schema_leaves
from launcher.recipe_schema import kinds, recipe_schema
from launcher.schema import check, fill_defaults
from launcher.tree import Tree, leaves, read_tree

PROJECT_FILE = "llavajob.yaml"
BACKENDS = ("local",)

_PROFILE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "backend": {"enum": list(BACKENDS), "type": "string", "description": "Which scheduler."},
        "runs": {"type": "string", "default": "", "description": "Folder that runs are kept in."},
        "python": {"type": "string", "default": "", "description": "Python that the runtime is installed in."},
        "gpus": {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
            "default": None,
            "description": "GPUs of this machine that runs may use; null: all that nvidia-smi lists.",
        },
        "environment": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": {},
            "description": "Environment variables of every process.",
        },
        "values": {
            "type": "object",
            "default": {},
            "description": "Recipe values that hold here, such as resources and paths.",
        },
    },
    "required": ["backend"],
}
_FILE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "default": {"type": "string", "default": "local", "description": "Profile used without --on."},
        "profiles": {
            "type": "object",
            "default": {},
            "additionalProperties": {"type": "object"},
            "description": "Profiles by name.",
        },
    },
}


@dataclass
class Profile:
    """One place to run on."""

    name: str
    backend: str = "local"
    runs: Path = field(default_factory=lambda: default_runs_root())
    python: str = sys.executable
    gpus: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    values: Tree = field(default_factory=Tree)
    source: str = "built in"


def default_runs_root() -> Path:
    """Folder that runs are kept in: LLAVAJOB_RUNS, or llavajob/runs in the home folder."""
    named = os.environ.get("LLAVAJOB_RUNS")
    return Path(named).expanduser().absolute() if named else Path.home() / "llavajob" / "runs"


def user_file() -> Path:
    """The user's profiles: LLAVAJOB_PROFILES, or llavajob/profiles.yaml below the configuration folder."""
    named = os.environ.get("LLAVAJOB_PROFILES")
    if named:
        return Path(named).expanduser().absolute()
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "llavajob" / "profiles.yaml"


def project_file() -> Path | None:
    """The nearest llavajob.yaml from here upwards."""
    here = Path.cwd()
    return next((p / PROJECT_FILE for p in (here, *here.parents) if (p / PROJECT_FILE).is_file()), None)


def load_profiles() -> tuple[dict[str, Profile], str]:
    """Read every profile; also return the name of the one used without ``--on``.

    Raises:
        RecipeError: with every problem in the files.
    """
    profiles, default, problems = {"local": Profile("local")}, "local", list[Problem]()
    for path in (user_file(), project_file()):
        if path is None or not path.is_file():
            if path is not None and os.environ.get("LLAVAJOB_PROFILES"):
                problems.append(Problem("LLAVAJOB_PROFILES", f"names {path}, which is not there"))
            continue
        tree = read_tree(path)
        fill_defaults(tree, _FILE)
        check(tree, _FILE, problems)
        if ("default",) in tree.origins and tree.origins["default",] != "default":
            default = str(tree.values["default"])
        for name in tree.get(("profiles",)) or {}:
            profiles[name] = _profile(str(name), tree.sub(("profiles", str(name))), path, problems)
    if problems:
        raise RecipeError(problems)
    return profiles, default


def _profile(name: str, tree: Tree, path: Path, problems: list[Problem]) -> Profile:
    fill_defaults(tree, _PROFILE)
    values = tree.sub(("values",))
    _check_values(values, problems)
    check(tree, _PROFILE, problems)
    runs = str(tree.get(("runs",)) or "")
    return Profile(
        name=name,
        backend=str(tree.get(("backend",))),
        runs=(path.parent / Path(runs).expanduser()).absolute() if runs else default_runs_root(),
        python=str(tree.get(("python",)) or sys.executable),
        gpus=tree.get(("gpus",)),
        environment=dict(tree.get(("environment",)) or {}),
        values=values,
        source=str(path),
    )


def _check_values(values: Tree, problems: list[Problem]) -> None:
    known = {key for kind in kinds() for key, _ in schema_leaves(recipe_schema(kind))}
    for key, _ in leaves(values.values):
        if key and key not in known and key[:1] not in known:
            near = nearest(".".join(key), [".".join(k) for k in known])
            problems.append(Problem(values.origin(key), f"values: no recipe has a key '{'.'.join(key)}'{near}"))


def find_profile(name: str | None) -> Profile:
    """Return a profile by name, or the default one.

    Raises:
        RequestError: there is no such profile.
    """
    profiles, default = load_profiles()
    wanted = name or default
    if wanted not in profiles:
        hint = f"Profiles: {', '.join(profiles)}. More go into {user_file()} or {PROJECT_FILE}; see llavajob profiles."
        raise RequestError(f"no profile named '{wanted}'{nearest(wanted, profiles)}", hint)
    return profiles[wanted]


def runs_roots() -> list[Path]:
    """Every folder that runs may be found in."""
    profiles, _ = load_profiles()
    return list(dict.fromkeys([default_runs_root(), *(p.runs for p in profiles.values())]))


def as_rows() -> list[dict[str, Any]]:
    """Every profile as plain values, for ``llavajob profiles``."""
    profiles, default = load_profiles()
    return [
        {"name": p.name, "default": p.name == default, "backend": p.backend, "runs": str(p.runs),
         "values": p.values.values, "source": p.source}
        for p in profiles.values()
    ]  # fmt: skip
