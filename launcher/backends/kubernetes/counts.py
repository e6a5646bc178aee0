"""How many pods a job should have now, and which it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.backends.kubernetes.labels import RUN_LABEL, STEP_LABEL

Object = dict[str, Any]

_NO_PODS = frozenset({"Succeeded", "Failed", "Complete", "Suspended"})
"""Conditions of a job that is to have no pods, or no new ones."""


def wanted_pods(obj: Object) -> int:
    """Return how many pods a PyTorchJob or a Job should have now, those included that have done their part."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    if any(one.get("type") in _NO_PODS and one.get("status") == "True" for one in conditions):
        return 0
    spec = obj.get("spec") or {}
    if obj["metadata"].get("deletionTimestamp") or spec.get("suspend") or (spec.get("runPolicy") or {}).get("suspend"):
        return 0
    replicas = spec.get("pytorchReplicaSpecs")
    if replicas is not None:
        return sum(int(replica.get("replicas", 1)) for replica in replicas.values())
    left = int(spec.get("completions") or 1) - int((obj.get("status") or {}).get("succeeded") or 0)
    return max(0, min(left, int(spec.get("parallelism", 1))))


def lacks_pods(obj: Object, pods: Sequence[Object]) -> bool:
    """Tell whether a job has fewer pods than it should have.

    Args:
        obj: the PyTorchJob or Job.
        pods: pods of one or several jobs.
    """
    return len(pods_of(obj, pods)) < wanted_pods(obj)


def pods_of(obj: Object, pods: Sequence[Object]) -> list[Object]:
    """Return a job's pods; of a Job those that have not ended, since it replaces the others."""
    labels = obj["metadata"].get("labels") or {}
    mark = {name: labels.get(name) for name in (RUN_LABEL, STEP_LABEL)}
    own = [pod for pod in pods if mark.items() <= (pod["metadata"].get("labels") or {}).items()]
    if "pytorchReplicaSpecs" in (obj.get("spec") or {}):
        return own
    return [pod for pod in own if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
