"""Profiles: where runs go. The user's file, then the project's file over it, then what is built in below both."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher import console, paths
from launcher.backends.kubernetes import settings as kubernetes
from launcher.backends.slurm import settings as slurm
from launcher.errors import Problem, RecipeError, RequestError, nearest
from launcher.profile_schema import BACKENDS, FILE_SCHEMA, own_keys, profile_schema
from launcher.project_file import PROJECT_FILE, find_project_file
from launcher.recipe import Override, schema_leaves
from launcher.recipe_schema import kinds, recipe_schema
from launcher.schema import check, fill_defaults, find, parse_value
from launcher.secret_values import secret_problems
from launcher.text_checks import flaw, text_problems
from launcher.tree import Tree, leaves, read_tree

_MOST_UNKNOWN = 50
"""Unknown keys of one profile's values that are named."""


@dataclass
class Profile:
    """One place to run on."""

    name: str
    backend: str = "local"
    runs: Path = field(default_factory=lambda: default_runs_root())
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    environment_origins: dict[str, str] = field(default_factory=dict)
    """Where each variable stands."""
    not_secret: list[str] = field(default_factory=list)
    """Variables that may stand in clear although they look like secrets."""
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

    @property
    def private_runs(self) -> bool:
        """Whether those who run jobs are the one who submits; pods that write to a folder seen here may be others."""
        return self.backend != "kubernetes" or self.apart or self.settings["run_as"]["user"] == os.getuid()


def default_runs_root() -> Path:
    """Folder that runs are kept in: LLAVAJOB_RUNS, or llavajob/runs in the home folder.

    Raises:
        RequestError: no home folder is known, or LLAVAJOB_RUNS names no folder that can be.
    """
    named = os.environ.get("LLAVAJOB_RUNS")
    return paths.absolute(paths.expand(named)) if named else paths.home() / "llavajob" / "runs"


def user_file() -> Path | None:
    """The user's profiles: LLAVAJOB_PROFILES, or llavajob/profiles.yaml below the configuration folder.

    None where neither is set and no home folder is known.
    """
    named = os.environ.get("LLAVAJOB_PROFILES")
    if named:
        return paths.absolute(paths.expand(named))
    config = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(config) if config else paths.home() / ".config") / "llavajob" / "profiles.yaml"
    except RequestError:
        return None


@dataclass
class Loaded:
    """What the files of profiles hold, with the mistakes in them: only what is used must be right."""

    profiles: dict[str, Profile]
    """Those without a mistake, and the built-in ones."""
    default: str = "local"
    """The one used without ``--on``."""
    mistakes: list[Problem] = field(default_factory=list)
    """What is wrong with a whole file, so that no profile can be trusted to be what was meant."""
    broken: dict[str, list[Problem]] = field(default_factory=dict)
    """What is wrong with single profiles."""
    roots: list[Path] = field(default_factory=list)
    """Folders of runs that broken profiles name."""

    @property
    def problems(self) -> list[Problem]:
        """Every mistake."""
        return [*self.mistakes, *(problem for found in self.broken.values() for problem in found)]


def read_profiles() -> Loaded:
    """Read every profile and collect the mistakes.

    Raises:
        RequestError: the default folder of runs cannot be known.
    """
    built_in = {name: Profile(name, name, python=default_python(name), place=_built_in(name)) for name in BACKENDS}
    loaded = Loaded(built_in)
    try:
        files = [user_file(), find_project_file()]
    except RequestError as error:
        loaded.mistakes.append(Problem("LLAVAJOB_PROFILES", error.message))
        return loaded
    for path in files:
        if path is not None and os.path.lexists(path):
            _read_file(path, loaded)
        elif path is not None and os.environ.get("LLAVAJOB_PROFILES"):
            loaded.mistakes.append(Problem("LLAVAJOB_PROFILES", f"names {path}, which is not there"))
    return loaded


