"""From a recipe's name to its resolved, checked values: base, profile, overrides, references, types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError, nearest
from launcher.names import NAME_RULE, is_name
from launcher.recipe_files import Source, extended, locate, with_bases
from launcher.recipe_schema import LABELS, kinds, recipe_schema
from launcher.references import Names, resolve
from launcher.schema import check, describe, fill_defaults, find, parse_value
from launcher.secret_looks import shown
from launcher.text_checks import text_problems
from launcher.tree import Key, Tree, leaves
from launcher.yaml_reader import LONGEST_KEY

_INHERITED = ("seed", "paths", "environment", "resources")
"""Keys that a pipeline's stages take over from the pipeline."""


@dataclass(frozen=True)
class Override:
    """One value given on the command line."""

    key: Key
    text: str
    origin: str
    """How it was given: ``--set``, ``--nodes``."""


@dataclass
class Recipe:
    """A recipe as its files say it: bases merged, nothing resolved yet."""

    name: str
    kind: str
    tree: Tree
    source: str
    """The file as a person would name it."""


@dataclass
class Stage:
    """One resolved and checked recipe of a run; a run that is no pipeline has one, without a name."""

    name: str
    kind: str
    tree: Tree
    folder: Path


def load(reference: str) -> Recipe:
    """Read a recipe and the recipes it extends.

    Raises:
        RecipeError: a file cannot be read or names no known kind.
        RequestError: there is no such recipe.
    """
    source = locate(reference)
    tree, _ = with_bases(source)
    kind = tree.get(("kind",))
    if kind not in kinds():
        seen = "kind is missing" if kind is None else f"kind is '{kind}'{nearest(str(kind), kinds())}"
        raise RecipeError([Problem(tree.origin(("kind",)), f"{seen}; one of {', '.join(kinds())} is needed")])
    if kind == "pipeline":
        _extend_stages(tree, source)
    return Recipe(source.name, str(kind), tree, source.shown)


def _extend_stages(tree: Tree, source: Source) -> None:
    stages = tree.get(("stages",))
    for name in stages if isinstance(stages, dict) else ():
        key = ("stages", name)
        if not isinstance(stages[name], dict):
            continue
        own = tree.sub(key)
        whole, _ = extended(own, source, (source.path,))
        tree.set(key, {}, tree.origin(key))
        tree.values["stages"][name] = whole.values
        tree.origins.update({(*key, *k): origin for k, origin in whole.origins.items() if k})


def apply_overrides(recipe: Recipe, overrides: Sequence[Override]) -> None:
    """Lay the command line's values over the recipe, typed by the schema.

    Raises:
        RecipeError: a key that does not exist; all of them at once.
    """
    problems: list[Problem] = []
    for override in overrides:
        schema = _schema_at(recipe, override.key)
        if schema is None:
            problems.append(_no_such_key(recipe, override))
            continue
        recipe.tree.set(override.key, parse_value(override.text, schema), override.origin)
    if problems:
        raise RecipeError(problems)


def _schema_at(recipe: Recipe, key: Key) -> Mapping[str, Any] | None:
    if key[0] == "stages" and recipe.kind == "pipeline" and len(key) > 2:
        kind = recipe.tree.get((*key[:2], "kind"))
        return find(recipe_schema(kind), key[2:]) if kind in kinds() else None
    found = find(recipe_schema(recipe.kind), key)
    return None if found is not None and found.get("type") == "object" else found


def _no_such_key(recipe: Recipe, override: Override) -> Problem:
    known = [".".join(key) for key in known_keys(recipe)]
    word = ".".join(override.key)
    if len(word) > LONGEST_KEY:
        return Problem(override.origin[:LONGEST_KEY], "no key is that long")
    near = nearest(word, known) or _same_ending(override.key, known)
    return Problem(override.origin, f"unknown key '{word}'{near}")


def _same_ending(key: Key, known: list[str]) -> str:
    ends = [name for name in known if name.split(".")[-1] == key[-1]]
    return f"; did you mean '{ends[0]}'?" if ends else f"; see: {', '.join(sorted({n.split('.')[0] for n in known}))}"


def known_keys(recipe: Recipe) -> list[Key]:
    """Every key that can be set in a recipe."""
    if recipe.kind != "pipeline":
        return [key for key, _ in schema_leaves(recipe_schema(recipe.kind))]
    keys = [key for key, _ in schema_leaves(recipe_schema("pipeline"))]
    for name, stage in (recipe.tree.get(("stages",)) or {}).items():
        kind = stage.get("kind") if isinstance(stage, dict) else None
        if kind in kinds():
            keys += [("stages", name, *key) for key, _ in schema_leaves(recipe_schema(kind))]
    return keys


def schema_leaves(schema: Mapping[str, Any], key: Key = ()) -> list[tuple[Key, Mapping[str, Any]]]:
    """List the keys of a schema that hold values, with their schemas."""
    if "properties" not in schema:
        return [(key, schema)]
    return [leaf for name, child in schema["properties"].items() for leaf in schema_leaves(child, (*key, name))]


