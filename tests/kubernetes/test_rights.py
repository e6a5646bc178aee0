"""Runs by somebody who has the shipped role and nothing else, and by somebody who may not list events."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.shipped import manifests_folder
from tests.kubernetes.bed import Cluster
from tests.kubernetes.jobs import names, write_profile
from tests.shell import STANDIN, Shell, recipe, shell

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
ROLE = manifests_folder() / "submitter-role.yaml"
PODS_S = 120.0


@pytest.fixture
def submitter(shell: Shell, cluster: Cluster, namespace: str, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Be an account that has the role for submitters; its name."""
    write_profile(shell, cluster, namespace, shell.folder, apart=False)
    cluster.kubectl("apply", f"--filename={ROLE}", f"--namespace={namespace}")
    account = f"--serviceaccount={namespace}:default"
    role = "--role=llavajob-submitter"
    cluster.kubectl("create", "rolebinding", "submitters", role, account, f"--namespace={namespace}")
    config = yaml.safe_load(Path(cluster.environment["KUBECONFIG"]).read_text())
    token = cluster.kubectl("create", "token", "default", f"--namespace={namespace}").strip()
    config["users"][0]["user"] = {"token": token}
    (own_place / "submitter").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(own_place / "submitter"))
    return f"system:serviceaccount:{namespace}:default"


def test_the_shipped_role_is_all_that_a_submitter_needs(
    shell: Shell, recipe: Write, cluster: Cluster, namespace: str, submitter: str
) -> None:
    found = {one["what"]: one for one in shell("doctor", "--on", "pods", "--json", check=None).json}
    assert found["rights"]["seen"] == f"all that submit, status, logs and cancel need in namespace {namespace}"
    assert found["pod"]["good"] is True and "may not" not in json.dumps(found["account llavajob"])
    asked = recipe(retries={"grace_s": 5}, environment={"PYTHONPATH": str(STANDIN), "STANDIN_STEPS": "100000"})
    shell("submit", asked, "--on", "pods", "--name", "mine")
    shell.until(lambda: (shell.look("mine")["step"] or 0) >= 3, "step 3 of mine", PODS_S)
    assert "INFO step" in shell("logs", "mine", "--tail", "5").out
    shell("cancel", "mine")
    assert names(cluster, namespace, "pytorchjobs") == names(cluster, namespace) == []


def test_without_events_a_waiting_run_gives_its_place_back(
    shell: Shell, recipe: Write, cluster: Cluster, namespace: str, submitter: str
) -> None:
    rules = [rule for rule in yaml.safe_load(ROLE.read_text())["rules"] if rule["resources"] != ["events"]]
    patch = json.dumps([{"op": "replace", "path": "/rules", "value": rules}])
    role = ("role", "llavajob-submitter", f"--namespace={namespace}")
    cluster.kubectl("patch", *role, "--type=json", f"--patch={patch}")
    asked = recipe(environment={"PYTHONPATH": str(STANDIN)})
    shell("submit", asked, "--on", "pods", "--name", "waits", "--set", "kubernetes.cpu=1000")
    shell.until(lambda: names(cluster, namespace), "a pod", PODS_S)
    told = shell("status", "waits")
    assert told.out.startswith("waits  PENDING") and "too little cpu free" in told.out
    assert told.err.count(f"Note: {submitter} has no right to list events") == 1
    shell("cancel", "waits")
    assert names(cluster, namespace, "pytorchjobs") == names(cluster, namespace) == []
