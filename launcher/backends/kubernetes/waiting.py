"""Why a job's pods do not run yet: the words of scheduler, kubelet and controllers, and what cures it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from launcher.backends.base import PENDING, REQUEUED
from launcher.backends.kubernetes.counts import wanted_pods
from launcher.backends.kubernetes.labels import RUN_LABEL
from launcher.backends.kubernetes.words import job_state, start_error, why_ended

Object = dict[str, Any]

# How much a reason matters: what somebody must cure, what time cures, what goes on as it should.
TROUBLE, QUEUED, ON_THE_WAY = 0, 1, 2

# What the scheduler says of those nodes that do not fit, and of the pod itself.
NODES = (
    (r"Insufficient (\S+)", r"too little \1 free"),
    (r"node\(s\) had untolerated taint \{([^:}]+): ?([^}]*)\}", r"the taint \1=\2 (kubernetes.tolerations)"),
    (r"node\(s\) didn't match Pod's node affinity/selector", "another label (kubernetes.node_selector)"),
    (r"node\(s\) were unschedulable", "been closed by an administrator"),
    (r"node\(s\) were not ready", "a kubelet that is not ready"),
    (r"node\(s\) had volume node affinity conflict", "no way to the volume"),
    (r"node\(s\) didn't find available persistent volumes to bind", "no volume for the claim"),
    (r"Too many pods", "as many pods as they may"),
)
PODS = (
    (r'persistentvolumeclaim "([^"]+)" not found',
     r"the volume claim \1 is not in the namespace: create it, as in manifests/runs-volume.yaml"),
    (r"pod has unbound immediate PersistentVolumeClaims",
     "a volume claim has no volume yet: it needs a storage class, or a volume that fits"),
    (r'persistentvolumeclaim "([^"]+)" is being deleted', r"the volume claim \1 is being deleted"),
)  # fmt: skip

# A waiting container's reason, where its image is at fault.
IMAGES = frozenset({
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
})  # fmt: skip
# Signs in the words of whoever pulls.
PULLS = (
    (r"toomanyrequests|429 Too Many", "the registry lets nobody pull more for now"),
    (r"unauthorized|authoriz|authentication|denied|forbidden|\b40[13]\b",
     "the registry wants credentials, or there is no such image (kubernetes.pull_secrets)"),
    (r"not found|manifest unknown|name unknown", "there is no such image or tag"),
    (r"no match for platform", "it is made for another kind of machine"),
    (r"dial tcp|lookup |i/o timeout|connection refused|no such host|network is unreachable|TLS|x509",
     "its registry cannot be reached from the node"),
    (r"no space left", "the node's disk is full"),
)  # fmt: skip

# What keeps a container from being made: CreateContainerConfigError and its like.
CONFIGURATIONS = (
    (r'secret "([^"]+)" not found', r"the secret \1 is not in the namespace (kubernetes.secrets)"),
    (r"couldn't find key (\S+) in Secret [^/\s]+/(\S+)", r"the secret \2 has no key \1 (kubernetes.secrets)"),
    (r'configmap "([^"]+)" not found', r"the config map \1 is not in the namespace"),
    (r"couldn't find key (\S+) in ConfigMap [^/\s]+/(\S+)", r"the config map \2 has no key \1"),
    (r"runAsNonRoot and image will run as root|breaks non-root policy|has non-numeric user",
     "the image's user is root, or has no number: set kubernetes.run_as.user"),
)  # fmt: skip

# Events that say why a pod stays in ContainerCreating, or has not even been made.
MOUNTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox"})
CREATIONS = frozenset({"FailedCreate", "FailedCreatePod"})
# What follows when a volume was mounted at last.
PULLS_BEGUN = frozenset({"Pulling", "Pulled"})
# What autoscalers say of a pod that no node fits: the cluster autoscaler, and Karpenter.
ADDS_NODES = frozenset({"TriggeredScaleUp", "Nominated"})
ADDS_NONE = frozenset({"NotTriggerScaleUp", "FailedScaleUp"})

NOT_STARTED = "unable to start container process"

_LONGEST = 240
_SECONDS = len("2026-11-23T20:00:00")
"""Events have their times to the second or to the microsecond."""


def why_pending(pods: Sequence[Object], events: Sequence[Object], obj: Object) -> str:
    """Say why a job does not run yet.

    Args:
        pods: the job's pods; those that run or have ended do not count.
        events: events of the namespace or of the job; those of other objects do not count.
        obj: the PyTorchJob or Job.

    Returns:
        The reasons that matter most, each with the pods it holds for; empty when no pod waits.
    """
    if not pods:
        return _no_pods(events, obj)
    few = why_too_few(pods, events, obj) if obj.get("kind") == "PyTorchJob" else ""
    rank, waits = _why_these_wait(pods, events, obj)
    if few and rank != TROUBLE:
        # What those that are there wait for is cured first by the others' coming.
        return few
    return "; ".join(filter(None, [few, waits]))


def why_too_few(pods: Sequence[Object], events: Sequence[Object], obj: Object) -> str:
    """Say why a job has fewer pods than it should have, where its controller was refused them.

    Args:
        pods: all of the job's pods.
        events: events of the namespace or of the job.
        obj: the PyTorchJob or Job.
    """
    counted = pods
    if obj.get("kind") != "PyTorchJob":
        counted = [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    wanted = wanted_pods(obj)
    if len(counted) >= wanted:
        return ""
    newest = max((str(pod["metadata"].get("creationTimestamp") or "") for pod in pods), default="")
    event = _newest(events, obj, CREATIONS)
    # One from before the newest pod was made is over.
    if event is None or _when(event) < newest[:_SECONDS]:
        return ""
    message = str(event.get("message") or "")
    return f"{wanted - len(counted)} of {wanted} pods cannot be made: {_creation(message, few=True)}"


def _why_these_wait(pods: Sequence[Object], events: Sequence[Object], obj: Object) -> tuple[int, str]:
    """The weight of the worst reason of those pods that are there, and the words for it; empty when none waits."""
    found: dict[tuple[int, str], list[str]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        reason = why_pod_waits(pod, events)
        if reason and reason[0] == ON_THE_WAY:
            reason = _made_again(pod, events, obj) or reason
        if reason:
            found.setdefault(reason, []).append(str(pod["metadata"]["name"]))
    if not found:
        return ON_THE_WAY, ""
    worst = min(rank for rank, _ in found)
    most = {words: names for (rank, words), names in found.items() if rank == worst}
    if len(most) == 1 and sum(map(len, found.values())) == len(pods) and len(found) == 1:
        return worst, next(iter(most))
    parts = [f"{names[0] if len(names) == 1 else f'{len(names)} pods'}: {words}" for words, names in most.items()]
    return worst, "; ".join(parts[:3])


def _short(text: str) -> str:
    line = " ".join(text.split()).rstrip(". ")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _translated(text: str, table: Sequence[tuple[str, str]]) -> str:
    """The table's words for a text, or nothing."""
    for pattern, words in table:
        match = re.search(pattern, text)
        if match:
            return match.expand(words)
    return ""


