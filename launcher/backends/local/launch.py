"""Starting the processes of a step: one agent per node, one process per shard, each in its own session."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from launcher.node_environment import node_environment
from launcher.plan import SHARD, Step
from launcher.ports import free_port
from launcher.run_folder import ENV_ATTEMPT_DIR, RunFolder


@dataclass
class Node:
    """A started node or shard."""

    number: int
    process: subprocess.Popen[bytes]
    gpus: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """What one attempt of a step runs with."""

    run: RunFolder
    """The run's folder: a mark that all its processes carry."""
    run_id: str
    attempt: int
    gpus: list[str]
    """CUDA names of the GPUs that the run holds."""
    code: Path | None = None
    """Copy of the code that is to run."""
    claim: int | None = None
    """Descriptor of the claim on GPUs: processes that outlive the supervisor keep it."""


def start_gang(step: Step, site: Site) -> list[Node]:
    """Start every node of a gang, with a rendezvous that is made for this attempt alone."""
    port = free_port("127.0.0.1")
    nodes = []
    for number in range(step.nodes):
        rendezvous = {
            "PET_NNODES": str(step.nodes),
            "PET_NPROC_PER_NODE": str(step.processes_per_node),
            "PET_NODE_RANK": str(number),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        mine = site.gpus[number * step.gpus_per_node : (number + 1) * step.gpus_per_node]
        nodes.append(start_node(step, site, number, mine, rendezvous))
    return nodes


def start_node(step: Step, site: Site, number: int, gpus: list[str], extra: dict[str, str] | None = None) -> Node:
    """Start one node of a gang, one shard of an array, or a task.

    Args:
        step: what to start.
        site: where and for which attempt.
        number: node or shard, from 0.
        gpus: CUDA names of its GPUs.
        extra: more environment variables.
    """
    own = node_environment(step, site.run, site.run_id, site.attempt, number, step.parallel, site.code)
    environment = {**os.environ, **(extra or {}), **own}
    if step.kind == "merge":
        environment.pop(ENV_ATTEMPT_DIR, None)
    if step.gpus_per_node:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    command = [part.replace(SHARD, str(number)) for part in step.command]
    stage = site.run.stage(step.stage)
    stage.attempt(site.attempt).mkdir(parents=True, exist_ok=True)
    with stage.node_log(site.attempt, number).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, pass_fds=() if site.claim is None else (site.claim,),
        )  # fmt: skip
    return Node(number, process, gpus)
