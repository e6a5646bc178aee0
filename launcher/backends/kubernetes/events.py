"""Events of a namespace: which are read to explain why pods wait, and what happens where they may not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher import console
from launcher.backends.kubernetes.client import Client
from launcher.backends.kubernetes.counts import lacks_pods
from launcher.backends.kubernetes.refusals import Forbidden

Object = dict[str, Any]

# Normal events that every healthy pod has; the others tell of image pulls and of autoscalers.
_ROUTINE = ("Scheduled", "Created", "Started", "Killing", "SuccessfulCreate", "SuccessfulDelete", "Completed")
_TELLING = ",".join(f"reason!={reason}" for reason in _ROUTINE)
_told: set[str] = set()


def waiting_events(client: Client, objects: Sequence[Object], pods: Sequence[Object]) -> list[Object]:
    """Return the namespace's events where something waits; nothing, and no call, where all runs."""
    pending = any((pod.get("status") or {}).get("phase") == "Pending" for pod in pods)
    if pending or any(lacks_pods(obj, pods) for obj in objects):
        return list_events(client, _TELLING)
    return []


def list_events(client: Client, fields: str) -> list[Object]:
    """Return events; none where we have no right to list them, which is said once.

    Args:
        client: the cluster and namespace.
        fields: a field selector.
    """
    try:
        return client.list("Event", fields=fields)
    except Forbidden as error:
        if error.message not in _told:
            _told.add(error.message)
            console.say(f"Note: {error.message}, so why pods wait cannot be shown. {error.hint}")
        return []
