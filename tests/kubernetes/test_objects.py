"""What is rendered, and what is shipped, against a real API server, operator and kubelet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.kubernetes.text import parse_objects, write_objects
from launcher.shipped import manifests_folder
from tests.kubernetes.bed import Cluster
from tests.kubernetes.image import IMAGE, USER, give
from tests.kubernetes.test_bed import conditions
from tests.launcher.test_kubernetes_text import EVERY_KEY, ODD, OWN_TRAINING, pods_of, profile
from tests.shell import Shell, pipeline, recipe, shell
from tests.slurm.bed import BedError, until

__all__ = ["pipeline", "recipe", "shell"]

Write = Callable[..., str]
Object = dict[str, Any]
END_LIMIT_S = 120.0
ACCOUNT = manifests_folder() / "service-account.yaml"
# What a pod sees of what was rendered for it, in an order of its own.
LOOK = """\
echo "rate $RATE"; echo "price $PRICE"; echo "y $Y"; echo "secret $HF_TOKEN"
echo "user $(id -u) $(id -g)"; grep -E "CapEff|NoNewPrivs|Seccomp:" /proc/self/status
echo "token $(ls /var/run/secrets/kubernetes.io 2>/dev/null)"
echo "shm $(grep /dev/shm /proc/mounts | grep -o 'size=[0-9a-z]*')"
echo "rank $PET_NODE_RANK of $PET_NNODES x $PET_NPROC_PER_NODE"
echo "folder $(touch $PLACE/seen && ls $PLACE)"; cat $LLAVAJOB_PLAN
"""


@pytest.fixture
def shared(own_place: Path) -> Path:
    """A folder that the pods may write to."""
    folder = own_place / "shared"
    folder.mkdir()
    give(folder)
    return folder


def rendered(shell: Shell, recipe: str, *options: str) -> str:
    """The text that would be sent."""
    return shell("submit", recipe, "--on", "site", "--name", "run", "--dry-run", *options).out


def try_out(cluster: Cluster, namespace: str, text: str) -> list[Object]:
    """What the server would make of a text; a BedError with its words where it refuses."""
    answer = cluster.kubectl(
        "apply", "--dry-run=server", "--filename=-", f"--namespace={namespace}", "--output=json", stdin=text
    )
    found = json.loads(answer)
    return found["items"] if found["kind"] == "List" else [found]


def inside(small: Any, large: Any) -> bool:
    """Whether everything of one value is in another, which may have more."""
    if isinstance(small, dict):
        return isinstance(large, dict) and all(
            key in large and inside(value, large[key]) for key, value in small.items()
        )
    if isinstance(small, list):
        return isinstance(large, list) and len(small) == len(large) and all(map(inside, small, large))
    return str(small) == str(large)


def steps_of(objects: list[Object]) -> list[Object]:
    """What the conductor would create."""
    files = objects[0]["data"]
    return [parse_objects(text)[0] for name, text in files.items() if name.startswith("object-")]


@pytest.mark.parametrize("path", sorted(manifests_folder().glob("*.yaml")), ids=lambda path: path.name)
def test_the_server_takes_each_shipped_manifest(cluster: Cluster, namespace: str, path: Path) -> None:
    for here, there in zip(parse_objects(path.read_text()), try_out(cluster, namespace, path.read_text()), strict=True):
        assert inside(here, there)


@pytest.mark.parametrize("name", ["every_key", "no_key", "own_base"])
def test_the_server_takes_a_training_whole(
    cluster: Cluster, namespace: str, shell: Shell, recipe: Write, name: str
) -> None:
    (shell.folder / "training.yaml").write_text(OWN_TRAINING)
    own = {"manifests": {"training": "training.yaml"}}
    keys = {"every_key": {**EVERY_KEY, "namespace": namespace}, "no_key": {}, "own_base": own}[name]
    profile(shell, kubernetes=keys, environment=ODD, **({"runs": "/shared/my runs"} if name == "every_key" else {}))
    for nodes in ("1", "4"):
        text = rendered(shell, recipe(), "--nodes", nodes, "--gpus-per-node", "8")
        assert all(map(inside, parse_objects(text), try_out(cluster, namespace, text)))


def test_the_server_takes_a_pipeline_and_each_of_its_steps_whole(
    cluster: Cluster, namespace: str, shell: Shell, pipeline: Write
) -> None:
    # Privileged containers are the API server's to allow, and the bed's does not.
    keys = {**EVERY_KEY, "namespace": namespace, "privileged": False}
    profile(shell, kubernetes=keys, environment=ODD, runs="/shared/my runs")
    text = rendered(shell, pipeline())
    assert all(map(inside, parse_objects(text), try_out(cluster, namespace, text)))
    steps = steps_of(parse_objects(text))
    assert [step["kind"] for step in steps] == ["PyTorchJob", "Job", "Job", "Job"]
    for step in steps:
        assert inside(step, try_out(cluster, namespace, write_objects([step]))[0])


@pytest.mark.parametrize(
    ("before", "after", "refusal", "words"),
    [
        ("name: pytorch", "name: torch", "pytorch", "no container named 'pytorch'"),
        ("    Master:", "    Chief:", "Chief", "pytorchReplicaSpecs has Chief; Master is needed"),
        ("  runPolicy:", "  elasticPolicy: {}\n  runPolicy:", "elastic policy", "elasticPolicy has torchrun form"),
        ("cleanPodPolicy: All", "cleanPodPolicy: running", "", "did you mean 'Running'?"),
        ("      template:", "      restartPolicy: OnFail\n      template:", "", "Master.restartPolicy is 'OnFail'"),
    ],
)
def test_what_the_webhook_refuses_or_lets_pass_is_told_before(
    cluster: Cluster, namespace: str, shell: Shell, before: str, after: str, refusal: str, words: str
) -> None:
    base = OWN_TRAINING.replace("      template:", "      replicas: 1\n      template:").replace(before, after, 1)
    (shell.folder / "own.yaml").write_text(base)
    profile(shell, kubernetes={"manifests": {"training": "own.yaml"}})
    assert words in shell("profiles", check=2).err
    if refusal:
        with pytest.raises(BedError, match=refusal):
            try_out(cluster, namespace, base)
    else:
        try_out(cluster, namespace, base)


def test_a_name_that_no_pod_could_bear_is_told_before(
    cluster: Cluster, namespace: str, shell: Shell, pipeline: Write
) -> None:
    """The server takes the object, and its pods never come."""
    profile(shell)
    long = "a" * 50
    assert "63 are the most" in shell("submit", pipeline(), "--on", "site", "--name", long, check=2).err
    text = shell("submit", pipeline(), "--on", "site", "--name", long, "--dry-run").out
    learn = steps_of(parse_objects(text))[0]
    assert learn["metadata"]["name"] == f"{long}-learn"
    try_out(cluster, namespace, write_objects([learn]))


def test_a_pod_is_what_its_profile_says(
    cluster: Cluster, namespace: str, shell: Shell, recipe: Write, shared: Path
) -> None:
    cluster.kubectl(
        "create", "secret", "generic", "hugging-face", "--from-literal=token=t0", f"--namespace={namespace}"
    )
    keys = {
        "image": IMAGE, "pull_policy": "Never", "shm": "8Mi", "run_as": {"user": USER, "group": USER, "fs_group": None},
        "secrets": {"HF_TOKEN": "hugging-face/token"}, "cpu": "100m", "memory": "64Mi",
        "volumes": [{"mount": str(shared), "host_path": str(shared)}],
    }  # fmt: skip
    profile(shell, kubernetes=keys, environment={**ODD, "PLACE": str(shared)}, runs=str(shared))
    (files, gang) = parse_objects(rendered(shell, recipe(), "--nodes", "1"))
    (pod,) = pods_of(gang)
    pod["containers"][0]["command"] = ["sh", "-c", LOOK]
    cluster.create(namespace, files, gang)

    def ended() -> bool:
        return "Succeeded" in conditions(cluster, namespace, "pytorchjob", "run")

    until(ended, END_LIMIT_S, lambda: cluster.kubectl("get", "events,pods", f"--namespace={namespace}"))
    said = cluster.kubectl("logs", "run-master-0", f"--namespace={namespace}")
    assert said.endswith(files["data"]["plan.yaml"])
    lines = said.splitlines()
    assert lines[:4] == ["rate 1e5", f"price {ODD['PRICE']}", "y y", "secret t0"]
    assert lines[4] == f"user {USER} {USER}"
    assert dict(line.split(":\t") for line in lines[5:8]) == {"CapEff": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    assert lines[8:11] == ["token ", "shm size=8192k", "rank 0 of 1 x 1"]
    assert lines[11] == "folder seen"


def test_a_shard_is_tried_again_unless_it_would_end_the_same(
    cluster: Cluster, namespace: str, shell: Shell, pipeline: Write
) -> None:
    keys = {"image": IMAGE, "pull_policy": "Never", "run_as": {"user": USER}, "volumes": [], "runs": "/runs"}
    profile(shell, kubernetes=keys)
    text = rendered(
        shell, pipeline(), "--set", "stages.score.eval.shards=3", "--set", "stages.score.retries.without_progress=1"
    )
    files, steps = parse_objects(text)[0], steps_of(parse_objects(text))
    (array,) = [step for step in steps if step["spec"].get("completionMode")]
    pod = array["spec"]["template"]["spec"]
    # Shard 0 has an answer, 1 has found what no other try mends, and 2 breaks.
    pod["containers"][0]["command"] = ["sh", "-c", 'set -- 0 3 1; shift "$JOB_COMPLETION_INDEX"; exit "$1"']
    drop_runs(pod)
    cluster.create(namespace, files, array)

    def ended() -> bool:
        return "Failed" in conditions(cluster, namespace, "job", "run-score")

    until(ended, END_LIMIT_S, lambda: cluster.kubectl("get", "events,pods", f"--namespace={namespace}"))
    status = cluster.get("job", "run-score", namespace)["status"]
    assert (status["completedIndexes"], status["failedIndexes"], status["failed"]) == ("0", "1,2", 3)


def drop_runs(pod: Object) -> None:
    """Take the claim out that the bed does not have."""
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "runs"]
    for container in pod["containers"]:
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "runs"]


def test_the_service_account_may_do_what_the_conductor_does_and_no_more(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("apply", f"--filename={ACCOUNT}", f"--namespace={namespace}")
    who = f"--as=system:serviceaccount:{namespace}:llavajob"

    def may(verb: str, what: str, where: str = namespace) -> bool:
        try:
            return cluster.kubectl("auth", "can-i", verb, what, who, f"--namespace={where}").strip() == "yes"
        except BedError:
            return False

    verbs = ("create", "get", "list", "watch", "update", "patch", "delete", "deletecollection")
    resources = ("pytorchjobs.kubeflow.org", "jobs.batch", "pods", "pods/log", "pods/exec", "secrets", "configmaps")
    allowed = {(verb, what) for verb in verbs for what in resources if may(verb, what)}
    assert allowed == {(verb, what) for verb in ("create", "get") for what in resources[:2]}
    assert not may("create", "jobs.batch", "default")
