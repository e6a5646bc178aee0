"""What Kubernetes says, as the launcher understands it: objects and events that a real cluster gave, and rarer ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import FAILED, PENDING, REQUEUED, RUNNING, STATES, SUCCEEDED
from launcher.backends.kubernetes.waiting import why_pending
from launcher.backends.kubernetes.words import CONDITIONS, job_state, why_ended
from launcher.failure import decode_exit

# Kubernetes 1.33, containerd 1.6 and the training operator 1.9.4; what says nothing to us is left out.
RECORD = json.loads((Path(__file__).parent / "records/kubernetes_objects.json").read_text())
PODS, JOBS, EVENTS = RECORD["pods"], RECORD["jobs"], RECORD["events"]
QUEUE = "kueue.x-k8s.io/queue-name"


def waits(*names: str, job: str = "p-gpu") -> str:
    """Why recorded pods wait."""
    return why_pending([PODS[name] for name in names], EVENTS, JOBS[job])


def job(kind: str = "Job", labels: dict[str, str] | None = None, **status: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": "run", "uid": "1", "labels": labels or {}}, "status": status}


def pod(name: str = "run-master-0", **status: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "pytorch", "image": "llavajob:1"}]}
    return {"kind": "Pod", "metadata": {"name": name, "uid": name}, "spec": spec, "status": status}


def creating(reason: str, message: str = "") -> dict[str, Any]:
    """A pod with a node whose container waits."""
    waiting = {"name": "pytorch", "state": {"waiting": {"reason": reason, "message": message}}}
    conditions = [{"type": "PodScheduled", "status": "True"}]
    return pod(phase="Pending", conditions=conditions, containerStatuses=[waiting])


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[condition])


# Jobs


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("p-gpu", PENDING, ""),
        ("p-run", RUNNING, ""),
        ("p-again", REQUEUED, "a pod ended and is made anew"),
        ("p-suspend", PENDING, "suspended: it goes on when somebody sets spec.suspend to false"),
        ("p-done", SUCCEEDED, ""),
        ("p-fail", FAILED, "a pod failed for good"),
        ("p-del", RUNNING, "is being deleted"),
        ("q", PENDING, "waits for the training operator to take it up"),
        ("j-run", RUNNING, ""),
        ("j-suspend", PENDING, "suspended: it goes on when somebody sets spec.suspend to false"),
        ("j-done", SUCCEEDED, ""),
        ("j-back", FAILED, "its pods failed more often than they may"),
        ("j-policy", FAILED, "a pod ended in a way that another try would meet again"),
        ("j-index", FAILED, "some of its members failed"),
        ("j-deadline", FAILED, "its time limit (activeDeadlineSeconds) was reached"),
        ("q-job", PENDING, "waits for the job controller to make its pods"),
    ],
)
def test_a_recorded_jobs_state(name: str, state: str, words: str) -> None:
    assert job_state(JOBS[name]) == (state, words)


def test_every_condition_has_one_of_our_states() -> None:
    assert set(CONDITIONS.values()) <= set(STATES)
    recorded = {c["type"] for one in JOBS.values() for c in one["status"].get("conditions", [])}
    assert recorded <= set(CONDITIONS)


def test_the_last_condition_that_is_true_counts_and_not_the_last_one() -> None:
    conditions = [
        {"type": "Created", "status": "True"},
        {"type": "Running", "status": "True"},
        {"type": "Suspended", "status": "False"},
    ]
    assert job_state(job("PyTorchJob", conditions=conditions)) == (RUNNING, "")
    finished = [{"type": "Succeeded", "status": "True"}, {"type": "Running", "status": "False"}]
    assert job_state(job("PyTorchJob", conditions=finished)) == (SUCCEEDED, "")
    unknown = [*finished[:1], {"type": "SomethingNew", "status": "True"}]
    assert job_state(job("PyTorchJob", conditions=unknown)) == (SUCCEEDED, "")


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        ({"active": 2, "ready": 0}, PENDING, ""),
        ({"active": 2, "ready": 1}, RUNNING, ""),
        ({"active": 1, "ready": 0, "succeeded": 3}, RUNNING, ""),
        ({"active": 1, "ready": 0, "failed": 1}, REQUEUED, "a pod failed and is made anew"),
        ({"active": 0, "failed": 1}, REQUEUED, "a pod failed and is made anew"),
        ({"conditions": [{"type": "FailureTarget", "status": "True"}], "terminating": 1}, RUNNING, "ending"),
        ({"conditions": [{"type": "Failed", "status": "True", "reason": "New", "message": "so"}]}, FAILED, "so"),
        ({}, PENDING, "waits for the job controller to make its pods"),
    ],
)
def test_a_job_tells_its_state_in_numbers(status: dict[str, Any], state: str, words: str) -> None:
    assert job_state(job(**status)) == (state, words)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Job run has failed because it has reached the specified backoff limit", "its pods failed more often"),
        ("Job run has failed because it was active longer than specified deadline", "its time limit"),
        ("something that no version said before", "something that no version said before"),
    ],
)
def test_why_the_operator_gave_up(message: str, words: str) -> None:
    failed = {"type": "Failed", "status": "True", "reason": "PyTorchJobFailed", "message": message}
    state, reason = job_state(job("PyTorchJob", conditions=[failed]))
    assert state == FAILED and reason.startswith(words)


def test_a_job_that_a_queue_has_not_admitted() -> None:
    suspended = job("PyTorchJob", {QUEUE: "team"}, conditions=[{"type": "Suspended", "status": "True"}])
    words = "waits to be admitted by the queue team (Kueue; see: kubectl get workloads)"
    assert job_state(suspended) == (PENDING, words)
    assert why_pending([], [], suspended) == words


# Waiting


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cpu", "no node fits: 1 of 1 has too little cpu free"),
        ("gpu", "no node fits: 1 of 1 has too little nvidia.com/gpu free"),
        ("selector", "no node fits: 1 of 1 has another label (kubernetes.node_selector)"),
        (
            "nopvc",
            "the volume claim llavajob-runs is not in the namespace: create it, as in manifests/runs-volume.yaml",
        ),
        ("unbound", "a volume claim has no volume yet: it needs a storage class, or a volume that fits"),
        ("gated", "held back by a scheduling gate"),
        ("never", "the image llavajob:none is not on the node, and the pull policy is Never"),
        (
            "pull",
            "the image registry.invalid/team/llavajob:7 cannot be pulled (ImagePullBackOff): "
            "its registry cannot be reached from the node",
        ),
        ("invalid", "'llavajob:::7' is no name of an image (kubernetes.image)"),
        ("secret", "the secret hf is not in the namespace (kubernetes.secrets)"),
        ("key", "the secret has has no key token (kubernetes.secrets)"),
        ("configmap", "the volume at /c cannot be mounted: the config map gone is not in the namespace"),
        ("hostpath", "the volume at /c cannot be mounted: hostPath type check failed: /nonexistent is not a directory"),
        ("nfs", "the volume at /c cannot be mounted: unknown filesystem type 'nfs'"),
        ("nonroot", "the image's user is root, or has no number: set kubernetes.run_as.user"),
        ("init", "waits for the master's pod (init-pytorch)"),
        (
            "initpull",
            "the image registry.invalid/alpine:3.10 cannot be pulled (ImagePullBackOff): its registry cannot be "
            "reached from the node; the training operator's administrator chooses it (--pytorch-init-container-image)",
        ),
        ("crash", "it ends again and again: exit code 4"),
        ("deleted", "is being deleted"),
        ("runs", ""),
        ("p-run-worker-0", ""),
        ("done", ""),
        ("exit3", ""),
    ],
)
def test_why_a_recorded_pod_waits(name: str, words: str) -> None:
    assert waits(name) == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "q",
            "the quota gpus is used up: requests.nvidia.com/gpu=8 wanted, requests.nvidia.com/gpu=0 in use, "
            "requests.nvidia.com/gpu=0 allowed",
        ),
        ("q-job", "the quota gpus is used up: requests.nvidia.com/gpu=8 wanted"),
        ("p", "the namespace's pod security (restricted:latest) forbids its pods: allowPrivilegeEscalation != false"),
        ("p-job", "the namespace's pod security (restricted:latest) forbids its pods: "),
        ("sa-job", "the service account llavajob is not in the namespace: see manifests/service-account.yaml"),
        ("p-gpu", "its pods are about to be made"),
    ],
)
def test_why_a_job_has_no_pods(name: str, words: str) -> None:
    said = why_pending([], EVENTS, JOBS[name])
    assert said.startswith(words) and len(said) < 300


@pytest.mark.parametrize("name", ["p-run", "p-done", "p-fail", "j-index"])
def test_a_job_that_runs_or_ended_waits_for_nothing(name: str) -> None:
    assert why_pending([], EVENTS, JOBS[name]) == ""


def test_what_matters_most_is_said_with_the_pods_it_holds_for() -> None:
    workers = [{**PODS["init"], "metadata": {"name": f"run-worker-{n}", "uid": f"{n}"}} for n in range(3)]
    gpu = [PODS["p-gpu-master-0"], PODS["p-gpu-worker-0"]]
    full = "no node fits: 1 of 1 has too little nvidia.com/gpu free"
    assert why_pending(workers, [], JOBS["p-gpu"]) == "waits for the master's pod (init-pytorch)"
    assert why_pending(gpu, [], JOBS["p-gpu"]) == full
    assert why_pending([*workers, *gpu], [], JOBS["p-gpu"]) == f"2 pods: {full}"
    assert why_pending([PODS["runs"], gpu[1]], [], JOBS["p-gpu"]) == f"p-gpu-worker-0: {full}"
    assert waits("never", "secret", "gpu") == (
        "never: the image llavajob:none is not on the node, and the pull policy is Never; "
        "secret: the secret hf is not in the namespace (kubernetes.secrets)"
    )


def test_a_pod_that_is_made_again_and_again() -> None:
    """The operator takes a command that is not there for something that another try may cure."""
    cannot = 'its container cannot be started: exec: "/no/such/python": stat /no/such/python: no such file or directory'
    assert waits("again", job="p-nocommand") == cannot
    later = {**JOBS["p-nocommand"], "metadata": {"name": "run", "creationTimestamp": "2026-11-24T04:00:00Z"}}
    assert why_pending([PODS["again"]], EVENTS, later) == "its container is being made"


def test_events_of_others_do_not_count() -> None:
    other = {**PODS["nfs"], "metadata": {"name": "nfs", "uid": "of an earlier pod"}}
    assert why_pending([other], EVENTS, JOBS["p-gpu"]) == "its container is being made"


def test_the_newest_event_counts() -> None:
    about = {"kind": "Pod", "name": "run-master-0", "uid": "run-master-0"}
    old, new = (
        {
            "reason": reason,
            "message": f'MountVolume.SetUp failed for volume "v" : {words}',
            "involvedObject": about,
            **at,
        }
        for reason, words, at in (
            ("FailedMount", "old", {"lastTimestamp": "2026-11-24T03:00:00Z"}),
            ("FailedMount", "new", {"lastTimestamp": None, "eventTime": "2026-11-24T03:00:09.123456Z"}),
        )
    )
    for events in ([old, new], [new, old]):
        said = why_pending([creating("ContainerCreating")], events, job())
        assert said == "the volume at v cannot be mounted: new"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "0/12 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: present}, 1 node(s) were "
            "unschedulable, 8 Insufficient nvidia.com/gpu. preemption: 0/12 nodes are available: 12 No victims.",
            "no node fits: 3 of 12 have the taint nvidia.com/gpu=present (kubernetes.tolerations), 1 of 12 has been "
            "closed by an administrator, 8 of 12 have too little nvidia.com/gpu free",
        ),
        ("0/3 nodes are available: 3 Something new.", "no node fits: 3 Something new"),
        (
            "pod group is not ready, 2 Pending, 2 minAvailable",
            "no node yet: pod group is not ready, 2 Pending, 2 minAvail",
        ),
        ("", "waits for the scheduler"),
    ],
)
def test_what_the_scheduler_says(message: str, words: str) -> None:
    assert why_pending([unscheduled(message)], [], job()).startswith(words)


def test_a_scheduling_gate_is_named() -> None:
    one = json.loads(json.dumps(PODS["gated"]))
    one["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/topology"}]
    assert why_pending([one], [], job()) == "held back by a scheduling gate (kueue.x-k8s.io/topology)"


def test_a_scheduler_that_may_not_be_there() -> None:
    one = pod(phase="Pending")
    one["spec"]["schedulerName"] = "volcano"
    assert why_pending([one], [], job()) == "waits for the scheduler volcano"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ('failed to pull and unpack image "llavajob:1": llavajob:1: not found', "there is no such image or tag"),
        (
            "pull access denied, repository does not exist or may require authorization",
            "the registry wants credentials",
        ),
        ("failed to authorize: failed to fetch oauth token: unexpected status: 401 Unauthorized", "the registry wants"),
        (
            "429 Too Many Requests - Server message: toomanyrequests: limit",
            "the registry lets nobody pull more for now",
        ),
        ("dial tcp 10.0.0.1:443: i/o timeout", "its registry cannot be reached from the node"),
        ("write /x: no space left on device", "the node's disk is full"),
    ],
)
def test_why_an_image_cannot_be_pulled(message: str, cause: str) -> None:
    said = why_pending([creating("ErrImagePull", message)], [], job())
    assert said.startswith(f"the image llavajob:1 cannot be pulled (ErrImagePull): {cause}")


def test_an_image_that_says_nothing_of_why() -> None:
    said = why_pending([creating("ImagePullBackOff", 'Back-off pulling image "llavajob:1"')], [], job())
    assert said == "the image llavajob:1 cannot be pulled (ImagePullBackOff)"


def test_an_unknown_reason_keeps_its_words() -> None:
    assert why_pending([creating("CreateContainerError", "no disk\nat all")], [], job()) == (
        "CreateContainerError: no disk at all"
    )
    assert len(why_pending([creating("CreateContainerError", "long " * 200)], [], job())) < 300


# Ends


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exit3", "exit code 3: an error that another try would meet again"),
        ("exit175", decode_exit(175)),
        ("oom", "memory ran out at 20Mi (exit code 137): raise kubernetes.memory"),
        (
            "nocommand",
            'could not be started: exec: "/no/such/program": stat /no/such/program: no such file or directory',
        ),
        ("deadline", "its time limit (activeDeadlineSeconds) was reached"),
        ("storage", "evicted: Pod ephemeral local storage usage exceeds the total limit of containers 5Mi"),
        ("preempted", "gave way to a pod of higher priority"),
        ("crash", "exit code 4"),
    ],
)
def test_why_a_recorded_pod_ended(name: str, words: str) -> None:
    assert why_ended([PODS[name]]) == f"pod {PODS[name]['metadata']['name']}: {words}"


@pytest.mark.parametrize("name", ["done", "runs", "cpu", "init", "p-run-worker-0", "deleted"])
def test_nothing_is_said_of_a_pod_that_did_not_fail(name: str) -> None:
    assert why_ended([PODS[name]]) == ""


def ended(name: str, code: int, at: str = "10", **status: Any) -> dict[str, Any]:
    end = {"exitCode": code, "reason": "Error", "finishedAt": f"2026-11-24T03:00:{at}Z"}
    return pod(name, phase="Failed", containerStatuses=[{"name": "pytorch", "state": {"terminated": end}}], **status)


def test_the_pod_that_the_others_followed_is_named() -> None:
    first, told = ended("worker-1", 1, at="20"), ended("master-0", 175, at="10")
    late, removed = ended("worker-2", 1, at="30"), ended("worker-3", 143, at="05")
    assert why_ended([told, late, first, removed]) == "pod worker-1: exit code 1: an error"
    assert why_ended([told, removed]) == f"pod worker-3: {decode_exit(143)}"
    assert why_ended([]) == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"reason": "NodeLost", "message": "Node node7 is lost"}, "its node was lost"),
        ({"reason": "Evicted", "message": "The node was low on resource: memory. "}, "evicted: The node was low on"),
        ({"reason": "OutOfnvidia.com/gpu"}, "its node had too little nvidia.com/gpu left for it"),
        ({"reason": "SomethingNew"}, "SomethingNew"),
        (
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]},
            "evicted, as when a node is drained",
        ),
        ({"conditions": [{"type": "DisruptionTarget", "status": "False", "reason": "PreemptionByScheduler"}]}, ""),
    ],
)
def test_what_the_cluster_did_to_a_pod(status: dict[str, Any], words: str) -> None:
    said = why_ended([pod(phase="Failed", **status)])
    assert said.startswith(f"pod run-master-0: {words}") if words else said == ""
    assert "\n" not in said


def test_a_pods_own_last_words_are_said() -> None:
    one = ended("conductor", 1)
    one["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "step train failed\nand more"
    assert why_ended([one]) == "pod conductor: exit code 1: an error (step train failed)"
