"""What do the reports of all benchmarks have in common? Where answers came from, and a table with a column a model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table as RichTable

from llava.evals.benchmark import Answered
from llava.run_folder import write_aside

Line = tuple[str, Sequence[str], bool]
"""Name, one text a model, whether a section ends here."""


def write_jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    write_aside(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object for people and programs."""
    write_aside(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def with_origin(one: Answered, scores: dict[str, Any]) -> dict[str, Any]:
    """One model's scores between its name and how its answers came about."""
    return {
        "model": one.model,
        **scores,
        "fingerprint": one.fingerprint,
        "dtypes": one.merged.dtypes,
        "batches": one.merged.batches,
        "repeated_answers": one.merged.repeated,
    }


def comparison(title: str, unit: str, answered: Sequence[Answered], lines: Iterable[Line]) -> RichTable:
    """A table with one column for the model and one for its baseline, where there is one."""
    shown = RichTable(title=title)
    shown.add_column(unit)
    for role, one in zip(("model", "baseline"), answered, strict=False):
        shown.add_column(f"{role}\n{Path(one.model).name}", justify="right")
    for name, values, ends in lines:
        shown.add_row(name, *values, end_section=ends)
    return shown


def as_text(*parts: RenderableType) -> str:
    """What a terminal would show, without colours."""
    text = io.StringIO()
    console = Console(file=text, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for part in parts:
        console.print(part)
    return text.getvalue()
