"""Every test gets a home, a configuration and a runs root of its own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point home, configuration, state and runs below the test's folder; nothing leaks in or out."""
    for name in [name for name in os.environ if name.startswith(("LLAVAJOB_", "PET_", "XDG_", "STANDIN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLAVAJOB_RUNS", str(tmp_path / "runs"))
    # Claims on GPUs are shared by all users of a machine; those of a test concern nobody else.
    monkeypatch.setenv("LLAVAJOB_GPU_LEDGER", str(tmp_path / "gpus"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "home").mkdir()
    return tmp_path


@pytest.fixture
def command() -> list[str]:
    """The llavajob command of this environment."""
    beside = Path(sys.executable).with_name("llavajob")
    found = str(beside) if beside.exists() else shutil.which("llavajob")
    return [found] if found else [sys.executable, "-m", "launcher"]
