"""References inside recipes: ``${run.dir}``, ``${env:USER}``, ``${latest:pretrain}`` and other keys.

A value that is one reference takes the type of what it refers to; inside longer text the value is written out.
``$${`` stands for a literal ``${``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import Problem, nearest
from launcher.tree import Key, Tree, leaves

_REFERENCE = re.compile(r"(?<!\$)\$\{([^{}]*)\}")


@dataclass(frozen=True)
class Names:
    """What references may name besides other keys."""

    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Whole names such as ``run.dir`` and ``stages.pretrain.dir``."""
    latest: Callable[[str], str | None] = lambda name: None
    """Folder of the newest finished run of a recipe."""


class _Unresolved(Exception):
    """A reference that leads nowhere; the message says why."""


def resolve(tree: Tree, names: Names, problems: list[Problem]) -> None:
    """Replace every reference in the tree, in place, and collect those that lead nowhere."""
    source = tree.copy()
    for key, value in list(leaves(tree.values)):
        _resolve_leaf(tree, source, key, value, names, problems)


def _resolve_leaf(tree: Tree, source: Tree, key: Key, value: Any, names: Names, problems: list[Problem]) -> None:
    try:
        resolved = _resolved(value, source, names, (key,))
    except _Unresolved as error:
        problems.append(Problem(tree.origin(key), f"{'.'.join(key)}: {error}"))
        return
    if resolved != value:
        tree.set(key, resolved, tree.origin(key))


def _resolved(value: Any, tree: Tree, names: Names, trail: tuple[Key, ...]) -> Any:
    if isinstance(value, list):
        return [_resolved(item, tree, names, trail) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return _look_up(whole[1].strip(), tree, names, trail)
    text = _REFERENCE.sub(lambda match: str(_look_up(match[1].strip(), tree, names, trail)), value)
    return text.replace("$${", "${")


def _look_up(name: str, tree: Tree, names: Names, trail: tuple[Key, ...]) -> Any:
    if name.startswith("env:"):
        return _environment(name[4:])
    if name.startswith("latest:"):
        recipe = name[7:]
        return names.latest(recipe) or f"<no finished run of {recipe}>"
    if name in names.fixed:
        return names.fixed[name]
    key = tuple(name.split("."))
    missing = object()
    value = tree.get(key, missing)
    if value is missing:
        raise _Unresolved(f"${{{name}}} refers to nothing{nearest(name, _known(tree, names))}")
    if isinstance(value, dict):
        raise _Unresolved(f"${{{name}}} is a group of keys, not a value")
    if key in trail:
        circle = " -> ".join(".".join(k) for k in (*trail, key))
        raise _Unresolved(f"goes round in a circle: {circle}")
    return _resolved(value, tree, names, (*trail, key))


def _environment(name: str) -> str:
    variable, has_default, default = name.partition(":-")
    value = os.environ.get(variable, default if has_default else None)
    if value is None:
        raise _Unresolved(
            f"the environment variable {variable} is not set; export it or write ${{env:{variable}:-VALUE}}"
        )
    return value


def _known(tree: Tree, names: Names) -> list[str]:
    return [*names.fixed, *(".".join(key) for key, _ in leaves(tree.values))]
