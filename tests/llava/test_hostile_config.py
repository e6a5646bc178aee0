"""Configs that are no config: read at once, and refused as one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llava.config import load
from llava.data.check.sources import find
from llava.errors import ConfigError

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ALIASES.encode(), "more values"),
        (b"a: &a [*a]", "more values"),
        (b"a: " + b"[" * 100_000, "cannot read"),
        (b"a: " + b"[" * 60 + b"]" * 60, "deeper inside each other"),
        (b"a: 2024-13-45", "not valid YAML"),
        (b"a: !!int x", "not valid YAML"),
        (b"a: !!bool maybe", "not valid YAML"),
        (b"a: " + b"9" * 5000, "not valid YAML"),
        (b"? [a]\n: b", "cannot read"),
        (b"a: \xe9", "cannot read"),
        (b"\0", "cannot read"),
        (b"kind: [train]", "is not a valid config"),
        (b"kind: train\ntrain: {epochs: .nan}", "is not a valid config"),
        (b"", "is not a valid config"),
    ],
)
def test_odd_files_are_refused_as_configs(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in caught.value.message and str(path) in caught.value.message
    with pytest.raises(ConfigError):
        find(str(tmp_path), [], None)
    assert time.process_time() - start < 5.0


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "pipe/x", Path("a\0b")):
        with pytest.raises(ConfigError):
            load(path)
    with pytest.raises(ConfigError, match="config file not found"):
        load(tmp_path / "none")


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"kind: toy\nrun_dir: &here {tmp_path}\ntoy: {{data: *here, bases: *here}}\n")
    assert load(path).run_dir == str(tmp_path)
