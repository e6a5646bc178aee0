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
from launcher.tree import Key, Tree, leaves, walk

_MOST_CHARACTERS = 1_000_000
"""What all references of a recipe together may write out; ten references to ten references grow without end."""
_LONGEST_CHAIN = 50
_DEEPEST = 100
_MOST_GUESSES = 20
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


class _TooLarge(Exception):
    """What the references write out is larger than any recipe."""


def resolve(tree: Tree, names: Names, problems: list[Problem]) -> None:
    """Replace every reference in the tree, in place, and collect those that lead nowhere."""
    resolver = _Resolver(tree.copy(), names)
    for key, value in list(leaves(tree.values)):
        try:
            resolved = resolver.resolve(key, value)
        except _Unresolved as error:
            problems.append(Problem(tree.origin(key), f"{'.'.join(key)}: {error}"))
        except _TooLarge:
            text = f"the recipe's references write out more than {_MOST_CHARACTERS:,} characters"
            problems.append(Problem(tree.origin(key), f"{'.'.join(key)}: {text}"))
            return
        except RecursionError:
            text = "lists that refer to one another are too deep inside each other"
            problems.append(Problem(tree.origin(key), f"{'.'.join(key)}: {text}"))
        else:
            if resolved != value:
                tree.set(key, resolved, tree.origin(key))


class _Resolver:
    """Resolves each key once, however many references name it, and stops where text multiplies."""

    def __init__(self, tree: Tree, names: Names) -> None:
        self._tree = tree
        self._names = names
        self._resolved: dict[Key, Any] = {}
        self._latest: dict[str, str] = {}
        self._written = 0
        self._guesses = _MOST_GUESSES

    def resolve(self, key: Key, value: Any) -> Any:
        """Return a key's value with its references written out."""
        resolved = self._value(value, (key,))
        if max(len(path) for path, _ in walk(resolved, key)) > _DEEPEST:
            raise RecursionError
        return resolved

    def _value(self, value: Any, trail: tuple[Key, ...]) -> Any:
        if isinstance(value, list):
            return [self._value(item, trail) for item in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            found = self._look_up(whole[1].strip(), trail)
            self._count(found)
            return found
        text = _REFERENCE.sub(lambda match: self._text(match[1].strip(), trail), value)
        return text.replace("$${", "${")

    def _text(self, name: str, trail: tuple[Key, ...]) -> str:
        text = str(self._look_up(name, trail))
        self._count(text)
        return text

    def _count(self, value: Any) -> None:
        """Add what a reference writes out to what all of them do."""
        parts = [part for _, part in walk(value)] if isinstance(value, list) else [value]
        self._written += sum(len(part) if isinstance(part, str) else 8 for part in parts)
        if self._written > _MOST_CHARACTERS:
            raise _TooLarge

    def _look_up(self, name: str, trail: tuple[Key, ...]) -> Any:
        if name.startswith("env:"):
            return _environment(name[4:])
        if name.startswith("latest:"):
            return self._latest_run(name[7:])
        if name in self._names.fixed:
            return self._names.fixed[name]
        key = tuple(name.split("."))
        if key in self._resolved:
            return self._resolved[key]
        missing = object()
        value = self._tree.get(key, missing)
        if value is missing:
            raise _Unresolved(f"${{{name}}} refers to nothing{self._guess(name)}")
        if isinstance(value, dict):
            raise _Unresolved(f"${{{name}}} is a group of keys, not a value")
        if key in trail:
            circle = " -> ".join(".".join(k) for k in (*trail, key))
            raise _Unresolved(f"goes round in a circle: {circle}")
        if len(trail) > _LONGEST_CHAIN:
            raise _Unresolved(f"more than {_LONGEST_CHAIN} references refer to one another in a chain")
        self._resolved[key] = self._value(value, (*trail, key))
        return self._resolved[key]

    def _latest_run(self, recipe: str) -> str:
        if recipe not in self._latest:
            self._latest[recipe] = self._names.latest(recipe) or f"<no finished run of {recipe}>"
        return self._latest[recipe]

    def _guess(self, name: str) -> str:
        """Name what may have been meant; not for thousands of mistakes, because each takes a while."""
        self._guesses -= 1
        if self._guesses < 0:
            return ""
        return nearest(name, [*self._names.fixed, *(".".join(key) for key, _ in leaves(self._tree.values))])


def _environment(name: str) -> str:
    variable, has_default, default = name.partition(":-")
    value = os.environ.get(variable, default if has_default else None)
    if value is None:
        raise _Unresolved(
            f"the environment variable {variable} is not set; export it or write ${{env:{variable}:-VALUE}}"
        )
    return value
