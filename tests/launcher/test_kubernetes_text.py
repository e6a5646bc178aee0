"""The text that is sent to Kubernetes and the profile's keys, where no cluster is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes.quantities import cpu_share, parse_cpu, parse_size, size_share
from launcher.backends.kubernetes.settings import runs_in_pods
from launcher.backends.kubernetes.text import parse_objects, write_objects
from launcher.shipped import manifests_folder
from tests.shell import STANDIN, Shell

Write = Callable[..., str]
Object = dict[str, Any]
RECORDS = Path(__file__).parent / "records"
EVERY_KEY: dict[str, Any] = {
    "context": "cluster",
    "namespace": "vision",
    "image": "images.example.org/llava:1",
    "pull_policy": "Always",
    "pull_secrets": ["images"],
    "service_account": "pipelines",
    "gpu_resource": "example.org/gpu",
    "cpu": 96,
    "memory": "960Gi",
    "shm": "64Gi",
    "node_selector": {"gpu": "a100"},
    "tolerations": [{"key": "gpus", "operator": "Exists", "effect": "NoSchedule"}],
    "priority_class": "high",
    "volumes": [
        {"mount": "/shared", "host_path": "/mnt/shared"},
        {"mount": "/data", "nfs": "nfs.example.org:/export", "read_only": True},
        {"mount": "/weights", "nfs": "nfs.example.org:/export", "sub_path": "weights", "read_only": True},
        {"mount": "/cache", "pvc": "cache"},
        {"mount": "/scratch", "empty_dir": "1Ti"},
        {"mount": "/tmp", "empty_dir": True},
    ],
    "secrets": {"HF_TOKEN": "hugging-face/token"},
    "labels": {"team": "vision"},
    "annotations": {"example.org/note": 'it\'s for "us"'},
    "queue": "gpus",
    "scheduler": "volcano",
    "runs": "/shared/my runs",
    "run_as": {"user": 0, "group": 100, "fs_group": None},
    "privileged": True,
}
# What YAML may take for something else, and what Kubernetes would put a variable's value in the place of.
ODD = {"SITE": "it's here", "RATE": "1e5", "Y": "y", "MASK": "0o17", "PRICE": "$(SITE) for $5, $$"}
OWN_TRAINING = """\
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata:
  name: mine
  labels: {costs: "7"}
spec:
  runPolicy: {cleanPodPolicy: All, ttlSecondsAfterFinished: 3600}
  pytorchReplicaSpecs:
    Master:
      template:
        metadata:
          annotations: {example.org/fabric: "true"}
        spec:
          hostNetwork: true
          serviceAccountName: storage
          initContainers:
            - {name: warm, image: warm:1, volumeMounts: [{name: runs, mountPath: /r}, {name: cache, mountPath: /c}]}
          containers:
            - name: side
              image: side:1
            - name: pytorch
              image: own:1
              command: [sleep]
              args: [infinity]
              env: [{name: FABRIC, value: ib}, {name: SITE, value: there}]
              resources: {limits: {cpu: 8, nvidia.com/gpu: 4, rdma/ib: 1}}
              securityContext: {privileged: true, capabilities: {add: [IPC_LOCK]}}
              volumeMounts: [{name: runs, mountPath: /runs}, {name: cache, mountPath: /c}]
          volumes:
            - {name: runs, emptyDir: {}}
            - {name: cache, hostPath: {path: /cache}}
"""


def profile(shell: Shell, **place: Any) -> None:
    """Write a project's file with one profile named site."""
    values = {"backend": "kubernetes", **place}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": values}}))


def rendered(shell: Shell, recipe: str, *options: str) -> str:
    """What would be sent, with this machine's own paths taken out."""
    text = shell("submit", recipe, "--on", "site", "--name", "run", "--dry-run", *options).out
    return text.replace(str(shell.folder), "/FOLDER").replace(str(STANDIN), "/STANDIN")


def sent(shell: Shell, recipe: str, *options: str) -> list[Object]:
    """The objects that would be sent."""
    return parse_objects(rendered(shell, recipe, *options))


def steps_of(objects: list[Object]) -> dict[str, Object]:
    """What the conductor would create, by the step."""
    files = objects[0]["data"]
    names = [name for name in files if name.startswith("object-")]
    return {name[7:-5]: parse_objects(files[name])[0] for name in names}


