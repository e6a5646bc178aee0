"""``code: snapshot``: what was submitted is what runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shell import STANDIN, Shell

Write = Callable[..., str]


@pytest.fixture
def checkout(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a runtime of its own, and one change that is not committed."""
    folder = own_place / "checkout"
    shutil.copytree(STANDIN, folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "1"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    with (folder / "llava/__init__.py").open("a") as file:
        file.write("# not yet committed\n")
    return folder


@pytest.fixture
def profile(shell: Shell) -> None:
    (shell.folder / "llavajob.yaml").write_text("profiles: {copied: {backend: local, code: snapshot}}\n")


def test_code_that_changes_after_submission_does_not_run(
    shell: Shell, recipe: Write, checkout: Path, profile: None
) -> None:
    name = recipe(environment={"STANDIN_FAIL": "error", "STANDIN_FAIL_ATTEMPTS": "1", "STANDIN_STEPS": "40"})
    shell("submit", name, "--name", "same", "--on", "copied")
    (checkout / "llava/agent.py").write_text("raise SystemExit(3)\n")
    status = shell.wait("same")
    assert (status["state"], status["attempts"]) == ("SUCCEEDED", 2), status


def test_the_record_says_what_was_copied(shell: Shell, recipe: Write, checkout: Path, profile: None) -> None:
    shell("submit", recipe(), "--name", "noted", "--on", "copied")
    code = json.loads((shell.runs / "noted/run.json").read_text())["code"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert code == {"folder": "code", "from": str(checkout), "git_commit": head.stdout.strip(), "diff": "code.diff"}
    assert "+# not yet committed" in (shell.runs / "noted/code/code.diff").read_text()
    shell.wait("noted")


def test_without_it_the_installed_code_runs(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "plain")
    assert not (shell.runs / "plain/code").exists()
    assert "code" not in json.loads((shell.runs / "plain/run.json").read_text())
    shell.wait("plain")
