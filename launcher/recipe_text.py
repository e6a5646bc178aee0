"""Recipes as words for people: the list, and one explained."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from launcher.explain import columns
from launcher.plain_text import one_line
from launcher.recipe import Recipe, explain, load
from launcher.recipe_schema import LABELS
from launcher.shipped import FIRST_ROW, common_stages, recipe_names, row_names, row_of

WIDTH = 120
"""Columns that the list keeps to."""
_SCORES = {
    "mmbench_test_en": "EN",
    "mmbench_dev_en": "dev",
    "mmbench_test_cn": "CN",
    "mmbench_dev_cn": "dev",
    "ccbench": "CCB",
}
_LEGEND = "EN, CN: MMBench test, beside it dev; CCB: CCBench; scores as published, in percent."


def recipe_rows() -> list[dict[str, Any]]:
    """Every shipped recipe with its labels, the zoo's first row first.

    ``row`` is the row of a recipe that trains one; ``every_row`` tells that each row has it, as
    ``internlm2-7b/convert``.
    """
    rows = []
    for name in recipe_names():
        recipe = load(name)
        labels = {label: recipe.tree.get((label,)) or "" for label in LABELS if label not in ("base", "scores")}
        scores = {name: float(value) for name, value in (recipe.tree.get(("scores",)) or {}).items()}
        row = (row_of(name) or FIRST_ROW) if recipe.kind == "train" else None
        every = name in common_stages()
        rows.append({"name": name, "kind": recipe.kind, "row": row, "every_row": every, **labels, "scores": scores})
    # A row is trained in this order.
    return sorted(rows, key=lambda r: (r["row"] is None, row_of(r["name"]), r["name"].endswith("finetune")))


def recipes_text(rows: list[dict[str, Any]]) -> str:
    """Lay the list out in two tables: the zoo's rows by stage, and everything else."""
    zoo = [("RECIPE", "HARDWARE", "HOURS", *_SCORES.values(), "WHAT")]
    zoo += [
        (r["name"], r["hardware"], str(r["hours"]), *(_score(r, name) for name in _SCORES), r["description"])
        for r in rows
        if r["row"]
    ]
    rest = [("RECIPE", "KIND", "HARDWARE", "HOURS", "WHAT")]
    rest += [(r["name"], r["kind"], r["hardware"], str(r["hours"]), r["description"]) for r in rows if not r["row"]]
    row, every = row_names()[-1], ", ".join(r["name"] for r in rows if r["every_row"])
    more = f"Every row has {every}, such as {row}/{common_stages()[0]}; {row} alone is its pipeline."
    return "\n".join([_table(zoo), _LEGEND, "", _table(rest), *textwrap.wrap(more, WIDTH)])


def _score(row: dict[str, Any], name: str) -> str:
    return f"{row['scores'][name]:.1f}" if name in row["scores"] else ""


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns, the last one cut to what the line has left."""
    before = sum(max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]) - 1))
    return columns([(*row[:-1], textwrap.shorten(row[-1], WIDTH - before, placeholder=" ...")) for row in rows])


def recipe_text(recipe: Recipe) -> str:
    """Explain one recipe: its labels, then each key with value, origin and meaning."""
    lines = [one_line(f"{recipe.name} ({recipe.kind}), {recipe.source}")]
    lines += [f"  {label}: {_label(recipe.tree.get((label,)))}" for label in LABELS if recipe.tree.get((label,))]
    for key, value, origin, doc in explain(recipe):
        lines += [f"{one_line(key)} = {one_line(value)}", f"    {doc} ({one_line(origin)})"]
    return "\n".join(lines)


def _label(value: Any) -> str:
    shown = ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else value
    return one_line(shown)
