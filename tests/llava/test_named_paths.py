"""A path that cannot be written is told with the key that names it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava import entry
from llava.errors import EXIT_FINAL
from llava.named_paths import key_of

VALUES: dict[str, Any] = {
    "kind": "toy",
    "run_dir": "/runs/q",
    "seed": 0,
    "toy": {"data": "/runs/q/data", "bases": "/runs/q/bases", "cache": "/home/you/.cache/bases"},
}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/home/you/.cache/bases/1f/x", "toy.cache"),
        ("/home/you", "toy.cache"),  # the first folder above it that could not be made
        ("/runs/q/data/images", "toy.data"),
        ("/runs/q/metrics.jsonl", "run_dir"),
        ("/runs/q", "run_dir"),
        ("/runs/quick", ""),
        ("/", ""),
        ("relative", ""),
        (None, ""),
        (3, ""),
    ],
)
def test_the_key_of_a_path(path: object, key: str) -> None:
    assert key_of(path, VALUES) == key


def test_the_hint_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entry, "prepare", lambda *rest: None)
    values = {**VALUES, "run_dir": str(tmp_path), "toy": {**VALUES["toy"], "data": "/home/you/data"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))

    def work() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/home/you/data")

    assert entry.guarded(work, on_signal="default", config_path=str(tmp_path / "config.yaml")) == EXIT_FINAL
    assert "No permission to write there: give it. The path comes from toy.data of the config" in caplog.text
    assert entry.guarded(work, on_signal="default") == EXIT_FINAL
