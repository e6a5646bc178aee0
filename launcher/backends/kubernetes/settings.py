"""What a profile may say to Kubernetes: the keys below ``kubernetes:``, and where pods keep runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.key_checks import CHECKS
from launcher.backends.kubernetes.volumes import covering_volume
from launcher.errors import Problem
from launcher.tree import Key, Tree

DEFAULT_RUNS = "/runs"
"""Folder that pods keep runs in where neither the profile nor its volumes say another."""
PYTHON = "python"
"""The Python of the image, found on its PATH."""


def _text(doc: str) -> dict[str, Any]:
    return {"type": "string", "default": "", "description": doc}


def _map(doc: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": "string"}, "default": {}, "description": doc}


def _number(doc: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": 1000, "description": doc}


def _list(doc: str, of: str, default: Any = ()) -> dict[str, Any]:
    return {"type": "array", "items": {"type": of}, "default": list(default), "description": doc}


def _group(doc: str, **keys: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "default": {}, "description": doc, "properties": keys}


SCHEMA: dict[str, Any] = _group(
    "What a cluster is told; what is left out is as the base manifests have it.",
    context=_text("Context of the kubeconfig; empty: the current one."),
    namespace=_text("Namespace; empty: the context's."),
    image=_text("Image of every container."),
    pull_policy={
        "anyOf": [{"enum": ["Always", "IfNotPresent", "Never"], "type": "string"}, {"type": "null"}],
        "default": None,
        "description": "When nodes pull the image.",
    },
    pull_secrets=_list("Secrets that the image is pulled with, by name.", "string"),
    service_account={
        **_text("Service account of a pipeline's conductor; no other pod has one."),
        "default": "llavajob",
    },
    gpu_resource={**_text("Name that the cluster gives its GPUs."), "default": "nvidia.com/gpu"},
    cpu={
        "anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0}],
        "default": "",
        "description": "CPUs of each pod of a training: 96; shards get their share of them.",
    },
    memory=_text("Memory of each pod of a training: 480Gi; shards get their share of it."),
    shm=_text("Size of /dev/shm: 16Gi; shards get their share. Empty: as the base has it, in pods with GPUs."),
    node_selector=_map("Labels that nodes must have."),
    tolerations=_list("Taints of nodes that do not matter, as Kubernetes writes them.", "object"),
    priority_class=_text("Priority class."),
    volumes=_list(
        "What is mounted: {mount, one of pvc, host_path, nfs and empty_dir, sub_path, read_only}.",
        "object",
        [{"mount": DEFAULT_RUNS, "pvc": "llavajob-runs"}],
    ),
    image_folders=_list(
        "Folders of the image that hold inputs, where this machine has a folder of that name, too.", "string"
    ),
    secrets=_map("Environment variables from secrets: {HF_TOKEN: name/key}."),
    labels=_map("Labels of every object and pod."),
    annotations=_map("Annotations of every object and pod."),
    queue=_text("Kueue's local queue."),
    scheduler=_text("Scheduler of the pods, such as volcano."),
    runs=_text("Folder in pods that runs are kept in, where it is not the profile's own."),
    start_timeout_s={
        "type": "integer",
        "minimum": 0,
        "default": 1800,
        "description": "Seconds that the nodes of a training wait for each other before they give their place back and "
        "the run fails; 0: without end.",
    },
    run_as=_group(
        "Whom pods run as; null: as the image has it.",
        user=_number("User; 0 is root."),
        group=_number("Group."),
        fs_group=_number("Group that owns the volumes."),
    ),
    privileged={"type": "boolean", "default": False, "description": "Let containers do what root of the node may."},
    manifests=_group(
        "Base objects of your own, as files beside the profile.",
        training=_text("A PyTorchJob for training."),
        evaluation=_text("A Job for evaluation and other single tasks."),
        pipeline=_text("A Job for a pipeline's conductor."),
    ),
)


def runs_in_pods(runs: Path, settings: dict[str, Any]) -> tuple[Path, bool]:
    """Return the folder that pods keep runs in, and whether it is the very folder that is seen here.

    Args:
        runs: the profile's folder of runs, as it is seen here.
        settings: what the profile says to Kubernetes, complete.
    """
    named = settings["runs"]
    if named and Path(named) != runs:
        return Path(named), False
    if covering_volume(settings, runs):
        return runs, True
    return Path(named or DEFAULT_RUNS), False


def is_file(key: Key) -> bool:
    """Whether a profile's key names a file."""
    return key[:2] == ("kubernetes", "manifests")


def find_problems(tree: Tree) -> list[Problem]:
    """List what the schema cannot see: names, sizes, volumes, labels, base objects."""
    return [problem for check in CHECKS for problem in check(tree)]
