"""How many threads a process gets: the least of affinity, control groups' quotas and what the plan asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher import cores
from launcher.backends.kubernetes import pod
from launcher.cores import ENV_CPUS, usable_cores
from launcher.node_environment import node_environment
from launcher.plan import Plan, Step
from launcher.plan_text import render
from launcher.run_folder import RunFolder

V2_POD = "0::/"
V2_HOST = "0::/kubepods.slice/pod1.slice/container.scope"
V1 = "5:cpu,cpuacct:/kubepods/pod1/container\n3:memory:/kubepods/pod1/container\n1:name=systemd:/other"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 96 cores, whose control groups lie in this folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(96)))
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.delenv(ENV_CPUS, raising=False)
    return tmp_path


def set_up(machine: Path, membership: str, **files: str) -> None:
    (machine / "membership").write_text(membership)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        (V2_POD, {"cpu.max": "1200000 100000"}, 12),
        (V2_POD, {"cpu.max": "50000 100000"}, 1),
        (V2_POD, {"cpu.max": "150000 100000"}, 1),
        (V2_POD, {"cpu.max": "max 100000"}, 96),
        (V2_POD, {"cpu.max": "torn"}, 96),
        (V2_POD, {}, 96),
        (V2_HOST, {"kubepods.slice/pod1.slice/container.scope/cpu.max": "800000 100000"}, 8),
        # The pod's own quota is less than the container's, which has none.
        (
            V2_HOST,
            {
                "kubepods.slice/pod1.slice/container.scope/cpu.max": "max 100000",
                "kubepods.slice/pod1.slice/cpu.max": "400000 100000",
                "kubepods.slice/cpu.max": "9000000 100000",
            },
            4,
        ),
        # The path is the host's, and the container sees its own group at the top.
        (V2_HOST, {"cpu.max": "600000 100000"}, 6),
        ("1:name=systemd:/a\n0::/a", {"unified/a/cpu.max": "300000 100000"}, 3),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "500000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 5),
        (
            V1,
            {
                "cpu/kubepods/pod1/container/cpu.cfs_quota_us": "-1",
                "cpu/kubepods/pod1/container/cpu.cfs_period_us": "100000",
                "cpu/kubepods/pod1/cpu.cfs_quota_us": "140000",
                "cpu/kubepods/pod1/cpu.cfs_period_us": "20000",
            },
            7,
        ),
        (V1, {"memory/cpu.max": "100000 100000"}, 96),
        (V1, {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "0"}, 96),
        ("", {"cpu.max": "100000 100000"}, 96),
    ],
)
def test_quotas(machine: Path, membership: str, files: dict[str, str], count: int) -> None:
    set_up(machine, membership, **files)
    assert usable_cores() == count


def test_no_control_groups_at_all(machine: Path) -> None:
    assert usable_cores() == 96


@pytest.mark.parametrize(("asked", "count"), [("12.0", 12), ("0.5", 1), ("200", 48), ("", 48), ("many", 48)])
def test_what_the_plan_asks_for(machine: Path, monkeypatch: pytest.MonkeyPatch, asked: str, count: int) -> None:
    set_up(machine, V2_POD, **{"cpu.max": "4800000 100000"})
    monkeypatch.setenv(ENV_CPUS, asked)
    assert usable_cores() == count


def step(processes: int = 1, per_node: int = 1) -> Step:
    return Step("score", "", "task", 1, processes, 0, per_node, 1, None, ("python",), {}, 0, 1)


@pytest.mark.parametrize(("processes", "sharing", "threads"), [(1, 1, 12), (4, 1, 3), (1, 3, 4), (8, 4, 1)])
def test_threads_are_shares_of_the_quota(machine: Path, processes: int, sharing: int, threads: int) -> None:
    set_up(machine, V2_POD, **{"cpu.max": "1200000 100000"})
    one = step(processes)
    assert node_environment(one, RunFolder(machine), "", 0, 0, sharing, None)["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(("cpu", "per_node", "count"), [("96", 8, 12), ("500m", 1, 1), (10, 4, 2), ("", 1, 96)])
def test_a_pod_uses_its_share_of_what_the_profile_says(
    machine: Path, monkeypatch: pytest.MonkeyPatch, cpu: str | int, per_node: int, count: int
) -> None:
    """Where the node sets no quota."""
    seen: list[int] = []
    monkeypatch.setattr(pod.Single, "run", lambda self: seen.append(usable_cores()) or 0)
    monkeypatch.setenv(ENV_CPUS, "")
    plan = Plan("night", "", machine / "night", "kubernetes", {"cpu": cpu}, (step(per_node=per_node),))
    (machine / "night").mkdir()
    (machine / "plan.yaml").write_text(render(plan))
    monkeypatch.setenv("LLAVAJOB_PLAN", str(machine / "plan.yaml"))
    assert pod.main(["score"]) == 0 and seen == [count]
