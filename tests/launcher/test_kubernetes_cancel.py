"""Cancel does not wait for pods that have nothing to save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes.unstarted import has_started
from tests.launcher.api_server import ApiServer
from tests.shell import Shell

Write = Callable[..., str]
Object = dict[str, Any]
IN_INIT = {
    "phase": "Pending",
    "initContainerStatuses": [{"name": "init-pytorch", "state": {"running": {}}}],
    "containerStatuses": [{"name": "pytorch", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}],
}
RUNS = {"phase": "Running", "containerStatuses": [{"name": "pytorch", "state": {"running": {}}}]}


class Cluster(ApiServer):
    """Pods of a deleted job take their grace: until somebody deletes them with a shorter one, or the server is asked
    for them once more where they save."""

    def deleted(self, resource: str, name: str, body: Object) -> None:
        if resource == "pods":
            del self.objects["pods"][name]
            return
        del self.objects[resource][name]
        for pod in self.objects["pods"].values():
            pod["metadata"] |= {"deletionTimestamp": "2026-11-23T20:00:00Z", "deletionGracePeriodSeconds": 150}

    def answer(self, method: str, url: str, body: Object) -> tuple[int, Object]:
        answer = super().answer(method, url, body)
        if method == "GET" and "/pods?" in url:
            saved = [name for name, pod in self.objects["pods"].items() if pod["metadata"].get("deletionTimestamp")]
            for name in saved:
                if self.objects["pods"][name]["status"]["phase"] == "Running":
                    del self.objects["pods"][name]
        return answer


@pytest.fixture
def server(shell: Shell, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    volumes = [{"mount": "/runs", "pvc": "a"}, {"mount": str(shell.folder), "pvc": "b"}]
    site = {"backend": "kubernetes", "kubernetes": {"volumes": volumes}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": site}}))
    found = Cluster()
    monkeypatch.setenv("KUBECONFIG", found.kubeconfig(own_place / "kubeconfig"))
    yield found
    found.close()


def pod_of(server: Cluster, name: str, status: Object) -> Object:
    """A pod that carries what the run's job gives its pods."""
    (job,) = server.objects["pytorchjobs"].values()
    template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    return {"kind": "Pod", "metadata": {**template["metadata"], "name": name, "uid": name}, "status": status}


def test_cancel_ends_pods_in_their_init_container_at_once(shell: Shell, recipe: Write, server: Cluster) -> None:
    shell("submit", recipe(), "--on", "site", "--name", "night")
    server.put("pods", pod_of(server, "night-master-0", RUNS), pod_of(server, "night-worker-0", IN_INIT))
    shell("cancel", "night")
    deletions = {
        url.rpartition("/")[2]: body for method, url, body in server.asked if method == "DELETE" and "/pods/" in url
    }
    assert {name: body["gracePeriodSeconds"] for name, body in deletions.items()} == {"night-worker-0": 1}
    assert deletions["night-worker-0"]["preconditions"] == {"uid": "night-worker-0"}, "no other pod of that name"
    assert shell.status("night")["state"] == "CANCELLED"


@pytest.mark.parametrize(
    ("status", "started"),
    [
        (IN_INIT, False),
        ({"phase": "Pending"}, False),
        ({}, False),
        (RUNS, True),
        ({"phase": "Pending", "containerStatuses": [{"name": "side", "state": {"running": {}}}]}, False),
        ({"phase": "Pending", "containerStatuses": [{"name": "pytorch", "state": {"running": {}}}]}, True),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {"name": "llavajob", "state": {"waiting": {}}, "lastState": {"terminated": {}}, "restartCount": 1}
                ],
            },
            True,
        ),
    ],
)
def test_what_has_started(status: Object, started: bool) -> None:
    assert has_started({"metadata": {"name": "p"}, "status": status}) is started
