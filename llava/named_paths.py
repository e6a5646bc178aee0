"""Which key of a config a path comes from: errors name the path, people change the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def key_of(path: object, values: dict[str, Any]) -> str:
    """Return the key that names a path, a folder above it or, where that could not be made, one below it.

    Args:
        path: as an error names it.
        values: a config, as nested mappings.

    Returns:
        such as ``toy.cache``; empty where no key names it.
    """
    if not isinstance(path, str | Path) or not Path(path).is_absolute():
        return ""
    found, named = Path(path), list(_paths(values, ""))
    above = [(len(place.parts), key) for key, place in named if found.is_relative_to(place)]
    if above:
        return max(above)[1]
    # Only the innermost of the folders that were to be made: the root is above every path.
    below = [(len(place.parts), key) for key, place in named if place.is_relative_to(found) and len(found.parts) > 1]
    return min(below)[1] if below else ""


def _paths(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Path]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{name}.")
        elif isinstance(value, str) and value.startswith("/") and len(value) > 1:
            yield name, Path(value)
