"""A submission that breaks off, at whatever moment, leaves a run that can be used, or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launcher import locks, runs, store, submission
from launcher.backends.local import backend as local_backend
from launcher.backends.local.judge import judge
from launcher.errors import BackendError, LauncherError, RequestError, SubmissionUnknown
from launcher.machine import this_machine
from launcher.run_folder import RunFolder, write_json
from launcher.store import Run, submission_lock
from tests.shell import Shell

Write = Callable[..., str]


def slow_git(shell: Shell, command: str) -> str:
    """A PATH on which one of git's commands waits until it is killed, after it has said that it was called."""
    folder = shell.folder / "slow"
    folder.mkdir()
    script = f'#!/bin/sh\n[ "$1" = {command} ] || exec pwd\ntouch "{shell.folder}/called"\nexec sleep 600\n'
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def supervisor_that_waits(shell: Shell) -> str:
    """A PYTHONPATH with which a supervisor does not get to its first word."""
    folder = shell.folder / "patched"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'launcher.backends.local.supervisor' in sys.orig_argv:\n"
        "    time.sleep(600)\n"
    )  # fmt: skip
    return str(folder)


def prepare(recipe: Write, shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str | None) -> runs.Prepared:
    monkeypatch.chdir(shell.folder)
    return runs.prepare(recipe(), None, name, [])


def visible(root: Path) -> list[str]:
    return sorted(os.listdir(root)) if root.is_dir() else []


@pytest.mark.parametrize(
    ("number", "asked"),
    [  # rev-parse comes before the folder is made, diff while it is filled
        (signal.SIGINT, "rev-parse"),
        (signal.SIGINT, "diff"),
        (signal.SIGTERM, "diff"),
        (signal.SIGHUP, "diff"),
        (signal.SIGKILL, "diff"),
    ],
)
def test_a_submission_that_is_ended_early_leaves_its_name_free(
    shell: Shell, recipe: Write, number: signal.Signals, asked: str
) -> None:
    child = shell.start("submit", recipe(), "--name", "cut", PATH=slow_git(shell, asked))
    shell.until((shell.folder / "called").exists, "git asked")
    child.send_signal(number)
    child.wait(timeout=60)
    left = [name for name in visible(shell.runs) if number != signal.SIGKILL or not name.startswith(".llavajob-cut-")]
    assert left == []
    assert "no runs yet" in shell("status", "cut", check=2).err
    shell("submit", recipe(), "--name", "cut")
    assert shell.wait("cut")["state"] == "SUCCEEDED"


def test_a_slow_supervisor_is_ended_with_its_submission(
    shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_backend, "HELLO_S", 1.0)
    monkeypatch.setenv("PYTHONPATH", supervisor_that_waits(shell))
    prepared = prepare(recipe, shell, monkeypatch, "slow")
    with pytest.raises(BackendError, match="supervisor did not start"):
        runs.submit(prepared)
    assert visible(shell.runs) == [] and shell.left("slow") == []


def test_ctrl_c_while_the_supervisor_starts_leaves_nothing(shell: Shell, recipe: Write) -> None:
    child = shell.start("submit", recipe(), "--name", "cut", PYTHONPATH=supervisor_that_waits(shell))
    shell.until(lambda: shell.left("cut"), "a supervisor")
    child.send_signal(signal.SIGINT)
    _, words = child.communicate(timeout=60)
    assert child.returncode == 130 and "nothing of it is left" in words
    assert visible(shell.runs) == [] and shell.left("cut") == []


def test_a_run_whose_submitter_was_killed_can_be_used(shell: Shell, recipe: Write) -> None:
    child = shell.start("submit", recipe(), "--name", "cut", PYTHONPATH=supervisor_that_waits(shell))
    shell.until(lambda: shell.left("cut"), "a supervisor")
    child.kill()
    child.wait()
    seen = shell.status("cut")
    assert (seen["state"], seen["reason"]) == ("PENDING", "its supervisor is starting")
    assert "only a run that has ended" in shell("resume", "cut", check=2).err
    assert "cut" in shell("list").out
    assert "CANCELLED" in shell("cancel", "cut").err
    assert shell.left("cut") == []
    shell("resume", "cut")
    assert shell.wait("cut")["state"] == "SUCCEEDED"