def _about(events: Sequence[Object], obj: Object, reasons: frozenset[str]) -> str:
    """The message of the newest of an object's events with one of these reasons."""
    return str((_newest(events, obj, reasons) or {}).get("message") or "")


def _newest(events: Sequence[Object], obj: Object, reasons: frozenset[str]) -> Object | None:
    """The newest of an object's events with one of these reasons."""
    uid = obj["metadata"].get("uid")
    own = [e for e in events if (e.get("involvedObject") or {}).get("uid") == uid and e.get("reason") in reasons]
    return max(own, key=_when, default=None)


def _when(event: Object) -> str:
    """When an event was seen last, to the second; a series of them has its own time."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or "")[:_SECONDS]


# Before there are pods


def _no_pods(events: Sequence[Object], obj: Object) -> str:
    state, reason = job_state(obj)
    if state not in (PENDING, REQUEUED):
        return ""
    suspended = any(c.get("type") == "Suspended" and c.get("status") == "True" for c in _conditions(obj))
    message = "" if suspended else _about(events, obj, CREATIONS)
    return _creation(message) if message else reason or "its pods are about to be made"


def _conditions(obj: Object) -> Sequence[Object]:
    return (obj.get("status") or {}).get("conditions") or []


def _creation(message: str, few: bool = False) -> str:
    """Why a controller may not make pods."""
    quota = re.search(r"exceeded quota: ([^,]+), requested: (\S+), used: (\S+), limited: (\S+)", message)
    if quota:
        return f"the quota {quota[1]} is used up: {quota[2]} wanted, {quota[3]} in use, {quota[4]} allowed"
    account = re.search(r'serviceaccount "([^"]+)" not found', message)
    if account:
        return f"the service account {account[1]} is not in the namespace: see manifests/service-account.yaml"
    security = re.search(r'violates PodSecurity "([^"]+)": (.*)', message, re.DOTALL)
    if security:
        return _short(f"the namespace's pod security ({security[1]}) forbids its pods: {security[2]}")
    message = message.removeprefix("(combined from similar events): ").removeprefix("Error creating: ")
    return _short(f"its controller says: {message}") if few else _short(f"its pods cannot be made: {message}")


# One pod


def why_pod_waits(pod: Object, events: Sequence[Object]) -> tuple[int, str] | None:
    """Say why one pod does not run, with the weight of the reason; None when it runs or has ended."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    scheduled: Object = next((c for c in _conditions(pod) if c.get("type") == "PodScheduled"), {})
    if scheduled.get("status") != "True":
        rank, words = _unscheduled(pod, scheduled)
        return rank, words + (_autoscaler(pod, events) if rank == QUEUED else "")
    if pod["metadata"].get("deletionTimestamp"):
        return ON_THE_WAY, "is being deleted"
    inits = [s for s in status.get("initContainerStatuses") or [] if not _done(s)]
    if inits:
        return _init(pod, inits[0], events)
    waits = [s for s in status.get("containerStatuses") or [] if "waiting" in (s.get("state") or {})]
    if waits:
        return _container(pod, waits[0], events)
    return None if status.get("phase") == "Running" else (ON_THE_WAY, "its node is about to start it")


