"""What Kubernetes says of jobs, and of pods that have ended: which of our states it is, and what it means to people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from launcher.backends.base import FAILED, PENDING, REQUEUED, RUNNING, SUCCEEDED
from launcher.backends.kubernetes.labels import QUEUE_LABEL
from launcher.failure import decode_exit
from launcher.run_folder import EXIT_INTERRUPTED

Object = dict[str, Any]

# PyTorchJob and Job: the last condition that is True. Those of the operator stand first, the job controller's then.
CONDITIONS = {
    "Created": PENDING,  # taken up; its pods wait or are about to be made
    "Running": RUNNING,  # the master's pod runs
    "Restarting": REQUEUED,  # a pod ended in a way that lets it be made anew
    "Suspended": PENDING,  # both kinds: spec.suspend, usually Kueue's doing
    "Succeeded": SUCCEEDED,
    "Complete": SUCCEEDED,
    "Failed": FAILED,  # both kinds
    "SuccessCriteriaMet": RUNNING,  # will be Complete when its pods are gone
    "FailureTarget": RUNNING,  # will be Failed when its pods are gone
}

NOT_TAKEN_UP = "waits for the training operator to take it up"
"""Of a PyTorchJob without a condition; where the operator may not make all its pods it gives none either."""

# Why a job Failed. The operator has one reason for everything and tells it in the message.
JOB_ENDS = {
    "BackoffLimitExceeded": "its pods failed more often than they may",
    "DeadlineExceeded": "its time limit (activeDeadlineSeconds) was reached",
    "FailedIndexes": "some of its members failed",
    "MaxFailedIndexesExceeded": "too many of its members failed",
    "PodFailurePolicy": "a pod ended in a way that another try would meet again",
}
_OPERATOR_ENDS = {
    "backoff limit": JOB_ENDS["BackoffLimitExceeded"],
    "specified deadline": JOB_ENDS["DeadlineExceeded"],
    "is failing because": "a pod failed for good",
    "is failed because": "a pod failed for good",
}

# A pod's status.reason, and the reasons of its condition DisruptionTarget: it had to leave, whatever its program did.
POD_ENDS = {
    "Evicted": "evicted",
    "DeadlineExceeded": "its time limit (activeDeadlineSeconds) was reached",
    "NodeLost": "its node was lost",
    "NodeShutdown": "its node was shut down",
    "Shutdown": "its node was shut down",
    "Terminated": "its node was shut down",
    "NodeAffinity": "its node does not fit any more",
    "UnexpectedAdmissionError": "its node could not give it what was promised",
    "Preempting": "gave way to a pod of higher priority",
    "PreemptionByScheduler": "gave way to a pod of higher priority",
    "PreemptionByKubeScheduler": "gave way to a pod of higher priority",
    "WorkloadPreempted": "gave way to a job of higher priority in its queue",
    "DeletionByTaintManager": "its node was lost or is closed to it",
    "EvictionByEvictionAPI": "evicted, as when a node is drained",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "ended by its node, which ran short of something or shut down",
}

# A container's state.terminated.reason, other than Error and Completed.
CONTAINER_ENDS = {
    "OOMKilled": "memory ran out",
    "StartError": "could not be started",
    "ContainerCannotRun": "could not be started",
    "ContainerStatusUnknown": "its node lost sight of it",
    "DeadlineExceeded": "its time limit was reached",
}
_START = re.compile(r".*unable to start container process: |.*OCI runtime create failed: ", re.DOTALL)


def job_state(obj: Object) -> tuple[str, str]:
    """Say where a PyTorchJob or a Job is.

    Returns:
        One of our states, and the reason in words; empty where there is nothing to add. What is being deleted has
        not ended: its pods may be saving.
    """
    true = [condition for condition in _status(obj).get("conditions") or [] if condition.get("status") == "True"]
    last: Object = next((c for c in reversed(true) if c.get("type") in CONDITIONS), {})
    state = CONDITIONS.get(str(last.get("type")), "")
    if state == FAILED:
        return state, _why_failed(last)
    if state == SUCCEEDED:
        return state, ""
    if obj["metadata"].get("deletionTimestamp"):
        return (RUNNING if _active(obj) else PENDING), "is being deleted"
    if last.get("type") == "Suspended":
        return state, why_suspended(obj)
    if last.get("type") in ("SuccessCriteriaMet", "FailureTarget"):
        return state, "ending"
    if state == REQUEUED:
        return state, "a pod ended and is made anew"
    if state:
        return state, ""
    return _counted(obj) if obj["kind"] == "Job" else (PENDING, NOT_TAKEN_UP)


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _active(obj: Object) -> bool:
    status = _status(obj)
    return bool(status.get("active")) or any(r.get("active") for r in (status.get("replicaStatuses") or {}).values())


def _counted(obj: Object) -> tuple[str, str]:
    """A Job has no condition while it runs, only numbers of pods."""
    status = _status(obj)
    if status.get("ready") or status.get("succeeded"):
        return RUNNING, ""
    if status.get("failed"):
        return REQUEUED, "a pod failed and is made anew"
    return PENDING, "" if status.get("active") else "waits for the job controller to make its pods"


def _why_failed(condition: Object) -> str:
    reason, message = str(condition.get("reason") or ""), " ".join(str(condition.get("message") or "").split())
    known = JOB_ENDS.get(reason) or next((text for sign, text in _OPERATOR_ENDS.items() if sign in message), "")
    return known or message or reason


def why_suspended(obj: Object) -> str:
    """Say who lets a suspended job go on."""
    queue = (obj["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if queue:
        return f"waits to be admitted by the queue {queue} (Kueue; see: kubectl get workloads)"
    return "suspended: it goes on when somebody sets spec.suspend to false"


def why_ended(pods: Sequence[Object]) -> str:
    """Say why a job's pods failed, by the one that the others followed; nothing where none did."""
    found = [(rank, when, name, words) for pod in pods for rank, when, name, words in _failures(pod)]
    if not found:
        return ""
    _, _, name, words = min(found)
    return f"pod {name}: {words}"


