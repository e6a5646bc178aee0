"""Runs of one name on a real cluster: two people in a namespace, one volume, two kubeconfigs, a lost answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import runs
from launcher.backends.kubernetes import removal
from launcher.backends.kubernetes.client import Client
from launcher.errors import SubmissionUnknown
from tests.kubernetes.bed import Cluster
from tests.kubernetes.jobs import names, steps_done, write_profile
from tests.kubernetes.test_client import Line, kubeconfig, line
from tests.launcher.standin_api import StandInApi
from tests.shell import STANDIN, Shell, recipe, shell

__all__ = ["kubeconfig", "line", "recipe", "shell"]
Write = Callable[..., str]
LONG = "100000"
PODS_S = 180.0
"""How long pods may take to do what they do within seconds on a machine that does nothing else."""


@pytest.fixture
def kept(shell: Shell, cluster: Cluster, namespace: str) -> Path:
    """The profile ``pods``, whose runs lie on a volume that is not seen by the launcher."""
    return write_profile(shell, cluster, namespace, shell.folder, apart=True)


@pytest.fixture
def theirs(own_place: Path) -> str:
    """Where another person keeps runs."""
    return str(own_place / "theirs")


@pytest.fixture
def write(recipe: Write) -> Write:
    return lambda **environment: recipe(
        resources={"nodes": 1}, retries={"grace_s": 5}, environment={"PYTHONPATH": str(STANDIN), **environment}
    )


def submit(shell: Shell, recipe: str, run: str, *options: str, **environment: str) -> Any:
    return shell("submit", recipe, "--on", "pods", "--name", run, *options, **environment)


def uids(cluster: Cluster, namespace: str) -> dict[str, str]:
    """What tells the objects in a namespace from later ones of the same names."""
    found = [obj for kind in ("pytorchjobs", "pods") for obj in cluster.get(kind, namespace=namespace)["items"]]
    return {f"{obj['kind']} {obj['metadata']['name']}": obj["metadata"]["uid"] for obj in found}


def test_two_people_who_have_runs_of_one_name(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path, theirs: str
) -> None:
    """Resuming the one touches nothing of the other."""
    recipe = write(STANDIN_STEPS=LONG)
    submit(shell, recipe, "night")
    shell.until(lambda: (shell.look("night")["step"] or 0) >= 2, "the first run's steps", PODS_S)
    shell("cancel", "night")
    assert names(cluster, namespace, "pytorchjobs") == []
    submit(shell, recipe, "night", "--set", "kubernetes.runs=/runs/theirs", LLAVAJOB_RUNS=theirs)
    shell.until(lambda: len(steps_done(kept / "theirs", "night")) >= 2, "the second run's steps", PODS_S)
    before = uids(cluster, namespace)
    assert set(before) == {"PyTorchJob night", "Pod night-master-0"}
    refused = shell("resume", "night", check=2).err
    assert f"PyTorchJob 'night' is already in namespace '{namespace}' since " in refused
    assert "(run night in /runs/theirs/night); it belongs to another run" in refused
    assert shell.status("night")["state"] == "CANCELLED"
    assert uids(cluster, namespace) == before
    (kept / "theirs/night/enough").touch()

    def ended() -> bool:
        seen = shell("status", "night", "--json", LLAVAJOB_RUNS=theirs).json
        return bool(seen["state"] == "SUCCEEDED" and seen["attempts"] == 1)

    shell.until(ended, "the end of the second run", PODS_S)


def test_a_used_name_on_a_volume_is_refused_by_the_pod(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path, theirs: str
) -> None:
    """What the first run left is untouched, and of how it ended nothing is said that nobody saw."""
    submit(shell, write(), "try")
    word = kept / "try/steps/train.json"
    shell.until(lambda: word.is_file() and json.loads(word.read_text())["state"] == "SUCCEEDED", "its end", PODS_S)
    cluster.kubectl("delete", "pytorchjob,configmap", "try", f"--namespace={namespace}")
    shell.until(lambda: names(cluster, namespace) == [], "pods that are gone", PODS_S)
    seen = shell.status("try")
    assert seen["state"] == "UNKNOWN" and "Look on the volume: /runs/try/steps" in seen["reason"], seen
    first = {path: path.read_bytes() for path in (kept / "try").rglob("*") if path.is_file()}
    run_id = json.loads((shell.runs / "try/run.json").read_text())["run_id"]
    assert first[kept / "try/run_id"].decode().strip() == run_id
    submit(shell, write(STANDIN_STEPS="9"), "try", LLAVAJOB_RUNS=theirs)

    def failed() -> Any:
        found = shell("status", "try", "--json", LLAVAJOB_RUNS=theirs).json
        return found["state"] == "FAILED" and found

    reason = shell.until(failed, "the refusal", PODS_S)["reason"]
    assert "exit code 2" in reason and f"/runs/try belongs to another run (id {run_id})" in reason, reason
    assert {path: path.read_bytes() for path in (kept / "try").rglob("*") if path.is_file()} == first
    assert shell.status("try")["state"] == "UNKNOWN"


def test_two_kubeconfigs_with_one_contexts_name(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path, line: Line, own_place: Path
) -> None:
    """The same cluster at another address is the same; another one at whatever address judges and ends nothing."""
    submit(shell, write(STANDIN_STEPS=LONG), "here", KUBECONFIG=cluster.environment["KUBECONFIG"])
    shell.until(lambda: (shell.look("here")["step"] or 0) >= 2, "its steps at the other address", PODS_S)
    there = StandInApi("another")
    try:
        given = json.loads(cluster.kubectl("config", "view", "--output=json"))
        name = given["current-context"]
        path = own_place / "other"
        path.write_text(Path(there.kubeconfig(path)).read_text().replace("default", name))
        seen = shell("status", "here", "--json", KUBECONFIG=str(path)).json
        assert seen["state"] == "UNKNOWN" and f"asked here is the one at {there.address}" in seen["reason"], seen
        assert "runs on the cluster at" in shell("cancel", "here", check=2, KUBECONFIG=str(path)).err
    finally:
        there.close()
    assert shell.status("here")["state"] == "RUNNING"
    shell("cancel", "here")
    assert names(cluster, namespace) == [] and shell.status("here")["state"] == "CANCELLED"


def test_a_run_whose_answer_was_lost_is_found_and_ended(
    shell: Shell,
    write: Write,
    cluster: Cluster,
    namespace: str,
    kept: Path,
    line: Line,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(removal, "PATIENCE_S", 1.0)
    monkeypatch.chdir(shell.folder)
    create = Client.create_once

    def create_unheard(client: Client, obj: dict[str, Any], *more: Any) -> Any:
        if obj["kind"] == "PyTorchJob":
            line.cut = 10**6
        return create(client, obj, *more)

    monkeypatch.setattr(Client, "create_once", create_unheard)
    prepared = runs.prepare(write(STANDIN_STEPS=LONG), "pods", "lost", [])
    with pytest.raises(SubmissionUnknown, match="may have been sent"):
        runs.submit(prepared)
    line.cut = 0
    assert names(cluster, namespace, "pytorchjobs") == ["lost"]
    shell.until(lambda: (shell.look("lost")["step"] or 0) >= 2, "the steps of what nobody knew of", PODS_S)
    assert shell.status("lost")["state"] == "RUNNING"
    shell("cancel", "lost")
    assert names(cluster, namespace) == names(cluster, namespace, "pytorchjobs") == []
    assert shell.status("lost")["state"] == "CANCELLED"
