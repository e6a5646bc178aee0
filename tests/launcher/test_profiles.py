"""Profiles: only the one that is used must be right, and only the user's own project file counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import console
from launcher.errors import LauncherError
from launcher.profiles import find_profile, runs_roots
from launcher.project_file import find_project_file
from launcher.store import all_runs
from tests.launcher.wrong_input import of_text
from tests.shell import Shell

Write = Callable[..., str]
GOOD = "  good: {backend: local, runs: good-runs}\n"
MISTAKES = {
    "value": '  bad: {backend: slurm, runs: bad-runs, slurm: {gpus: "a100x8:"}}\n',
    "key": "  bad: {backend: local, runs: bad-runs, rnus: x}\n",
    "backend": "  bad: {backend: slrum, runs: bad-runs}\n",
    "shape": "  bad: {backend: slurm, runs: bad-runs, slurm: 5}\n",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_said", set())
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_one_profile_concerns_nobody_who_uses_another(
    here: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "llavajob.yaml").write_text("profiles:\n" + GOOD + mistake)
    assert find_profile("good").runs == here / "good-runs"
    assert of_text("", on="good").code == 0
    assert of_text("").code == 0, "the default is another one"
    used = of_text("", on="bad")
    assert used.code == 2 and "llavajob.yaml:3: " in used.message
    capsys.readouterr()
    assert runs_roots() == [here / "runs", here / "good-runs", here / "bad-runs"]
    assert runs_roots() == runs_roots()
    assert capsys.readouterr().err.count("llavajob.yaml:3: ") == 1, "the mistake is said once"


@pytest.mark.parametrize("text", ["profiles: [", "profiles: 5", "- a", "profils: {}", "\0", "default: {a: b}"])
def test_a_file_that_is_no_profiles_stops_what_uses_profiles_only(
    here: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "llavajob.yaml").write_text(text)
    assert runs_roots() == [here / "runs"]
    assert f"{here}/llavajob.yaml" in capsys.readouterr().err
    with pytest.raises(LauncherError) as caught:
        find_profile(None)
    assert caught.value.exit_code == 2 and f"{here}/llavajob.yaml" in caught.value.message


def test_a_root_that_cannot_be_listed_is_said_and_the_others_are_shown(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs/one").mkdir(parents=True)
    (here / "runs/one/run.json").write_text("{}")
    (here / "file").write_text("")
    (here / "llavajob.yaml").write_text(
        "profiles: {f: {backend: local, runs: file}, n: {backend: local, runs: none}}\n"
    )
    assert [run.name for run in all_runs(runs_roots())] == ["one"]
    assert capsys.readouterr().err.splitlines() == [f"{here}/file: Not a directory; its runs are not shown"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("kind", ["file", "link", "writable"])
def test_a_project_file_of_somebody_else_is_ignored_and_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    inner = here / "shared/mine"
    inner.mkdir(parents=True)
    planted = here / "shared/llavajob.yaml"
    planted.write_text("default: evil\nprofiles: {evil: {backend: local, python: /evil}}\n")
    if kind == "file":
        os.chown(planted, 54321, 54321)
    elif kind == "link":
        planted.rename(here / "elsewhere.yaml")
        planted.symlink_to(here / "elsewhere.yaml")
        os.chown(planted, 54321, 54321, follow_symlinks=False)
    else:
        planted.chmod(0o666)
    (here / "llavajob.yaml").write_text("default: mine\nprofiles: {mine: {backend: local}}\n")
    monkeypatch.chdir(inner)
    assert find_project_file() == here / "llavajob.yaml", "the user's own further up still counts"
    assert find_profile(None).name == "mine"
    assert f"{planted} is ignored: " in capsys.readouterr().err


def test_the_search_ends_at_the_home_folder_and_at_the_top_of_a_repository(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "llavajob.yaml").write_text("default: local\n")
    for folder in ("home/a/b", "repository/a/b", "plain/a/b"):
        (here / folder).mkdir(parents=True)
    (here / "repository/.git").mkdir()
    found = {}
    for folder in ("home/a/b", "repository/a/b", "plain/a/b"):
        monkeypatch.chdir(here / folder)
        found[folder] = find_project_file()
    assert found == {"home/a/b": None, "repository/a/b": None, "plain/a/b": here / "llavajob.yaml"}
    (here / "repository/llavajob.yaml").write_text("default: local\n")
    monkeypatch.chdir(here / "repository/a/b")
    assert find_project_file() == here / "repository/llavajob.yaml"


def test_a_dry_run_starts_no_program_of_a_profile(shell: Shell, recipe: Write) -> None:
    python = shell.folder / "python"
    python.write_text('#!/bin/sh\ntouch "$0.started"\nexit 1\n')
    python.chmod(0o755)
    (shell.folder / "llavajob.yaml").write_text(f'profiles: {{odd: {{backend: local, python: "{python}"}}}}\n')
    name = recipe()
    assert str(python) in shell("submit", name, "--on", "odd", "--dry-run").out
    assert not (shell.folder / "python.started").exists()
    refused = shell("submit", name, "--on", "odd", check=2).err
    assert "lacks the runtime" in refused
    assert (shell.folder / "python.started").exists(), "submit asks it before anything is sent"


def test_runs_are_seen_and_ended_whatever_is_wrong_with_profiles(shell: Shell, recipe: Write) -> None:
    name = recipe(environment={"PYTHONPATH": str(Path(__file__).parent / "standin"), "STANDIN_STEPS": "3000"})
    shell("submit", name, "--name", "going")
    (shell.folder / "llavajob.yaml").write_text("profiles: [\n")
    for arguments in (["list"], ["status", "going"], ["logs", "go"], ["cancel", "going"]):
        result = shell(*arguments)
        assert f"{shell.folder}/llavajob.yaml:" in result.err, arguments
    assert shell("status", "going", "--json").json["state"] == "CANCELLED"
    assert shell("submit", name, check=2).err.startswith("Error: ")
