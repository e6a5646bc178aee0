"""A tiny world for runs through the real launcher and the real runtime: bases, records, a model, MMBench rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.llava.conftest import build_language, build_records, build_vision

PLACE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def build_world(folder: Path) -> Path:
    """Write ``language/``, ``vision/`` and ``data/`` below a folder."""
    for name in ("language", "vision"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    build_language(folder / "language")
    build_vision(folder / "vision")
    build_records(folder / "data")
    return folder


def train_recipe(world: Path, steps: int, save_every: int, **train: Any) -> dict[str, Any]:
    """LoRA with dropout on the language model, on two nodes of one process."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.2}
    return {
        "kind": "train",
        "resources": {"nodes": 2},
        "environment": PLACE,
        "model": {
            "language": {"path": str(world / "language"), "tuning": "lora", "lora": lora},
            "vision": {"path": str(world / "vision")},
        },
        "data": {"records": str(world / "data/records.json"), "images": str(world / "data/images"), "workers": 0},
        "train": {
            "global_batch": 8,
            "device_batch": 2,
            "max_steps": steps,
            "epochs": 1000,
            "learning_rate": 1e-2,
            "log_every_steps": 1,
            "save_every_steps": save_every,
            "device": "cpu",
            **train,
        },
    }


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    """Write a recipe file."""
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line that training logged, repeated steps included."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step, as they stood at the end."""
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in metrics(run)}
