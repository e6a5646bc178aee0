"""What tests need to run llavajob on the bed: a profile whose pods use this host's Python, and hands in the cluster."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from launcher.shipped import manifests_folder
from tests.kubernetes.bed import Cluster
from tests.kubernetes.image import IMAGE, USER, give, host_folders
from tests.shell import Shell

ACCOUNT = manifests_folder() / "service-account.yaml"


def write_profile(shell: Shell, cluster: Cluster, namespace: str, *folders: Path, apart: bool, **more: Any) -> Path:
    """Write the profile ``pods`` beside the shell's recipes; return the folder that its pods keep runs in, seen here.

    Args:
        folders: what pods may read beside Python and this project.
        apart: whether pods keep runs on a volume that the launcher does not see.
        more: keys below ``kubernetes:``.
    """
    kept = shell.runs.parent / "volume" if apart else shell.runs
    kept.mkdir(exist_ok=True)
    if apart:
        give(kept)
    # What the launcher makes on a volume that it sees belongs to whom it runs as.
    user = USER if apart else os.getuid()
    volumes: list[dict[str, Any]] = [
        {"mount": str(folder), "host_path": str(folder), "read_only": True} for folder in (*host_folders(), *folders)
    ]
    volumes.append({"mount": "/runs" if apart else str(kept), "host_path": str(kept)})
    place = {
        "namespace": namespace, "image": IMAGE, "pull_policy": "Never", "volumes": volumes,
        "run_as": {"user": user, "group": user, "fs_group": None}, **({"runs": "/runs"} if apart else {}), **more,
    }  # fmt: skip
    profile = {"backend": "kubernetes", "python": sys.executable, "kubernetes": place}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"pods": profile}}))
    cluster.kubectl("apply", f"--namespace={namespace}", "--filename", str(ACCOUNT))
    return kept


def names(cluster: Cluster, namespace: str, kind: str = "pods") -> list[str]:
    """Names of what there is of a kind."""
    return [str(obj["metadata"]["name"]) for obj in cluster.get(kind, namespace=namespace)["items"]]


def pod_uid(cluster: Cluster, namespace: str, pod: str) -> str:
    """What tells a pod from its successor of the same name; empty: there is none."""
    found = [p for p in cluster.get("pods", namespace=namespace)["items"] if p["metadata"]["name"] == pod]
    return str(found[0]["metadata"]["uid"]) if found else ""


def rank_process(run: str, rank: int, program: str = "llava.train") -> psutil.Process:
    """The process of one rank of a run, wherever its pod is on this host."""
    for process in psutil.process_iter():
        try:
            environment, command = process.environ(), process.cmdline()
        except (psutil.Error, OSError):
            continue
        mine = environment.get("LLAVAJOB_RUN", "").endswith(f"/{run}")
        if mine and environment.get("RANK") == str(rank) and program in command:
            return process
    raise AssertionError(f"rank {rank} of {run} is not there")


def events_of(kept: Path, run: str, event: str) -> list[dict[str, Any]]:
    """Events of a kind that a run has written."""
    path = kept / run / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if line.get("event") == event]


def steps_done(kept: Path, run: str) -> list[int]:
    """The steps that training did, in order, those that were lost and done again included."""
    path = kept / run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []
