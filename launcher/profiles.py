"""Profiles: where runs go. The user's file, then the project's file over it, then what is built in below both."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.backends.kubernetes import settings as kubernetes
from launcher.backends.slurm import settings as slurm
from launcher.errors import Problem, RecipeError, RequestError, nearest
from launcher.profile_schema import BACKENDS, FILE_SCHEMA, own_keys, profile_schema
from launcher.recipe import Override, schema_leaves
from launcher.recipe_schema import kinds, recipe_schema
from launcher.schema import check, fill_defaults, find, parse_value
from launcher.tree import Tree, leaves, read_tree

PROJECT_FILE = "llavajob.yaml"


@dataclass
class Profile:
    """One place to run on."""

    name: str
    backend: str = "local"
    runs: Path = field(default_factory=lambda: default_runs_root())
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    values: Tree = field(default_factory=Tree)
    code: str = "installed"
    place: Tree = field(default_factory=Tree)
    """What only this backend's profiles say, below the backend's name or not."""
    gpus_origin: str = ""
    """Where the number of GPUs stands, when what is said to the backend gives it."""
    overrides: list[Override] = field(default_factory=list)
    """What one submission changed of it."""
    source: str = "built in"

    @property
    def settings(self) -> dict[str, Any]:
        """What the profile says to its backend, complete."""
        values = self.place.values
        return dict(values.get(self.backend, values))

    @property
    def jobs_runs(self) -> Path:
        """Folder of runs as jobs see it: ``runs``, but for pods that keep them on a volume of their own."""
        return kubernetes.runs_in_pods(self.runs, self.settings)[0] if self.backend == "kubernetes" else self.runs

    @property
    def apart(self) -> bool:
        """Whether the folder that jobs keep runs in is not seen here, so that ``runs`` only mirrors it."""
        return self.backend == "kubernetes" and not kubernetes.runs_in_pods(self.runs, self.settings)[1]


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
    profiles = {name: Profile(name, name, python=default_python(name), place=_built_in(name)) for name in BACKENDS}
    default, problems = "local", list[Problem]()
    for path in (user_file(), project_file()):
        if path is None or not path.is_file():
            if path is not None and os.environ.get("LLAVAJOB_PROFILES"):
                problems.append(Problem("LLAVAJOB_PROFILES", f"names {path}, which is not there"))
            continue
        tree = read_tree(path)
        fill_defaults(tree, FILE_SCHEMA)
        check(tree, FILE_SCHEMA, problems)
        if ("default",) in tree.origins and tree.origins["default",] != "default":
            default = str(tree.values["default"])
        for name in tree.get(("profiles",)) or {}:
            profiles[name] = _profile(str(name), tree.sub(("profiles", str(name))), path, problems)
    if problems:
        raise RecipeError(problems)
    return profiles, default


def default_python(backend: str) -> str:
    """The Python that runs the runtime where no profile names one: this one, or that of the image."""
    return kubernetes.PYTHON if backend == "kubernetes" else sys.executable


def _built_in(backend: str) -> Tree:
    tree = Tree()
    fill_defaults(tree, profile_schema(backend, shared=False))
    return tree


def _profile(name: str, tree: Tree, path: Path, problems: list[Problem]) -> Profile:
    backend = str(tree.get(("backend",)))
    schema = profile_schema(backend)
    fill_defaults(tree, schema)
    values = tree.sub(("values",))
    _check_values(values, problems)
    check(tree, schema, problems)
    runs = str(tree.get(("runs",)) or "")
    profile = Profile(
        name=name,
        backend=backend,
        runs=(path.parent / Path(runs).expanduser()).absolute() if runs else default_runs_root(),
        python=str(tree.get(("python",)) or default_python(backend)),
        environment=dict(tree.get(("environment",)) or {}),
        values=values,
        code=str(tree.get(("code",))),
        place=_place(tree, backend, path.parent),
        source=str(path),
    )
    problems += check_place(profile)
    return profile


def _place(tree: Tree, backend: str, folder: Path) -> Tree:
    """What only this backend's profiles say; paths in it are meant from the profile's folder."""
    place = Tree()
    for key in own_keys(backend):
        place.values[key] = tree.get((key,))
        place.origins.update({path: origin for path, origin in tree.origins.items() if path[:1] == (key,)})
    for path, value in list(leaves(place.values)):
        if kubernetes.is_file(path) and isinstance(value, str) and value:
            place.set(path, _from(folder, value), place.origin(path))
    return place


def _from(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).absolute())


def check_place(profile: Profile) -> list[Problem]:
    """Check what a profile says to its backend, and lay the GPUs it names below the recipe's values."""
    if profile.backend == "kubernetes":
        return _check_kubernetes(profile)
    if profile.backend != "slurm":
        return []
    tree = profile.place.sub(("slurm",))
    problems = slurm.find_problems(tree)
    gpus = None if problems else slurm.gpus_per_node(profile.settings)
    key = ("resources", "gpus_per_node")
    if gpus is not None and (profile.values.get(key) is None or profile.values.origin(key) == profile.gpus_origin):
        profile.gpus_origin = tree.origin(("gres",) if profile.settings["gres"] else ("gpus",))
        profile.values.set(key, gpus, profile.gpus_origin)
    return problems


def _check_kubernetes(profile: Profile) -> list[Problem]:
    problems = kubernetes.find_problems(profile.place.sub(("kubernetes",)))
    if not problems and profile.code == "snapshot" and profile.apart:
        text = f"code: snapshot needs runs on a volume that is seen here, too; pods keep them in {profile.jobs_runs}"
        problems.append(Problem(profile.source, f"profile '{profile.name}': {text}"))
    return problems


def override_place(profile: Profile, overrides: Sequence[Override]) -> list[Override]:
    """Apply what is meant for the profile's backend (``--set slurm.time=2h``); return what is left for the recipe.

    Raises:
        RecipeError: a key that this backend does not have, or a value that makes no sense; all of them at once.
    """
    given = [o for o in overrides if o.key[0] == profile.backend and len(o.key) > 1]
    mine = [replace(o, text=_from(Path.cwd(), o.text)) if kubernetes.is_file(o.key) and o.text else o for o in given]
    schema, problems = profile_schema(profile.backend, shared=False), list[Problem]()
    for override in mine:
        found = find(schema, override.key)
        if found is None or found.get("type") == "object":
            word, known = ".".join(override.key), [".".join(k) for k, _ in leaves(_built_in(profile.backend).values)]
            problems.append(Problem(override.origin, f"unknown key '{word}'{nearest(word, known)}"))
        else:
            profile.place.set(override.key, parse_value(override.text, found), override.origin)
    check(profile.place, schema, problems)
    problems = problems or check_place(profile)
    if problems:
        raise RecipeError(problems)
    profile.overrides += mine
    return [o for o in overrides if o not in given]


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
    wanted = default if name is None else name
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
