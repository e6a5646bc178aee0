"""What hits cost: a run that was hit beside one that was not, in updates and rows lost, done twice or changed."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.llava.tiny_hf import build_llava, some_rows, write_tsv
from tests.world import PLACE, losses, metrics, write_recipe

ROWS_PER_KILL = 50


def compare_training(whole: Path, hit: Path, steps: int) -> None:
    """Print what was lost or done twice, and whether the numbers are the same."""
    counted = Counter(line["step"] for line in metrics(hit))
    missing = sorted(set(range(1, steps + 1)) - counted.keys())
    twice = sum(counted.values()) - len(counted)
    wanted, found = losses(whole), losses(hit)
    differ = [step for step in found if found[step] != wanted.get(step)]
    print(f"training: of {steps} updates {twice} done twice")
    print(f"training: updates without a line in metrics.jsonl: {len(missing)} {missing[:9] or ''}")
    print(f"training: updates whose loss or gradient norm differs in a bit: {len(differ)} {sorted(differ)[:9] or ''}")
    print(f"training: weights at the end equal byte for byte: {weights(whole) == weights(hit) != {}}")


def weights(run: Path) -> dict[str, str]:
    """Digests of a trained model's weights."""
    found = sorted((run / "model").rglob("*.safetensors"))
    return {str(path.relative_to(run)): sha256(path.read_bytes()).hexdigest() for path in found}


def eval_recipe(world: Path, kills: int) -> str:
    """Write a slow evaluation in two shards, and return the recipe's path."""
    model = build_llava(world / "llava", world / "language", world / "vision")
    data = write_tsv(world / "rows.tsv", some_rows(ROWS_PER_KILL * max(kills, 2)))
    values: dict[str, Any] = {
        "kind": "eval",
        "resources": {"nodes": 2},
        "environment": PLACE,
        "eval": {"model": str(model), "data": str(data), "template": "vicuna", "batch": 1, "max_new_tokens": 80},
    }
    return str(write_recipe(world / "rows.yaml", values))


def compare_rows(whole: Path, hit: Path) -> None:
    """Print which rows were lost or doubled, and whether the predictions are the same."""
    wanted, found = rows(whole), rows(hit)
    names = Counter(name for name, _ in found)
    lost = len(dict(wanted).keys() - names.keys())
    doubled = sum(names.values()) - len(names)
    print(f"evaluation: of {len(wanted)} rows {lost} lost, {doubled} doubled")
    print(f"evaluation: predictions equal to the untouched run's: {sorted(wanted) == sorted(found)}")


def rows(run: Path) -> list[tuple[str, str]]:
    """Index and prediction of every row that a run reports."""
    records = map(json.loads, (run / "eval/mmbench/predictions.jsonl").read_text().splitlines())
    return [(str(record["index"]), str(record["prediction"])) for record in records]