def _made_again(pod: Object, events: Sequence[Object], obj: Object) -> tuple[int, str] | None:
    """Why an earlier pod of that name did not start: the operator makes it again at once, for ever."""
    born, name = str(obj["metadata"].get("creationTimestamp") or ""), pod["metadata"]["name"]
    for event in events:
        about, message = event.get("involvedObject") or {}, str(event.get("message") or "")
        new = str(event.get("lastTimestamp") or event.get("eventTime") or "") >= born
        if about.get("kind") == "Pod" and about.get("name") == name and NOT_STARTED in message and new:
            return TROUBLE, f"its container cannot be started: {start_error(message)}"
    return None


def _done(status: Object) -> bool:
    end = (status.get("state") or {}).get("terminated")
    return bool(status.get("started") and status.get("ready")) or bool(end and end.get("exitCode") == 0)


def _unscheduled(pod: Object, condition: Object) -> tuple[int, str]:
    message = str(condition.get("message") or "").split(" preemption: ")[0]
    if condition.get("reason") == "SchedulingGated":
        gates = ", ".join(str(gate.get("name")) for gate in (pod.get("spec") or {}).get("schedulingGates") or [])
        return QUEUED, f"held back by a scheduling gate{f' ({gates})' if gates else ''}"
    if not message:
        scheduler = str((pod.get("spec") or {}).get("schedulerName") or "default-scheduler")
        who = "the scheduler" if scheduler == "default-scheduler" else f"the scheduler {scheduler}"
        return QUEUED, f"waits for {who}"
    if trouble := _translated(message, PODS):
        return TROUBLE, trouble
    counted = re.match(r"0/(\d+) nodes are available: (.*)", message)
    if not counted:
        return QUEUED, _short(f"no node yet: {message}")
    pieces = [piece.strip(" .") for piece in re.split(r", (?=\d+ )", counted[2])]
    return QUEUED, _short(f"no node fits: {', '.join(_nodes(piece, counted[1]) for piece in pieces)}")


def _autoscaler(pod: Object, events: Sequence[Object]) -> str:
    """What an autoscaler said of the pod last."""
    event = _newest(events, pod, ADDS_NODES | ADDS_NONE)
    if event is None:
        return ""
    message = _short(str(event.get("message") or ""))
    if event["reason"] in ADDS_NONE:
        why = re.sub(r"^pod didn't trigger scale-up:? ?", "", message)
        return f"; the autoscaler adds none{f' ({why})' if why else ''}"
    what = re.sub(r"^pod triggered scale-up:? ?", "", message)
    return f"; the autoscaler adds nodes{f' ({what})' if what else ''}"


def _nodes(piece: str, total: str) -> str:
    """``1 Insufficient cpu`` of 2 nodes as ``1 of 2 has too little cpu free``."""
    number, _, words = piece.partition(" ")
    known = _translated(words, NODES)
    return f"{number} of {total} {'has' if number == '1' else 'have'} {known}" if known else piece


