"""llavajob doctor --on kubernetes, on a real cluster: what fits, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes import probe
from launcher.backends.kubernetes.client import Client
from launcher.backends.kubernetes.doctor import examine
from launcher.doctor import Finding
from launcher.profiles import Profile, find_profile
from tests.kubernetes.bed import Bed, Cluster
from tests.kubernetes.image import IMAGE, USER, give, host_folders
from tests.slurm.bed import until

Make = Callable[..., Profile]
ACCOUNT = Path(__file__).parents[2] / "manifests/service-account.yaml"
# What the bed has for every profile: no GPUs, no Kueue, its operator beside it.
NO_GPUS = {"resources": {"gpus_per_node": 0}}


@pytest.fixture
def profile(namespace: str, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A profile of the bed, with some keys changed."""
    runs = own_place / "shared"
    runs.mkdir()
    give(runs)
    folders = [{"mount": str(path), "host_path": str(path), "read_only": True} for path in host_folders()]

    def make(values: dict[str, Any] | None = None, volumes: Any = (), **settings: Any) -> Profile:
        shared = {"mount": str(runs), "host_path": str(runs)}
        place = {
            "namespace": namespace, "image": IMAGE, "pull_policy": "Never", "volumes": [*folders, shared, *volumes],
            "run_as": {"user": USER, "group": USER, "fs_group": USER}, **settings,
        }  # fmt: skip
        one = {"backend": "kubernetes", "runs": str(runs), "python": sys.executable, "values": values or NO_GPUS}
        file = own_place / "profiles.yaml"
        file.write_text(yaml.safe_dump({"profiles": {"bed": {**one, "kubernetes": place}}}))
        monkeypatch.setenv("LLAVAJOB_PROFILES", str(file))
        return find_profile("bed")

    return make


@pytest.fixture
def no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pod where a test is about something else."""
    monkeypatch.setattr("launcher.backends.kubernetes.doctor.examine_pod", lambda client, profile: iter(()))


def found(profile: Profile) -> dict[str, Finding]:
    """The findings by what was looked at; a bad one counts."""
    seen: dict[str, Finding] = {}
    for finding in examine(profile):
        assert "\n" not in finding.seen + finding.cure
        assert finding.good is not False or finding.cure, finding
        if finding.what not in seen or finding.good is False:
            seen[finding.what] = finding
    return seen


def left(cluster: Cluster, namespace: str) -> list[str]:
    return [str(pod["metadata"]["name"]) for pod in cluster.get("pods", namespace=namespace)["items"]]


def test_a_profile_that_fits(profile: Make, cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("apply", f"--filename={ACCOUNT}", f"--namespace={namespace}")
    made = profile()
    seen = found(made)
    assert {what: finding.good for what, finding in seen.items() if finding.good is not True} == {
        "training operator": None,  # it is no pod of the bed
        "gang scheduling": None,
        "GPUs": None,
        f"volume {made.runs}": None,  # a folder of the node
    }, seen
    version = Client(made.settings).version()
    assert seen["cluster"].seen.endswith(f"Kubernetes {version}")
    assert seen["namespace"].seen == namespace
    assert seen["rights"].seen == f"all that submit, status, logs and cancel need in namespace {namespace}"
    assert seen["account llavajob"].seen == "there, with the rights that a pipeline needs"
    assert f"{made.runs}, the same as here" in seen["runs in pods"].seen
    assert seen["packages"].seen == "all there in the image" and "as here" in seen["llavajob"].seen
    assert f"user {USER}" in seen["pod"].seen and "GPUs seen: none" in seen["torch"].seen
    assert seen["dry run"].seen == "the server takes a training job of this profile"
    assert left(cluster, namespace) == [] and list(made.runs.iterdir()) == []


# Who asks, and whom


@pytest.mark.usefixtures("no_pod")
def test_a_context_that_is_not_there(profile: Make) -> None:
    seen = found(profile(context="nowhere"))
    assert list(seen) == ["cluster"] and seen["cluster"].good is False
    assert "no context 'nowhere'" in seen["cluster"].seen and "Contexts there: " in seen["cluster"].cure


@pytest.mark.usefixtures("no_pod")
def test_a_namespace_that_is_not_there(profile: Make) -> None:
    seen = found(profile(namespace="nowhere"))
    assert list(seen) == ["cluster", "namespace"]
    assert "kubectl create namespace nowhere" in seen["namespace"].cure


def test_a_server_that_is_silent(own_bed: Bed, profile: Make) -> None:
    made = profile()
    own_bed.stop_api()
    seen = found(made)
    assert list(seen) == ["cluster"] and "does not answer" in seen["cluster"].seen


def test_a_server_that_falls_silent_while_it_is_asked(own_bed: Bed, profile: Make) -> None:
    looking = examine(profile())
    assert next(looking).what == "cluster"
    own_bed.stop_api()
    (last,) = looking
    assert last.what == "cluster" and last.good is False and "does not answer" in last.seen


@pytest.fixture
def powerless(cluster: Cluster, namespace: str, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Be an account without rights, in a kubeconfig of one's own."""
    config = yaml.safe_load(Path(cluster.environment["KUBECONFIG"]).read_text())
    token = cluster.kubectl("create", "token", "default", f"--namespace={namespace}").strip()
    config["users"][0]["user"] = {"token": token}
    (own_place / "powerless").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(own_place / "powerless"))
    return f"system:serviceaccount:{namespace}:default"


