"""The files and folders a run reads: made absolute, and looked for before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import paths
from launcher.errors import Problem, RecipeError, RequestError
from launcher.reach import Reach
from launcher.recipe import Override, Stage
from launcher.text_checks import flaw
from launcher.tree import Key

_READ: dict[str, tuple[Key, ...]] = {
    "train": (
        ("model", "language", "path"), ("model", "vision", "path"), ("model", "projector", "path"),
        ("data", "records"), ("data", "images"),
    ),
    "eval": (("eval", "model"), ("eval", "baseline"), ("eval", "data"), ("eval", "images")),
    "convert": (("convert", "source"), ("convert", "language"), ("convert", "vision")),
    "toy": (),
}  # fmt: skip
_WRITTEN: dict[str, tuple[Key, ...]] = {
    "convert": (("convert", "output"),),
    "toy": (("toy", "data"), ("toy", "bases"), ("toy", "cache")),
}

_CACHE: Key = ("toy", "cache")
_ENDS = frozenset(key for keys in (*_READ.values(), *_WRITTEN.values()) for key in keys)


@dataclass(frozen=True)
class Missing:
    """An input that is not where the recipe says."""

    key: str
    path: str
    origin: str
    cure: str
    why: str = "is not there"


def make_absolute(stages: Sequence[Stage], base: Path) -> None:
    """Write every path out in full, because jobs start in other folders.

    Args:
        stages: whose paths.
        base: the folder that paths are meant from: where the run was first submitted.

    Raises:
        RecipeError: a path names a user that does not exist; all of them at once.
    """
    problems: list[Problem] = []
    for stage in stages:
        for key in (*_READ[stage.kind], *_WRITTEN.get(stage.kind, ())):
            value, origin = stage.tree.get(key), stage.tree.origin(key)
            if not isinstance(value, str) or not value or value.startswith("<"):
                continue
            try:
                path = os.path.abspath(base / paths.expand(value))
            except RequestError as error:
                problems.append(Problem(origin, f"{'.'.join(key)}: {error.message}"))
                continue
            if flaw(path, one_line=True):
                problems.append(Problem(origin, f"{'.'.join(key)}: the path {path!r} {flaw(path, one_line=True)}"))
            stage.tree.set(key, path, origin)
    if problems:
        raise RecipeError(problems)


def from_here(override: Override) -> Override:
    """Write out a path that is given to a run which was submitted elsewhere: it is meant from this folder."""
    is_path = override.key[0] == "paths" or override.key[-2:] in _ENDS or override.key[-3:] in _ENDS
    if not is_path or override.text.startswith(("$", "<")) or override.text in ("", "null"):
        return override
    return replace(override, text=os.path.abspath(paths.current() / paths.expand(override.text)))


def find_missing(
    stages: Sequence[Stage], run_folder: Path, seen_here: bool = True, reach: Reach | None = None
) -> list[Missing]:
    """List inputs that are not there; what an earlier stage of the same run makes is not looked for.

    Args:
        stages: whose inputs.
        run_folder: the run's folder, where the run itself sees it.
        seen_here: whether the run will see the files that this process sees; else what was never named is missing, and
            what is surely not seen there.
        reach: what the run's processes see.
    """
    reach = reach or Reach()
    made = [Path(str(stage.tree.get(key))) for stage in stages for key in _WRITTEN.get(stage.kind, ())]
    missing = []
    for stage in stages:
        for key in _READ[stage.kind]:
            value = stage.tree.get(key)
            if not isinstance(value, str) or _will_be_made(Path(value), run_folder, made):
                continue
            if not value.startswith("<") and (why := reach.unseen(Path(value))):
                missing.append(Missing(".".join(key), value, stage.tree.origin(key), _move(stage, key, reach), why))
                continue
            if os.path.exists(value) if seen_here else not value.startswith("<"):
                continue
            missing.append(_missing(stage, key, value))
    return missing + _lost(stages, run_folder, reach)


def _lost(stages: Sequence[Stage], run_folder: Path, reach: Reach) -> list[Missing]:
    """List outputs that would end with the processes that write them; a cache may."""
    lost = []
    for stage in stages:
        for key in _WRITTEN.get(stage.kind, ()):
            value = stage.tree.get(key)
            if key == _CACHE or not isinstance(value, str) or _will_be_made(Path(value), run_folder, []):
                continue
            if why := reach.lost(Path(value)):
                lost.append(Missing(".".join(key), value, stage.tree.origin(key), _move(stage, key, reach), why))
    return lost


def drop_unseen_caches(stages: Sequence[Stage], reach: Reach) -> None:
    """Have stages do without a cache that their processes cannot see: it only saves time."""
    for stage in stages:
        value = stage.tree.get(_CACHE) if stage.kind == "toy" else None
        if isinstance(value, str) and reach.unseen(Path(value)):
            stage.tree.set(_CACHE, None, f"no cache: {value} {reach.unseen(Path(value))}")


def find_doubts(stages: Sequence[Stage], run_folder: Path, reach: Reach) -> list[str]:
    """Say which inputs and outputs the run's processes may not see, each with the reason."""
    doubts = []
    why = reach.doubt(run_folder)
    if why and not reach.lost(run_folder):
        doubts.append(f"the run's folder {run_folder} {why}")
    made = [Path(str(stage.tree.get(key))) for stage in stages for key in _WRITTEN.get(stage.kind, ())]
    for stage in stages:
        for key in _READ[stage.kind]:
            value = stage.tree.get(key)
            named = isinstance(value, str) and value and not value.startswith("<")
            if not named or _will_be_made(Path(value), run_folder, made) or reach.unseen(Path(value)):
                continue
            if why := reach.doubt(Path(value)):
                doubts.append(f"{'.'.join(key)}: {value} {why}")
    return list(dict.fromkeys(doubts))


def _move(stage: Stage, key: Key, reach: Reach) -> str:
    """Where to put an input or output so that the run's processes reach it, and how to say so."""
    value = str(stage.tree.get(key))
    named = stage.tree.values.get("paths") or {}
    for name, folder in named.items():
        if isinstance(folder, str) and folder and Path(value).is_relative_to(paths.current() / paths.expand(folder)):
            place = reach.elsewhere(Path(folder))
            profile = f"values: {{paths: {{{name}: {place}}}}} in the profile"
            return f"put the contents of {folder} on a volume, and name it: {profile}, or --set paths.{name}={place}"
    full = ".".join(["stages", stage.name, *key] if stage.name else key)
    return f"put it on a volume that pods mount, and name it: --set {full}={reach.elsewhere(Path(value))}"


def _will_be_made(path: Path, run_folder: Path, made: list[Path]) -> bool:
    return any(path == parent or parent in path.parents for parent in (run_folder, *made))


def _missing(stage: Stage, key: Key, value: str) -> Missing:
    name = ".".join(key)
    needs = stage.tree.values.get("needs") or {}
    cure = str(needs.get(name) or f"put it there, or name another: --set {name}=PATH")
    return Missing(name, value, stage.tree.origin(key), cure)