def _init(pod: Object, status: Object, events: Sequence[Object]) -> tuple[int, str]:
    name, state = str(status["name"]), status.get("state") or {}
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in IMAGES:
        cure = ""
        if name == "init-pytorch":
            cure = "; the training operator's administrator chooses it (--pytorch-init-container-image)"
        return TROUBLE, _image(pod, status, waiting) + cure
    if "running" not in state and (message := _failed_mount(pod, events)):
        return TROUBLE, _mount(pod, message)
    if name == "init-pytorch":
        if _pulls(pod, events) and "running" not in state:
            return ON_THE_WAY, "the image of init-pytorch is being pulled"
        return ON_THE_WAY, "waits for the master's pod (init-pytorch)"
    if "running" in state or waiting.get("reason") in (None, "PodInitializing"):
        return ON_THE_WAY, f"its init container {name} runs first"
    return TROUBLE, _short(f"its init container {name} fails: {_waiting_words(pod, waiting)}")


def _container(pod: Object, status: Object, events: Sequence[Object]) -> tuple[int, str]:
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if reason in IMAGES:
        return TROUBLE, _image(pod, status, waiting)
    if reason in ("ContainerCreating", "PodInitializing", ""):
        if message := _failed_mount(pod, events):
            return TROUBLE, _mount(pod, message)
        return ON_THE_WAY, "its image is being pulled" if _pulls(pod, events) else "its container is being made"
    return TROUBLE, _waiting_words(pod, waiting)


def _failed_mount(pod: Object, events: Sequence[Object]) -> str:
    """Why a volume of the pod, or its network, is not there; nothing where it came after all."""
    event, later = _newest(events, pod, MOUNTS), _newest(events, pod, PULLS_BEGUN)
    if event is None or (later is not None and _when(later) >= _when(event)):
        return ""
    return str(event.get("message") or "")


def _pulls(pod: Object, events: Sequence[Object]) -> bool:
    event = _newest(events, pod, PULLS_BEGUN)
    return event is not None and event.get("reason") == "Pulling"


def _waiting_words(pod: Object, waiting: Object) -> str:
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    if reason == "CrashLoopBackOff":
        ended = why_ended([pod]).partition(": ")[2]
        return f"it ends again and again{f': {ended}' if ended else ''}"
    return _translated(message, CONFIGURATIONS) or _short(f"{reason}: {message}" if message else reason)


def _image(pod: Object, status: Object, waiting: Object) -> str:
    reason, message = str(waiting.get("reason")), str(waiting.get("message") or "")
    spec = pod.get("spec") or {}
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    found: Object = next((c for c in containers if c.get("name") == status["name"]), {})
    image = str(found.get("image") or status.get("image") or "")
    if reason == "InvalidImageName":
        return f"'{image}' is no name of an image (kubernetes.image)"
    if reason == "ErrImageNeverPull":
        return f"the image {image} is not on the node, and the pull policy is Never"
    cause = _translated(message.replace(image, ""), PULLS)
    return f"the image {image} cannot be pulled ({reason}){f': {cause}' if cause else ''}"


def _mount(pod: Object, message: str) -> str:
    """What a FailedMount says, with the volume's place in the pod instead of its name."""
    named = re.search(r'for volume "([^"]+)" : ?(.*)', message, re.DOTALL)
    if not named:
        return _short(message)
    output = named[2].partition("Output: ")[2].splitlines()
    text = re.sub(
        r"/var/lib/kubelet\S*: |/\S*/kubelet/pods/\S*: |^mount(\.nfs)?: ", "", output[0] if output else named[2]
    )
    run = (pod["metadata"].get("labels") or {}).get(RUN_LABEL)
    if run and re.search(rf'configmap "{re.escape(run)}" not found', text):
        return f"the run's config map {run} was deleted; to send it again: llavajob cancel {run}, llavajob resume {run}"
    known = _translated(text, CONFIGURATIONS) or re.sub(r"^mount(\.nfs)?: ", "", text)
    mounts = [m for c in (pod.get("spec") or {}).get("containers") or [] for m in c.get("volumeMounts") or []]
    place = next((str(m["mountPath"]) for m in mounts if m.get("name") == named[1]), named[1])
    return _short(f"the volume at {place} cannot be mounted: {known}")