def test_without_rights_everything_is_said_and_nothing_fails(profile: Make, powerless: str, namespace: str) -> None:
    seen = found(profile(secrets={"HF_TOKEN": "hf/token"}, volumes=[{"mount": "/data", "pvc": "data"}]))
    assert seen["rights"].good is False
    missing = "create pytorchjobs.kubeflow.org, get pytorchjobs.kubeflow.org, list pytorchjobs.kubeflow.org"
    assert missing in seen["rights"].seen and seen["rights"].seen.endswith("list events")
    assert "get pods/log" in seen["rights"].seen and "manifests/service-account.yaml" in seen["rights"].cure
    assert seen["namespace"].good is None and f"{powerless} has no right to get namespaces" in seen["namespace"].seen
    unseen = ["account", "nodes", "volume /data", "secret hf", "dry run", "pod"]
    assert {what: seen[what].good for what in unseen} == dict.fromkeys(unseen)
    assert "secrets are not yours to see" in seen["secret hf"].seen


@pytest.mark.usefixtures("no_pod")
def test_one_right_that_is_missing(profile: Make, powerless: str, cluster: Cluster, namespace: str) -> None:
    rules = {
        "kubeflow.org": (["pytorchjobs"], ["create", "get", "list"]),
        "batch": (["jobs"], ["create", "get", "list", "delete"]),
        "": (["configmaps", "pods", "pods/log", "events"], ["create", "get", "list", "delete"]),
    }
    role = [{"apiGroups": [group], "resources": r, "verbs": verbs} for group, (r, verbs) in rules.items()]
    rbac = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    cluster.create(
        namespace,
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "most"}, "rules": role},
        {
            "apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": "most"}, "subjects": [subject],
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "most"},
        },
    )  # fmt: skip
    assert found(profile())["rights"].seen == "you may not delete pytorchjobs.kubeflow.org"


# The account of pipelines


@pytest.mark.usefixtures("no_pod")
def test_an_account_that_is_not_there_matters_to_pipelines_alone(profile: Make, namespace: str) -> None:
    finding = found(profile())["account llavajob"]
    assert (finding.good, finding.seen) == (None, f"it is not in namespace {namespace}")
    assert f"kubectl apply -n {namespace} -f manifests/service-account.yaml" in finding.cure


@pytest.mark.usefixtures("no_pod")
@pytest.mark.parametrize("may_review", [True, False])
def test_an_account_that_lacks_a_right(
    profile: Make, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch, may_review: bool
) -> None:
    """Where reviews are not allowed, the bindings are read."""
    cluster.kubectl("apply", f"--filename={ACCOUNT}", f"--namespace={namespace}")
    if not may_review:
        no_reviews(monkeypatch)
    assert found(profile())["account llavajob"].good is True
    rule = '[{"op":"replace","path":"/rules/0/verbs","value":["get"]}]'
    cluster.kubectl("patch", "role", "llavajob", "--type=json", f"--patch={rule}", f"--namespace={namespace}")
    finding = found(profile())["account llavajob"]
    assert (finding.good, finding.seen) == (False, "it may not create pytorchjobs.kubeflow.org")


