"""Which cluster a run is on: a context's name is not enough, another kubeconfig has one of the same name."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.backends.kubernetes.client import Client
from launcher.errors import BackendError, NotAnswering

_CLUSTERS_OWN = "kube-system"
"""A namespace that every cluster has: its uid is as good as the cluster's."""


def describe_place(client: Client) -> dict[str, str]:
    """Say where a client leads.

    Returns:
        ``server``: the API server's address; ``cluster``: what tells the cluster from others at the same address,
        empty where that may not be read; ``namespace``.

    Raises:
        NotAnswering: the server is silent.
        BackendError: no kubeconfig, context or credentials.
    """
    return {**silent_place(client), "cluster": _cluster_uid(client)}


def silent_place(client: Client) -> dict[str, str]:
    """Say where a client leads, as far as that is known without asking the server."""
    return {"server": client.server(), "cluster": "", "namespace": client.namespace}


def elsewhere(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Say in words that a run is on another cluster than the one that is asked; empty: it is this one.

    One cluster may be reached at several addresses, and one address may lead to another cluster than before.

    Args:
        recorded: where the run was sent; empty: nobody wrote that down.
        here: where it is looked for.
    """
    before, now = recorded.get("server", ""), here.get("server", "")
    if not before or not now:
        return ""
    if recorded.get("cluster") and here.get("cluster"):
        if recorded["cluster"] == here["cluster"]:
            return ""
        if before == now:
            return (
                f"runs on another cluster that was at {before} when it was submitted (uid of its {_CLUSTERS_OWN} "
                f"{recorded['cluster']}); asked here is the one that is there now ({here['cluster']})"
            )
    elif before == now:
        return ""
    return f"runs on the cluster at {before}; asked here is the one at {now}"


def _cluster_uid(client: Client) -> str:
    try:
        found = client.get("Namespace", _CLUSTERS_OWN)
    except NotAnswering:
        raise
    except BackendError:  # most users of a namespace may not read others
        return ""
    return str(((found or {}).get("metadata") or {}).get("uid") or "")
