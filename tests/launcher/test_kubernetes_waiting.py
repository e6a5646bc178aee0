"""Why runs on Kubernetes wait although some of their pods run: half gangs, mounts, image pulls and autoscalers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import PENDING, REQUEUED, RUNNING, BackendState, StepState
from launcher.backends.kubernetes.files import Part, Sent
from launcher.backends.kubernetes.states import Answer, run_state
from launcher.backends.kubernetes.waiting import ON_THE_WAY, QUEUED, TROUBLE, why_pending, why_pod_waits
from launcher.run_folder import RunFolder
from launcher.step_word import Word, write_word

Object = dict[str, Any]
BORN, LATER = "2026-11-23T20:00:00Z", "2026-11-23T20:05:00Z"
# As the operator's and the job controller's events say it.
QUOTA = (
    'Error creating: pods "half-worker-0" is forbidden: exceeded quota: one-pod, requested: pods=1, used: pods=1, '
    "limited: pods=1"
)
GPUS = (
    'Error creating: pods "half-worker-0" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, '
    "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
)
SECURITY = (
    'Error creating: pods "half-worker-0" is forbidden: violates PodSecurity "restricted:latest": '
    'allowPrivilegeEscalation != false (container "init-pytorch" must set securityContext...)'
)
NO_RIGHT = 'Error creating: pods "half-worker-0" is forbidden: unable to validate against any pod security policy: []'


def gang(nodes: int = 2, **status: Any) -> Object:
    replicas = {"Master": {"replicas": 1}, **({"Worker": {"replicas": nodes - 1}} if nodes > 1 else {})}
    meta = {"name": "half", "uid": "job", "creationTimestamp": BORN, "labels": marks()}
    return {"kind": "PyTorchJob", "metadata": meta, "spec": {"pytorchReplicaSpecs": replicas}, "status": status}


def marks(step: str = "train") -> dict[str, str]:
    return {"llavajob/run": "half", "llavajob/step": step}


def pod(name: str = "half-master-0", phase: str = "Running", born: str = BORN, **more: Any) -> Object:
    meta = {"name": name, "uid": name, "creationTimestamp": born, "labels": marks()}
    conditions = [{"type": "PodScheduled", "status": "True"}]
    spec = {
        "containers": [{"name": "pytorch", "image": "llavajob:1", "volumeMounts": [{"name": "v", "mountPath": "/d"}]}]
    }
    return {"kind": "Pod", "metadata": meta, "spec": spec, "status": {"phase": phase, "conditions": conditions, **more}}


def creating(name: str = "half-worker-0") -> Object:
    return pod(name, "Pending", containerStatuses=[waiting("pytorch", "ContainerCreating")])


def in_init(name: str = "half-worker-0", state: Object | None = None) -> Object:
    init = {"name": "init-pytorch", "state": state or {"waiting": {"reason": "PodInitializing"}}}
    return pod(name, "Pending", initContainerStatuses=[init], containerStatuses=[waiting("pytorch", "PodInitializing")])


def waiting(name: str, reason: str) -> Object:
    return {"name": name, "state": {"waiting": {"reason": reason}}}


def event(about: str, reason: str, message: str = "", when: str = LATER, **more: Any) -> Object:
    return {"involvedObject": {"uid": about}, "reason": reason, "message": message, "lastTimestamp": when, **more}


# Half a gang


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (QUOTA, "the quota one-pod is used up: pods=1 wanted, pods=1 in use, pods=1 allowed"),
        (GPUS, "the quota gpus is used up: requests.nvidia.com/gpu=8 wanted, requests.nvidia.com/gpu=8 in use"),
        (SECURITY, "the namespace's pod security (restricted:latest) forbids its pods: allowPrivilege"),
        (f"(combined from similar events): {NO_RIGHT}", 'its controller says: pods "half-worker-0" is forbidden'),
    ],
)
@pytest.mark.parametrize("reason", ["FailedCreatePod", "FailedCreate"])
def test_half_a_gang_waits_for_what_keeps_the_other_half(message: str, words: str, reason: str) -> None:
    told = why_pending([pod()], [event("job", reason, message)], gang())
    assert told.startswith(f"1 of 2 pods cannot be made: {words}")


def test_what_kept_pods_before_the_newest_came_is_over() -> None:
    events = [event("job", "FailedCreatePod", QUOTA, when=BORN)]
    pods = [pod(), pod("half-worker-0", born=LATER)]
    assert why_pending(pods, events, gang(3)) == ""
    assert why_pending(pods, [event("job", "FailedCreatePod", QUOTA, when=LATER)], gang(3)).startswith("1 of 3 pods")
    series = event("job", "FailedCreatePod", QUOTA, when=BORN, series={"lastObservedTime": "2026-11-23T20:06:00.1Z"})
    assert why_pending(pods, [series], gang(3)).startswith("1 of 3 pods")


def test_another_jobs_events_and_whole_gangs_do_not_count() -> None:
    assert why_pending([pod()], [event("other", "FailedCreatePod", QUOTA)], gang()) == ""
    assert why_pending([pod(), pod("half-worker-0")], [event("job", "FailedCreatePod", QUOTA)], gang()) == ""
    ended = gang(conditions=[{"type": "Succeeded", "status": "True"}])
    assert why_pending([pod()], [event("job", "FailedCreatePod", QUOTA)], ended) == ""


def test_trouble_of_those_that_are_there_is_told_as_well() -> None:
    bad = pod("half-worker-0", "Pending", containerStatuses=[waiting("pytorch", "ErrImageNeverPull")])
    told = why_pending([pod(), bad], [event("job", "FailedCreatePod", QUOTA)], gang(3))
    assert told.startswith("1 of 3 pods cannot be made: the quota one-pod") and "half-worker-0: the image" in told


def state(
    folder: Path, word: Word, pods: list[Object], events: list[Object], job: Object | None = None
) -> BackendState:
    """A run of one gang, as it is shown."""
    run = RunFolder(folder / "half")
    run.root.mkdir(exist_ok=True)
    write_word(run, "train", None, word)
    sent = Sent("", "vlm", "", [Part(StepState("train", "", "gang"), "PyTorchJob", "half")], 0.0, True)
    return run_state(run, sent, Answer({("PyTorchJob", "half"): job or gang()}, pods, events))


def test_a_run_with_half_its_pods_is_told_with_the_reason(tmp_path: Path) -> None:
    word = Word(state="STARTING", reason="waits for node 1")
    seen = state(tmp_path, word, [pod()], [event("job", "FailedCreatePod", QUOTA)])
    assert (seen.state, seen.reason.partition(" is used")[0]) == (
        PENDING, "1 of 2 pods cannot be made: the quota one-pod",
    )  # fmt: skip


def test_without_events_the_runs_own_word_counts(tmp_path: Path) -> None:
    seen = state(tmp_path, Word(state="STARTING", reason="waits for node 1"), [pod()], [])
    assert (seen.state, seen.reason) == (PENDING, "waits for node 1")
    seen = state(tmp_path, Word(), [pod()], [])
    assert (seen.state, seen.reason) == (PENDING, "1 of 2 pods are there")


def test_a_run_that_lost_a_pod_for_good_and_one_that_has_all(tmp_path: Path) -> None:
    running = Word(state="RUNNING", attempt=0)
    job = gang(conditions=[{"type": "Running", "status": "True"}])
    seen = state(tmp_path, running, [pod()], [event("job", "FailedCreatePod", QUOTA)], job)
    assert seen.state == REQUEUED and "the quota one-pod is used up" in seen.reason
    seen = state(tmp_path, running, [pod()], [], job)
    assert (seen.state, seen.reason) == (RUNNING, "")
    seen = state(tmp_path, running, [pod(), pod("half-worker-0")], [event("job", "FailedCreatePod", QUOTA)], job)
    assert (seen.state, seen.reason) == (RUNNING, "")


def test_shards_that_a_quota_keeps_do_not_wait_for_other_shards(tmp_path: Path) -> None:
    meta = {"name": "half", "uid": "job", "labels": marks("eval")}
    job = {"kind": "Job", "metadata": meta, "spec": {"completions": 3, "parallelism": 2}, "status": {"active": 1}}
    one = pod("half-0-abcde")
    one["metadata"]["labels"] = {**marks("eval"), "batch.kubernetes.io/job-completion-index": "0"}
    run = RunFolder(tmp_path / "half")
    run.root.mkdir()
    sent = Sent("", "vlm", "", [Part(StepState("eval", "", "array"), "Job", "half", [0, 1, 2])], 0.0, True)
    kept = event("job", "FailedCreate", QUOTA)
    told = run_state(run, sent, Answer({("Job", "half"): job}, [one], [kept])).reason
    assert "1 of 2 pods cannot be made: the quota one-pod is used up" in told and "other shards" not in told
    assert run_state(run, sent, Answer({("Job", "half"): job}, [one], [])).reason == ""


# Mounts, pulls, autoscalers


FAILED_MOUNT = (
    'MountVolume.SetUp failed for volume "v" : mount failed: exit status 32\nOutput: mount.nfs: Connection timed out'
)


@pytest.mark.parametrize("made", [in_init, creating])
def test_a_mount_that_fails_comes_before_the_masters_pod(made: Any) -> None:
    found = why_pod_waits(made(), [event("half-worker-0", "FailedMount", FAILED_MOUNT)])
    assert found == (TROUBLE, "the volume at /d cannot be mounted: Connection timed out")


def test_a_mount_that_came_after_all_is_no_trouble() -> None:
    events = [event("half-worker-0", "FailedMount", FAILED_MOUNT, when=BORN), event("half-worker-0", "Pulled")]
    assert why_pod_waits(creating(), events) == (ON_THE_WAY, "its container is being made")
    running = in_init(state={"running": {}})
    assert why_pod_waits(running, events[:1]) == (ON_THE_WAY, "waits for the master's pod (init-pytorch)")


def test_a_runs_own_config_map_that_was_deleted() -> None:
    message = 'MountVolume.SetUp failed for volume "llavajob" : configmap "half" not found'
    found = why_pod_waits(in_init(), [event("half-worker-0", "FailedMount", message)])
    assert found is not None and found[0] == TROUBLE
    assert "config map half was deleted; to send it again: llavajob cancel half, llavajob resume half" in found[1]
    other = why_pod_waits(in_init(), [event("half-worker-0", "FailedMount", message.replace('"half"', '"sets"'))])
    assert other is not None and "the config map sets is not in the namespace" in other[1]


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (["Pulling"], "its image is being pulled"),
        (["Pulling", "Pulled"], "its container is being made"),
        ([], "its container is being made"),
    ],
)
def test_an_image_that_is_being_pulled(reasons: list[str], words: str) -> None:
    times = [BORN, LATER]
    events = [event("half-worker-0", reason, "words", when) for reason, when in zip(reasons, times, strict=False)]
    assert why_pod_waits(creating(), events) == (ON_THE_WAY, words)


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        ("TriggeredScaleUp", "pod triggered scale-up: [{gpus 1->2 (max: 4)}]", "adds nodes ([{gpus 1->2 (max: 4)}])"),
        ("Nominated", "Pod should schedule on: nodeclaim/a", "adds nodes (Pod should schedule on: nodeclaim/a)"),
        ("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached",
         "adds none (1 max node group size reached)"),
    ],
)  # fmt: skip
def test_what_an_autoscaler_does(reason: str, message: str, words: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    condition["message"] = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    found = why_pod_waits(pod("p", "Pending", conditions=[condition]), [event("p", reason, message)])
    assert found == (QUEUED, f"no node fits: 2 of 2 have too little nvidia.com/gpu free; the autoscaler {words}")
