"""Training on real pods: how runs start, end, are hit, and go on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.kubernetes.text import parse_objects
from tests.kubernetes.bed import Bed, Cluster
from tests.kubernetes.jobs import events_of, names, pod_uid, rank_process, steps_done, write_profile
from tests.kubernetes.test_objects import inside
from tests.shell import STANDIN, Shell, recipe, shell
from tests.world import build_world, losses, train_recipe, write_recipe

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
LONG = "100000"
PODS_S = 120.0
"""How long pods may take to do what they do within seconds on a machine that does nothing else."""


@pytest.fixture
def write(recipe: Write) -> Write:
    """Write a recipe for the stand-in runtime; what it is told goes into the recipe, as pods inherit nothing."""

    def write(retries: dict[str, int] | None = None, **environment: str) -> str:
        return recipe(
            retries={"grace_s": 5, **(retries or {})}, environment={"PYTHONPATH": str(STANDIN), **environment}
        )

    return write


@pytest.fixture
def kept(shell: Shell, cluster: Cluster, namespace: str) -> Path:
    """The profile ``pods``, whose runs lie on a volume that is seen here."""
    return write_profile(shell, cluster, namespace, shell.folder, apart=False)


def submit(shell: Shell, recipe: str, run: str, *options: str) -> None:
    shell("submit", recipe, "--on", "pods", "--name", run, *options)


def running(shell: Shell, recipe: str, run: str, *options: str) -> None:
    """Submit a run and wait until it has done some steps."""
    submit(shell, recipe, run, *options)
    wait_step(shell, run, 3)


def wait_step(shell: Shell, run: str, step: int) -> Any:
    return shell.until(lambda: ((s := shell.look(run))["step"] or 0) >= step and s, f"step {step} of {run}", PODS_S)


def enough(kept: Path, run: str) -> None:
    """Have the stand-in runtime take the step that it is at for the last one."""
    (kept / run / "enough").touch()


def nothing_is_left(shell: Shell, cluster: Cluster, namespace: str, run: str) -> None:
    """No object, no pod, no process."""
    assert [name for kind in ("pytorchjobs", "jobs", "pods") for name in names(cluster, namespace, kind)] == []
    assert shell.left(run) == []


# From submit to the end


def test_a_run_goes_from_pending_to_succeeded_on_two_pods(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    asked = write(STANDIN_STEP_S="0.5")
    told = shell("submit", asked, "--on", "pods", "--name", "first", "--dry-run").out
    sent = shell("submit", asked, "--on", "pods", "--name", "first", "--json").json
    assert (sent["backend"], sent["job_ids"]) == ("kubernetes", ["first"])
    run_id = json.loads((kept / "first/run.json").read_text())["run_id"]
    text = (kept / "first/attempts/0/rendered.yaml").read_text()
    # A dry run prints the same each time: it has no id, and no label for it.
    lines = [line.replace(run_id, "") for line in text.splitlines() if "llavajob/run-id: " not in line]
    assert [line.replace("'", "") for line in lines] == [line.replace("'", "") for line in told.splitlines()]
    for wanted, kind in zip(parse_objects(text), ("configmap", "pytorchjob"), strict=True):
        assert inside(wanted, cluster.get(kind, "first", namespace))
    following = shell.start("logs", "first", "--follow")
    seen = shell.wait("first", "RUNNING", most_s=PODS_S)
    assert seen["attempts"] == 1 and names(cluster, namespace) == ["first-master-0", "first-worker-0"]
    done = shell.wait("first", most_s=PODS_S)
    assert (done["state"], done["step"], done["attempts"]) == ("SUCCEEDED", 5, 1), done["reason"]
    out, words = following.communicate(timeout=60)
    assert following.returncode == 0 and "first succeeded" in words
    for node in (0, 1):
        assert f"node {node} starts at step 0" in out
        start = json.loads((kept / f"first/attempts/0/started-{node}.json").read_text())
        assert (start["PET_NODE_RANK"], start["PET_NNODES"], start["PET_NPROC_PER_NODE"]) == (str(node), "2", "1")
    shell.until(lambda: shell.left("first") == [], "no process left")
    assert "first" in shell("list", "--state", "succeeded").out


def test_what_a_dry_run_prints_runs_by_hand(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    text = shell("submit", write(), "--on", "pods", "--name", "by-hand", "--dry-run").out
    (kept / "by-hand").mkdir()
    cluster.kubectl("apply", "--filename=-", stdin=text)

    def ended() -> bool:
        found = cluster.get("pytorchjob", "by-hand", namespace).get("status", {}).get("conditions", [])
        return any(one["type"] == "Succeeded" and one["status"] == "True" for one in found)

    shell.until(ended, "the end of the job", PODS_S)
    assert steps_done(kept, "by-hand") == [1, 2, 3, 4, 5]


def test_runs_on_a_volume_that_is_not_seen_here_are_followed_through_their_pods(
    shell: Shell, write: Write, cluster: Cluster, namespace: str
) -> None:
    kept = write_profile(shell, cluster, namespace, shell.folder, apart=True)
    submit(shell, write(STANDIN_STEP_S="0.3"), "apart")
    following = shell.start("logs", "apart", "--follow")
    done = shell.wait("apart", most_s=PODS_S)
    assert (done["state"], done["step"], done["attempts"]) == ("SUCCEEDED", 5, 1), done["reason"]
    out, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    assert {int(n) for n in re.findall(r"step (\d+)$", out, re.MULTILINE)} == {1, 2, 3, 4, 5}
    for name in ("attempts/0/rank0000.log", "attempts/0/rank0001.log", "metrics.jsonl"):
        assert (shell.runs / "apart" / name).read_bytes() == (kept / "apart" / name).read_bytes()
    whole = shell("logs", "apart").out
    cluster.kubectl("delete", "pytorchjob", "apart", f"--namespace={namespace}")
    assert shell("logs", "apart").out == whole and shell.status("apart")["state"] == "SUCCEEDED"
    assert not (shell.runs / "apart/checkpoints/step-000005/model.safetensors").exists(), "weights stay where they are"


# Cancel and resume


def test_cancel_saves_and_leaves_nothing_and_resume_goes_on_with_one_node(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    running(shell, write(STANDIN_STEPS=LONG), "cut")
    assert "no process is left" in shell("cancel", "cut").err
    nothing_is_left(shell, cluster, namespace, "cut")
    seen = shell.status("cut")
    assert seen["state"] == "CANCELLED" and f"state saved at step {seen['step']}" in seen["reason"], seen
    assert steps_done(kept, "cut") == list(range(1, seen["step"] + 1))
    assert "has ended already (CANCELLED)" in shell("cancel", "cut", check=2).err
    shell("resume", "cut", "--nodes", "1", "--set", f"environment.STANDIN_STEPS={seen['step'] + 3}")
    done = shell.wait("cut", most_s=PODS_S)
    assert (done["state"], done["attempts"], done["step"]) == ("SUCCEEDED", 2, seen["step"] + 3), done["reason"]
    assert names(cluster, namespace) == ["cut-master-0"]
    assert steps_done(kept, "cut") == list(range(1, done["step"] + 1))


def test_cancel_of_what_waits_and_of_what_ignores_signals(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, write(), "waits", "--set", "kubernetes.node_selector.gpu=none")
    reason = shell.until(lambda: shell.status("waits")["reason"], "why it waits", PODS_S)
    assert reason == "no node fits: 1 of 1 has another label (kubernetes.node_selector)"
    assert shell.status("waits")["state"] == "PENDING"
    shell("cancel", "waits")
    nothing_is_left(shell, cluster, namespace, "waits")
    assert shell.status("waits")["state"] == "CANCELLED"
    running(shell, write(retries={"grace_s": 1}, STANDIN_STEPS=LONG, STANDIN_DEAF="1"), "deaf")
    shell("cancel", "deaf")
    nothing_is_left(shell, cluster, namespace, "deaf")
    assert shell.status("deaf")["state"] == "CANCELLED"


def test_what_others_delete_is_noticed_and_can_be_resumed(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    running(shell, write(STANDIN_STEPS=LONG), "gone")
    cluster.kubectl("delete", "pytorchjob", "gone", f"--namespace={namespace}")
    ended = shell.wait("gone", most_s=PODS_S)
    assert (ended["state"], ended["reason"]) == ("FAILED", "PyTorchJob gone was deleted by somebody else"), ended
    shell("resume", "gone", "--set", f"environment.STANDIN_STEPS={ended['step'] + 2}")
    assert shell.wait("gone", most_s=PODS_S)["state"] == "SUCCEEDED"
    assert sorted(set(steps_done(kept, "gone"))) == list(range(1, ended["step"] + 3))


# What breaks


def test_attempts_without_progress_stop_at_the_limit(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    limit = {"without_progress": 2, "grace_s": 2}
    submit(shell, write(retries=limit, STANDIN_FAIL="kill", STANDIN_FAIL_NODE="1", STANDIN_STEPS=LONG), "stuck")
    done = shell.wait("stuck", most_s=PODS_S)
    assert (done["state"], done["attempts"]) == ("FAILED", 2)
    assert "rank 1 on node 1" in done["reason"] and "137 (SIGKILL)" in done["reason"], done["reason"]
    assert "2 attempts in a row without a new step" in done["reason"]
    shell.until(lambda: shell.left("stuck") == [], "no process left")

    def no_pod_works() -> bool:
        phases = [pod["status"]["phase"] for pod in cluster.get("pods", namespace=namespace)["items"]]
        return not {"Running", "Pending"} & set(phases)

    shell.until(no_pod_works, "pods that have ended", PODS_S)


def test_an_error_that_would_come_again_is_said_and_not_tried_again(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, write(STANDIN_FAIL="exit:3"), "final")
    done = shell.wait("final", most_s=PODS_S)
    assert (done["state"], done["attempts"]) == ("FAILED", 1)
    assert done["reason"] == "rank 0 on node 0 (here): no pictures" and "Draw some." in shell("status", "final").out
    submit(
        shell,
        write(retries={"without_progress": 1}, STANDIN_FAIL="error", STANDIN_FAIL_NODE="1", STANDIN_STEPS=LONG),
        "broken",
    )
    assert shell.wait("broken", most_s=PODS_S)["state"] == "FAILED"
    said = shell("status", "broken").out
    assert "first failure: rank 1 on node 1 (here): RuntimeError: boom" in said and "File x" in said


@pytest.mark.parametrize("pod", ["master-0", "worker-0"])
def test_a_pod_that_is_told_to_go_saves_and_its_successor_goes_on(
    shell: Shell, write: Write, cluster: Cluster, namespace: str, kept: Path, pod: str
) -> None:
    """A drained node, an eviction: SIGTERM, and time to save."""
    running(shell, write(STANDIN_STEPS=LONG), "moved")
    before = pod_uid(cluster, namespace, f"moved-{pod}")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": f"moved-{pod}"}}
    path = f"/api/v1/namespaces/{namespace}/pods/moved-{pod}/eviction"
    cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
    shell.until(lambda: shell.status("moved")["attempts"] == 2, "the second attempt", PODS_S)
    assert pod_uid(cluster, namespace, f"moved-{pod}") not in ("", before)
    enough(kept, "moved")
    done = shell.wait("moved", most_s=PODS_S)
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 2), done["reason"]
    assert steps_done(kept, "moved") == list(range(1, done["step"] + 1)), "no step lost, none done twice"
    (restart,) = events_of(kept, "moved", "run.restarted")
    assert "its pod was to end" in restart["reason"], restart
    logs = shell("logs", "moved", "--rank", "0").out
    assert [line for line in logs.splitlines() if "attempt" in line] == ["── attempt 0 ──", "── attempt 1 ──"]


# With the real runtime


def test_losses_after_every_kind_of_loss_are_those_of_a_whole_run(
    shell: Shell, cluster: Cluster, namespace: str, own_place: Path
) -> None:
    """A killed rank, the worker's pod, the master's pod twice in a row: bit for bit what one go gives."""
    world = build_world(own_place / "world")
    kept = write_profile(shell, cluster, namespace, shell.folder, world, apart=False)
    values = train_recipe(world, 400, save_every=20)
    values["resources"]["threads_per_process"] = 1  # sums depend on how many threads share them
    recipe = str(write_recipe(shell.folder / "tiny.yaml", values))
    submit(shell, recipe, "hit")

    def hit(attempts: int, hurt: Callable[[], object]) -> None:
        wait_step(shell, "hit", (shell.look("hit")["step"] or 0) + 3)
        hurt()
        shell.until(lambda: shell.look("hit").get("attempts") == attempts, f"attempt {attempts}", PODS_S)

    def delete(pod: str) -> Callable[[], object]:
        how = ("--force", "--grace-period=0", f"--namespace={namespace}")
        return lambda: cluster.kubectl("delete", "pod", f"hit-{pod}", *how)

    hit(2, lambda: rank_process("hit", 1).kill())
    hit(3, delete("worker-0"))
    hit(4, delete("master-0"))
    hit(5, delete("master-0"))
    shell("submit", recipe, "--on", "local", "--name", "whole")
    done, whole = shell.wait("hit", most_s=240), shell.wait("whole", most_s=240)
    assert (done["state"], done["attempts"], whole["state"]) == ("SUCCEEDED", 5, "SUCCEEDED"), done["reason"]
    assert losses(kept / "hit") == losses(shell.runs / "whole")
    assert sorted(losses(kept / "hit")) == list(range(1, 401))


def test_several_processes_in_each_pod_train_as_on_one_machine(
    shell: Shell, cluster: Cluster, namespace: str, own_place: Path
) -> None:
    world = build_world(own_place / "world")
    kept = write_profile(shell, cluster, namespace, shell.folder, world, apart=False)
    values = train_recipe(world, 6, save_every=6)
    values["resources"] |= {"threads_per_process": 1, "processes_per_node": 2}
    recipe = str(write_recipe(shell.folder / "tiny.yaml", values))
    submit(shell, recipe, "pods")
    done = shell.wait("pods", most_s=2 * PODS_S)
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 1), done["reason"]
    shell("submit", recipe, "--on", "local", "--name", "here")
    assert shell.wait("here", most_s=2 * PODS_S)["state"] == "SUCCEEDED"
    assert losses(kept / "pods") == losses(shell.runs / "here") != {}
    assert len(list((kept / "pods/attempts/0").glob("rank*.log"))) == 4


# A server that is away


def test_a_silent_server_is_said_and_changes_nothing(
    shell: Shell, write: Write, own_bed: Bed, namespace: str, kept: Path
) -> None:
    running(shell, write(STANDIN_STEPS=LONG), "long")
    following = shell.start("logs", "long", "--follow", "--rank", "0")
    own_bed.stop_api()
    shell.until(lambda: "does not answer" in shell.status("long")["reason"], "the silence in the status")
    silent = shell.status("long")
    assert silent["state"] == "RUNNING", silent
    sending = shell.start("submit", write(), "--on", "pods", "--name", "second")
    shell.until(lambda: (shell.runs / "second").is_dir() or sending.poll() is not None, "the second run's folder")
    own_bed.start_api()
    out, words = sending.communicate(timeout=PODS_S)
    assert sending.returncode == 0 and "trying again" in words, words
    assert shell.wait("second", most_s=PODS_S)["state"] == "SUCCEEDED"
    assert names(own_bed, namespace, "pytorchjobs") == ["long", "second"]
    enough(kept, "long")
    done = shell.wait("long", most_s=PODS_S)
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 1), done["reason"]
    out, words = following.communicate(timeout=60)
    assert following.returncode == 0 and "does not answer" in words
    assert [int(n) for n in re.findall(r"INFO step (\d+)$", out, re.MULTILINE)] == list(range(1, done["step"] + 1))
