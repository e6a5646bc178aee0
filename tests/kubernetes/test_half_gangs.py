"""Gangs of which a cluster takes only a part: what is said, and that they do not hold their place for ever."""

from __future__ import annotations

from collections.abc import Callable

from tests.kubernetes.bed import Cluster
from tests.kubernetes.jobs import write_profile
from tests.shell import STANDIN, Shell, recipe, shell

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
PODS_S = 120.0
LIMIT_S = 25


def test_half_a_gang_says_what_keeps_it_and_gives_its_place_back(
    shell: Shell, recipe: Write, cluster: Cluster, namespace: str
) -> None:
    write_profile(shell, cluster, namespace, shell.folder, apart=False, start_timeout_s=LIMIT_S)
    quota = {"kind": "ResourceQuota", "metadata": {"name": "one-pod"}, "spec": {"hard": {"pods": "1"}}}
    cluster.create(namespace, {"apiVersion": "v1", **quota})
    shell("submit", recipe(environment={"PYTHONPATH": str(STANDIN)}), "--on", "pods", "--name", "half")
    words = "1 of 2 pods cannot be made: the quota one-pod is used up: pods=1 wanted, pods=1 in use, pods=1 allowed"
    seen = shell.until(lambda: (s := shell.look("half"))["reason"] == words and s, words, PODS_S)
    assert seen["state"] == "PENDING"
    ended = shell.wait("half", most_s=PODS_S)
    assert ended["state"] == "FAILED"
    assert f"node 1 did not come within {LIMIT_S} s (kubernetes.start_timeout_s)" in ended["reason"]

    def running() -> list[str]:
        pods = cluster.get("pods", namespace=namespace)["items"]
        return [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]

    shell.until(lambda: not running(), "no pod that holds a place", PODS_S)
