"""A full disk: said as such while a run runs, and no half run when it is submitted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launcher.backends.local.judge import judge
from launcher.run_folder import RunFolder
from launcher.store import Run
from tests.shell import Shell

Write = Callable[..., str]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small file system")


@pytest.fixture
def tiny(shell: Shell, own_place: Path) -> Iterator[Path]:
    """A runs folder on a file system of 1 MiB."""
    shell.runs.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(shell.runs)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr!r}")
    yield shell.runs
    for process in psutil.process_iter(["environ"]):
        if str((process.info["environ"] or {}).get("LLAVAJOB_RUN")).startswith(str(shell.runs)):
            process.kill()
    subprocess.run(["umount", "--lazy", str(shell.runs)], check=True)


def fill(folder: Path, keep: int = 0) -> None:
    """Leave room for so many bytes."""
    room = os.open(folder / "room", os.O_WRONLY | os.O_CREAT)
    os.write(room, bytes(keep))
    os.close(room)
    with (folder / "fill").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    (folder / "room").unlink()


def load(folder: Path) -> Run:
    return Run(RunFolder(folder), json.loads((folder / "run.json").read_text()))


def test_a_run_that_met_a_full_disk_says_so_and_resumes(shell: Shell, recipe: Write, tiny: Path) -> None:
    shell("submit", recipe(), "--name", "full", "--nodes", "1", STANDIN_STEPS="100000")
    shell.wait_step("full", 2)
    fill(tiny)
    shell.until(lambda: judge(load(tiny / "full")).state == "FAILED", "the end of the run")
    state = json.loads((tiny / "full/state.json").read_text())
    assert state["state"] == "FAILED", "the room that was kept held the last state"
    shown = shell("status", "full").out
    assert "the disk is full" in shown or "no space is left on the disk" in shown
    (tiny / "fill").unlink()
    assert "disk" in shell("status", "full").out, "also after room was made"
    (tiny / "full/checkpoints/step-000001").mkdir(parents=True, exist_ok=True)
    (tiny / "full/checkpoints/step-000001/COMPLETE").touch()
    shell("resume", "full", STANDIN_STEPS="3")
    assert shell.wait("full")["state"] == "SUCCEEDED"


def test_a_supervisor_that_could_write_nothing_is_explained(shell: Shell, recipe: Write, tiny: Path) -> None:
    shell("submit", recipe(), "--name", "mute", "--nodes", "1", STANDIN_STEPS="100000")
    shell.wait_step("mute", 1)
    os.kill(shell.supervisor("mute"), signal.SIGKILL)
    (tiny / "mute/.reserve").unlink()
    fill(tiny)
    seen = judge(load(tiny / "mute"))
    assert seen.state == "FAILED" and f"no space is left on the disk of {tiny / 'mute'}" in seen.reason
    assert "CANCELLED" in shell("cancel", "mute").err
    assert shell.left("mute") == []


def test_a_run_is_cancelled_on_a_full_disk(shell: Shell, recipe: Write, tiny: Path) -> None:
    shell("submit", recipe(), "--name", "stop", "--nodes", "1", STANDIN_STEPS="100000", STANDIN_STEP_S="600")
    shell.until(lambda: shell.agents("stop"), "an agent")
    fill(tiny)
    assert "stop: CANCELLED" in shell("cancel", "stop").err
    assert shell.left("stop") == []


@pytest.mark.parametrize("room", [0, 4096, 8192, 16384, 32768, 49152])
def test_a_submission_without_room_leaves_nothing(shell: Shell, recipe: Write, tiny: Path, room: int) -> None:
    fill(tiny, room)
    said = shell("submit", recipe(), "--name", "none", "--nodes", "1", check=None, STANDIN_STEPS="100000")
    if said.code == 0:
        assert room > 32768, "room for the record, the state and the reserve"
        shell("cancel", "none")
        return
    assert "pace" in said.err and str(tiny) in said.err, said.err
    assert os.listdir(tiny) == ["fill"]