def stages_of(recipe: Recipe, profile_values: Tree, folder: Path, names: Names) -> list[Stage]:
    """Resolve and check a recipe into its stages.

    Args:
        recipe: with overrides already applied.
        profile_values: what the profile lays over every recipe.
        folder: the run's folder.
        names: what references may name.

    Raises:
        RecipeError: every problem of every stage.
    """
    problems: list[Problem] = []
    if recipe.kind == "pipeline":
        stages = _pipeline_stages(recipe, profile_values, folder, names, problems)
    else:
        stages = [_stage("", recipe.kind, recipe.tree.copy(), profile_values, folder, names, problems)]
    if problems:
        raise RecipeError(problems)
    return stages


def _pipeline_stages(
    recipe: Recipe, profile_values: Tree, folder: Path, names: Names, problems: list[Problem]
) -> list[Stage]:
    _check_pipeline(recipe, problems)
    listed = recipe.tree.get(("stages",))
    folders = {name: folder / "stages" / name for name in listed if isinstance(listed, dict)}
    wired = {f"stages.{name}.dir": str(path) for name, path in folders.items()}
    inner = Names({**names.fixed, **wired}, names.latest)
    stages = []
    for name, path in folders.items():
        tree = _inheriting(recipe.tree, name)
        kind = tree.get(("kind",))
        if kind in kinds() and kind != "pipeline":
            stages.append(_stage(name, str(kind), tree, profile_values, path, inner, problems))
        else:
            problems.append(_kind_is_missing(recipe, name))
    return stages


def _check_pipeline(recipe: Recipe, problems: list[Problem]) -> None:
    tree = recipe.tree.copy()
    fill_defaults(tree, recipe_schema("pipeline"))
    check(tree, recipe_schema("pipeline"), problems)
    _require_stages(tree, problems)
    for name in tree.values["stages"]:
        if not is_name(name):
            problems.append(Problem(tree.origin(("stages", name)), f"{name!r} cannot be a stage's name: {NAME_RULE}"))


def _inheriting(pipeline: Tree, stage: str) -> Tree:
    """A stage's tree: its base, then what the pipeline says for all, then what the stage itself says."""
    tree = pipeline.sub(("stages", stage))
    for name in _INHERITED:
        for key, value in leaves(pipeline.values.get(name, {}) if name in pipeline.values else {}, (name,)):
            origin = pipeline.origin(key)
            if value != {} and (origin.startswith("--") or tree.get(key) is None):
                tree.set(key, value, origin)
    return tree


def _stage(
    name: str, kind: str, tree: Tree, profile_values: Tree, folder: Path, names: Names, problems: list[Problem]
) -> Stage:
    schema = recipe_schema(kind)
    _lay_profile(tree, profile_values, schema)
    fill_defaults(tree, schema)
    own = Names({**names.fixed, "stage.dir": str(folder)}, names.latest)
    resolve(tree, own, problems)
    check(tree, schema, problems)
    problems += text_problems(tree)
    return Stage(name, kind, tree, folder)


def _lay_profile(tree: Tree, profile_values: Tree, schema: Mapping[str, Any]) -> None:
    """Lay the profile's values over the recipe's, but under what the command line said."""
    for key, value in leaves(profile_values.values):
        if key and find(schema, key) is not None and not tree.origin(key).startswith("--"):
            tree.set(key, value, profile_values.origin(key))


def _stage_kinds(recipe: Recipe) -> dict[str, str]:
    """The kind of each stage of a pipeline.

    Raises:
        RecipeError: there are no stages, or some have no known kind.
    """
    problems: list[Problem] = []
    _require_stages(recipe.tree, problems)
    found = {}
    for name in recipe.tree.values["stages"]:
        kind = recipe.tree.get(("stages", name, "kind"))
        if kind in kinds() and kind != "pipeline":
            found[name] = str(kind)
        else:
            problems.append(_kind_is_missing(recipe, name))
    if problems:
        raise RecipeError(problems)
    return found


def _require_stages(tree: Tree, problems: list[Problem]) -> None:
    if not isinstance(tree.get(("stages",)), dict) or not tree.values.get("stages"):
        problems.append(Problem(tree.origin(("stages",)), "stages: a mapping of at least one stage is needed"))
        raise RecipeError(problems)


def _kind_is_missing(recipe: Recipe, stage: str) -> Problem:
    text = f"stage '{stage}' needs a kind: one of {', '.join(k for k in kinds() if k != 'pipeline')}"
    return Problem(recipe.tree.origin(("stages", stage)), text)


def explain(recipe: Recipe) -> list[tuple[str, Any, str, str]]:
    """List a recipe's keys as (key, value, origin, documentation); a pipeline's stages one after the other.

    Raises:
        RecipeError: a pipeline's stages are no recipes.
    """
    rows = []
    parts: list[tuple[Key, str]] = [((), recipe.kind)]
    if recipe.kind == "pipeline":
        parts += [(("stages", name), kind) for name, kind in _stage_kinds(recipe).items()]
    for prefix, kind in parts:
        tree = recipe.tree.sub(prefix) if prefix else recipe.tree.copy()
        schema = recipe_schema(kind)
        fill_defaults(tree, schema)
        for key, child in schema_leaves(schema):
            if key[0] in LABELS or key == ("stages",):
                continue
            doc = str(child.get("description") or describe(child))
            rows.append((".".join((*prefix, *key)), shown(key[-1], tree.get(key)), tree.origin(key), doc))
    return rows