def pods_of(found: Object) -> list[Object]:
    """The specs of an object's pods."""
    replicas = found["spec"].get("pytorchReplicaSpecs", {"": found["spec"]})
    return [replica["template"]["spec"] for replica in replicas.values()]


@pytest.mark.parametrize("name", ["every_key", "no_key", "own_base"])
def test_what_is_sent_for_a_training_is_the_stored_text(shell: Shell, recipe: Write, name: str) -> None:
    asked = recipe(resources={"nodes": 2, "gpus_per_node": 8 if name == "every_key" else 0}, environment={})
    (shell.folder / "training.yaml").write_text(OWN_TRAINING)
    own = {"manifests": {"training": "training.yaml"}, "volumes": [{"mount": "/runs", "host_path": "/mnt/runs"}]}
    keys = {"every_key": EVERY_KEY, "no_key": {}, "own_base": own}[name]
    runs = {"runs": "/shared/my runs"} if name == "every_key" else {}
    profile(shell, kubernetes=keys, environment={} if name == "no_key" else ODD, **runs)
    assert rendered(shell, asked) == (RECORDS / f"{name}.yaml").read_text()


def test_what_is_sent_for_a_pipeline_is_the_stored_text(shell: Shell, pipeline: Write) -> None:
    profile(shell, kubernetes={"queue": "gpus", "cpu": 10, "memory": "100Gi"}, environment=ODD)
    assert rendered(shell, pipeline(), "--gpus-per-node", "8") == (RECORDS / "pipeline.yaml").read_text()