def test_one_command_at_a_time_sends_a_run(shell: Shell, recipe: Write) -> None:
    run = ended_run(shell.runs / "busy")
    with locks.hold(submission_lock(run.folder)):
        said = shell("resume", "busy", check=2).err
        assert "busy is PENDING" in said
        assert shell.status("busy")["reason"] == "it is being resumed"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(submission_lock(run.folder))], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    try:
        with pytest.raises(RequestError, match="being submitted or resumed"), submission.resubmission(run):
            raise AssertionError("two commands hold one lock")
    finally:
        other.kill()
        other.wait()
    assert judge(run).state == "FAILED"


HOLDER = """
import sys, time, pathlib
from launcher import locks
with locks.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def ended_run(folder: Path) -> Run:
    record = {"name": folder.name, "backend": "local", "created": 1.0, "kind": "train", "recipe": "train"}
    write_json(folder / "run.json", {**record, "submissions": [{"time": 1.0, "attempt": 0}]})
    write_json(folder / "state.json", {"state": "FAILED", "pid": 4_000_000, "where": this_machine()})
    (folder / "submit.lock").touch()
    return Run(RunFolder(folder), json.loads((folder / "run.json").read_text()))


def test_a_folder_that_a_supervisor_holds_is_not_removed(
    shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(recipe, shell, monkeypatch, "held")
    holders = []

    def refuse(self: object, run: Run, plan: object) -> list[str]:
        lock = str(run.folder.root / "supervisor.lock")
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        raise BackendError("this run has a supervisor already")

    monkeypatch.setattr(local_backend.LocalBackend, "submit", refuse)
    try:
        with pytest.raises(SubmissionUnknown) as caught:
            runs.submit(prepared)
        assert "llavajob status held" in caught.value.hint
        assert (shell.runs / "held/run.json").exists()
    finally:
        holders[0].kill()
        holders[0].wait()


@pytest.mark.parametrize("error", [SubmissionUnknown("the answer was lost", "Ask again."), KeyboardInterrupt()])
def test_what_may_have_been_sent_is_kept(
    shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def lose(self: object, run: Run, plan: object) -> list[str]:
        raise error

    monkeypatch.setattr(local_backend.LocalBackend, "submit", lose)
    prepared = prepare(recipe, shell, monkeypatch, "lost")
    with pytest.raises(SubmissionUnknown) as caught:
        runs.submit(prepared)
    assert "llavajob status lost" in caught.value.hint and "llavajob cancel lost" in caught.value.hint
    record = json.loads((shell.runs / "lost/run.json").read_text())
    assert record["where"] == this_machine() and record["run_id"] == prepared_id(shell.runs / "lost")


def prepared_id(folder: Path) -> str:
    line = next(x for x in (folder / "attempts/0/rendered.yaml").read_text().splitlines() if x.startswith("run_id:"))
    return line.split()[1].strip("'\"")


@pytest.mark.parametrize("error", [BackendError("refused"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_was_not_sent_leaves_nothing(
    shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(self: object, run: Run, plan: object) -> list[str]:
        assert run.folder.record.exists(), "the record is there before anything is sent"
        raise error

    monkeypatch.setattr(local_backend.LocalBackend, "submit", refuse)
    with pytest.raises(LauncherError, match=r"refused|No space left on device; nothing of the run is left"):
        runs.submit(prepare(recipe, shell, monkeypatch, "none"))
    assert visible(shell.runs) == []


def test_folders_without_a_run_do_not_block_a_name(shell: Shell, recipe: Write) -> None:
    (shell.runs / "empty").mkdir(parents=True)
    half = shell.runs / "half"
    (half / "attempts/0").mkdir(parents=True)
    (half / "config.yaml").write_text("")
    old = time.time() - 3600
    for path in (half / "config.yaml", half / "attempts", half):
        os.utime(path, (old, old))
    for name in ("empty", "half"):
        shell("submit", recipe(), "--name", name)
    assert shell.wait("half")["state"] == "SUCCEEDED" and shell.wait("empty")["state"] == "SUCCEEDED"


def test_a_folder_that_somebody_uses_blocks_a_name(shell: Shell, recipe: Write) -> None:
    old = time.time() - 3600
    for name, file in (("theirs", "letter.txt"), ("trained", "metrics.jsonl"), ("written", "config.yaml")):
        (shell.runs / name).mkdir(parents=True)
        (shell.runs / name / file).write_text("")
        if name != "written":  # that one was changed just now: whoever writes it may still be there
            os.utime(shell.runs / name / file, (old, old))
            os.utime(shell.runs / name, (old, old))
        said = shell("submit", recipe(), "--name", name, check=2).err
        assert "is there already, and is no run" in said and f"--name {name}-2" in said
        assert (shell.runs / name / file).exists()


def test_what_killed_commands_left_is_cleared_away(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    old, new = root / ".llavajob-a-00000000", root / ".llavajob-b-00000000"
    for path in (old, new):
        path.mkdir(parents=True)
        (path / "run.json").write_text('{"name": "a"}')
    for path in (old / "run.json", old):
        os.utime(path, (1e9, 1e9))
    assert store.all_runs([root]) == []
    with submission.draft(root, "fresh") as made:
        assert not old.exists() and new.exists()
        assert made.place().root == root / "fresh"
    assert visible(root) == [new.name, "fresh"]


def test_of_two_submissions_of_one_name_one_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with submission.draft(root, "twin") as first, submission.draft(root, "twin") as second:
        write_json(second.folder.record, {})
        second.place()
        with pytest.raises(RequestError, match="there is a run named twin already"):
            first.place()
    assert visible(root) == ["twin"]


def test_a_drawn_name_that_is_taken_is_drawn_again(
    shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell.runs / "train-aaaa").mkdir(parents=True)
    drawn = iter(["train-aaaa", "train-aaaa", "train-bbbb"])
    monkeypatch.setattr(runs, "new_name", lambda recipe: next(drawn))
    assert prepare(recipe, shell, monkeypatch, None).name == "train-bbbb"


def test_a_copy_that_is_gone_on_with_is_a_run_of_its_own(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "original", STANDIN_STEPS="100000")
    shell.until(lambda: shell.agents("original"), "an agent")
    shutil.copytree(shell.runs / "original", shell.runs / "copy")
    (shell.runs / "copy/checkpoints/step-000001").mkdir(parents=True)
    (shell.runs / "copy/checkpoints/step-000001/COMPLETE").touch()
    shell("resume", "copy", STANDIN_STEPS="3")
    assert shell.wait("copy")["state"] == "SUCCEEDED"
    ids = {json.loads((shell.runs / name / "run.json").read_text())["run_id"] for name in ("original", "copy")}
    assert len(ids) == 2
    assert shell.status("original")["state"] == "RUNNING"


def test_processes_that_a_killed_supervisor_left_are_ended_before_the_next_attempt(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "orphans", "--nodes", "1", STANDIN_STEPS="100000")
    agent = psutil.Process(shell.until(lambda: shell.agents("orphans"), "an agent")[0])
    os.kill(shell.supervisor("orphans"), signal.SIGKILL)
    assert shell.wait("orphans")["state"] == "FAILED" and agent.is_running()
    (shell.runs / "orphans/checkpoints/step-000001").mkdir(parents=True)
    (shell.runs / "orphans/checkpoints/step-000001/COMPLETE").touch()
    shell("resume", "orphans", STANDIN_STEPS="3")
    assert not agent.is_running()
    assert shell.wait("orphans")["state"] == "SUCCEEDED"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_another_users_run_is_said_to_be_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended_run(tmp_path / "theirs")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for every user but root
    with pytest.raises(RequestError, match="theirs belongs to root"):
        runs.cancel(run)
    assert not run.folder.cancel_request.exists()