def no_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.backends.kubernetes.refusals import Forbidden

    may = Client.may

    def refuse(self: Client, *arguments: Any, account: str = "", **options: Any) -> bool:
        if account:
            raise Forbidden("no right to create localsubjectaccessreviews")
        return may(self, *arguments, **options)

    monkeypatch.setattr(Client, "may", refuse)


# What the profile names


@pytest.mark.usefixtures("no_pod")
def test_volumes_and_secrets_that_are_missing(profile: Make, cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "secret", "generic", "hf", "--from-literal=other=hidden", f"--namespace={namespace}")
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "waits"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
    cluster.create(namespace, claim)
    volumes = [{"mount": "/data", "pvc": "nowhere"}, {"mount": "/more", "pvc": "waits"}]
    made = profile(volumes=volumes, secrets={"A": "hf/token", "B": "gone/token"}, pull_secrets=["registry"])
    seen = found(made)
    assert seen["volume /data"].seen == f"there is no claim nowhere in namespace {namespace}"
    assert "manifests/runs-volume.yaml" in seen["volume /data"].cure and seen["volume /data"].good is False
    assert seen["volume /more"].good is None and "it has no volume yet" in seen["volume /more"].seen
    assert (seen["secret hf"].seen, seen["secret hf"].cure) == ("it has no key token", "It has: other")
    assert seen["secret gone"].good is False and seen["secret registry"].good is False
    assert "hidden" not in str(seen)


@pytest.mark.usefixtures("no_pod")
def test_a_claim_that_is_bound(profile: Make, cluster: Cluster, namespace: str, own_place: Path) -> None:
    volume = {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "3Gi"}, "hostPath": {"path": str(own_place)},
            "storageClassName": "", "claimRef": {"name": "one", "namespace": namespace},
        },
    }  # fmt: skip
    request = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "one"}, "spec": request}
    cluster.create("default", volume)
    cluster.create(namespace, claim)
    try:
        phase = lambda: cluster.get("pvc", "one", namespace)["status"]["phase"]  # noqa: E731
        until(lambda: bool(phase() == "Bound"), 30, phase)
        made = profile(volumes=[{"mount": "/data", "pvc": "one"}, {"mount": "/runs", "pvc": "one"}], runs="/runs")
        seen = found(made)
        assert (seen["volume /data"].good, seen["volume /data"].seen) == (True, "claim one, 3Gi, ReadWriteOnce")
        assert seen["volume /runs"].good is None and "ReadWriteMany" in seen["volume /runs"].cure
        assert "it is not seen here" in seen["runs in pods"].seen
    finally:
        cluster.kubectl("delete", "pv", namespace, "--wait=false")


@pytest.mark.usefixtures("no_pod")
def test_more_than_any_node_has(profile: Make) -> None:
    seen = found(profile({"resources": {"gpus_per_node": 8}}, cpu=4000, memory="90Ti"))
    assert seen["GPUs"].good is False and seen["GPUs"].seen == "no node offers nvidia.com/gpu"
    assert "4000 asked for, nodes have" in seen["cpu"].seen and "90Ti asked for" in seen["memory"].seen
    seen = found(profile(node_selector={"gpu": "h100"}))
    assert seen["nodes"].good is False and "kubernetes.node_selector" in seen["nodes"].seen


@pytest.mark.usefixtures("no_pod")
def test_a_queue_without_kueue(profile: Make) -> None:
    seen = found(profile(queue="team"))
    assert seen["queue"].good is False and "the cluster has no Kueue" in seen["queue"].seen
    seen = found(profile(scheduler="volcano"))
    assert seen["scheduler"].good is None and "none that is known" in seen["scheduler"].seen


@pytest.mark.usefixtures("no_pod")
def test_what_the_servers_policies_say(profile: Make, cluster: Cluster, namespace: str, own_place: Path) -> None:
    own = yaml.safe_load((ACCOUNT.parent / "training-job.yaml").read_text())
    own["spec"]["nprocPerNode"] = "8"
    own["spec"]["runPolicy"]["suspend"] = "maybe"
    (own_place / "own.yaml").write_text(yaml.safe_dump(own))
    finding = found(profile(manifests={"training": str(own_place / "own.yaml")}))["dry run"]
    assert finding.good is False and "runPolicy.suspend in body must be of type boolean" in finding.seen
    assert finding.cure == "Put that right in the profile, or in the base object that it names."