def test_shards_get_their_share_of_a_pod(shell: Shell, pipeline: Write) -> None:
    profile(shell, kubernetes={**EVERY_KEY, "cpu": 10, "memory": "960G", "shm": "1Gi"}, runs="/shared/my runs")
    steps = steps_of(sent(shell, pipeline(), "--gpus-per-node", "8", "--set", "stages.score.eval.shards=20"))
    share = {"cpu": "1250m", "memory": "120G"}
    score, merge = pods_of(steps["score"])[0], pods_of(steps["score-merge"])[0]
    assert score["containers"][0]["resources"] == {"requests": share, "limits": {**share, "example.org/gpu": 1}}
    assert merge["containers"][0]["resources"] == {"requests": share, "limits": share}
    (shm,) = [volume for volume in score["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Mi"}
    assert "shm" not in [volume["name"] for volume in merge["volumes"]]
    assert (steps["score"]["spec"]["completions"], steps["score"]["spec"]["parallelism"]) == (20, 16)


def test_one_node_has_no_worker(shell: Shell, recipe: Write) -> None:
    profile(shell)
    (_, gang) = sent(shell, recipe(resources={"nodes": 1}))
    assert set(gang["spec"]["pytorchReplicaSpecs"]) == {"Master"}


def test_pods_without_gpus_have_the_memory_of_the_runtime(shell: Shell, recipe: Write) -> None:
    profile(shell)
    for gpus, there in (("0", False), ("2", True)):
        (_, gang) = sent(shell, recipe(), "--gpus-per-node", gpus)
        for pod in pods_of(gang):
            assert ("shm" in [volume["name"] for volume in pod["volumes"]]) == there


@pytest.mark.parametrize(
    ("who", "privileged", "pod", "container"),
    [
        ({}, False, {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}, False),
        ({"user": 0}, False, {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 1000, "fsGroup": 1000}, False),
        ({"user": None, "group": None, "fs_group": None}, False, {"runAsNonRoot": True}, False),
        ({"user": 5, "group": 6, "fs_group": 7}, True,
         {"runAsNonRoot": True, "runAsUser": 5, "runAsGroup": 6, "fsGroup": 7}, True),
    ],
)  # fmt: skip
def test_whom_pods_run_as(
    shell: Shell, recipe: Write, who: Object, privileged: bool, pod: Object, container: bool
) -> None:
    profile(shell, kubernetes={"run_as": who, "privileged": privileged})
    (_, gang) = sent(shell, recipe())
    spec = pods_of(gang)[0]
    said = {key: value for key, value in spec["securityContext"].items() if key.startswith(("runAs", "fsGroup"))}
    assert said.pop("fsGroupChangePolicy", "") == ("OnRootMismatch" if "fsGroup" in pod else "")
    assert said == pod
    assert ("seccompProfile" in spec["securityContext"]) != privileged
    fenced = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["containers"][0]["securityContext"] == ({"privileged": True} if container else fenced)


def test_only_the_conductor_has_a_token_and_no_pod_a_secrets_value(shell: Shell, pipeline: Write) -> None:
    profile(shell, kubernetes={"secrets": {"HF_TOKEN": "hugging-face/token"}})
    objects = sent(shell, pipeline())
    conductor, steps = objects[1], steps_of(objects)
    assert pods_of(conductor)[0]["automountServiceAccountToken"] is True
    assert "HF_TOKEN" not in [variable["name"] for variable in pods_of(conductor)[0]["containers"][0]["env"]]
    source = {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
    for pod in [pod for found in steps.values() for pod in pods_of(found)]:
        assert pod["automountServiceAccountToken"] is False
        assert {"name": "HF_TOKEN", "valueFrom": source} in pod["containers"][0]["env"]


def test_a_name_that_makes_longer_ones_than_pods_may_have_is_told_before(shell: Shell, pipeline: Write) -> None:
    profile(shell)
    long = "a" * 50
    said = shell("submit", pipeline(), "--on", "site", "--name", long, check=2).err
    assert f"{long}-learn-worker-0 would be the name of a pod, 65 characters long; 63 are the most" in said
    assert "give the run a name of 48 characters or fewer (--name)" in said


@pytest.mark.parametrize("volume", [{"mount": "/runs", "empty_dir": True}, {"mount": "/elsewhere", "pvc": "a"}])
def test_runs_that_no_volume_would_keep_are_told_before(shell: Shell, recipe: Write, volume: Object) -> None:
    profile(shell, kubernetes={"volumes": [volume], "runs": "/runs/deep"})
    said = shell("submit", recipe(), "--on", "site", "--name", "run", check=None, KUBECONFIG="/nowhere").err
    lost = "no volume keeps /runs/deep/run, where run would write: add a volume there"
    # The base's own volume at /runs stands where the profile puts no other in its place.
    assert (lost in said) == (volume["mount"] == "/runs")


def test_a_plan_that_no_config_map_holds_is_told_before(shell: Shell, recipe: Write) -> None:
    profile(shell, environment={"LONG": "x" * 2**20})
    said = shell("submit", recipe(), "--on", "site", "--name", "run", check=2).err
    assert "plan and objects of the run take" in said and "a ConfigMap holds 1048576" in said


NO_CPU = "a number of CPUs such as 96, 0.5 or 500m is needed"
NO_SIZE = "a size such as 480Gi, 64000Mi or 480G is needed"
VALUE = "letters, digits, '-', '_' and '.', a letter or digit first and last, at most 63 characters"


def volume(**entry: Any) -> Object:
    """A profile with one volume more than the one that holds runs."""
    return {"volumes": [{"mount": "/runs", "pvc": "runs"}, entry]}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"namspace": "a"}, "unknown key 'kubernetes.namspace'; did you mean 'namespace'?"),
        ({"namespace": "My.Team"}, "kubernetes.namespace is 'My.Team'; needed: lower-case letters, digits and hyphens"),
        ({"image": "a b"}, "kubernetes.image is 'a b'; needed: the name of an image, without spaces"),
        ({"pull_policy": "always"}, "one of Always, IfNotPresent, Never or null is needed; did you mean 'Always'?"),
        ({"pull_secrets": ["A"]}, "kubernetes.pull_secrets: 'A' is no name; needed: lower-case letters"),
        ({"service_account": ""}, "kubernetes.service_account is ''; needed: lower-case letters"),
        ({"gpu_resource": "gpu"}, "kubernetes.gpu_resource is 'gpu'; needed: a domain and a name, such as"),
        ({"cpu": "many"}, f"kubernetes.cpu is 'many'; {NO_CPU}"),
        ({"cpu": "8Gi"}, NO_CPU),
        ({"memory": "lots"}, f"kubernetes.memory is 'lots'; {NO_SIZE}"),
        ({"memory": "90GB"}, f"{NO_SIZE}: 90Gi (90 x 1024^3 bytes) or 90G"),
        ({"memory": "90g"}, f"{NO_SIZE}: 90Gi (90 x 1024^3 bytes) or 90G"),
        ({"memory": "480"}, f"{NO_SIZE}; that is 480 bytes"),
        ({"memory": 480}, "kubernetes.memory is 480; text is needed"),
        ({"shm": "16Gib"}, "kubernetes.shm is '16Gib'; a size such as 480Gi, 64000Mi or 480G is needed: 16Gi"),
        ({"node_selector": {"gpu": "a 100"}}, f"kubernetes.node_selector.gpu is 'a 100'; needed: {VALUE}"),
        ({"tolerations": [{"efect": "NoSchedule"}]}, "tolerations.0: unknown key 'efect'; did you mean 'effect'?"),
        ({"tolerations": [{"key": "a", "effect": "Noschedule"}]}, "0.effect is 'Noschedule'; one of NoSchedule,"),
        ({"tolerations": [{"effect": "NoSchedule"}]}, "a key is needed, or operator: Exists for every taint"),
        ({"tolerations": [{"key": "a", "value": True}]}, "tolerations.0.value is True; text is needed, in quotes"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "operator Exists takes no value"),
        ({"priority_class": "High"}, "kubernetes.priority_class is 'High'; needed: lower-case letters"),
        ({"secrets": {"HF_TOKEN": "hf_abc"}}, "kubernetes.secrets.HF_TOKEN: name/key of a secret is needed"),
        ({"secrets": {"HF TOKEN": "a/b"}}, "'HF TOKEN' is no name of an environment variable"),
        ({"labels": {"team": "a b"}}, f"kubernetes.labels.team is 'a b'; needed: {VALUE}"),
        ({"labels": {"team": "a" * 64}}, "at most 63 characters"),
        ({"labels": {"-a": "b"}}, f"kubernetes.labels: '-a' is no key; needed: {VALUE}, before it perhaps a domain"),
        ({"labels": {"llavajob/run": "a"}}, "llavajob/run is set by llavajob and cannot be changed"),
        ({"annotations": {"training.kubeflow.org/job-role": "a"}}, "training.kubeflow.org/job-role is set by llavajob"),
        ({"labels": {"app.kubernetes.io/managed-by": "me"}}, "app.kubernetes.io/managed-by is set by llavajob"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "a"}}, "queue-name has a key of its own: kubernetes.queue"),
        ({"queue": "My Queue"}, "kubernetes.queue is 'My Queue'; needed: lower-case letters"),
        ({"runs": "runs"}, "kubernetes.runs is 'runs'; needed: a full path in pods, such as /runs"),
        ({"run_as": {"user": -1}}, "kubernetes.run_as.user is -1; a whole number at least 0 or null is needed"),
        ({"privileged": "maybe"}, "kubernetes.privileged is \"maybe\"; true or false is needed"),
        (volume(mount="/a"), "volumes.1 names no volume; exactly one of pvc, host_path, nfs, empty_dir is needed"),
        (volume(mount="/a", pvc="a", nfs="a:/b"), "volumes.1 names pvc and nfs; exactly one of"),
        (volume(pvc="a"), "volumes.1: 'mount' is missing"),
        (volume(mount="a", pvc="a"), "volumes.1.mount is 'a'; a full path in pods is needed, such as /data"),
        (volume(mount="/a/../b", pvc="a"), "volumes.1.mount is '/a/../b'"),
        (volume(mount="/dev/shm", empty_dir=True), "/dev/shm has a key of its own: kubernetes.shm"),
        (volume(mount="/etc", host_path="/etc"), "llavajob keeps its own files in /etc/llavajob"),
        (volume(mount="/runs", pvc="a"), "volumes.1: /runs is the mount of another volume already"),
        (volume(mount="/a", pvc="My_Claim"), "volumes.1.pvc is 'My_Claim'; the name of a claim is needed"),
        (volume(mount="/a", host_path="data"), "volumes.1.host_path is 'data'; a full path on the nodes is needed"),
        (volume(mount="/a", nfs="/data"), "volumes.1.nfs is '/data'; server:/path is needed"),
        (volume(mount="/a", empty_dir="10GB"), "volumes.1.empty_dir is '10GB'; true or the most that it may hold"),
        (volume(mount="/a", pvc="a", sub_path="../b"), "volumes.1.sub_path is '../b'; a path below the volume's top"),
        (volume(mount="/a", pvc="a", read_only="yes please"), "volumes.1.read_only is 'yes please'; true or false"),
        (volume(mount="/a", pvc="a", readonly=True), "volumes.1: unknown key 'readonly'; did you mean 'read_only'?"),
        ({"manifests": {"training": "nowhere.yaml"}}, "nowhere.yaml cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_wrong_key_says_which_are_right(shell: Shell, recipe: Write, place: Object, words: str) -> None:
    profile(shell, kubernetes=place)
    said = shell("submit", recipe(), "--on", "site", "--dry-run", check=2).err
    assert words in said and "llavajob.yaml:" in said


def test_all_wrong_keys_are_told_at_once(shell: Shell) -> None:
    profile(shell, kubernetes={"cpu": "many", "namespace": "A", "volumes": [{}, {"mount": "a"}], "labels": {"-": "-"}})
    assert len(shell("profiles", check=2).err.strip().splitlines()) == 8


def test_a_secret_that_was_typed_in_is_not_shown(shell: Shell) -> None:
    profile(shell, kubernetes={"secrets": {"HF_TOKEN": "hf_very_secret"}})
    assert "very_secret" not in shell("profiles", check=2).err


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("name: pytorch", "name: torch", "Master has no container named 'pytorch', only side, torch"),
        ("cleanPodPolicy: All", "cleanPodPolicy: running", "one of None, Running, All is needed; did you mean 'R"),
        ("  runPolicy:", "  elasticPolicy: {}\n  runPolicy:", "elasticPolicy has torchrun form the gang"),
        ("{cleanPodPolicy: All,", "{backoffLimit: 3,", "leave it out: the recipe has retries"),
        ("      template:", "      restartPolicy: OnFailure\n      template:", "Master.restartPolicy is 'OnFailure'"),
        ("    Master:", "    Chief:", "pytorchReplicaSpecs has Chief; Master is needed"),
        ("kind: PyTorchJob", "kind: Job", "is not one PyTorchJob of kubeflow.org/v1"),
        ("metadata:\n  name", "---\nmetadata:\n  name", "is not one PyTorchJob of kubeflow.org/v1"),
        ("spec:\n  runPolicy", "spek:\n  runPolicy", "no pod template is where a PyTorchJob has it"),
        ("metadata:\n  name", "metadata: [\n  name", "is not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_own_base(shell: Shell, recipe: Write, before: str, after: str, words: str) -> None:
    assert before in OWN_TRAINING
    (shell.folder / "own.yaml").write_text(OWN_TRAINING.replace(before, after, 1))
    profile(shell, kubernetes={"manifests": {"training": "own.yaml"}})
    said = shell("submit", recipe(), "--on", "site", "--dry-run", check=2).err
    assert f"kubernetes.manifests.training: {shell.folder}/own.yaml" in said and words in said


@pytest.mark.parametrize("name", ["evaluation", "pipeline"])
def test_what_is_wrong_in_an_own_base_of_jobs(shell: Shell, name: str) -> None:
    text = (manifests_folder() / f"{name}-job.yaml").read_text()
    (shell.folder / "own.yaml").write_text(
        text.replace("Policy: Never", "Policy: OnFailure").replace("- name: llavajob", "- name: a")
    )
    profile(shell, kubernetes={"manifests": {name: "own.yaml"}})
    said = shell("profiles", check=2).err
    assert "restartPolicy is 'OnFailure'" in said and "it has no container named 'llavajob', only a" in said


def test_one_submission_may_differ(shell: Shell, recipe: Write) -> None:
    profile(shell, kubernetes={"namespace": "vision", "labels": {"team": "vision"}})
    (shell.folder / "own.yaml").write_text(OWN_TRAINING)
    changes = ("namespace=other", "labels.team=speech", "run_as.user=7", "manifests.training=own.yaml", "cpu=3")
    sets = [word for change in changes for word in ("--set", f"kubernetes.{change}")]
    (files, gang) = sent(shell, recipe(), *sets)
    assert files["metadata"]["namespace"] == gang["metadata"]["namespace"] == "other"
    assert gang["metadata"]["labels"] | {"team": "speech", "costs": "7"} == gang["metadata"]["labels"]
    pod = pods_of(gang)[0]
    assert pod["securityContext"]["runAsUser"] == 7
    assert pod["containers"][1]["resources"] == {"requests": {"cpu": "3"}, "limits": {"cpu": "3", "rdma/ib": 1}}


def test_a_wrong_key_of_one_submission_is_told(shell: Shell, recipe: Write) -> None:
    said = shell("submit", recipe(), "--on", "kubernetes", "--dry-run", "--set", "kubernetes.namspace=a", check=2).err
    assert "--set kubernetes.namspace: unknown key 'kubernetes.namspace'; did you mean 'kubernetes.namespace'?" in said


def test_a_copy_of_the_code_needs_a_volume_that_is_seen_here(shell: Shell, recipe: Write) -> None:
    profile(shell, code="snapshot")
    said = shell("submit", recipe(), "--on", "site", "--dry-run", check=2).err
    assert (
        "profile 'site': code: snapshot needs runs on a volume that is seen here, too; pods keep them in /runs" in said
    )
    profile(shell, code="snapshot", runs="/runs", environment={"PYTHONPATH": "/more"})
    (_, gang) = sent(shell, recipe(environment={}))
    environment = {entry["name"]: entry["value"] for entry in pods_of(gang)[0]["containers"][0]["env"]}
    assert environment["PYTHONPATH"] == "/runs/run/code:/more"


@pytest.mark.parametrize(
    ("runs", "named", "volumes", "folder", "shared"),
    [
        ("/home/me/runs", "", [{"mount": "/runs", "pvc": "a"}], "/runs", False),
        ("/runs", "", [{"mount": "/runs", "pvc": "a"}], "/runs", True),
        ("/runs/mine", "", [{"mount": "/runs", "pvc": "a"}], "/runs/mine", True),
        ("/runs/mine", "/runs/mine", [{"mount": "/runs", "pvc": "a"}], "/runs/mine", True),
        ("/runs/mine", "/runs", [{"mount": "/runs", "pvc": "a"}], "/runs", False),
        ("/runs/mine", "", [{"mount": "/runs", "empty_dir": True}], "/runs", False),
        ("/runs/mine", "", [{"mount": "/runs", "pvc": "a", "read_only": True}], "/runs", False),
        ("/a/b", "", [{"mount": "/a", "pvc": "a"}, {"mount": "/a/b", "empty_dir": True}], "/runs", False),
        ("/runsmine", "", [{"mount": "/runs", "pvc": "a"}], "/runs", False),
        ("/home/me/runs", "/data/runs", [{"mount": "/data", "nfs": "a:/b"}], "/data/runs", False),
    ],
)  # fmt: skip
def test_where_pods_keep_runs(runs: str, named: str, volumes: list[Object], folder: str, shared: bool) -> None:
    assert runs_in_pods(Path(runs), {"runs": named, "volumes": volumes}) == (Path(folder), shared)


def test_text_that_yaml_may_take_for_something_else_stays_text() -> None:
    odd = ["1e5", "0o17", "1_0", "y", "N", "on", "~", "null", "12:30:00", "2001-01-01", ".5", "+1", "-", "", " a ",
           "a: b", "# a", "a\nb", "a\n", "a \nb\n", "\ttab\nb", "é", "'", '"', "@", "<<", "0x1F", "1.2"]  # fmt: skip
    values = {"odd": odd, **{text: text for text in odd}}
    assert parse_objects(write_objects([values, values])) == [values, values]


@pytest.mark.parametrize(
    ("text", "thousandths", "share", "written"),
    [("96", 96000, 8, "12"), ("96", 96000, 1, "96"), ("10", 10000, 4, "2500m"), ("0.5", 500, 1, "500m"),
     ("500m", 500, 2, "250m"), ("2000m", 2000, 1, "2"), ("10.0", 10000, 1, "10"), ("1m", 1, 8, "1m")],
)  # fmt: skip
def test_amounts_of_cpu(text: str, thousandths: int, share: int, written: str) -> None:
    assert parse_cpu(text) == thousandths
    assert cpu_share(text, share) == written


@pytest.mark.parametrize(
    ("text", "size", "share", "written"),
    [("480Gi", 480 * 2**30, 8, "60Gi"), ("480G", 480 * 10**9, 8, "60G"), ("1Gi", 2**30, 8, "128Mi"),
     ("1.5Gi", 3 * 2**29, 1, "1.5Gi"), ("1.5Gi", 3 * 2**29, 2, "768Mi"), ("100Gi", 100 * 2**30, 3, "34133Mi"),
     ("1T", 10**12, 8, "125G"), ("1Mi", 2**20, 3, "349525"), ("1048576", 2**20, 2, "512Ki")],
)  # fmt: skip
def test_sizes_of_memory(text: str, size: int, share: int, written: str) -> None:
    assert parse_size(text) == size
    assert size_share(text, share) == written
