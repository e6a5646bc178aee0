"""Does this profile fit this cluster? Asked of the API server, and of one short-lived pod."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from launcher.backends.kubernetes.client import ALL, Client, Object
from launcher.backends.kubernetes.holdings import (
    examine_account,
    examine_nodes,
    examine_secrets,
    examine_volumes,
)
from launcher.backends.kubernetes.objects import gang
from launcher.backends.kubernetes.probe import examine_pod, trial_plan
from launcher.backends.kubernetes.refusals import RIGHTS_HINT, Forbidden
from launcher.doctor import Finding
from launcher.errors import BackendError, NotAnswering
from launcher.profiles import Profile

# Who calls what: submit creates and takes back, status lists, logs reads, cancel and resume delete.
_RIGHTS = (
    *((verb, "pytorchjobs", "kubeflow.org", "") for verb in ("create", "get", "list", "delete")),
    *((verb, "jobs", "batch", "") for verb in ("create", "get", "list", "delete")),
    *((verb, "configmaps", "", "") for verb in ("create", "get", "list", "delete")),
    ("list", "pods", "", ""),
    ("get", "pods", "", "log"),
)
_EVENTS = ("list", "events", "", "")
"""Only for saying why pods wait."""
_OLDEST = (1, 29)
"""Before it, an Indexed Job cannot count the tries of each index."""
_OPERATOR = "control-plane=kubeflow-training-operator"
_TRAINER = "trainer.kubeflow.org"
_INSTALL = "An administrator installs it: github.com/kubeflow/trainer, release 1.9."
_GANGS = {"scheduling.volcano.sh": "Volcano", "scheduling.x-k8s.io": "scheduler-plugins"}


def examine(profile: Profile) -> Iterator[Finding]:
    """Look at everything in order; what depends on something missing is left out."""
    client = Client(profile.settings)
    looks = (
        ("cluster", _cluster), ("namespace", _namespace), ("rights", _rights), ("training operator", _operator),
        ("queue", _queue), ("account", examine_account), ("nodes", examine_nodes), ("volumes", examine_volumes),
        ("secrets", examine_secrets), ("dry run", _dry_run), ("pod", examine_pod),
    )  # fmt: skip
    for name, look in looks:
        found = []
        try:
            for finding in look(client, profile):
                found.append(finding)
                yield finding
        except NotAnswering as error:
            yield Finding("cluster", error.message, False, error.hint)
            return
        except Forbidden as error:
            yield Finding(name, f"it cannot be looked at: {error.message}", None, error.hint)
        except BackendError as error:
            yield Finding(name, error.message, False, error.hint)
            found.append(Finding(name, "", False))
        # Without a cluster or a namespace there is nothing else to look at.
        if name in ("cluster", "namespace") and any(finding.good is False for finding in found):
            return


def _cluster(client: Client, profile: Profile) -> Iterator[Finding]:
    version = client.version()
    where = f"context {client.context}" if client.context else "the pod's own"
    seen = f"{where}, {client.server()}, Kubernetes {version}"
    numbers = re.findall(r"\d+", version)[:2]
    if tuple(map(int, numbers)) < _OLDEST:
        cure = "Shards in evaluation need 1.29 or newer; training does not."
        yield Finding("cluster", seen, None, cure)
    else:
        yield Finding("cluster", seen)


def _namespace(client: Client, profile: Profile) -> Iterator[Finding]:
    if client.get("Namespace", client.namespace) is None:
        cure = f"Set kubernetes.namespace, or have it created: kubectl create namespace {client.namespace}"
        yield Finding("namespace", f"there is no namespace '{client.namespace}' in the cluster", False, cure)
    else:
        yield Finding("namespace", client.namespace)


def _rights(client: Client, profile: Profile) -> Iterator[Finding]:
    missing = []
    for verb, resource, group, part in _RIGHTS:
        if not client.may(verb, resource, group, part):
            full = ".".join(filter(None, [resource, group])) + (f"/{part}" if part else "")
            missing.append(f"{verb} {full}")
    sees_events = client.may(*_EVENTS)
    if missing:
        missing += [] if sees_events else ["list events"]
        cure = f"In namespace {client.namespace}. {RIGHTS_HINT}"
        yield Finding("rights", f"you may not {', '.join(missing)}", False, cure)
    elif not sees_events:
        cure = f"Everything else works. {RIGHTS_HINT}"
        yield Finding("rights", "you may not list events, so status cannot say why pods wait", None, cure)
    else:
        yield Finding("rights", f"all that submit, status, logs and cancel need in namespace {client.namespace}")


def _operator(client: Client, profile: Profile) -> Iterator[Finding]:
    served = client.look("/apis/kubeflow.org/v1") or {}
    if "pytorchjobs" not in [resource.get("name") for resource in served.get("resources") or []]:
        cure = f"{_INSTALL} Look: kubectl get crd"
        if client.serves(_TRAINER):
            cure = f"It has Kubeflow Trainer v2's TrainJob, which llavajob does not use; both can be there. {cure}"
        yield Finding("training operator", "the cluster has no PyTorchJob (kubeflow.org/v1)", False, cure)
        return
    beside = "; Trainer v2's TrainJob is there as well and is not used" if client.serves(_TRAINER) else ""
    try:
        found = client.list("Deployment", _OPERATOR, namespace=ALL)
    except Forbidden:
        yield Finding("training operator", f"PyTorchJob is there; its pods are not yours to see{beside}")
        return
    if not found:
        yield Finding("training operator", f"PyTorchJob is there; who serves it is not to be seen{beside}", None)
        return
    yield _deployed(max(found, key=_available), beside)


def _available(deployment: Object) -> int:
    return int((deployment.get("status") or {}).get("availableReplicas") or 0)


def _deployed(found: Object, beside: str) -> Finding:
    """What a Deployment tells of the operator in it."""
    image = str(found["spec"]["template"]["spec"]["containers"][0].get("image") or "")
    where = f"{found['metadata']['namespace']}/{found['metadata']['name']}"
    seen = f"PyTorchJob, {image.rpartition('/')[2]} in {where}{beside}"
    if _available(found):
        return Finding("training operator", seen)
    cure = f"Its administrator looks: kubectl describe deployment -n {where.replace('/', ' ')}"
    return Finding("training operator", f"{seen}; none of its pods is available", False, cure)


def _queue(client: Client, profile: Profile) -> Iterator[Finding]:
    wanted, scheduler = profile.settings["queue"], profile.settings["scheduler"]
    kueue = client.look("/apis/kueue.x-k8s.io")
    if wanted and not kueue:
        cure = "Leave kubernetes.queue empty, or have Kueue installed."
        yield Finding("queue", f"'{wanted}' is set, and the cluster has no Kueue", False, cure)
    elif kueue:
        version = kueue["preferredVersion"]["groupVersion"]
        yield _kueue(client.look(f"/apis/{version}/namespaces/{client.namespace}/localqueues") or {}, wanted)
    gangs = [name for group, name in _GANGS.items() if client.serves(group)]
    if scheduler:
        seen = f"{scheduler}; gang scheduling here: {', '.join(gangs) or 'none that is known'}"
        yield Finding("scheduler", seen, True if gangs else None)
    elif not wanted:
        seen = "the pods of a gang are placed one by one, and hold GPUs while they wait for each other"
        others = [*gangs, *(["Kueue"] if kueue else [])]
        cure = f"The cluster has {', '.join(others)}: kubernetes.scheduler or kubernetes.queue." if others else ""
        yield Finding("gang scheduling", f"none is set: {seen}", None, cure)


def _kueue(found: Object, wanted: str) -> Finding:
    """What Kueue has for a namespace."""
    queues = {str(item["metadata"]["name"]): item for item in found.get("items") or []}
    names = ", ".join(sorted(queues)) or "none"
    if not wanted:
        return Finding("queue", f"Kueue is there and no queue is set; local queues: {names}", None)
    if wanted not in queues:
        cure = f"Set kubernetes.queue to one of those in the namespace: {names}"
        return Finding("queue", f"there is no local queue '{wanted}'", False, cure)
    status = queues[wanted].get("status") or {}
    active: Object = next((c for c in status.get("conditions") or [] if c.get("type") == "Active"), {})
    waiting = f", {status.get('pendingWorkloads', 0)} waiting"
    if active.get("status") == "False":
        return Finding("queue", f"{wanted} admits nothing: {active.get('message')}", False, "Ask its administrator.")
    return Finding("queue", f"{wanted}{waiting}")


def _dry_run(client: Client, profile: Profile) -> Iterator[Finding]:
    """Have server, operator's webhook and policies look at a training job of this profile."""
    plan = trial_plan(client, profile, gpus=1)
    job = gang(plan, replace(plan.steps[0], name="train", kind="gang", nodes=2))
    try:
        client.create(job, dry_run=True)
    except (NotAnswering, Forbidden):
        raise
    except BackendError as error:
        cure = error.hint or "Put that right in the profile, or in the base object that it names."
        yield Finding("dry run", error.message, False, cure)
        return
    yield Finding("dry run", "the server takes a training job of this profile")
