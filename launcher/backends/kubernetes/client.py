"""Asking Kubernetes: plain objects of every kind, refusals in words, silence told apart, nothing created twice."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from launcher.backends.kubernetes.connection import Answer, Connection, Place, find_place
from launcher.backends.kubernetes.refusals import AlreadyThere, not_kubernetes, refusal
from launcher.errors import BackendError, NotAnswering
from launcher.patience import insist

Object = dict[str, Any]
Objects = list[Object]

# Group and version, name in paths, whether it lies in a namespace.
KINDS = {
    "ConfigMap": ("v1", "configmaps", True),
    "Deployment": ("apps/v1", "deployments", True),
    "Event": ("v1", "events", True),
    "Job": ("batch/v1", "jobs", True),
    "LocalSubjectAccessReview": ("authorization.k8s.io/v1", "localsubjectaccessreviews", True),
    "Namespace": ("v1", "namespaces", False),
    "Node": ("v1", "nodes", False),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims", True),
    "Pod": ("v1", "pods", True),
    "PyTorchJob": ("kubeflow.org/v1", "pytorchjobs", True),
    "Role": ("rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings", True),
    "Secret": ("v1", "secrets", True),
    "SelfSubjectAccessReview": ("authorization.k8s.io/v1", "selfsubjectaccessreviews", False),
    "ServiceAccount": ("v1", "serviceaccounts", True),
}
RUN_LABEL, FOLDER_ANNOTATION = "llavajob/run", "llavajob/folder"
_NOT_STARTED = (b"waiting to start", b"is not available", b"does not have a host assigned", b"not found")
_QUIET_S = 60.0
ALL = "*"
"""Every namespace."""


class Client:
    """One cluster and namespace as a profile names them. Nothing is read or asked before the first use.

    Every call raises:
        NotAnswering: the server is silent, or says that it is too busy: what was asked for may have happened.
        BackendError: no kubeconfig, context, credentials, right, namespace or kind; or a refusal in its own words.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """Take what the profile says below ``kubernetes:``; of it ``context`` and ``namespace`` matter here."""
        self._settings = settings

    @functools.cached_property
    def _place(self) -> Place:
        return find_place(str(self._settings.get("context") or ""), str(self._settings.get("namespace") or ""))

    @functools.cached_property
    def _connection(self) -> Connection:
        return Connection(self._place)

    @property
    def namespace(self) -> str:
        """The profile's namespace, else the context's, else ``default``; inside a pod its own."""
        return self._place.namespace

    @property
    def context(self) -> str:
        """The kubeconfig's context; empty inside a pod."""
        return self._place.context

    def server(self) -> str:
        """The server's address."""
        return self._connection.server

    def version(self) -> str:
        """The server's version: ``v1.33.13``."""
        found = self.look("/version") or {}
        if "gitVersion" not in found:
            raise not_kubernetes(self.server())
        return str(found["gitVersion"])

    def look(self, path: str) -> Object | None:
        """Return what the server has at a path such as ``/apis/kubeflow.org``, or None when there is nothing."""
        answer = self._connection.call("GET", path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise refusal(answer, f"show {path}", self.server())
        return answer.json()

    def serves(self, group: str) -> bool:
        """Tell whether the cluster knows an API group, such as ``trainer.kubeflow.org``."""
        return self.look(f"/apis/{group}") is not None

    # Objects

    def create(self, obj: Object, dry_run: bool = False, manager: str = "llavajob") -> Object:
        """Create an object, or have the server check whether it would.

        Args:
            obj: the object; without a namespace it goes into the client's.
            dry_run: check it with defaults, webhooks and quotas, and forget it.
            manager: who the server notes as its maker (``metadata.managedFields``).

        Raises:
            AlreadyThere: one of that name exists.
        """
        kind, name = str(obj["kind"]), (obj.get("metadata") or {}).get("name", "")
        path = self._path(kind, namespace=(obj.get("metadata") or {}).get("namespace"))
        query = {"fieldManager": manager, **({"dryRun": "All"} if dry_run else {})}
        return self._object("POST", path, kind, f"create {kind} '{name}'" if name else f"create {kind}", query, obj)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return an object, or None when there is none of that name."""
        what = f"get {kind} '{name}'"
        answer = self._connection.call("GET", self._path(kind, name, namespace))
        if answer.status == 404 and _names(answer, name):
            return None
        return self._checked(answer, kind, what).json()

    def list(self, kind: str, selector: str = "", fields: str = "", namespace: str | None = None) -> Objects:
        """Return the objects of a kind.

        Args:
            selector: labels, such as ``llavajob/run=finetune``; ``llavajob/run in (a,b)``.
            fields: fields, such as ``involvedObject.name=finetune``.
            namespace: another than the client's; ``*`` for all.
        """
        query = {name: text for name, text in (("labelSelector", selector), ("fieldSelector", fields)) if text}
        found = self._object("GET", self._path(kind, namespace=namespace), kind, f"list {kind}s", query)
        # Members of a list do not say what they are.
        own = {"apiVersion": KINDS[kind][0], "kind": kind}
        return [{**own, **item} for item in found.get("items") or []]

    def delete(self, kind: str, name: str, foreground: bool = True, grace_s: int | None = None, uid: str = "") -> bool:
        """Delete an object; False when there was none.

        Args:
            foreground: keep it, marked as being deleted, until all that it owns is gone.
            grace_s: time that a pod has to end; null: as it says itself.
            uid: delete that very object, and nothing else that has taken its name since.
        """
        body: Object = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        if uid:
            body["preconditions"] = {"uid": uid}
        answer = self._connection.call("DELETE", self._path(kind, name), None, body)
        if answer.status == 404 and _names(answer, name):
            return False
        if uid and answer.status == 409 and b"precondition" in answer.body.lower():
            return False
        self._checked(answer, kind, f"delete {kind} '{name}'")
        return True

    def delete_all(
        self, kind: str, selector: str, foreground: bool = True, wanted: Callable[[Object], bool] = lambda obj: True
    ) -> Sequence[str]:
        """Delete those objects that the labels select and that are wanted, one by one; return their names."""
        found = [obj["metadata"] for obj in self.list(kind, selector) if wanted(obj)]
        return [str(m["name"]) for m in found if self.delete(kind, m["name"], foreground, uid=str(m.get("uid") or ""))]

    def create_once(self, obj: Object, patience_s: float, say: Callable[[str], None] = lambda text: None,
                    pause_s: float = 3.0) -> Object:  # fmt: skip
        """Create an object whose name must be free, also when the server is silent and may have created it already.

        Raises:
            NotAnswering: still silent when the patience ended: it may be there or come yet.
            BackendError: the name is taken, or as ``create``.
        """
        kind, name = str(obj["kind"]), str(obj["metadata"]["name"])
        # The server notes who made an object: whatever was said and lost, this tells ours from another's.
        manager = f"llavajob-{secrets.token_hex(8)}"
        deadline = time.monotonic() + patience_s

        def attempt() -> Object:
            try:
                return self.create(obj, manager=manager)
            except AlreadyThere:
                found = self.get(kind, name)
            if found is None:
                raise NotAnswering(f"{kind} '{name}' was being deleted", "Try again.")
            if not _made_by(found, manager):
                raise in_the_way(found)
            return found

        return insist(attempt, max(0.0, deadline - time.monotonic()), say, pause_s)

    # Pods and rights

    def pod_log(
        self, pod: str, container: str, since_time: str | None = None, previous: bool = False, timestamps: bool = False
    ) -> bytes | None:
        """Return what a container printed, as long as its node keeps it; None when there is no such pod any more.

        Nothing (``b""``) is also the answer for a container that has not started, and where there was no previous one.

        Args:
            pod: the pod's name.
            container: the container's.
            since_time: an RFC 3339 time; seconds count, fractions do not.
            previous: what the container printed before it was restarted last.
            timestamps: begin each line with its time.
        """
        query: dict[str, Any] = {"container": container, "previous": str(previous).lower()}
        query.update({"timestamps": "true"} if timestamps else {})
        query.update({"sinceTime": since_time} if since_time else {})
        answer = self._connection.call("GET", f"{self._path('Pod', pod)}/log", query)
        if _has_no_log(answer, pod):
            # Its node may not know it yet or any more, while the server does.
            return None if answer.status == 404 and answer.json()["details"].get("kind") == "pods" else b""
        return self._checked(answer, "Pod", f"read the log of pod '{pod}'").body

    def follow_log(self, pod: str, container: str, since_time: str | None = None) -> Iterator[bytes]:
        """Yield what a container prints, each line with its time, as it comes, until it ends or is quiet for a minute.

        A container that has not started, or that is gone, yields nothing.

        Args:
            pod: the pod's name.
            container: the container's.
            since_time: an RFC 3339 time; seconds count, fractions do not.

        Raises:
            NotAnswering: the server or the pod's node is silent, or the line was lost.
        """
        query: dict[str, Any] = {"container": container, "follow": "true", "timestamps": "true"}
        query.update({"sinceTime": since_time} if since_time else {})

        def refused(answer: Answer) -> None:
            if not _has_no_log(answer, pod):
                self._checked(answer, "Pod", f"read the log of pod '{pod}'")

        yield from self._connection.stream(f"{self._path('Pod', pod)}/log", query, _QUIET_S, refused)

    def may(self, verb: str, resource: str, group: str = "", subresource: str = "", account: str = "") -> bool:
        """Tell whether we, or a service account of the namespace, may do something there.

        Args:
            verb: such as ``create``.
            resource: plural, such as ``pytorchjobs``.
            group: its API group.
            subresource: such as ``log``.
            account: a service account's name; asking about it needs a right of its own.
        """
        right = {"verb": verb, "resource": resource, "group": group, "subresource": subresource}
        spec: Object = {"resourceAttributes": {**right, "namespace": self.namespace}}
        if account:
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
            spec.update(user=f"system:serviceaccount:{self.namespace}:{account}", groups=groups)
        kind = "LocalSubjectAccessReview" if account else "SelfSubjectAccessReview"
        review = {"apiVersion": KINDS[kind][0], "kind": kind, "spec": spec}
        if account:
            review["metadata"] = {"namespace": self.namespace}
        return bool(self.create(review)["status"]["allowed"])

    # How

    def _path(self, kind: str, name: str = "", namespace: str | None = None) -> str:
        version, plural, lies_in_namespace = KINDS[kind]
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if lies_in_namespace and namespace != ALL:
            path += f"/namespaces/{quote(namespace or self.namespace, safe='')}"
        return f"{path}/{plural}" + (f"/{quote(name, safe='')}" if name else "")

    def _object(
        self, method: str, path: str, kind: str, what: str, query: dict[str, Any], body: Object | None = None
    ) -> Object:
        return self._checked(self._connection.call(method, path, query, body), kind, what).json()

    def _checked(self, answer: Answer, kind: str, what: str) -> Answer:
        if 200 <= answer.status < 300:
            return answer
        if answer.status == 404 and _kind_is_unknown(answer):
            raise self._no_kind(kind)
        raise refusal(answer, what, self.server())

    def _no_kind(self, kind: str) -> BackendError:
        """The error for a kind that the cluster does not have."""
        version = KINDS[kind][0]
        if kind != "PyTorchJob":
            return BackendError(f"the cluster has no {kind} ({version})", "See: kubectl api-resources")
        hint = "An administrator installs it: github.com/kubeflow/trainer, release 1.9. Look: kubectl get crd"
        if self.serves("trainer.kubeflow.org"):
            hint = f"It has Kubeflow Trainer v2's TrainJob, which llavajob does not use; both can be there. {hint}"
        return BackendError(f"the cluster has no PyTorchJob ({version}): no training operator is installed", hint)


def _names(answer: Answer, name: str) -> bool:
    """Whether a 404 is about the object that was asked for."""
    return bool(name) and (answer.json().get("details") or {}).get("name") == name


def _has_no_log(answer: Answer, pod: str) -> bool:
    """Whether a container has not started yet, or its pod is gone."""
    if answer.status == 404:
        return _names(answer, pod)
    return answer.status == 400 and any(sign in answer.body for sign in _NOT_STARTED)


def _kind_is_unknown(answer: Answer) -> bool:
    return not (answer.json().get("details") or {}).get("name")


def _made_by(obj: Object, manager: str) -> bool:
    return any(entry.get("manager") == manager for entry in obj["metadata"].get("managedFields") or [])


def in_the_way(obj: Object) -> BackendError:
    """The error for a name that is taken: by what, since when, and how to free it."""
    meta, run = obj["metadata"], (obj["metadata"].get("labels") or {}).get(RUN_LABEL)
    message = taken_by(obj)
    if meta.get("deletionTimestamp"):
        return BackendError(f"{message}; it is being deleted", "Wait until it is gone, or take another name: --name")
    cure = f"End it: llavajob cancel {run}; or take another name: --name" if run else "Take another name: --name"
    return BackendError(message, cure)


def taken_by(obj: Object) -> str:
    """Say what has a name, and since when."""
    meta = obj["metadata"]
    run = (meta.get("labels") or {}).get(RUN_LABEL)
    folder = (meta.get("annotations") or {}).get(FOLDER_ANNOTATION)
    whose = f"run {run}{f' in {folder}' if folder else ''}" if run else "not made by llavajob"
    since = str(meta.get("creationTimestamp")).replace("T", " ").replace("Z", " UTC")
    return f"{obj['kind']} '{meta['name']}' is already in namespace '{meta.get('namespace')}' since {since} ({whose})"