def _read_file(path: Path, loaded: Loaded) -> None:
    try:
        tree = read_tree(path)
    except RecipeError as error:
        loaded.mistakes += error.problems
        return
    fill_defaults(tree, FILE_SCHEMA)
    check(tree, FILE_SCHEMA, loaded.mistakes)
    if ("default",) in tree.origins and tree.origins["default",] != "default":
        loaded.default = str(tree.values["default"])
    listed = tree.get(("profiles",))
    for name in listed if isinstance(listed, dict) else ():
        _read_profile(name, tree, path, loaded)


def _read_profile(name: str, tree: Tree, path: Path, loaded: Loaded) -> None:
    """Add a file's profile to what is loaded, or what is wrong with it; a later file's takes the place of both."""
    key = ("profiles", name)
    loaded.broken.pop(name, None)
    loaded.profiles.pop(name, None)
    if not name.strip() or not name.isprintable():
        loaded.broken[name] = [Problem(tree.origin(key), f"{name!r} cannot be a profile's name: letters are needed")]
        return
    if not isinstance(tree.get(key), dict):
        loaded.broken[name] = [Problem(tree.origin(key), f"profiles.{name}: a mapping is needed")]
        return
    own = tree.sub(key)
    problems: list[Problem] = []
    profile = _profile(name, own, path, problems)
    if profile is not None and not problems:
        loaded.profiles[name] = profile
        return
    loaded.broken[name] = problems
    root = _runs_folder(own, path, [])
    if root is not None:
        loaded.roots.append(root)


def load_profiles() -> tuple[dict[str, Profile], str]:
    """Read every profile; also return the name of the one used without ``--on``.

    Raises:
        RecipeError: with every problem in the files.
    """
    loaded = read_profiles()
    if loaded.problems:
        raise RecipeError(loaded.problems)
    return loaded.profiles, loaded.default


def default_python(backend: str) -> str:
    """The Python that runs the runtime where no profile names one: this one, or that of the image."""
    return kubernetes.PYTHON if backend == "kubernetes" else sys.executable


def _built_in(backend: str) -> Tree:
    tree = Tree()
    fill_defaults(tree, profile_schema(backend, shared=False))
    return tree


def _profile(name: str, tree: Tree, path: Path, problems: list[Problem]) -> Profile | None:
    """Build a profile from what its file says; None where that has not the shape of one."""
    backend = str(tree.get(("backend",)))
    schema = profile_schema(backend)
    fill_defaults(tree, schema)
    values = tree.sub(("values",))
    _check_values(values, problems)
    check(tree, schema, problems)
    problems += text_problems(tree)
    for key in ("runs", "python"):
        if flaw(str(tree.get((key,)) or ""), one_line=True):
            problems.append(Problem(tree.origin((key,)), f"{key} {flaw(str(tree.get((key,))), one_line=True)}"))
    runs = _runs_folder(tree, path, problems)
    if problems:
        return None
    try:
        profile = Profile(
            name=name,
            backend=backend,
            runs=runs or default_runs_root(),
            python=str(tree.get(("python",)) or default_python(backend)),
            environment=dict(tree.get(("environment",)) or {}),
            environment_origins={key: tree.origin(("environment", key)) for key in tree.get(("environment",)) or {}},
            not_secret=list(tree.get(("not_secret",)) or ()),
            values=values,
            code=str(tree.get(("code",))),
            place=_place(tree, backend, path.parent),
            source=str(path),
        )
    except RequestError as error:
        problems.append(Problem(tree.origin(()), f"profile '{name}': {error.message}"))
        return None
    problems += check_place(profile)
    return profile


def _runs_folder(tree: Tree, path: Path, problems: list[Problem]) -> Path | None:
    """The folder of runs that a profile names, meant from its file's folder."""
    named = tree.get(("runs",))
    if not isinstance(named, str) or not named:
        return None
    try:
        return paths.absolute(paths.expand(named), path.parent)
    except RequestError as error:
        problems.append(Problem(tree.origin(("runs",)), f"runs: {error.message}"))
        return None


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
    return str(paths.absolute(folder / paths.expand(path)))


