"""Recipes as words for people: the list, and one explained."""

from __future__ import annotations

from typing import Any

from launcher.explain import columns
from launcher.recipe import LABELS, Recipe, explain, load
from launcher.shipped import recipe_names


def recipe_rows() -> list[dict[str, Any]]:
    """Every shipped recipe with its labels."""
    rows = []
    for name in recipe_names():
        recipe = load(name)
        labels = {label: recipe.tree.get((label,)) or "" for label in LABELS if label != "base"}
        rows.append({"name": name, "kind": recipe.kind, **labels})
    return rows


def recipes_text(rows: list[dict[str, Any]]) -> str:
    """Lay the list out in a table."""
    table = [("RECIPE", "KIND", "HARDWARE", "HOURS", "WHAT")]
    table += [(r["name"], r["kind"], r["hardware"], str(r["hours"]), r["description"]) for r in rows]
    return columns(table)


def recipe_text(recipe: Recipe) -> str:
    """Explain one recipe: its labels, then each key with value, origin and meaning."""
    lines = [f"{recipe.name} ({recipe.kind}), {recipe.source}"]
    lines += [f"  {label}: {recipe.tree.get((label,))}" for label in LABELS if recipe.tree.get((label,))]
    for key, value, origin, doc in explain(recipe):
        lines += [f"{key} = {value}", f"    {doc} ({origin})"]
    return "\n".join(lines)
