"""The test bed itself: a cluster that does what the tests of Kubernetes rely on, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

import tests.kubernetes.build as build_module
import tests.kubernetes.configuration as configuration_module
from tests.kubernetes.bed import Bed, Cluster, remains
from tests.kubernetes.image import REPOSITORY, USER, give, pod_template
from tests.kubernetes.keeper import CGROUPS
from tests.slurm.bed import BedError, describe, until

JOB_LIMIT_S = 240.0
GANG = """\
import os, sys
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank()])
dist.all_reduce(total)
with open(f"{sys.argv[1]}/rank-{dist.get_rank()}", "w") as told:
    told.write(f"{os.environ['PET_NODE_RANK']} {dist.get_world_size()} {total.item()} {os.getuid()}")
dist.destroy_process_group()
"""
SLEEPER = ("sleep", "1000")
# Three processes of the keeper, eight daemons, the relay, and a pod's shim, pause and sleeper.
BUSY = 3 + 8 + 1 + 3
# A test's home is not where the programs are.
ENVIRONMENT = {**os.environ, "LLAVAJOB_TEST_CACHE": str(build_module.CACHE.parent)}


@pytest.fixture
def shared(own_place: Path) -> Path:
    """A folder that the pods may write to."""
    folder = own_place / "shared"
    folder.mkdir()
    give(folder)
    return folder


def training(name: str, template: dict[str, Any]) -> dict[str, Any]:
    """A PyTorchJob of two pods with two ranks each."""
    replica = {"replicas": 1, "restartPolicy": "Never", "template": template}
    spec = {"nprocPerNode": "2", "pytorchReplicaSpecs": {"Master": replica, "Worker": replica}}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name}, "spec": spec}


def job(name: str, template: dict[str, Any], completions: int = 1) -> dict[str, Any]:
    """An Indexed Job whose pods run at the same time."""
    template["spec"]["restartPolicy"] = "Never"
    count = {"completions": completions, "parallelism": completions}
    spec = {"completionMode": "Indexed", "backoffLimit": 0, "template": template, **count}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def conditions(cluster: Cluster, namespace: str, kind: str, name: str) -> set[str]:
    """What is true of a job."""
    found = cluster.get(kind, name, namespace).get("status", {}).get("conditions", [])
    return {condition["type"] for condition in found if condition["status"] == "True"}


def finish(cluster: Cluster, namespace: str, kind: str, name: str) -> set[str]:
    """What is true of a job at its end."""
    ends = {"Succeeded", "Complete", "Failed"}

    def said() -> str:
        events = cluster.kubectl("get", "events,pods", f"--namespace={namespace}", "--output=wide")
        logs = [
            cluster.kubectl("logs", pod["metadata"]["name"], f"--namespace={namespace}", "--all-containers")
            for pod in cluster.get("pods", namespace=namespace)["items"]
        ]
        return "\n".join([events, *logs])

    until(lambda: bool(ends & conditions(cluster, namespace, kind, name)), JOB_LIMIT_S, said)
    return ends & conditions(cluster, namespace, kind, name)


def sleep(bed: Bed, namespace: str) -> psutil.Process:
    """Run a pod that sleeps until it is ended, and find its process."""
    before = sleepers(bed)
    bed.create(namespace, job("sleep", pod_template(SLEEPER)))

    def new() -> list[psutil.Process]:
        return [process for process in sleepers(bed) if process not in before]

    until(lambda: bool(new()), JOB_LIMIT_S, lambda: bed.kubectl("get", "events", f"--namespace={namespace}"))
    return new()[0]


def sleepers(bed: Bed) -> list[psutil.Process]:
    """The processes of a bed's pods that sleep."""
    found = []
    for pid in bed.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.cmdline() == [*SLEEPER] and process.uids().real == USER:
                found.append(process)
    return found