def check_place(profile: Profile) -> list[Problem]:
    """Check what a profile says to its backend, and lay the GPUs it names below the recipe's values."""
    if profile.backend == "kubernetes":
        return _check_kubernetes(profile)
    if profile.backend != "slurm":
        return secret_problems(profile.place)
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
    mine = [_meant_from_here(o) for o in given]
    schema, problems = profile_schema(profile.backend, shared=False), list[Problem]()
    for override in mine:
        found = find(schema, override.key)
        if found is None or found.get("type") == "object":
            word, known = ".".join(override.key), [".".join(k) for k, _ in leaves(_built_in(profile.backend).values)]
            problems.append(Problem(override.origin, f"unknown key '{word}'{nearest(word, known)}"))
        else:
            profile.place.set(override.key, parse_value(override.text, found), override.origin)
    check(profile.place, schema, problems)
    problems += text_problems(profile.place)
    problems = problems or check_place(profile)
    if problems:
        raise RecipeError(problems)
    profile.overrides += mine
    return [o for o in overrides if o not in given]


def _meant_from_here(override: Override) -> Override:
    """Write out the path of a file that a value names."""
    if not kubernetes.is_file(override.key) or not override.text:
        return override
    try:
        return replace(override, text=_from(paths.current(), override.text))
    except RequestError as error:
        raise RecipeError([Problem(override.origin, error.message)], error.hint) from None


def _check_values(values: Tree, problems: list[Problem]) -> None:
    known = {key for kind in kinds() for key, _ in schema_leaves(recipe_schema(kind))}
    unknown = [key for key, _ in leaves(values.values) if key and key not in known and key[:1] not in known]
    for key in unknown[:_MOST_UNKNOWN]:
        near = nearest(".".join(key), [".".join(k) for k in known])
        problems.append(Problem(values.origin(key), f"values: no recipe has a key '{'.'.join(key)}'{near}"))


def find_profile(name: str | None) -> Profile:
    """Return a profile by name, or the default one; mistakes in others do not matter.

    Raises:
        RecipeError: there are mistakes in it, or in its whole file.
        RequestError: there is no such profile.
    """
    loaded = read_profiles()
    wanted = loaded.default if name is None else name
    problems = [*loaded.mistakes, *loaded.broken.get(wanted, ())]
    if problems:
        raise RecipeError(problems)
    if wanted not in loaded.profiles:
        known = [*loaded.profiles, *loaded.broken]
        file = user_file() or "a file that LLAVAJOB_PROFILES names"
        hint = f"Profiles: {', '.join(known)}. More go into {file} or {PROJECT_FILE}; see llavajob profiles."
        raise RequestError(f"no profile named '{wanted}'{nearest(wanted, known)}", hint)
    return loaded.profiles[wanted]


def runs_roots() -> list[Path]:
    """Every folder that runs may be found in.

    Looking at runs and ending them must not need profiles without a mistake: what can be read is taken, and mistakes
    are said once on stderr.

    Raises:
        RequestError: no folder of runs is known at all.
    """
    loaded = read_profiles()
    for problem in loaded.problems:
        console.say_once(f"{problem.where}: {problem.message}")
    found = list(dict.fromkeys([default_runs_root(), *(p.runs for p in loaded.profiles.values()), *loaded.roots]))
    for root in found:
        trouble = _why_unreadable(root)
        if trouble:
            console.say_once(f"{root}: {trouble}; its runs are not shown")
    return found


def _why_unreadable(root: Path) -> str:
    """Say why the runs of a folder cannot be listed; empty when they can, or when the folder is not made yet."""
    try:
        with os.scandir(root):
            return ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return str(error)


def as_rows() -> list[dict[str, Any]]:
    """Every profile as plain values, for ``llavajob profiles``."""
    profiles, default = load_profiles()
    return [
        {"name": p.name, "default": p.name == default, "backend": p.backend, "runs": str(p.runs),
         "values": p.values.values, "source": p.source}
        for p in profiles.values()
    ]  # fmt: skip
