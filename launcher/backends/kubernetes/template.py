"""The pod of a step: a base's template, filled with what the plan and the profile say.

What a key of the profile says replaces what the base says there; an empty key leaves it. In a base, the volume named
``runs`` stands for the one that the profile names to hold runs, and the volume named ``shm`` for /dev/shm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from launcher.backends.kubernetes.bases import CONTAINERS
from launcher.backends.kubernetes.quantities import cpu_share, size_share
from launcher.backends.kubernetes.volumes import (
    FILES_MOUNT,
    SHM_MOUNT,
    covering_volume,
    volume_mount,
    volume_source,
)
from launcher.plan import Plan, Step

PLAN_FILE = "plan.yaml"
ENV_PLAN = "LLAVAJOB_PLAN"
GANG_PORT = 23456
"""The operator's own port: its services carry it, and the gang's coordinator listens there."""
_PORT_NAME = "pytorchjob-port"
_GRACE_AFTER_S = 30
"""For what follows the saving: the last lines of logs, and the exit code."""
_GPU = "nvidia.com/gpu"
_RUNS, _SHM, _FILES = "runs", "shm", "llavajob"

Object = dict[str, Any]


def fill_step_pod(template: Object, plan: Plan, step: Step) -> None:
    """Make a base's template the pod of one node of a gang, or of one member of a job."""
    pod = template["spec"]
    container = _container(pod, CONTAINERS["PyTorchJob" if step.kind == "gang" else "Job"])
    _fill_pod(pod, plan.settings)
    # What trains needs nothing of the API server.
    pod.setdefault("automountServiceAccountToken", False)
    pod["terminationGracePeriodSeconds"] = step.grace_s + _GRACE_AFTER_S
    secrets = [_secret_variable(name, source) for name, source in plan.settings["secrets"].items()]
    _fill_container(container, plan, [step.command[0], "-m", "launcher.backends.kubernetes.pod", step.name])
    _set_environment(container, step.environment, secrets, plan)
    resources = _resources(container.pop("resources", None) or {}, plan.settings, step)
    container.update({"resources": resources} if resources else {})
    if step.kind == "gang":
        port = {"name": _PORT_NAME, "containerPort": GANG_PORT}
        container["ports"] = [*_others(container.get("ports"), _PORT_NAME), port]
    _set_volumes(pod, container, plan)
    _set_shm(pod, container, plan.settings["shm"], step)


def fill_conductor_pod(template: Object, plan: Plan) -> None:
    """Make a base's template the pod that starts a pipeline's steps."""
    pod, python = template["spec"], plan.steps[0].command[0]
    container = _container(pod, CONTAINERS["Job"])
    _fill_pod(pod, plan.settings)
    pod["serviceAccountName"] = plan.settings["service_account"]
    pod["automountServiceAccountToken"] = True
    _fill_container(container, plan, [python, "-m", "launcher.backends.kubernetes.conduct"])
    _set_environment(container, _common_environment(plan.steps), [], plan)
    _set_volumes(pod, container, plan)


def literal(text: str) -> str:
    """Write a text so that Kubernetes puts nothing in the place of ``$(NAME)`` in it."""
    return text.replace("$", "$$")


def _container(pod: Object, name: str) -> Object:
    found: Object = next(container for container in pod["containers"] if container["name"] == name)
    return found


def _all_containers(pod: Object) -> list[Object]:
    return [*pod["containers"], *(pod.get("initContainers") or ())]


def _fill_pod(pod: Object, place: Object) -> None:
    """Where pods run, and as whom."""
    pod["securityContext"] = _pod_security(pod.get("securityContext") or {}, place)
    if place["node_selector"]:
        pod["nodeSelector"] = {**(pod.get("nodeSelector") or {}), **place["node_selector"]}
    given = {
        "tolerations": place["tolerations"],
        "priorityClassName": place["priority_class"],
        "schedulerName": place["scheduler"],
        "imagePullSecrets": [{"name": name} for name in place["pull_secrets"]],
    }
    pod.update({key: value for key, value in given.items() if value})


def _pod_security(base: Object, place: Object) -> Object:
    who = place["run_as"]
    ids = {"runAsUser": who["user"], "runAsGroup": who["group"], "fsGroup": who["fs_group"]}
    context = {"runAsNonRoot": who["user"] != 0, **ids, **_others_of(base, ("runAsNonRoot", *ids))}
    if who["fs_group"] is None:
        context.pop("fsGroupChangePolicy", None)
    else:
        # Else the owner of each file on the volume is set anew before each start.
        context.setdefault("fsGroupChangePolicy", "OnRootMismatch")
    if place["privileged"]:
        context.pop("seccompProfile", None)
    else:
        context["seccompProfile"] = {"type": "RuntimeDefault"}
    return {key: value for key, value in context.items() if value is not None}


def _container_security(base: Object, privileged: bool) -> Object:
    if privileged:
        return {**_others_of(base, ("allowPrivilegeEscalation", "capabilities")), "privileged": True}
    capabilities = {**(base.get("capabilities") or {}), "drop": ["ALL"]}
    kept = _others_of(base, ("privileged",))
    return {**kept, "allowPrivilegeEscalation": False, "capabilities": capabilities}


def _fill_container(container: Object, plan: Plan, command: Sequence[str]) -> None:
    place = plan.settings
    if place["image"]:
        container["image"] = place["image"]
    if place["pull_policy"]:
        container["imagePullPolicy"] = place["pull_policy"]
    container["command"] = [literal(part) for part in command]
    container.pop("args", None)
    container["securityContext"] = _container_security(container.get("securityContext") or {}, place["privileged"])


