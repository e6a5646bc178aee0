"""The environment of one node of a gang, one shard or one task: the same on every backend that starts processes."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.cores import usable_cores
from launcher.plan import Step
from launcher.run_folder import ENV_ATTEMPT, ENV_ATTEMPT_DIR, ENV_NODE, ENV_RUN, ENV_RUN_ID, RunFolder


def node_environment(
    step: Step, run: RunFolder, run_id: str, attempt: int, number: int, sharing: int, code: Path | None
) -> dict[str, str]:
    """Return what a node's process gets beside what it inherits.

    Args:
        step: what is started.
        run: the run's folder: a mark that all its processes carry.
        run_id: the run's identity, another such mark; empty for runs of versions that had none.
        attempt: number of the attempt.
        number: node or shard, from 0.
        sharing: how many nodes or members share this machine's cores.
        code: copy of the code that is to run.
    """
    threads = step.threads_per_process or max(1, usable_cores() // (sharing * step.processes_per_node))
    environment = {
        # Threads that wait by spinning take the cores from the other ranks of this machine.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **step.environment,
        ENV_RUN: str(run.root),
        ENV_RUN_ID: run_id,
        ENV_ATTEMPT: str(attempt),
        ENV_NODE: str(number),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    if step.kind != "merge":  # the merge has no ranks with logs of their own; all goes to the node's log
        environment[ENV_ATTEMPT_DIR] = str(run.stage(step.stage).attempt(attempt))
    if code is not None:
        others = step.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH") or ""
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), others]))
    return environment
