"""What neither the profile's check nor the cluster sees before pods are made: lengths of names, sizes, lost runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from launcher.backends.kubernetes.bases import CONTAINERS
from launcher.backends.kubernetes.objects import (
    conductor,
    files,
    has_conductor,
    object_name,
    open_steps,
    step_object,
)
from launcher.backends.kubernetes.syntax import LABEL_LENGTH, is_dns_1035
from launcher.names import NAME_RULE
from launcher.plan import Plan, Step

_FILES_LIMIT_BYTES = 2**20
_PASSING = ("emptyDir", "configMap", "secret", "downwardAPI", "projected", "ephemeral")
"""Volumes that end with their pod, or cannot be written."""


def check_plan(plan: Plan) -> list[str]:
    """Say what the cluster would refuse late, or take and not do; nothing where all is well."""
    return [*_name_errors(plan), *_size_errors(plan), *_folder_errors(plan)]


def _name_errors(plan: Plan) -> Iterator[str]:
    if not is_dns_1035(plan.run):
        yield f"the run's name {plan.run!r} is none for Kubernetes; needed: {NAME_RULE}"
    longest = max((_longest_name(plan, step) for step in plan.steps), key=len)
    over = len(longest) - LABEL_LENGTH
    if over > 0:
        text = f"{longest} would be the name of a pod, {len(longest)} characters long; {LABEL_LENGTH} are the most"
        yield f"{text}: give the run a name of {max(1, len(plan.run) - over)} characters or fewer (--name)"


def _longest_name(plan: Plan, step: Step) -> str:
    """The longest name that is made of a step's object: pods are hosts, and hosts' names are labels."""
    name = object_name(plan, step)
    if step.kind == "gang":
        return f"{name}-worker-{step.nodes - 2}" if step.nodes > 1 else f"{name}-master-0"
    return f"{name}-{max(0, step.nodes - 1)}" if step.kind == "array" else name


def _size_errors(plan: Plan) -> Iterator[str]:
    size = sum(len(key) + len(text.encode()) for key, text in files(plan)["data"].items())
    if size > _FILES_LIMIT_BYTES:
        yield f"plan and objects of the run take {size} bytes; a ConfigMap holds {_FILES_LIMIT_BYTES}: use fewer stages"


def _folder_errors(plan: Plan) -> Iterator[str]:
    """Name the pods whose runs would end with them."""
    objects = [step_object(plan, step) for step in open_steps(plan)]
    if has_conductor(plan):
        objects.append(conductor(plan))
    lost = [str(found["metadata"]["name"]) for found in objects if not all(_keeps(plan, pod) for pod in _pods(found))]
    if lost:
        cure = "add a volume there, or name a folder that one of them holds: kubernetes.runs"
        yield f"no volume keeps {plan.folder}, where {', '.join(lost)} would write: {cure}"


def _pods(found: dict[str, Any]) -> list[dict[str, Any]]:
    replicas = found["spec"].get("pytorchReplicaSpecs", {"": found["spec"]})
    return [replica["template"]["spec"] for replica in replicas.values()]


def _keeps(plan: Plan, pod: dict[str, Any]) -> bool:
    """Whether what a pod writes to the run's folder outlasts it."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    container = next(one for one in pod["containers"] if one["name"] in CONTAINERS.values())
    above = [mount for mount in container["volumeMounts"] if plan.folder.is_relative_to(mount["mountPath"])]
    if not above:
        return False
    mount = max(above, key=lambda one: len(PurePosixPath(one["mountPath"]).parts))
    return not mount.get("readOnly") and not any(kind in volumes[mount["name"]] for kind in _PASSING)
