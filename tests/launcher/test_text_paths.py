"""Folders and patterns with characters that shells, globs and regular expressions read as more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.logs.filter import compile_grep
from tests.shell import Shell, recipe, shell

__all__ = ["recipe", "shell"]
Write = Callable[..., str]


def test_runs_in_a_folder_that_looks_like_a_pattern(
    shell: Shell, recipe: Write, own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.runs = own_place / "runs [a-z]* ?{x} $(touch INJECTED) 50% \\ # 'q'"
    monkeypatch.setenv("LLAVAJOB_RUNS", str(shell.runs))
    shell("submit", recipe(), "--name", "odd")
    assert shell.wait("odd")["state"] == "SUCCEEDED"
    (shell.runs / "odd/eval/dev [x]").mkdir(parents=True)
    (shell.runs / "odd/eval/dev [x]/report.txt").write_text("accuracy 1.0\n")
    said = shell("status", "od")
    assert f"folder {shell.runs / 'odd'}" in said.out and "accuracy 1.0" in said.out and said.err == ""
    assert "odd" in shell("list").out
    assert "step 1" in shell("logs", "odd", "--grep", r"step \d").out
    assert not list(own_place.rglob("INJECTED"))
    for pattern in ("step (", "[", "*", "(?P<a", "a{99999999999}", "\\"):
        refused = shell("logs", "odd", "--grep", pattern, check=2)
        assert "is no regular expression" in refused.err and len(refused.err.splitlines()) <= 2


@pytest.mark.filterwarnings("error")
def test_a_pattern_is_compiled_without_a_warning_of_pythons() -> None:
    assert compile_grep("[[a]--b]").pattern == "[[a]--b]"