# Clusters that the bed is not: what the server says is put in its place


def say(monkeypatch: pytest.MonkeyPatch, **paths: dict[str, Any] | None) -> None:
    look = Client.look

    def answer(self: Client, path: str) -> dict[str, Any] | None:
        for part, value in paths.items():
            if path.endswith(part.replace("__", "/").replace("_", ".")):
                return value
        return look(self, path)

    monkeypatch.setattr(Client, "look", answer)


@pytest.mark.usefixtures("no_pod")
@pytest.mark.parametrize("v2", [True, False])
def test_no_training_operator(profile: Make, monkeypatch: pytest.MonkeyPatch, v2: bool) -> None:
    trainer = {"kind": "APIGroup"} if v2 else None
    say(monkeypatch, kubeflow_org__v1=None, trainer_kubeflow_org=trainer)
    finding = found(profile())["training operator"]
    assert finding.seen == "the cluster has no PyTorchJob (kubeflow.org/v1)" and "release 1.9" in finding.cure
    assert ("Trainer v2's TrainJob" in finding.cure) is v2


@pytest.mark.usefixtures("no_pod")
def test_an_operator_that_can_be_seen(profile: Make, cluster: Cluster, namespace: str) -> None:
    label = {"control-plane": "kubeflow-training-operator"}
    image = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", "sleep 1000"]}
    template = {"metadata": {"labels": label}, "spec": {"containers": [image], "terminationGracePeriodSeconds": 0}}
    spec = {"replicas": 0, "selector": {"matchLabels": label}, "template": template}
    meta = {"name": "training-operator", "labels": label}
    cluster.create(namespace, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
    words = f"PyTorchJob, bed:1 in {namespace}/training-operator"
    finding = found(profile())["training operator"]
    assert (finding.good, finding.seen) == (False, f"{words}; none of its pods is available")
    assert f"kubectl describe deployment -n {namespace} training-operator" in finding.cure
    cluster.kubectl("scale", "deployment", "training-operator", "--replicas=1", f"--namespace={namespace}")

    def available() -> int:
        status = cluster.get("deployment", "training-operator", namespace).get("status", {})
        return int(status.get("availableReplicas", 0))

    until(lambda: available() == 1, 60, lambda: "not available")
    finding = found(profile())["training operator"]
    assert (finding.good, finding.seen) == (True, words)


QUEUES = {
    "items": [
        {"metadata": {"name": "team"}, "status": {"pendingWorkloads": 2, "conditions": []}},
        {
            "metadata": {"name": "shut"},
            "status": {"conditions": [{"type": "Active", "status": "False", "message": "ClusterQueue is stopped"}]},
        },
    ]
}


@pytest.mark.usefixtures("no_pod")
@pytest.mark.parametrize(
    ("queue", "good", "words"),
    [
        ("team", True, "team, 2 waiting"),
        ("shut", False, "shut admits nothing: ClusterQueue is stopped"),
        ("teem", False, "there is no local queue 'teem'"),
        ("", None, "Kueue is there and no queue is set; local queues: shut, team"),
    ],
)
def test_queues(profile: Make, monkeypatch: pytest.MonkeyPatch, queue: str, good: bool | None, words: str) -> None:
    group = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}
    say(monkeypatch, **{"kueue_x-k8s_io": group, "localqueues": QUEUES})
    finding = found(profile(queue=queue))["queue"]
    assert (finding.good, finding.seen) == (good, words)


# The pod