def _failures(pod: Object) -> list[tuple[int, str, str, str]]:
    """How a pod failed: who was told to leave comes after who failed by itself, the first to end before the others."""
    status, name = _status(pod), str(pod["metadata"]["name"])
    ended = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    made_to = _made_to_leave(status)
    found = []
    for container in ended:
        end = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
        if not end or (end.get("exitCode") == 0 and not made_to):
            continue
        rank = 1 if made_to else 2 if end.get("exitCode") in (143, EXIT_INTERRUPTED) else 0
        words = made_to or _container_words(pod, str(container["name"]), end)
        found.append((rank, str(end.get("finishedAt") or ""), name, words))
    if made_to and not found:
        found.append((1, "", name, made_to))
    return found


def _made_to_leave(status: Object) -> str:
    """What the cluster did to a pod."""
    reason = str(status.get("reason") or "")
    condition: Object = next((c for c in status.get("conditions") or [] if c.get("type") == "DisruptionTarget"), {})
    if condition.get("status") == "True" and not reason:
        reason = str(condition.get("reason") or "")
    if not reason:
        return ""
    message = " ".join(str(status.get("message") or "").split()).rstrip(". ")
    if reason.startswith("OutOf"):
        return f"its node had too little {reason.removeprefix('OutOf')} left for it"
    known = POD_ENDS.get(reason, reason)
    return f"{known}: {message}" if message and reason in ("Evicted", "UnexpectedAdmissionError") else known


def _container_words(pod: Object, name: str, end: Object) -> str:
    reason, message = str(end.get("reason") or ""), str(end.get("message") or "").strip()
    known = CONTAINER_ENDS.get(reason)
    if reason == "OOMKilled":
        limit = _memory_limit(pod, name)
        return f"{known}{f' at {limit}' if limit else ''} (exit code {end.get('exitCode')}): raise kubernetes.memory"
    if known:
        return f"{known}: {start_error(message)}" if message else known
    words = decode_exit(end.get("exitCode"))
    return f"{words} ({message.splitlines()[0]})" if message else words


def _memory_limit(pod: Object, name: str) -> str:
    containers = (pod.get("spec") or {}).get("containers") or []
    found: Object = next((c for c in containers if c.get("name") == name), {})
    return str(((found.get("resources") or {}).get("limits") or {}).get("memory") or "")


def start_error(message: str) -> str:
    """What the container's runtime says at length, in few words."""
    return " ".join(_START.sub("", message).split()).removesuffix(": unknown")
