"""Where the recipes and manifests that come with the package lie: beside the code, or inside the wheel.

The recipes are a zoo with one folder a row, and in it one file a stage that trains. The first row's files stand at the
top, for most others inherit from them; ``pretrain`` is short for ``llava-v1.5-7b/pretrain``. What does not train
(convert, an evaluation, the pipeline of all stages) stands at the top once and goes with every row.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FIRST_ROW = "llava-v1.5-7b"
"""The row whose recipes stand at the top."""
PIPELINE = "pipeline"
"""The recipe that a row's name alone stands for."""
_HOUSE = Path(__file__).resolve().parent
_FOR_EVERY_ROW = re.compile(r"^kind: (convert|eval)\s*$", re.MULTILINE)


def recipes_folder() -> Path:
    """Folder of the shipped recipes."""
    return _shipped("jobs")


def manifests_folder() -> Path:
    """Folder of the shipped Kubernetes manifests."""
    return _shipped("manifests")


def _shipped(name: str) -> Path:
    inside_wheel = _HOUSE / f"_{name}"
    return inside_wheel if inside_wheel.is_dir() else _HOUSE.parent / name


def recipe_names() -> list[str]:
    """Names of the shipped recipes that have a file, by which they can be submitted."""
    folder = recipes_folder()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(names, key=lambda name: ("/" in name, name))


def row_names() -> list[str]:
    """Names of the rows, the first one first."""
    return [FIRST_ROW, *sorted({name.split("/")[0] for name in recipe_names() if "/" in name})]


@cache
def common_stages() -> tuple[str, ...]:
    """The recipes at the top that every row has, on its own runs."""
    folder = recipes_folder()
    top = [name for name in recipe_names() if "/" not in name]
    read = [name for name in top if _FOR_EVERY_ROW.search((folder / f"{name}.yaml").read_text(encoding="utf-8"))]
    return (*read, PIPELINE)


def known_names() -> list[str]:
    """Every name by which a shipped recipe can be submitted."""
    of_rows = [f"{row}/{stage}" for row in row_names() for stage in ("pretrain", "finetune", *common_stages())]
    return list(dict.fromkeys([*recipe_names(), *row_names(), *of_rows]))


def find_shipped(reference: str) -> tuple[str, Path] | None:
    """A shipped recipe's own name and its file; None where there is none.

    Args:
        reference: ``finetune``, ``internlm2-7b/finetune``, or ``internlm2-7b`` for the row's pipeline.
    """
    row, _, stage = reference.rpartition("/")
    if not row and stage in row_names():
        row, stage = stage, PIPELINE
    name = stage if row in ("", FIRST_ROW) else f"{row}/{stage}"
    if name in recipe_names():
        return name, recipes_folder() / f"{name}.yaml"
    if row in row_names() and stage in common_stages():
        return name, recipes_folder() / f"{stage}.yaml"
    return None


def row_of(name: str) -> str:
    """The row that a shipped recipe belongs to, as it stands in names: empty for the first."""
    return name.rpartition("/")[0]
