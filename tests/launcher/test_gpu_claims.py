"""Each GPU of a machine goes to one run at a time, over all users, machines with one home, clocks and forged files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher import machine
from launcher.backends.local import backend as local_backend
from launcher.backends.local import gpu_queue
from launcher.backends.local.gpu_queue import GpuClaim, ledger_folder

CLAIM = """
import sys, time
from launcher.backends.local.gpu_queue import GpuClaim
claim = GpuClaim(sys.argv[1], ["0", "1"])
print(claim.try_take(int(sys.argv[2])).gpus, flush=True)
time.sleep(600)
"""


class Other:
    """A claim of another process, perhaps of another user."""

    def __init__(self, run: str, wanted: int) -> None:
        command = [sys.executable, "-c", CLAIM, run, str(wanted)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.got = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def claim_as(user: int) -> tuple[int, str]:
    """Claim one GPU in a process of another user; return its id and what it got, or what went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        with open(reading) as answer:
            return pid, answer.readline().strip()
    try:  # a process that was forked needs no interpreter that this user may start
        os.umask(0o077)
        os.setresuid(user, user, user)
        got = str(GpuClaim(f"user-{user}", ["0", "1"]).try_take(1).gpus)
    except BaseException as error:
        got = repr(error)
    os.write(writing, f"{got}\n".encode())
    time.sleep(600)
    os._exit(0)


@pytest.fixture
def mine() -> Iterator[GpuClaim]:
    claim = GpuClaim("mine", ["0", "1"])
    yield claim
    claim.release()


def test_gpus_are_taken_once_and_given_back(mine: GpuClaim) -> None:
    other = Other("other", 1)
    try:
        assert other.got == "['0']"
        assert mine.try_take(2).waits_for == "other"
        assert mine.try_take(1).gpus == ["1"]
    finally:
        other.kill()
    assert mine.try_take(2).gpus == ["1", "0"], "what it has comes first, what the dead one had is free"
    assert len(list(ledger_folder().glob("claim-*"))) == 1


def test_who_came_first_is_served_first(mine: GpuClaim) -> None:
    first = Other("first", 2)
    second = Other("second", 2)
    try:
        assert (first.got, second.got) == ("['0', '1']", "None")
        first.kill()
        assert mine.try_take(1).waits_for == "second"
    finally:
        first.kill()
        second.kill()


def test_no_clock_counts(mine: GpuClaim, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other("other", 2)
    try:
        for path in ledger_folder().glob("claim-*"):
            os.utime(path, (1.0, 1.0))
        monkeypatch.setattr(time, "time", lambda: 4e9)
        monkeypatch.setattr(psutil, "boot_time", lambda: 3e9)
        assert mine.try_take(1).gpus is None
    finally:
        other.kill()


def test_forged_claims_neither_hold_nor_free(mine: GpuClaim) -> None:
    other = Other("other", 1)
    folder = ledger_folder()
    try:
        (folder / "claim-forged.json").write_text(
            json.dumps({"run": "forged", "place": -1, "gpus": ["0", "1"], "pid": 1})
        )
        (folder / "claim-broken.json").write_text("[")
        os.mkfifo(folder / "claim-pipe.json")
        (folder / "claim-link.json").symlink_to("/dev/zero")
        assert mine.try_take(2).waits_for == "other"
        assert mine.try_take(1).gpus == ["1"]
    finally:
        other.kill()


def test_a_process_that_outlives_its_supervisor_keeps_the_gpus(mine: GpuClaim) -> None:
    claim = GpuClaim("short", ["0", "1"])
    assert claim.try_take(2).gpus == ["0", "1"]
    assert claim.descriptor is not None
    with subprocess.Popen(["sleep", "600"], pass_fds=(claim.descriptor,)) as rank:
        os.close(claim.descriptor)  # as when the supervisor is killed
        assert mine.try_take(1).waits_for == "short"
        rank.kill()
    assert mine.try_take(1).gpus == ["0"]


def test_machines_that_share_a_folder_do_not_share_claims(mine: GpuClaim, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other("other", 2)
    try:
        here = machine.this_machine()
        monkeypatch.setattr(gpu_queue, "this_machine", lambda: {**here, "boot_id": "of-another-machine"})
        assert mine.try_take(2).gpus == ["0", "1"]
        monkeypatch.undo()
    finally:
        other.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become two users")
def test_two_users_do_not_get_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not below the test's own folder, which other users may not enter.
    shared = Path(f"/tmp/llavajob-gpus-test-{os.getpid()}")
    monkeypatch.setenv("LLAVAJOB_GPU_LEDGER", str(shared))
    found = []
    try:
        for user in (65533, 65534, 65532):
            found.append(claim_as(user))
        assert [got for _, got in found] == ["['0']", "['1']", "None"]
        assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    finally:
        for pid, _ in found:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(shared)


def test_a_planted_link_is_not_followed(mine: GpuClaim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    monkeypatch.setenv("LLAVAJOB_GPU_LEDGER", str(link))
    assert mine.try_take(1).gpus == ["0"]
    assert list(target.iterdir()) == []
    assert ledger_folder().is_relative_to(gpu_queue.state_folder()), "this user's own folder must do"
    found = local_backend._claims_finding()
    assert found.good is None and "LLAVAJOB_GPU_LEDGER" in found.cure


def test_gpus_of_runs_of_the_version_before_stay_taken(mine: GpuClaim) -> None:
    folder = gpu_queue.state_folder()
    folder.mkdir(parents=True)
    me = psutil.Process()
    held = {"run": "older", "pid": me.pid, "started": me.create_time(), "gpus": [0]}
    gone = {"run": "gone", "pid": me.pid, "started": me.create_time() - 600, "gpus": [1]}
    (folder / "gpus.json").write_text(json.dumps({"entries": [held, gone, {"pid": "x"}]}))
    assert mine.try_take(1).gpus == ["1"]


def test_gpus_are_told_by_the_names_that_cuda_has_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpu_queue.gpu_names(2) == ["2", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_queue.gpu_names(3) == ["0", "1", "2"]
