"""Who may read a run: its user alone, unless the folder that runs are kept in is shared with a group."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.profiles import find_profile
from launcher.submission import draft
from tests.shell import Shell

Write = Callable[..., str]


def modes(folder: Path) -> dict[str, int]:
    """The modes of a folder and of everything below it."""
    found = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in found}


def odd_ones(folder: Path, of_folders: int, of_files: int) -> dict[str, str]:
    """What has other modes than these."""
    odd = {}
    for name, mode in modes(folder).items():
        wanted = of_folders if (folder / name).is_dir() else of_files
        if mode != wanted:
            odd[name] = oct(mode)
    return odd


def through_its_life(shell: Shell, recipe: Write, umask: int) -> Path:
    """A run that was submitted, cancelled, resumed and has ended."""
    before = os.umask(umask)
    try:
        shell("submit", recipe(), "--name", "own", STANDIN_STEPS="1000")
        shell.wait_step("own", 2)
        shell("cancel", "own")
        shell("resume", "own", STANDIN_STEPS=str(shell.status("own")["step"] + 2))
        assert shell.wait("own")["state"] == "SUCCEEDED"
    finally:
        os.umask(before)
    return shell.runs / "own"


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_run_is_its_users_alone(shell: Shell, recipe: Write, umask: int) -> None:
    run = through_its_life(shell, recipe, umask)
    assert odd_ones(run, 0o700, 0o600) == {}
    seen = json.loads((run / "attempts/1/started-0.json").read_text())
    assert seen["LLAVAJOB_UMASK"] == f"{umask:03o}", "for what a run writes elsewhere"
    assert {
        "state.json", "run.json", "config.yaml", "events.jsonl", "metrics.jsonl", "supervisor.log",
        "attempts/0/rendered.yaml", "attempts/0/node0.log", "attempts/1/rank0001.log",
    } <= set(modes(run))  # fmt: skip


@pytest.mark.parametrize("root_mode", [0o2770, 0o775])
def test_a_shared_root_shares_its_runs_with_the_group(shell: Shell, recipe: Write, root_mode: int) -> None:
    shell.runs.mkdir()
    groups = [group for group in os.getgroups() if group != os.getgid()]
    group = 4242 if os.getuid() == 0 else (groups or [os.getgid()])[0]
    os.chown(shell.runs, -1, group)
    shell.runs.chmod(root_mode)
    run = through_its_life(shell, recipe, 0o022)
    assert odd_ones(run, 0o2770, 0o660) == {}
    assert {path.stat().st_gid for path in [run, *run.rglob("*")]} == {group}


def test_a_root_that_everybody_may_write_to_shares_nothing(shell: Shell, recipe: Write) -> None:
    shell.runs.mkdir()
    shell.runs.chmod(0o1777)
    shell("submit", recipe(), "--name", "own")
    shell.wait("own")
    assert odd_ones(shell.runs / "own", 0o700, 0o600) == {}


def test_a_run_of_an_earlier_version_stays_as_open_as_it_was(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "old", STANDIN_STEPS="1000")
    shell.wait_step("old", 2)
    shell("cancel", "old")
    run = shell.runs / "old"
    run.chmod(0o755)
    (run / "attempts").chmod(0o755)
    shell("resume", "old", STANDIN_STEPS=str(shell.status("old")["step"] + 2))
    assert shell.wait("old")["state"] == "SUCCEEDED"
    assert modes(run)["attempts/1"] == 0o755
    assert modes(run)["attempts/1/node0.log"] == modes(run)["run.json"] == 0o644


@pytest.mark.parametrize(("user", "mode"), [(os.getuid(), 0o700), (os.getuid() + 1000, 0o755)])
def test_pods_of_another_user_are_not_kept_out(
    shell: Shell, user: int, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = {"mount": str(shell.runs), "host_path": str(shell.runs)}
    place = {"backend": "kubernetes", "runs": str(shell.runs), "kubernetes": {"volumes": [volume]}}
    place["kubernetes"]["run_as"] = {"user": user}  # type: ignore[index]
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"pods": place}}))
    monkeypatch.setenv("LLAVAJOB_PROFILES", str(shell.folder / "llavajob.yaml"))
    profile = find_profile("pods")
    assert not profile.apart
    with draft(profile.runs, "one", profile.private_runs) as made:
        folder = made.place()
    assert stat.S_IMODE(folder.root.stat().st_mode) == mode
