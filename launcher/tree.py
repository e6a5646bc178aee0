"""A recipe as a tree of plain values that remembers where each value came from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError
from launcher.text_files import read_text
from launcher.yaml_reader import Key, Reader

__all__ = ["Key", "Tree", "leaves", "read_tree", "walk"]


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
            elif isinstance(node, list) and part.isdecimal() and len(part) < 10 and int(part) < len(node):
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
        self._forget(key, node.get(key[-1]))
        node[key[-1]] = value
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
        paths = [path for path, _ in walk(values, key) if path in self.origins]
        origins = {path[size:]: self.origins[path] for path in paths}
        return Tree(copy.deepcopy(values) if isinstance(values, dict) else {}, origins)

    def _forget(self, key: Key, value: Any) -> None:
        """Drop the origins of a value that is replaced: of its own keys only, for there may be thousands of others."""
        for path, _ in walk(value, key):
            self.origins.pop(path, None)


def _merge(below: Tree, above: Tree, key: Key) -> None:
    for name, value in (above.get(key) or {}).items() if key else above.values.items():
        path = (*key, name)
        if isinstance(value, dict) and isinstance(below.get(path), dict):
            below.origins[path] = above.origin(path)
            _merge(below, above, path)
        else:
            below.set(path, copy.deepcopy(value), above.origin(path))
            below.origins.update({p: above.origins[p] for p, _ in walk(value, path) if p in above.origins})


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
    reader = Reader(shown or str(path))
    try:
        text = read_text(path)
    except ValueError as error:
        raise RecipeError([Problem(reader.shown, str(error))]) from None
    values = reader.read(text)
    if reader.problems:
        raise RecipeError(reader.problems)
    if values is None:
        return Tree()
    if not isinstance(values, dict):
        raise RecipeError([Problem(reader.origins[()], "a mapping of keys is needed here")])
    return Tree(values, reader.origins)
