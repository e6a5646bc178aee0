"""A run is told from every other: by its id, its folder and its place, never by a name, a process id or a clock."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher import machine, processes, runs
from launcher.backends.local import backend as local_backend
from launcher.backends.local.judge import judge
from launcher.backends.local.state import load_state
from launcher.errors import RequestError
from launcher.run_folder import RunFolder, write_json
from launcher.store import Run, find_run, original_of
from tests.shell import Shell

Write = Callable[..., str]
HERE = machine.this_machine()


def start(shell: Shell, name: str, recipe: Write, **environment: str) -> None:
    shell("submit", recipe(), "--name", name, "--nodes", "1", STANDIN_STEPS="100000", **environment)
    shell.until(lambda: shell.agents(name), f"an agent of {name}")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def load(folder: Path) -> Run:
    return Run(RunFolder(folder), json.loads((folder / "run.json").read_text()))


def made_run(folder: Path, state: dict[str, Any], **record: Any) -> Run:
    """A run as its files alone tell it."""
    values = {"name": folder.name, "backend": "local", "created": 1.0, "submissions": [{"time": 1.0, "attempt": 0}]}
    write_json(folder / "run.json", {**values, **record})
    write_json(folder / "state.json", state)
    return load(folder)


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_an_empty_name_is_no_runs_name(tmp_path: Path, name: str) -> None:
    made_run(tmp_path / "latest", {})
    with pytest.raises(RequestError, match="an empty name is no run's name"):
        find_run([tmp_path], name)
    assert find_run([tmp_path], None).name == "latest"


def test_no_command_takes_an_empty_name_for_the_latest_run(shell: Shell) -> None:
    made_run(shell.runs / "latest", {"state": "RUNNING"})
    for command in ("cancel", "status", "logs", "resume"):
        assert "an empty name is no run's name" in shell(command, "", check=2).err
    assert "no profile named ''" in shell("doctor", "--on", "", check=2).err
    assert json.loads((shell.runs / "latest/state.json").read_text())["state"] == "RUNNING"


def test_a_name_that_no_file_can_have_is_not_found(tmp_path: Path) -> None:
    made_run(tmp_path / "latest", {})
    for name in ("x" * 5000, "a\0b", "..", "../latest"):
        with pytest.raises(RequestError, match="no run named"):
            find_run([tmp_path], name)


def test_the_record_and_the_state_say_where_a_run_lives(shell: Shell, recipe: Write) -> None:
    start(shell, "placed", recipe)
    record = json.loads((shell.runs / "placed/run.json").read_text())
    assert record["where"] == HERE and HERE["host"] == socket.gethostname()
    state = json.loads((shell.runs / "placed/state.json").read_text())
    assert state["where"] == HERE
    assert state["pid_ticks"] == processes.start_ticks(state["pid"])
    marks = {psutil.Process(pid).environ()["LLAVAJOB_RUN_ID"] for pid in [state["pid"], *shell.agents("placed")]}
    assert marks == {record["run_id"]}


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"host": "boxa", "boot_id": "other"}, "UNKNOWN", f"runs on host boxa, looked at from host {HERE['host']}"),
        ({"host": "boxa", "pid_namespace": "pid:[1]"}, "UNKNOWN", "runs on host boxa, looked at from"),
        ({"boot_id": "other", "machine_id": "a clone's"}, "UNKNOWN", "another container or machine of that name"),
        ({"boot_id": "other"}, "FAILED", "the machine was restarted"),
        ({"host": "renamed"}, "FAILED", "its supervisor died"),
        ({}, "FAILED", "its supervisor died"),
    ],
)
def test_only_the_same_machine_judges_a_run(tmp_path: Path, changes: dict[str, str], state: str, words: str) -> None:
    where = {**HERE, **changes}
    run = made_run(tmp_path / "far", {"state": "RUNNING", "pid": 4_000_000, "pid_ticks": 7, "where": where})
    seen = judge(run)
    assert seen.state == state and words in seen.reason
    unsent = made_run(tmp_path / "unsent", {"state": "PENDING"}, where=where)
    assert judge(unsent).state == state


def test_a_run_of_another_machine_is_neither_cancelled_nor_resumed(shell: Shell) -> None:
    where = {**HERE, "host": "boxa", "boot_id": "other"}
    run = made_run(shell.runs / "far", {"state": "RUNNING", "pid": 1, "pid_ticks": 7, "where": where}, kind="train")
    said = shell("cancel", "far", check=2).err
    assert "runs on host boxa, looked at from host" in said and "llavajob cancel far" in said
    said = shell("resume", "far", check=2).err
    assert "runs on host boxa" in said and f'set "state" to "FAILED" in {run.folder.state}' in said
    assert not run.folder.cancel_request.exists()
    assert shell.status("far")["state"] == "UNKNOWN"
    write_json(run.folder.state, {"state": "SUCCEEDED", "pid": 1, "where": where})
    assert shell.status("far")["state"] == "SUCCEEDED", "what its supervisor wrote down holds everywhere"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to make namespaces")
def test_another_namespace_sees_the_run_and_leaves_it_alone(shell: Shell, recipe: Write) -> None:
    start(shell, "first", recipe)
    away = ["unshare", "--pid", "--fork", "--uts", "--mount-proc", "sh", "-c"]
    command = " ".join(shell.command)
    script = f"hostname boxb; {command} status first; {command} cancel first; {command} resume first; true"
    done = subprocess.run([*away, script], capture_output=True, text=True, cwd=shell.folder, timeout=100)
    words = f"runs on host {HERE['host']}, looked at from host boxb"
    assert done.stdout.startswith("first  UNKNOWN") and done.stderr.count(words) == 2, (done.stdout, done.stderr)
    assert shell.status("first")["state"] == "RUNNING"


def test_a_stepped_clock_changes_nothing(shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    start(shell, "steady", recipe)
    run = load(shell.runs / "steady")
    for step_s in (-86400.0, 1.0, 3600.0):
        monkeypatch.setattr(psutil, "boot_time", lambda step_s=step_s: os.stat("/proc/1").st_ctime + step_s)
        monkeypatch.setattr(local_backend.time, "time", lambda step_s=step_s: 2e9 + step_s)
        assert judge(run).state == "RUNNING"


def test_a_run_of_the_version_before_is_still_judged(shell: Shell, recipe: Write) -> None:
    start(shell, "older", recipe)
    path = shell.runs / "older/state.json"
    state = json.loads(path.read_text())
    created, booted = psutil.Process(state["pid"]).create_time(), psutil.boot_time()
    for key in ("where", "pid_ticks"):
        del state[key]
    for step_s in (0.0, 7200.0):  # both times were taken by one clock, right or wrong
        path.write_text(json.dumps({**state, "pid_started": created + step_s, "boot_time": booted + step_s}))
        change(shell.runs / "older/run.json", where=None)
        assert judge(load(shell.runs / "older")).state == "RUNNING"
    path.write_text(json.dumps({**state, "pid_started": created - 60, "boot_time": booted}))
    assert "its supervisor died" in judge(load(shell.runs / "older")).reason
    path.write_text(json.dumps({**state, "pid_started": created, "boot_time": booted}))
    record = json.loads((shell.runs / "older/run.json").read_text())
    for key in ("run_id", "run_dir", "where"):
        del record[key]
    (shell.runs / "older/run.json").write_text(json.dumps(record))
    (shell.runs / "older/submit.lock").unlink()
    shell.until((shell.runs / "older/metrics.jsonl").exists, "a step")
    assert "CANCELLED" in shell("cancel", "older").err
    assert shell.left("older") == []
    shell("resume", "older", STANDIN_STEPS="1")
    assert shell.wait("older")["state"] == "SUCCEEDED"


def test_cancel_of_a_copy_leaves_the_original_alone(shell: Shell, recipe: Write) -> None:
    start(shell, "original", recipe)
    shell.until(lambda: len(shell.left("original")) == 3, "the supervisor, the agent and what it starts")
    before = sorted(shell.left("original"))
    shutil.copytree(shell.runs / "original", shell.runs / "copy")
    seen = shell.status("copy")
    assert seen["state"] == "FAILED" and f"this folder is a copy; the run itself is at {shell.runs}" in seen["reason"]
    shell("cancel", "copy", check=None)
    assert sorted(shell.left("original")) == before
    assert shell.status("original")["state"] == "RUNNING"


def test_a_copy_stays_a_copy_when_the_original_is_moved(shell: Shell, recipe: Write) -> None:
    start(shell, "original", recipe)
    shutil.copytree(shell.runs / "original", shell.runs / "copy")
    os.rename(shell.runs / "original", shell.runs / "moved")
    assert judge(load(shell.runs / "copy")).state == "FAILED"
    assert judge(load(shell.runs / "moved")).state == "RUNNING"


def test_a_moved_run_is_still_ended(shell: Shell, recipe: Write) -> None:
    start(shell, "before", recipe)
    os.rename(shell.runs / "before", shell.runs / "after")
    assert "CANCELLED" in shell("cancel", "after").err
    assert shell.left("before") == []


def test_a_run_is_ended_by_a_link_to_its_folder(shell: Shell, recipe: Write) -> None:
    start(shell, "linked", recipe)
    link = shell.folder / "link"
    link.symlink_to(shell.runs)
    assert "CANCELLED" in shell("cancel", "linked", LLAVAJOB_RUNS=str(link)).err
    assert shell.left("linked") == []


def test_a_process_that_a_state_names_wrongly_is_not_signalled(shell: Shell, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as victim:
        try:
            forged = {
                "state": "RUNNING", "pid": victim.pid, "pid_ticks": processes.start_ticks(victim.pid), "where": HERE
            }  # fmt: skip
            made_run(shell.runs / "forged", forged, run_id="0123456789abcdef")
            made_run(
                shell.runs / "older",
                {
                    **forged,
                    "where": {},
                    "pid_started": psutil.Process(victim.pid).create_time(),
                    "boot_time": psutil.boot_time(),
                },
            )
            for name in ("forged", "older"):
                assert "its supervisor died" in judge(load(shell.runs / name)).reason
            shell("cancel", "forged", "older")
            assert victim.poll() is None
        finally:
            victim.kill()


def test_processes_of_an_earlier_run_of_that_name_are_not_ended(tmp_path: Path) -> None:
    folder = tmp_path / "name"
    made_run(folder, {}, run_id="new")
    marks = {"LLAVAJOB_RUN": str(folder), "LLAVAJOB_RUN_ID": "old"}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **marks}) as other:
        try:
            assert processes.marked(folder, run_id="new") == []
            assert [p.pid for p in processes.marked(folder, run_id="old")] == [other.pid]
            processes.end_all(folder, 0.0, polite=False, run_id="new")
            assert other.poll() is None
        finally:
            other.kill()


def test_cancel_goes_on_after_a_run_that_it_cannot_end(shell: Shell, recipe: Write) -> None:
    made_run(shell.runs / "far", {"state": "RUNNING", "pid": 1, "where": {**HERE, "host": "boxa", "boot_id": "other"}})
    start(shell, "here", recipe)
    said = shell("cancel", "far", "here", "here", check=2).err
    assert "runs on host boxa" in said and said.count("here: CANCELLED") == 1
    assert shell.left("here") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"state": "RUNNING", "newer": 1, "steps": [{"name": "a", "stage": "", "kind": "task", "newer": 1}]}',
            "its super",
        ),
        ('{"state": 5}', "state is 5"),
        ('{"state": "MELTED"}', "called 'MELTED'"),
        ('{"pid": "1"}', "pid is '1'"),
        ('{"state": "RUNNING", "pid": 100000000000000000000}', "pid is a huge number"),
        ('{"steps": {"a": 1}}', "steps is"),
        ("{", "holds no JSON object"),
    ],
)
def test_an_odd_state_is_said_and_its_run_can_be_cancelled(tmp_path: Path, text: str, words: str) -> None:
    run = made_run(tmp_path / "odd", {})
    run.folder.state.write_text(text)
    seen = judge(run)
    assert seen.state in ("UNKNOWN", "FAILED") and words in seen.reason
    assert local_backend.LocalBackend().cancel(run).state == "CANCELLED"
    assert load_state(run.folder).state == "CANCELLED"


def test_a_supervisor_that_ended_is_not_found_by_its_number_alone() -> None:
    done = subprocess.Popen(["true"])
    os.waitid(os.P_PID, done.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_ticks(done.pid) is None, "a process that waits to be reaped has ended"
    done.wait()
    assert processes.start_ticks(done.pid) is None
    assert processes.start_ticks(os.getpid()) == int(Path("/proc/self/stat").read_text().split()[21])


@pytest.mark.parametrize("backend", ["slurm", "kubernetes"])
def test_a_copy_of_a_clusters_run_ends_no_job(tmp_path: Path, backend: str) -> None:
    run = made_run(tmp_path / "original", {}, run_id="one", backend=backend, run_dir=str(tmp_path / "original"))
    shutil.copytree(run.folder.root, tmp_path / "copy")
    with pytest.raises(RequestError, match="is a copy of the run at") as caught:
        runs.cancel(load(tmp_path / "copy"))
    assert "llavajob cancel original" in caught.value.hint
    assert not (tmp_path / "copy/cancel.json").exists()
    os.rename(tmp_path / "original", tmp_path / "moved")
    assert original_of(load(tmp_path / "moved")) is None, "a run that was moved is the run itself"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_forged_run_id_does_not_end_another_users_processes(tmp_path: Path) -> None:
    made_run(tmp_path / "forged", {}, run_id="theirs")
    marks = {"LLAVAJOB_RUN": "/not/seen/here", "LLAVAJOB_RUN_ID": "theirs"}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **marks}, user=65534) as other:
        try:
            psutil_sees = psutil.Process(other.pid).environ()["LLAVAJOB_RUN_ID"]
            assert psutil_sees == "theirs" and processes.marked(tmp_path / "forged", run_id="theirs") == []
            os.chown(tmp_path / "forged", 65534, -1)
            assert [p.pid for p in processes.marked(tmp_path / "forged", run_id="theirs")] == [other.pid]
        finally:
            other.kill()
