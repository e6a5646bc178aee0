"""A recipe's file, and the files it extends: from a name to one merged tree.

``./NAME`` means a recipe of the same row of the zoo. In a row's recipe and in all that it extends, that is the row
which was asked for: ``internlm2-7b/finetune`` extends ``finetune``, whose ``base: ./pretrain`` is then
``internlm2-7b/pretrain``. A person's own recipe belongs to the row that it extends.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import paths
from launcher.errors import Problem, RecipeError, RequestError, nearest
from launcher.recipe_schema import LABELS
from launcher.shipped import find_shipped, known_names, recipes_folder, row_names, row_of
from launcher.tree import Tree, leaves, read_tree

_MOST_BASES = 50
_OF_THE_ROW = re.compile(r"\$\{(latest|recipe):\./([^{}]*)\}")


@dataclass(frozen=True)
class Source:
    """A recipe's file."""

    name: str
    path: Path
    shown: str
    """The file as a person would name it."""
    row: str | None
    """The zoo's row whose recipes ``./NAME`` means, empty for the first; None: a person's own file."""


def locate(reference: str) -> Source:
    """Find a recipe's file by shipped name or path.

    Raises:
        RequestError: there is no such recipe.
    """
    looks_like_path = reference.endswith((".yaml", ".yml")) or reference.startswith((".", "/", "~"))
    found = None if looks_like_path else find_shipped(reference)
    if found:
        name, path = found
        return Source(name, path, f"jobs/{path.relative_to(recipes_folder()).as_posix()}", row_of(name))
    path = paths.expand(reference)
    if os.path.isfile(path):
        return Source(path.stem, path.resolve(), reference, None)
    names = known_names()
    what = f"no file {reference}" if looks_like_path else f"no recipe named '{reference}'{nearest(reference, names)}"
    if looks_like_path and os.path.lexists(path):
        what = f"{reference} is not a regular file that can be read"
    top = ", ".join(name for name in names if "/" not in name and name not in row_names())
    hint = f"Shipped recipes: {top}; rows, with pretrain and finetune each: {', '.join(row_names())}"
    raise RequestError(what, f"{hint}. A path to a YAML file works the same.")


def with_bases(source: Source, trail: tuple[Path, ...] = ()) -> tuple[Tree, str | None]:
    """Read a recipe over all that it extends.

    Returns:
        The tree, and the row that it belongs to; None for a person's own recipe that extends no row's.

    Raises:
        RecipeError: a file cannot be read, a base is not there, or they go round in a circle.
    """
    if len(trail) > _MOST_BASES:
        text = f"more than {_MOST_BASES} recipes extend one another"
        raise RecipeError([Problem(source.shown, text)])
    if source.path in trail:
        circle = " -> ".join(p.name for p in (*trail, source.path))
        raise RecipeError([Problem(source.shown, f"base goes round in a circle: {circle}")])
    return extended(read_tree(source.path, source.shown), source, (*trail, source.path))


def extended(tree: Tree, source: Source, trail: tuple[Path, ...]) -> tuple[Tree, str | None]:
    """Lay a tree over the recipe that it extends, and that over its own.

    Args:
        source: the file that the tree comes from.
        trail: files that were read on the way here.

    Returns:
        As ``with_bases``.

    Raises:
        RecipeError: a base is not there, or they go round in a circle.
    """
    base = tree.get(("base",))
    if not base:
        return _bound(tree, source.row), source.row
    try:
        beneath = _base(str(base), source)
    except RequestError as error:
        raise RecipeError([Problem(tree.origin(("base",)), f"base: {error.message}")], error.hint) from None
    if source.row is not None:
        beneath = replace(beneath, row=source.row)
    below, row = with_bases(beneath, trail)
    for label in LABELS:
        below.values.pop(label, None)
    below.merge(_bound(tree, row))
    return below, row


def _base(base: str, source: Source) -> Source:
    if source.row is not None and base.startswith("./"):
        return locate(f"{source.row}/{base[2:]}" if source.row else base[2:])
    if find_shipped(base):
        return locate(base)
    try:
        candidate = (source.path.parent / base).with_suffix(".yaml")
    except ValueError:  # a path without a name, such as /
        return locate(base)
    if os.path.isfile(candidate):
        shown = str(Path(source.shown).parent / candidate.name)
        return Source(candidate.stem, candidate.resolve(), shown, source.row)
    return locate(base)


def _bound(tree: Tree, row: str | None) -> Tree:
    """Write out which row ``${latest:./pretrain}`` and ``${recipe:./pretrain}`` mean, in place."""

    def written(match: re.Match[str]) -> str:
        name = f"{row}/{match[2]}" if row else match[2]
        return name if match[1] == "recipe" else f"${{latest:{name}}}"

    for key, value in list(leaves(tree.values)):
        if row is None and key[:1] == ("stages",):  # each stage is of the row that it extends itself
            continue
        if isinstance(value, str) and _OF_THE_ROW.search(value):
            tree.set(key, _OF_THE_ROW.sub(written, value), tree.origin(key))
    return tree
