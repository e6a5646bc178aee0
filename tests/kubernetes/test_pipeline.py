"""Pipelines on real pods: a conductor starts each stage, ends with the first that fails, and needs few rights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.backends.kubernetes.text import parse_objects, write_objects
from tests.kubernetes.bed import Cluster
from tests.kubernetes.jobs import ACCOUNT, names, write_profile
from tests.shell import STANDIN, Shell, pipeline, recipe, shell

__all__ = ["pipeline", "recipe", "shell"]
Write = Callable[..., str]
STAGES = ("learn", "merge", "score", "score-merge")
LONG = "100000"
PODS_S = 120.0


@pytest.fixture
def write(pipeline: Write) -> Write:
    """Write a pipeline for the stand-in runtime; what it is told goes into the recipe, as pods inherit nothing."""
    return lambda **environment: pipeline(environment={"PYTHONPATH": str(STANDIN), **environment})


@pytest.fixture
def kept(shell: Shell, cluster: Cluster, namespace: str) -> Path:
    return write_profile(shell, cluster, namespace, shell.folder, apart=False)


def submit(shell: Shell, recipe: str, run: str) -> None:
    shell("submit", recipe, "--on", "pods", "--name", run)


def states(shell: Shell, run: str) -> list[str]:
    """The states of the stages, in order."""
    stages = shell.status(run)["stages"]
    assert tuple(stage["name"] for stage in stages) == STAGES
    return [stage["state"] for stage in stages]


def wait_step(shell: Shell, run: str, step: int) -> None:
    shell.until(lambda: (shell.look(run)["step"] or 0) >= step, f"step {step} of {run}", PODS_S)


def hold(cluster: Cluster, namespace: str, name: str, *finalizers: str) -> None:
    """Keep what is deleted of a run's files in the cluster, as a busy garbage collector does for a moment."""
    patch = json.dumps({"metadata": {"finalizers": [*finalizers] or None}})
    cluster.kubectl("patch", "configmap", name, "--type=merge", f"--patch={patch}", f"--namespace={namespace}")


def goes(cluster: Cluster, namespace: str, name: str) -> bool:
    return "deletionTimestamp" in cluster.get("configmap", name, namespace)["metadata"]


def test_stages_run_one_after_the_other_though_the_conductor_dies(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, write(STANDIN_STEPS=LONG), "all")
    wait_step(shell, "all", 3)
    assert states(shell, "all") == ["RUNNING", "PENDING", "PENDING", "PENDING"]
    assert names(cluster, namespace, "pytorchjobs") == ["all-learn"] and names(cluster, namespace, "jobs") == ["all"]
    (conductor,) = (name for name in names(cluster, namespace) if not name.startswith("all-learn"))
    cluster.kubectl("delete", "pod", conductor, "--force", "--grace-period=0", f"--namespace={namespace}")
    (kept / "all/stages/learn/enough").touch()
    done = shell.wait("all", most_s=2 * PODS_S)
    assert (done["state"], states(shell, "all")) == ("SUCCEEDED", ["SUCCEEDED"] * 4), done["reason"]
    ends = [(stage["started"], stage["ended"]) for stage in done["stages"]]
    assert all(ended <= started for (_, ended), (started, _) in pairwise(ends))
    assert "answered by 2 shards, 2 asked for" in shell("status", "all").out
    assert names(cluster, namespace, "pytorchjobs") == ["all-learn"], "none was made twice"
    shell.until(lambda: shell.left("all") == [], "no process left")


def test_a_failed_stage_ends_the_rest_and_resume_starts_there(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, write(STANDIN_FAIL="shard:1"), "pipe")
    failed = shell.wait("pipe", most_s=2 * PODS_S)
    assert failed["state"] == "FAILED" and failed["stage"] == "score"
    assert failed["reason"].startswith("score: shard 1: exit code 137 (SIGKILL)"), failed["reason"]
    assert states(shell, "pipe") == ["SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELLED"]
    assert "x score  failed" in shell("status", "pipe").out
    hold(cluster, namespace, "pipe", "example.org/slow")
    resumed = shell.start("resume", "pipe", "--set", "environment.STANDIN_FAIL=none")
    shell.until(lambda: goes(cluster, namespace, "pipe"), "the old files going", PODS_S)
    hold(cluster, namespace, "pipe")
    assert resumed.wait(PODS_S) == 0, resumed.communicate()
    done = shell.wait("pipe", most_s=2 * PODS_S)
    assert (done["state"], states(shell, "pipe")) == ("SUCCEEDED", ["SUCCEEDED"] * 4), done["reason"]
    attempts = {stage: len(list((kept / f"pipe/stages/{stage}/attempts").iterdir())) for stage in STAGES[:3]}
    assert attempts == {"learn": 1, "merge": 1, "score": 2}


def test_cancel_ends_every_stage(shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path) -> None:
    submit(shell, write(STANDIN_STEPS=LONG), "long")
    wait_step(shell, "long", 3)
    shell("cancel", "long")
    left = [name for kind in ("pytorchjobs", "jobs", "pods") for name in names(cluster, namespace, kind)]
    assert left == [] == shell.left("long")
    cancelled = shell.status("long")
    assert cancelled["state"] == "CANCELLED" and f"state saved at step {cancelled['step']}" in cancelled["reason"]
    assert not {"RUNNING", "PENDING", "REQUEUED"} & set(states(shell, "long"))


RIGHTS = [("create", "pytorchjobs"), ("get", "pytorchjobs"), ("create", "jobs"), ("get", "jobs")]


@pytest.mark.parametrize(("verb", "resource"), RIGHTS)
def test_each_right_that_the_conductor_lacks_is_named(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path, verb: str, resource: str
) -> None:
    account, role, binding = parse_objects(ACCOUNT.read_text())
    for rule in role["rules"]:
        if resource in rule["resources"]:
            rule["verbs"].remove(verb)
    text = write_objects([account, role, binding])
    cluster.kubectl("apply", f"--namespace={namespace}", "--filename=-", stdin=text)
    submit(shell, write(), "poor")
    failed = shell.wait("poor", most_s=2 * PODS_S)
    assert failed["state"] == "FAILED", failed
    group = {"pytorchjobs": "kubeflow.org", "jobs": "batch"}[resource]
    who = f"system:serviceaccount:{namespace}:llavajob"
    words = f"{who} has no right to {verb} {resource}.{group} in namespace '{namespace}'"
    assert failed["reason"].endswith(words), failed["reason"]
    assert not re.match(r"(\w+): \1: ", failed["reason"]), failed["reason"]
