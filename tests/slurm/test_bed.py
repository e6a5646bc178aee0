"""The test bed itself: a cluster that does what the tests of Slurm rely on, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

import tests.slurm.bed as bed_module
from tests.slurm.bed import NODES, Bed, BedError, Cluster, describe, remains, until

REPOSITORY = Path(__file__).parents[2]
# Without a limit a job has a node's memory, and so the node, to itself.
TWO_NODES = ("--nodes=2", "--mem=100")
# Both nodes work, and one process has left its step's session.
BUSY = "setsid sleep 1000 & srun sleep 1000"
# The one in the background, two processes of srun, and one on each node.
SLEEPERS = 5


def nodes_of_step(bed: Cluster) -> list[str]:
    """The nodes that a step of two tasks runs on."""
    return sorted(bed.call("srun", *TWO_NODES, "printenv", "SLURMD_NODENAME").split())


def submit(bed: Cluster, command: str) -> str:
    """Submit a job on two nodes and name it."""
    return bed.call("sbatch", "--parsable", *TWO_NODES, "--output=/dev/null", f"--wrap={command}").strip()


def busy(bed: Bed) -> str:
    """Start a job on two nodes that works until it is ended, and wait until it does."""
    job = submit(bed, BUSY)
    until(lambda: len(sleepers(bed)) == SLEEPERS, 30, lambda: f"{bed.job_processes()}")
    return job


def sleepers(bed: Bed) -> list[str]:
    """The processes of a busy job."""
    return [line for line in bed.job_processes() if line.endswith("sleep 1000")]


def test_a_step_runs_on_both_nodes(own_bed: Bed) -> None:
    assert nodes_of_step(own_bed) == sorted(NODES)


def test_accounting_knows_a_job(bed: Cluster) -> None:
    job = submit(bed, "exit 3")
    query = ("sacct", "--noheader", "--parsable2", f"--jobs={job}", "--allocations", "--format=State,ExitCode")
    until(lambda: bed.call(*query).strip() == "FAILED|3:0", 60, lambda: bed.call(*query))
    assert bed.call(*query) == "FAILED|3:0\n"


def test_jobs_outlast_the_controller(own_bed: Bed) -> None:
    job = busy(own_bed)
    own_bed.stop_controller()
    with pytest.raises(BedError, match="is DOWN"):
        own_bed.call("scontrol", "ping")
    assert len(sleepers(own_bed)) == SLEEPERS
    own_bed.start_controller()
    assert own_bed.call("squeue", "--noheader", f"--jobs={job}", "--format=%T") == "RUNNING\n"


def test_a_killed_node_takes_its_processes_along(own_bed: Bed) -> None:
    busy(own_bed)
    own_bed.kill_node("node2")
    # The script's own processes and node1's half of the step.
    assert len(sleepers(own_bed)) == SLEEPERS - 1
    own_bed.start_node("node2")
    assert nodes_of_step(own_bed) == sorted(NODES)


def test_a_forgotten_client_is_seen(own_bed: Bed) -> None:
    with subprocess.Popen(["sleep", "1000"]) as forgotten:
        try:
            assert own_bed.job_processes() == [f"{forgotten.pid} sleep 1000"]
        finally:
            forgotten.kill()
    assert own_bed.job_processes() == []


def test_two_beds_do_not_notice_each_other(own_bed: Bed) -> None:
    with Bed(accounting=False) as other:
        busy(other)
        assert nodes_of_step(other) == nodes_of_step(own_bed) == sorted(NODES)
        assert not own_bed.job_processes()
    assert not other.leftovers()
    assert nodes_of_step(own_bed) == sorted(NODES)


def test_a_daemon_that_does_not_start_is_named_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed_module, "SLURM_CONF", bed_module.SLURM_CONF + "SelectType=select/none\n")
    broken = Bed(accounting=False)
    with pytest.raises(BedError, match=r"(?s)slurmctld ended.*select/none"):
        broken.start()
    assert not broken.leftovers()


def test_a_killed_owner_leaves_nothing() -> None:
    owner = f"""
import json, os
from tests.slurm.bed import Bed
from tests.slurm.test_bed import busy
bed = Bed()
bed.start()
busy(bed)
print(json.dumps([str(bed.folder), bed.pids()]), flush=True)
os.kill(os.getpid(), {signal.SIGKILL})
"""
    ended = subprocess.run([sys.executable, "-c", owner], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL
    folder, pids = json.loads(ended.stdout)
    # The keeper, six daemons, slurmctld's helper, and the job: three managers, the script and its sleepers.
    assert len(pids) == 1 + 6 + 1 + 4 + SLEEPERS

    def left() -> list[str]:
        return remains(Path(folder)) + describe([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])

    until(lambda: not left(), 15, lambda: f"{left()}")


def test_a_bed_can_be_kept_by_hand() -> None:
    folder = Path(tempfile.mkdtemp(prefix="llavajob-hand-"))
    command = [sys.executable, "-m", "tests.slurm.bed"]
    told = subprocess.run([*command, "up", str(folder)], cwd=REPOSITORY, capture_output=True, text=True)
    try:
        assert told.stdout == f"export SLURM_CONF={folder}/slurm.conf\n", told.stderr
        assert nodes_of_step(Cluster({"SLURM_CONF": f"{folder}/slurm.conf"})) == sorted(NODES)
    finally:
        subprocess.run([*command, "down", str(folder)], cwd=REPOSITORY, check=True)
    assert not remains(folder)
