"""How many members a job array may have on this cluster."""

from __future__ import annotations

from launcher.backends.slurm.client import ask
from launcher.errors import BackendError
from launcher.plan import Plan

_MANY = 100
"""Arrays up to this size are not worth a question before they are sent."""


def largest_array(config: dict[str, str]) -> int | None:
    """Return how many members an array may have; None: unknown.

    Indices are smaller than MaxArraySize, and here they count from 0.

    Args:
        config: what ``scontrol show config`` says.
    """
    sizes = [config.get("MaxArraySize", "")]
    for parameter in config.get("SchedulerParameters", "").split(","):
        name, _, value = parameter.partition("=")
        if name.strip() == "max_array_tasks":
            sizes.append(value.strip())
    numbers = [int(size) for size in sizes if size.isascii() and size.isdigit()]
    return min(numbers, default=None)


def read_config() -> dict[str, str]:
    """Return the cluster's configuration by name.

    Raises:
        BackendError: the controller does not answer.
    """
    rows = [line.partition("=") for line in ask("scontrol", "show", "config").splitlines()]
    return {name.strip(): value.strip() for name, sign, value in rows if sign}


def too_large_arrays(plan: Plan) -> list[str]:
    """Say which evaluations have more shards than an array may have members; a silent cluster is asked by sbatch."""
    large = [step for step in plan.steps if step.kind == "array" and len(step.members) > _MANY]
    if not large:
        return []
    try:
        most = largest_array(read_config())
    except BackendError:
        return []
    found = []
    for step in large:
        if most is not None and len(step.members) > most:
            key = f"stages.{step.stage}.eval.shards" if step.stage else "eval.shards"
            text = f"{step.name} has {len(step.members)} shards, and this cluster's arrays take {most} (MaxArraySize)"
            found.append(f"{text}: --set {key}={most} or fewer")
    return found