def _set_environment(container: Object, environment: dict[str, str], secrets: Sequence[Object], plan: Plan) -> None:
    """The base's variables, then the profile's and the recipe's, then those from secrets, then llavajob's own."""
    values = dict(environment)
    if plan.code:
        values["PYTHONPATH"] = ":".join(filter(None, [str(plan.code), values.get("PYTHONPATH", "")]))
    values[ENV_PLAN] = f"{FILES_MOUNT}/{PLAN_FILE}"
    entries = {entry["name"]: entry for entry in container.get("env") or ()}
    entries |= {name: {"name": name, "value": literal(value)} for name, value in values.items()}
    entries |= {entry["name"]: entry for entry in secrets}
    container["env"] = list(entries.values())


def _secret_variable(name: str, source: str) -> Object:
    secret, _, key = source.partition("/")
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _common_environment(steps: Sequence[Step]) -> dict[str, str]:
    """What every step has: the profile's variables, without those of one stage."""
    first, *others = [step.environment for step in steps]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _resources(base: Object, place: Object, step: Step) -> Object:
    """A gang's pod has all that the profile names; a shard or a task has its share."""
    gpus = (_GPU, place["gpu_resource"])
    limits = _others_of(base.get("limits") or {}, gpus)
    requests = _others_of(base.get("requests") or {}, gpus)
    shares = {
        "cpu": cpu_share(str(place["cpu"]), step.per_node) if place["cpu"] else "",
        "memory": size_share(place["memory"], step.per_node) if place["memory"] else "",
    }
    given = {name: share for name, share in shares.items() if share}
    requests, limits = {**requests, **given}, {**limits, **given}
    if step.gpus_per_node:
        limits[place["gpu_resource"]] = step.gpus_per_node
    whole = {**_others_of(base, ("limits", "requests")), "requests": requests, "limits": limits}
    return {key: value for key, value in whole.items() if value}


def _set_volumes(pod: Object, container: Object, plan: Plan) -> None:
    """Mount what the profile names, and the files of the run."""
    entries, holder = plan.settings["volumes"], covering_volume(plan.settings, plan.folder)
    replaced = {_FILES, *([_RUNS] if holder else [])}
    _drop_volumes(pod, container, replaced)
    taken = {_FILES, _RUNS, _SHM, *(volume["name"] for volume in pod["volumes"])}
    names: dict[str, str] = {}
    volumes, mounts = [], []
    for entry in entries:
        source = volume_source(entry)
        # Two volumes of one claim in a pod may wait for each other; one volume may have several mounts.
        if repr(source) not in names:
            same = holder is not None and volume_source(holder) == source
            name = names[repr(source)] = _RUNS if same else _free_name(entry["mount"], taken)
            taken.add(name)
            volumes.append({"name": name, **source})
        mounts.append(volume_mount(names[repr(source)], entry))
    files = {"name": _FILES, "mountPath": FILES_MOUNT, "readOnly": True}
    places = {mount["mountPath"] for mount in [*mounts, files]}
    kept = [mount for mount in container["volumeMounts"] if mount["mountPath"] not in places]
    container["volumeMounts"] = [*mounts, *kept, files]
    used = {mount["name"] for one in _all_containers(pod) for mount in one.get("volumeMounts") or ()}
    # A volume that nobody mounts any more would still hold the pod up where it is not there.
    left = [volume for volume in pod["volumes"] if volume["name"] in used]
    pod["volumes"] = [*volumes, *left, {"name": _FILES, "configMap": {"name": plan.run}}]


def _set_shm(pod: Object, container: Object, size: str, step: Step) -> None:
    """Shared memory of what loads data in several processes; the container runtime gives 64 MB."""
    if not size and step.gpus_per_node:
        return
    _drop_volumes(pod, container, {_SHM})
    if not size or step.kind not in ("gang", "array"):
        return
    memory = {"medium": "Memory", "sizeLimit": size_share(size, step.per_node)}
    kept = [mount for mount in container["volumeMounts"] if mount["mountPath"] != SHM_MOUNT]
    container["volumeMounts"] = [*kept, {"name": _SHM, "mountPath": SHM_MOUNT}]
    pod["volumes"].append({"name": _SHM, "emptyDir": memory})


def _drop_volumes(pod: Object, container: Object, names: Iterable[str]) -> None:
    gone = set(names)
    pod["volumes"] = [volume for volume in pod.get("volumes") or () if volume["name"] not in gone]
    container["volumeMounts"] = [mount for mount in container.get("volumeMounts") or () if mount["name"] not in gone]


def _free_name(mount: str, taken: set[str]) -> str:
    """A volume's name from where it is seen: ``/data/sets`` is ``data-sets``."""
    words = re.sub(r"[^a-z0-9]+", "-", mount.lower()).strip("-")[:55].strip("-") or "volume"
    numbers = (f"{words}-{number}" for number in range(2, 1000))
    return next(name for name in (words, *numbers) if name not in taken)


def _others(entries: Sequence[Object] | None, name: str) -> list[Object]:
    return [entry for entry in entries or () if entry.get("name") != name]


def _others_of(values: Object, names: Iterable[str]) -> Object:
    gone = set(names)
    return {key: value for key, value in values.items() if key not in gone}
