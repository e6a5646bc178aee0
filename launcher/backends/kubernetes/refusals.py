"""What the API server says instead of doing it, as an error that says what to do."""

from __future__ import annotations

import re

from launcher.backends.kubernetes.connection import Answer
from launcher.errors import BackendError, NotAnswering

_NO_RIGHT = re.compile(
    r'User "(?P<who>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_WEBHOOK = re.compile(r'^admission webhook "[^"]*" denied the request: ')
_BUSY = frozenset({429, 500, 502, 503, 504})
RIGHTS_HINT = (
    "The namespace's administrator gives rights; manifests/submitter-role.yaml is a role with all of them, and says how"
    " (the role in manifests/service-account.yaml is for pipelines' conductors alone)."
)


class Forbidden(BackendError):
    """We have no right to what was asked for."""


class AlreadyThere(BackendError):
    """An object of that name exists."""


def plain_words(answer: Answer) -> str:
    """The server's words in one line, without the name of the webhook that speaks."""
    status = answer.json()
    text = str(status.get("message") or answer.body[:300].decode("utf-8", "replace"))
    return _WEBHOOK.sub("", " ".join(text.split())) or f"HTTP status {answer.status}"


def refusal(answer: Answer, what: str, server: str) -> BackendError:
    """Make the error for an answer that is neither success nor a missing object or kind.

    Args:
        answer: the server's.
        what: what was asked for: ``create PyTorchJob 'finetune'``.
        server: the server's address.
    """
    words, reason = plain_words(answer), answer.json().get("reason")
    if answer.status == 500 and "failed calling webhook" in words:
        hint = "The training operator may be restarting. Try again in a minute; see its pods: kubectl get pods -A"
        return NotAnswering(f"an admission webhook of the cluster does not answer ({words})", hint)
    if answer.status in _BUSY or (answer.status == 409 and reason == "Conflict"):
        hint = "It may be restarting or have too much to do. Try again in a minute."
        return NotAnswering(f"Kubernetes does not answer ({server}: {words})", hint)
    if answer.status == 409 and reason == "AlreadyExists":
        return AlreadyThere(f"cannot {what}: {words}")
    missing = re.fullmatch(r'namespaces "(.*)" not found', words)
    if missing:
        hint = "Set kubernetes.namespace in the profile to one of yours, or have it created: kubectl create namespace"
        return BackendError(f"there is no namespace '{missing[1]}' in the cluster", f"{hint} {missing[1]}")
    if answer.status == 403 and (right := _NO_RIGHT.search(words)):
        return _forbidden(right)
    if not answer.json():
        return not_kubernetes(server, f" (status {answer.status})")
    return BackendError(f"Kubernetes refused to {what}: {words}")


def not_kubernetes(server: str, why: str = "") -> BackendError:
    """Make the error for an answer that no API server gives."""
    hint = "See the server in the kubeconfig: kubectl config view"
    return BackendError(f"what answers at {server} is no Kubernetes API server{why}", hint)


def _forbidden(right: re.Match[str]) -> BackendError:
    who, verb, group, namespace = right["who"], right["verb"], right["group"], right["namespace"]
    where = f"in namespace '{namespace}'" if namespace else "in the cluster"
    resource = f"{right['resource']}.{group}" if group else right["resource"]
    if who == "system:anonymous":
        return BackendError(
            "the kubeconfig gives no credentials: the server takes this for an anonymous call",
            "Log in again as your cluster wants it, until `kubectl get pods` works here.",
        )
    return Forbidden(f"{who} has no right to {verb} {resource} {where}", RIGHTS_HINT)
