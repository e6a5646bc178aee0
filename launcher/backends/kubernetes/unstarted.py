"""Ending pods at once whose own container has not started: they have nothing to save, and may hold GPUs.

A pod is given the time that training needs to save. Where only an init container runs, such as the operator's, whose
shell takes no notice of SIGTERM, nothing uses that time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from launcher.backends.kubernetes.bases import CONTAINERS
from launcher.backends.kubernetes.client import Client
from launcher.errors import BackendError

Object = dict[str, Any]

_GRACE_S = 1
"""The shortest that lets the node end it; 0 would forget the pod while it may still run."""


def hasten(client: Client, objects: list[Object]) -> list[Object]:
    """Delete those pods at once that are being deleted and have not started; return all objects as they were.

    Pods that are not yet being deleted are left to whatever deletes them: they might be made again.
    """
    for pod in objects:
        if pod.get("kind") != "Pod":
            continue
        meta = pod["metadata"]
        slow = int(meta.get("deletionGracePeriodSeconds") or 0) > _GRACE_S
        if meta.get("deletionTimestamp") and slow and not has_started(pod):
            # Where we have no right to it, or it is gone by now, it ends in its own time.
            with suppress(BackendError):
                uid = str(meta.get("uid") or "")
                client.delete("Pod", str(meta["name"]), foreground=False, grace_s=_GRACE_S, uid=uid)
    return objects


def has_started(pod: Object) -> bool:
    """Tell whether the container that runs llavajob has started, now or before."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        if container.get("name") not in CONTAINERS.values():
            continue
        states = {**(container.get("lastState") or {}), **(container.get("state") or {})}
        if "running" in states or "terminated" in states or container.get("restartCount"):
            return True
    return status.get("phase") in ("Running", "Succeeded", "Failed")
