"""What a run writes elsewhere than into its folder is as open as its user's other files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava.convert import write_aside


@pytest.fixture(autouse=True)
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The umask of a run's processes."""
    monkeypatch.setenv("LLAVAJOB_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("LLAVAJOB_UMASK", "027")
    before = os.umask(0o077)
    yield
    assert os.umask(before) == 0o077


def modes_of(output: Path) -> tuple[int, int]:
    write_aside(output, lambda folder: (folder / "config.json").write_text("{}") and None)
    return stat.S_IMODE(output.stat().st_mode), stat.S_IMODE((output / "config.json").stat().st_mode)


def test_a_model_elsewhere_has_the_submitters_umask(tmp_path: Path) -> None:
    assert modes_of(tmp_path / "models/hf") == (0o750, 0o640)


def test_a_model_in_the_runs_folder_is_private(tmp_path: Path) -> None:
    assert modes_of(tmp_path / "run/stages/convert/hf") == (0o700, 0o600)


@pytest.mark.parametrize("value", ["", "wide", "-1"])
def test_without_a_submitter_the_umask_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LLAVAJOB_UMASK", value)
    assert modes_of(tmp_path / "models/hf") == (0o700, 0o600)
