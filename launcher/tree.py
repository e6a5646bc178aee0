"""A recipe as a tree of plain values that remembers where each value came from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import Problem, RecipeError

Key = tuple[str, ...]
"""Path of a value: ``("train", "epochs")``; list items count as ``"0"``, ``"1"`` ..."""


@dataclass
class Tree:
    """Nested dicts and lists, and the origin (``file:line``, ``--set``, ``default``) of every key in them."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(copy.deepcopy(self.values), dict(self.origins))

    def get(self, key: Key, default: Any = None) -> Any:
        """Return the value at a key, or the default."""
        node: Any = self.values
        for part in key:
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            else:
                return default
        return node

    def set(self, key: Key, value: Any, origin: str) -> None:
        """Put a value at a key, making the mappings above it."""
        node = self.values
        for part in key[:-1]:
            child = node.get(part)
            if not isinstance(child, dict):
                child = node[part] = {}
            node = child
        node[key[-1]] = value
        self._forget(key)
        for path, _ in walk(value, key):
            self.origins[path] = origin

    def origin(self, key: Key) -> str:
        """Where the value came from; for a missing key, where the mapping that lacks it stands."""
        while key and key not in self.origins:
            key = key[:-1]
        return self.origins.get(key, "recipe")

    def merge(self, other: Tree) -> None:
        """Lay another tree over this one: mappings merge, everything else replaces."""
        _merge(self, other, ())

    def sub(self, key: Key) -> Tree:
        """Return the mapping at a key as a tree of its own."""
        values = self.get(key)
        size = len(key)
        origins = {path[size:]: origin for path, origin in self.origins.items() if path[:size] == key}
        return Tree(copy.deepcopy(values) if isinstance(values, dict) else {}, origins)

    def _forget(self, key: Key) -> None:
        for path in [path for path in self.origins if path[: len(key)] == key]:
            del self.origins[path]


def _merge(below: Tree, above: Tree, key: Key) -> None:
    for name, value in (above.get(key) or {}).items() if key else above.values.items():
        path = (*key, name)
        if isinstance(value, dict) and isinstance(below.get(path), dict):
            below.origins[path] = above.origin(path)
            _merge(below, above, path)
        else:
            below.set(path, copy.deepcopy(value), above.origin(path))
            size = len(path)
            below.origins.update({p: o for p, o in above.origins.items() if p[:size] == path})


def walk(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every key of nested values with its value, parents before children."""
    yield key, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from walk(child, (*key, str(name)))


def leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every value that is no mapping, with its key."""
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from leaves(child, (*key, str(name)))
    else:
        yield key, value


def read_tree(path: Path, shown: str | None = None) -> Tree:
    """Read a YAML mapping with the line of every key.

    Args:
        path: the file.
        shown: how the file is named in messages; its path when left out.

    Raises:
        RecipeError: the file cannot be read, is no YAML, holds a key twice or is no mapping.
    """
    shown = shown or str(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_LOADER)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(shown, f"cannot be read: {getattr(error, 'strerror', None) or error}")]) from None
    except yaml.YAMLError as error:
        raise RecipeError([_yaml_problem(error, shown)]) from None
    if node is None:
        return Tree()
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError([Problem(f"{shown}:{node.start_mark.line + 1}", "a mapping of keys is needed here")])
    tree, problems = Tree(), list[Problem]()
    tree.values = _build(node, (), shown, tree.origins, problems)
    if problems:
        raise RecipeError(problems)
    return tree


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _build(node: yaml.Node, key: Key, shown: str, origins: dict[Key, str], problems: list[Problem]) -> Any:
    origins.setdefault(key, f"{shown}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, key, shown, origins, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*key, str(i)), shown, origins, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")) and ":" in node.value:
        return node.value  # YAML 1.1 would make 43200 of a time limit of 12:00:00
    try:
        return yaml.SafeLoader("").construct_object(node)
    except yaml.YAMLError as error:
        problems.append(_yaml_problem(error, shown))
        return None


def _build_mapping(
    node: yaml.MappingNode, key: Key, shown: str, origins: dict[Key, str], problems: list[Problem]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name_node, child in node.value:
        name, line = str(name_node.value), name_node.start_mark.line + 1
        if name in values:
            problems.append(Problem(f"{shown}:{line}", f"key '{name}' stands here a second time"))
        path = (*key, name)
        origins[path] = f"{shown}:{line}"
        values[name] = _build(child, path, shown, origins, problems)
    return values


def _yaml_problem(error: yaml.YAMLError, shown: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"{shown}:{mark.line + 1}" if mark else shown
    return Problem(where, f"not valid YAML: {getattr(error, 'problem', None) or error}")
