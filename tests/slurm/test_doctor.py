"""What llavajob doctor finds on a real Slurm, good and bad."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.shell import Shell, shell
from tests.slurm.bed import Bed, Cluster

__all__ = ["shell"]


def examine(shell: Shell, code: int, python: str = "", **place: Any) -> dict[str, dict[str, Any]]:
    """The findings for a profile, by what was looked at."""
    values = {"backend": "slurm", "slurm": place, **({"python": python} if python else {})}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": values}}))
    return {finding["what"]: finding for finding in shell("doctor", "--on", "site", "--json", check=code).json}


def test_a_good_profile_is_found_good(shell: Shell, bed: Cluster) -> None:
    found = examine(shell, 0, account="test", partition="main", time="2h", cpus=4, mem="8000M")
    assert {what: finding["good"] for what, finding in found.items() if finding["good"] is not True} == {
        "gpus": None, "KillWait": None,
    }  # fmt: skip
    assert found["commands"]["seen"].startswith("slurm") and "UP" in found["controller"]["seen"]
    assert found["accounting"]["seen"] == "on" and found["account"]["seen"] == "test"
    assert found["partition"]["seen"] == "main (the default), 2 nodes, time limit infinite, up"
    assert found["time"]["seen"] == "02:00:00" and found["preemption"]["seen"].startswith("REQUEUE (partition_prio)")
    assert found["KillWait"]["seen"].startswith("5 sec")
    assert found["node"]["seen"].startswith("node1 ran a task, Python 3")
    assert found["shared folder"]["seen"] == f"{shell.runs} is the same on the node"
    assert found["packages"]["seen"] == "all there on the node"
    lines = shell("doctor", "--on", "site").out.splitlines()
    assert any(line.startswith("  + partition: main") for line in lines)


def test_what_a_cluster_does_not_have_is_named_with_what_to_do(shell: Shell, bed: Cluster) -> None:
    found = examine(shell, 1, partition="mian", account="tset")
    assert found["account"]["good"] is found["partition"]["good"] is False
    assert "tset is none of yours (" in found["account"]["seen"] and "'test'" in found["account"]["cure"]
    assert found["partition"]["seen"] == "there is none named mian"
    assert "high, main, short" in found["partition"]["cure"] and "did you mean 'main'" in found["partition"]["cure"]
    assert found["node"]["good"] is False and "partition" in found["node"]["seen"]
    lines = shell("doctor", "--on", "site", check=1).out.splitlines()
    place = lines.index("  x partition: there is none named mian")
    assert lines[place + 1].startswith("      Set slurm.partition to one of")


def test_what_a_partition_cannot_give_is_named(shell: Shell, bed: Cluster) -> None:
    found = examine(shell, 1, partition="short", time="2h", cpus=64, mem="1T", gpus="a100:8")
    assert {what for what, finding in found.items() if finding["good"] is False} >= {"time", "cpus", "mem", "gpus"}
    assert found["time"]["seen"] == "02:00:00 is longer than the partition allows (1:00)"
    assert found["cpus"]["seen"] == "64 asked for, nodes have 4" and "slurm.cpus to 4" in found["cpus"]["cure"]
    assert found["mem"]["seen"] == "1T asked for, nodes have 8000M" and "8000M" in found["mem"]["cure"]
    assert found["gpus"]["seen"] == "a100:8 asked for, nodes have none" and "--gpus-per-node 0" in found["gpus"]["cure"]


def test_a_python_that_nodes_do_not_have_is_named(shell: Shell, bed: Cluster) -> None:
    found = examine(shell, 1, python="/opt/nowhere/python", time="1h")
    assert found["node"]["good"] is False
    assert "/opt/nowhere/python" in found["node"]["seen"] + found["node"]["cure"]
    assert "python: in the profile" in found["node"]["cure"]


def test_a_python_without_the_packages_is_named(shell: Shell, bed: Cluster) -> None:
    found = examine(shell, 1, python="/usr/bin/python3", time="1h")
    assert found["node"]["good"] is True
    assert found["packages"]["good"] is False and "torch" in found["packages"]["seen"]
    assert "/usr/bin/python3 -m pip install 'llavajob[train]'" in found["packages"]["cure"]


def test_busy_nodes_leave_the_rest_unlooked_at(shell: Shell, bed: Cluster) -> None:
    bed.call("sbatch", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    found = examine(shell, 0, time="1h")
    assert found["node"]["good"] is None and "no node was free" in found["node"]["seen"]
    assert "Try again" in found["node"]["cure"]


def test_without_slurm_or_its_controller_doctor_says_so(shell: Shell, own_bed: Bed) -> None:
    without = shell("doctor", "--on", "slurm", check=1, PATH=str(shell.folder)).out
    assert "x commands: sbatch, srun, squeue, scancel, scontrol, sacct not on PATH" in without
    own_bed.stop_controller()
    silent = shell("doctor", "--on", "slurm", check=1).out
    assert "x controller:" in silent and "Nothing can be sent until it answers." in silent


def test_a_cluster_without_accounting_is_good_enough(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bed(accounting=False) as bed:
        monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
        found = examine(shell, 0, time="1h")
        monkeypatch.undo()
    assert found["accounting"]["good"] is None and found["accounting"]["seen"].startswith("off (")
    assert "account" not in found