def footprint() -> dict[str, Any]:
    """What a cluster would leave on a host."""
    named = ("/etc/cni", "/etc/kubernetes", "/run/containerd", "/run/netns", "/tmp/k8s-webhook-server",
             "/usr/libexec/kubernetes", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods")  # fmt: skip
    places = [*map(Path, named), *CGROUPS.glob("*/k8s.io"), *CGROUPS.glob("*/kubepods")]
    sysctls = ("kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward", "vm/overcommit_memory")
    return {
        "places": {place for place in places if place.exists()},
        "links": set(os.listdir("/sys/class/net")),
        "mounts": {line for line in Path("/proc/self/mounts").read_text().splitlines() if "llavajob" in line},
        "sysctls": {name: Path("/proc/sys", name).read_text() for name in sysctls},
    }


def test_a_pytorchjob_trains_over_two_pods(cluster: Cluster, namespace: str, shared: Path) -> None:
    script = shared / "gang.py"
    script.write_text(GANG)
    command = (sys.executable, "-m", "torch.distributed.run", str(script), str(shared))
    cluster.create(namespace, training("gang", pod_template(command, shared)))
    assert finish(cluster, namespace, "pytorchjob", "gang") == {"Succeeded"}
    told = {path.name: path.read_text() for path in shared.glob("rank-*")}
    assert told == {f"rank-{rank}": f"{rank // 2} 4 6 {USER}" for rank in range(4)}


def test_the_webhook_refuses_another_containers_name(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(BedError, match=r"denied the request.*pytorch"):
        cluster.create(namespace, training("wrong", pod_template(SLEEPER, name="main")))


def test_an_indexed_job_runs_each_index(cluster: Cluster, namespace: str, shared: Path) -> None:
    template = pod_template(("sh", "-c", f"touch {shared}/$JOB_COMPLETION_INDEX"), shared)
    cluster.create(namespace, job("shards", template, completions=3))
    assert finish(cluster, namespace, "job", "shards") == {"Complete"}
    assert sorted(path.name for path in shared.iterdir()) == ["0", "1", "2"]


def test_pods_outlast_the_api_server(own_bed: Bed, namespace: str) -> None:
    sleeper = sleep(own_bed, namespace)
    own_bed.stop_api()
    with pytest.raises(BedError, match="refused"):
        own_bed.kubectl("get", "pods")
    own_bed.start_api()
    assert sleeper.is_running()
    (pod,) = own_bed.get("pods", namespace=namespace)["items"]
    assert pod["status"]["phase"] == "Running"


def test_the_host_sees_nothing_of_a_beds_network_and_mounts(own_bed: Bed, namespace: str) -> None:
    sleep(own_bed, namespace)
    assert "bed" not in os.listdir("/sys/class/net")
    assert str(own_bed.folder) not in Path("/proc/self/mounts").read_text()


def test_a_daemon_that_does_not_start_is_named_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = footprint()
    monkeypatch.setattr(configuration_module, "CONTAINERD", "version = nonsense\n")
    broken = Bed()
    with pytest.raises(BedError, match=r"containerd ended: .*containerd.toml"):
        broken.start()
    assert not broken.leftovers()
    assert footprint() == before


def test_a_killed_owner_leaves_nothing_beside_another_bed(own_bed: Bed) -> None:
    before = footprint()
    owner = f"""
import json, os
from tests.kubernetes.bed import Bed
from tests.kubernetes.test_bed import BUSY, sleep, until
bed = Bed()
bed.start()
sleep(bed, "default")
until(lambda: len(bed.pids()) == BUSY, 15, lambda: str(bed.leftovers()))
print(json.dumps([str(bed.folder), bed.pids()]), flush=True)
os.kill(os.getpid(), {signal.SIGKILL})
"""
    ended = subprocess.run(
        [sys.executable, "-c", owner], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    folder, pids = json.loads(ended.stdout)

    def left() -> list[str]:
        return remains(Path(folder)) + describe([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])

    until(lambda: not left(), 15, lambda: f"{left()}")
    assert footprint() == before
    assert own_bed.kubectl("get", "--raw=/readyz") == "ok"


def test_a_bed_can_be_kept_by_hand() -> None:
    folder = Path(tempfile.mkdtemp(prefix="llavajob-hand-"))
    command = [sys.executable, "-m", "tests.kubernetes.bed"]
    told = subprocess.run(
        [*command, "up", str(folder)], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
    )
    try:
        assert told.stdout == f"export KUBECONFIG={folder}/kubeconfig\n", told.stderr
        assert "node1" in Cluster({"KUBECONFIG": f"{folder}/kubeconfig"}).kubectl("get", "nodes")
    finally:
        subprocess.run([*command, "down", str(folder)], cwd=REPOSITORY, env=ENVIRONMENT, check=True)
    assert not remains(folder)


def test_a_torn_build_is_not_used(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def part(name: str, fails: bool = False) -> Any:
        def fill(place: Path) -> None:
            made.append(name)
            (place / name).touch()
            if fails:
                raise BedError("torn")

        return fill

    cache = own_place / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "CACHE", cache)
        patch.setattr(build_module, "parts", lambda: {"one": part("one"), "two": part("two", fails=True)})
        with pytest.raises(BedError, match="torn"):
            build_module.build()
        assert build_module.unbuilt() == ["two"]
        patch.setattr(build_module, "parts", lambda: {"one": part("one"), "two": part("two")})
        build_module.build()
        assert not build_module.unbuilt() and made == ["one", "two", "two"]
    assert sorted(path.name for path in cache.iterdir()) == ["lock", "one", "two"]