def test_an_image_that_cannot_be_had(
    profile: Make, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_TROUBLE_S", 1.0)
    finding = found(profile(image="llavajob:none"))["pod"]
    words = "the image llavajob:none is not on the node, and the pull policy is Never"
    assert finding.seen == f"a pod of this profile does not start: {words}"
    assert left(cluster, namespace) == []


def test_a_volume_that_is_not_on_the_node(profile: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_TROUBLE_S", 1.0)
    seen = found(profile(volumes=[{"mount": "/data", "host_path": "/nowhere"}]))
    assert "the volume at /data cannot be mounted: hostPath type check failed" in seen["pod"].seen


def test_a_python_that_is_not_in_the_image(profile: Make) -> None:
    made = profile()
    made.python = "/opt/none/bin/python"
    finding = found(made)["pod"]
    assert 'a pod of this profile failed: could not be started: exec: "/opt/none/bin/python"' in finding.seen
    assert finding.cure.startswith("It ran /opt/none/bin/python of the image")


def test_a_python_without_the_runtime(profile: Make, own_place: Path) -> None:
    made = profile()
    made.python = os.path.realpath("/usr/bin/python3")
    if not Path(made.python).exists():
        pytest.skip("there is no other Python on this machine")
    seen = found(made)
    assert seen["packages"].good is False and "torch" in seen["packages"].seen and seen["torch"].good is False


def test_a_folder_that_pods_may_not_write(profile: Make) -> None:
    made = profile()
    os.chown(made.runs, 0, 0)
    finding = found(made)["runs in pods"]
    assert finding.good is False and f"user {USER} cannot write to {made.runs}: PermissionError" in finding.seen


def test_no_gpu_is_free(profile: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scheduler cannot give is not waited for: the rest is looked at without it."""
    monkeypatch.setattr(probe, "_QUEUED_S", 1.0)
    monkeypatch.setattr(probe, "_offers_gpus", lambda client, profile: True)
    seen = found(profile({"resources": {"gpus_per_node": 1}}))
    assert seen["GPU"].good is None and "too little nvidia.com/gpu free" in seen["GPU"].seen
    assert seen["pod"].good is True


@pytest.fixture
def gpus(own_bed: Bed) -> Iterator[None]:
    """Have the node offer GPUs that it does not have."""

    def offer(operation: str, resource: str, value: str = "") -> None:
        path = f"/status/capacity/{resource.replace('/', '~1')}"
        patch = json.dumps([{"op": operation, "path": path, **({"value": value} if value else {})}])
        own_bed.kubectl("patch", "node", "node1", "--subresource=status", "--type=json", f"--patch={patch}")

    def offered() -> dict[str, str]:
        found: dict[str, str] = own_bed.get("node", "node1")["status"]["allocatable"]
        return found

    offer("add", "example.com/gpu", "8")
    until(lambda: "example.com/gpu" in offered(), 60, lambda: f"{offered()}")
    yield
    offer("remove", "example.com/gpu")


@pytest.mark.usefixtures("gpus")
def test_gpus(profile: Make) -> None:
    wanted = {"resources": {"gpus_per_node": 8}}
    seen = found(profile(wanted, gpu_resource="example.com/gpu"))
    assert (seen["GPUs"].good, seen["GPUs"].seen) == (True, "1 node with 8 (example.com/gpu)")
    assert (seen["GPU"].good, seen["GPU"].seen) == (False, "the pod had one, and torch does not see it")


@pytest.mark.usefixtures("gpus", "no_pod")
def test_gpus_of_another_name_or_number(profile: Make) -> None:
    finding = found(profile({"resources": {"gpus_per_node": 8}}))["GPUs"]
    assert (finding.good, finding.cure) == (False, "Set kubernetes.gpu_resource to example.com/gpu.")
    finding = found(profile({"resources": {"gpus_per_node": 16}}, gpu_resource="example.com/gpu"))["GPUs"]
    assert finding.seen == "16 of each node asked for; 1 node with 8 (example.com/gpu)"
    assert finding.cure == "Set values.resources.gpus_per_node in the profile to 8 or less."


def test_no_room(profile: Make, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, namespace: str) -> None:
    monkeypatch.setattr(probe, "_QUEUED_S", 1.0)
    monkeypatch.setitem(probe._SIZE, "cpu", "4000")
    finding = found(profile())["pod"]
    assert finding.good is None and "too little cpu free" in finding.seen
    assert left(cluster, namespace) == []


def test_who_interrupts_leaves_no_pod(
    profile: Make, cluster: Cluster, namespace: str, command: list[str], own_place: Path
) -> None:
    profile(image="llavajob:none")
    running = subprocess.Popen(
        [*command, "doctor", "--on", "bed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=own_place
    )
    until(lambda: bool(left(cluster, namespace)), 60, lambda: "no pod was made")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert "Traceback" not in err and running.returncode
    assert left(cluster, namespace) == []
