"""A run's jobs are found by what they carry, on the cluster that they are on; nobody else's is judged or ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.shell import Shell, recipe, shell
from tests.slurm.bed import Bed, Cluster
from tests.slurm.jobs import enough, events, number, shown

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
SMALL = ("--nodes", "1", "--set", "slurm.mem=500M")
# The job is made, and the answer is not given before somebody lets go.
SLOW = """#!/bin/sh
answer=$({sbatch} "$@")
touch {folder}/made
while [ -e {folder}/hold ]; do sleep 0.1; done
echo "$answer"
"""


@pytest.fixture
def slow(own_place: Path) -> Iterator[Path]:
    """A folder with an sbatch that makes the job, and keeps its answer back until ``hold`` is removed."""
    folder = own_place / "slow"
    folder.mkdir()
    (folder / "hold").touch()
    (folder / "sbatch").write_text(SLOW.format(sbatch=shutil.which("sbatch"), folder=folder))
    (folder / "sbatch").chmod(0o755)
    yield folder
    (folder / "hold").unlink(missing_ok=True)


def start(shell: Shell, slow: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin a submission, and return when its job is made and not yet known."""
    process = shell.start("submit", *arguments, *SMALL, PATH=f"{slow}:{os.environ['PATH']}")
    shell.until((slow / "made").exists, "the job is made")
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=30)


def test_cancel_ends_a_job_without_a_number_and_no_other(shell: Shell, recipe: Write, bed: Cluster, slow: Path) -> None:
    others = [
        bed.call("sbatch", "--parsable", "--hold", f"--job-name={name}", "--output=/dev/null", "--wrap=true").strip()
        for name in ("unrelated", "half")
    ]
    profiles = {"profiles": {"held": {"backend": "slurm", "slurm": {"extra": {"hold": True}}}}}
    (shell.folder / "llavajob.yaml").write_text(json.dumps(profiles))
    kill(start(shell, slow, recipe(), "--on", "held", "--name", "half"))
    assert number_or_none(shell, "half") is None
    assert shell.status("half")["state"] == "PENDING"
    shell("cancel", "half")
    assert shell.status("half")["state"] == "CANCELLED"
    assert [shown(bed, job)["JobState"] for job in others] == ["PENDING", "PENDING"]
    queue = bed.call("squeue", "--noheader", "--name=half", "--format=%A").split()
    assert queue == [others[1]], "the run's own job is gone"


def number_or_none(shell: Shell, run: str) -> str | None:
    try:
        return number(shell, run)
    except IndexError:
        return None


def test_a_job_whose_submitter_was_killed_goes_on_by_itself(
    shell: Shell, recipe: Write, bed: Cluster, slow: Path
) -> None:
    kill(start(shell, slow, recipe(), "--on", "slurm", "--name", "orphan"))
    assert shell.status("orphan")["state"] in ("PENDING", "STARTING")
    done = shell.wait("orphan", most_s=180)
    assert done["state"] == "SUCCEEDED", done
    assert [event for event in events(shell.runs / "orphan") if event["event"] == "run.adopted"]
    assert done["job_ids"] == [number(shell, "orphan")]


def test_ctrl_c_leaves_no_job(shell: Shell, recipe: Write, bed: Cluster, slow: Path) -> None:
    process = start(shell, slow, recipe(), "--on", "slurm", "--name", "cut")
    process.send_signal(signal.SIGINT)
    (slow / "hold").unlink()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "taking back what was sent" in said
    active = "--states=PENDING,RUNNING,SUSPENDED"
    shell.until(lambda: not bed.call("squeue", "--noheader", "--name=cut", active).strip(), "no job")


def test_another_cluster_of_the_same_name_does_no_harm(
    shell: Shell, recipe: Write, bed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shared runs folder, two clusters that are named alike, and on both a job of that number and name."""
    shell("submit", recipe(), "--on", "slurm", *SMALL, "--name", "here", STANDIN_STEPS="100000")
    shell.wait_step("here", 2)
    job = number(shell, "here")
    with Bed(accounting=False) as other:
        there = {**other.environment}
        hold = ("sbatch", "--parsable", "--hold", "--job-name=here", "--output=/dev/null", "--wrap=true")
        taken = other.call(*hold).strip()
        while int(taken) < int(job):
            other.call("scancel", taken)
            taken = other.call(*hold).strip()
        for _ in range(2):
            seen = shell("status", "here", "--json", **there).json
            assert seen["state"] == "UNKNOWN" and "runs on the cluster 'testbed' of " in seen["reason"], seen
        assert "asked here is another cluster" in shell("cancel", "here", check=1, **there).err
        shell("resume", "here", check=2, **there)
        assert "UNKNOWN" in shell("list", **there).out
        assert shown(other, taken)["JobState"] == "PENDING"
    assert shell.status("here")["state"] == "RUNNING"
    moment = time.time()
    enough(shell.runs / "here")
    done = shell.wait("here")
    assert done["state"] == "SUCCEEDED" and done["ended"] >= moment, done
