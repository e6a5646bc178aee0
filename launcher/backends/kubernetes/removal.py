"""Deleting what a run has in the cluster, and nothing else, and waiting until it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from launcher import console
from launcher.backends.kubernetes.client import Client
from launcher.backends.kubernetes.labels import CONDUCTOR, STEP_LABEL
from launcher.backends.kubernetes.ownership import Owner
from launcher.backends.kubernetes.unstarted import hasten
from launcher.errors import BackendError
from launcher.patience import insist

PATIENCE_S = 180.0
"""How long a server that does not answer is asked again to take, or to end, a run."""
MADE_KINDS = ("PyTorchJob", "Job")
"""What the steps of a run are."""
_GONE_S = 300.0
"""How long objects may take to go, beside the time that their pods have to save."""
_POD_GONE_S = 60.0
"""How long pods alone may take, beside that time: what is left then sits on a node that does not answer."""
_POLL_S = 0.5


def take_back(client: Client, owner: Owner, objects: Sequence[dict[str, Any]]) -> bool:
    """Delete what was created of a submission that failed, as far as the server lets us.

    Returns:
        whether nothing of it is left, for certain.
    """
    for obj in reversed(objects):
        kind, name = str(obj["kind"]), str(obj["metadata"]["name"])
        try:
            found = client.get(kind, name)
            if found is not None and owner.owns(found):
                client.delete(kind, name, uid=str(found["metadata"].get("uid") or ""))
        except BackendError:
            return False
    return True


def clear_away(owner: Owner, client: Client, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Delete a run's objects, the one that makes others first, and wait until their pods are gone."""
    selector, conducts = owner.selector, f"{owner.selector},{STEP_LABEL}={CONDUCTOR}"

    def own(kind: str, selected: str = selector) -> list[dict[str, Any]]:
        return [obj for obj in client.list(kind, selected) if owner.owns(obj)]

    meanwhile()
    persist(lambda: client.delete_all("Job", conducts, wanted=owner.owns))
    _wait_gone(lambda: own("Pod", conducts), meanwhile)
    for kind in MADE_KINDS:
        persist(lambda kind=kind: client.delete_all(kind, selector, wanted=owner.owns))  # type: ignore[misc]
    _wait_gone(lambda: hasten(client, [obj for kind in ("Pod", *MADE_KINDS) for obj in own(kind)]), meanwhile)
    persist(lambda: client.delete_all("ConfigMap", selector, wanted=owner.owns))
    # Its name is taken until the cluster's garbage collector has been there.
    _wait_gone(lambda: own("ConfigMap"), meanwhile)


def _wait_gone(left: Callable[[], list[dict[str, Any]]], meanwhile: Callable[[], None]) -> None:
    grace_s, start = 0.0, time.monotonic()
    while found := persist(left):
        graces = [float((obj.get("spec") or {}).get("terminationGracePeriodSeconds") or 0.0) for obj in found]
        grace_s = max(grace_s, *graces)
        waited_s, pods = time.monotonic() - start, [obj for obj in found if obj["kind"] == "Pod"]
        if pods and waited_s > grace_s + _POD_GONE_S:
            raise _stuck(pods, waited_s)
        if waited_s > grace_s + _GONE_S:
            names = ", ".join(f"{obj['kind']} {obj['metadata']['name']}" for obj in found)
            raise BackendError(f"still there after {waited_s:.0f} s: {names}", "See: kubectl describe")
        meanwhile()
        time.sleep(_POLL_S)


def _stuck(pods: Sequence[dict[str, Any]], waited_s: float) -> BackendError:
    """The error for pods that do not end although their time to save is over: only their nodes could end them."""
    where = [f"{pod['metadata']['name']} on node {(pod.get('spec') or {}).get('nodeName', 'none')}" for pod in pods]
    names = " ".join(str(pod["metadata"]["name"]) for pod in pods)
    return BackendError(
        f"these pods do not end ({waited_s:.0f} s): {', '.join(where)}; everything else has",
        f"Does the machine answer (kubectl get nodes)? Once it is surely off: kubectl delete pod --force {names}",
    )


def persist(call: Callable[[], Any]) -> Any:
    """Make a call again and again while the server is silent, and say so."""
    return insist(call, PATIENCE_S, console.say)
