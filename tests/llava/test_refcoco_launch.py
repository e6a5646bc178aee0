"""The shipped recipe, through the real launcher and the real runtime: shards, one merge, one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.llava.test_refcoco import records, write, write_pictures
from tests.llava.tiny_hf import build_llava
from tests.shell import Shell, shell

__all__ = ["shell"]


@pytest.mark.slow
def test_the_recipe_runs_on_two_shards(shell: Shell, tiny_language: Path, tiny_vision: Path) -> None:
    model = build_llava(shell.folder / "hf", tiny_language, tiny_vision, {"template": "vicuna", "square": "pad"})
    data, images = write(shell.folder / "refcoco_val.json", records()), write_pictures(shell.folder / "images")
    values = {
        "eval.model": model, "eval.data": data, "eval.images": images, "eval.shards": 2, "eval.max_new_tokens": 6,
        "eval.device": "cpu", "resources.gpus_per_node": 0,
    }  # fmt: skip
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    done = shell("submit", "refcoco", "--name", "grounding", *sets, "--follow")
    assert "refcoco_val: 6 phrases" in done.out
    folder = shell.runs / "grounding/eval/refcoco"
    assert json.loads((folder / "scores.json").read_text())["rows"] == 6
    assert len(list((folder / "answers").glob("shard*of0002.jsonl"))) == 2
    rendered = (shell.runs / "grounding/config.yaml").read_text()
    assert "benchmark: refcoco" in rendered


def test_missing_pictures_are_told_before_anything_is_sent(shell: Shell) -> None:
    done = shell("submit", "refcoco", "--dry-run", "--set", "eval.images=/nowhere/at/all")
    assert "Missing: eval.images /nowhere/at/all" in done.err
    assert "COCO train2017" in done.err
