"""From resolved stages to steps: what is started, in how many processes, with what command, in what order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError, RequestError
from launcher.plan import SHARD, Plan, Step, StepKind
from launcher.profiles import Profile
from launcher.recipe import Stage
from launcher.recipe_schema import LAUNCHER_KEYS, MOST_NODES
from launcher.run_folder import RunFolder
from launcher.text_checks import flaw


def make_plan(run: str, run_id: str, folder: Path, place: Profile, stages: Sequence[Stage]) -> Plan:
    """Lay out the steps of every stage.

    Raises:
        RecipeError: a batch that does not divide, a GPU count that makes no sense; all at once.
        RequestError: the run's folder or the Python has a name that a plan cannot hold.
    """
    problems = [
        problem for stage in stages for problem in (*fit_batch(stage), *check_shards(stage), *check_tuning(stage))
    ]
    if problems:
        raise RecipeError(problems)
    steps = [step for stage in stages for step in _steps(stage, place.python, place.environment)]
    _check_paths(folder, place.python)
    code = RunFolder(folder).code if place.code == "snapshot" else None
    configs = {str(RunFolder(stage.folder).config): config_values(stage) for stage in stages}
    return Plan(run, run_id, folder, place.backend, place.settings, tuple(steps), configs, code=code)


def _check_paths(*named: Path | str) -> None:
    for path in named:
        text = flaw(str(path), one_line=True)
        if text:
            hint = "Name another folder, such as LLAVAJOB_RUNS, or rename it."
            raise RequestError(f"the path {str(path)!r} {text}", hint)


def config_values(stage: Stage) -> dict[str, Any]:
    """The complete config.yaml of a stage: what the runtime reads."""
    values = {key: value for key, value in stage.tree.values.items() if key not in LAUNCHER_KEYS}
    values["run_dir"] = str(stage.folder)
    if stage.kind == "eval" and values["eval"]["shards"] is None:
        values["eval"] = {**values["eval"], "shards": world_size(stage)}
    first = ("kind", "run_dir", "seed")
    return {key: values[key] for key in (*first, *(k for k in values if k not in first))}


def processes_per_node(stage: Stage) -> int:
    """Processes on each node: one per GPU, or what the recipe says on CPU."""
    resources = stage.tree.values["resources"]
    return int(resources["gpus_per_node"] or resources["processes_per_node"])


def world_size(stage: Stage) -> int:
    """Processes of a stage over all nodes."""
    return int(stage.tree.values["resources"]["nodes"]) * processes_per_node(stage)


def fit_batch(stage: Stage) -> list[Problem]:
    """Make per device x accumulation x ranks the global batch, lowering the device batch where it must be.

    The global batch is the recipe's, whatever the number of nodes; a smaller device batch never needs more memory.
    """
    if stage.kind != "train":
        return []
    train, ranks = stage.tree.values["train"], world_size(stage)
    whole, device = int(train["global_batch"]), int(train["device_batch"])
    if whole % ranks:
        near = ", ".join(str(number) for number in _divisors(whole) if number < 2 * ranks)
        text = f"train.global_batch {whole} cannot be shared by {ranks} ranks; ranks may be {near}, or change the batch"
        return [Problem(stage.tree.origin(("train", "global_batch")), text)]
    fitting = max(size for size in _divisors(whole // ranks) if size <= device)
    if fitting != device:
        origin = f"{device} lowered, so that {ranks} ranks share {whole}"
        stage.tree.set(("train", "device_batch"), fitting, origin)
    return []


def _divisors(number: int) -> list[int]:
    """Every divisor of a number, in order."""
    low = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    high = [number // divisor for divisor in reversed(low) if divisor * divisor != number]
    return low + high


def check_shards(stage: Stage) -> list[Problem]:
    """Find an evaluation that would be cut into more shards than can be planned, one for each process."""
    if stage.kind != "eval" or stage.tree.values["eval"]["shards"] is not None or world_size(stage) <= MOST_NODES:
        return []
    text = f"{world_size(stage):,} processes would be as many shards; {MOST_NODES:,} are the most: set eval.shards"
    return [Problem(stage.tree.origin(("resources", "nodes")), text)]


def check_tuning(stage: Stage) -> list[Problem]:
    """Find parts that are to train every weight in 4 bits, which take no updates."""
    if stage.kind != "train":
        return []
    text = "goes with tuning: frozen or lora, because 4-bit weights take no updates"
    found = []
    for part in ("language", "vision"):
        values, key = stage.tree.values["model"][part], ("model", part, "quantize")
        if values["quantize"] == "nf4" and values["tuning"] == "full":
            found.append(Problem(stage.tree.origin(key), f"model.{part}.quantize: nf4 {text}"))
    return found


def accumulation(stage: Stage) -> int:
    """Forward passes per update on each rank."""
    train = stage.tree.values["train"]
    return int(train["global_batch"]) // (int(train["device_batch"]) * world_size(stage))


def _steps(stage: Stage, python: str, environment: dict[str, str]) -> list[Step]:
    resources, retries = stage.tree.values["resources"], stage.tree.values["retries"]
    config = str(RunFolder(stage.folder).config)
    shared = {
        "stage": stage.name,
        "threads_per_process": resources["threads_per_process"],
        "environment": {**environment, **stage.tree.values["environment"]},
        "retries": int(retries["without_progress"]),
        "grace_s": int(retries["grace_s"]),
    }
    name = stage.name or stage.kind
    if stage.kind == "train":
        command = (python, "-m", "llava.agent", "--", "-m", "llava.train", "--config", config)
        return [_gang(name, resources, processes_per_node(stage), command, shared)]
    if stage.kind == "eval":
        module = f"llava.{stage.tree.values['eval']['benchmark']}"
        return _eval_steps(name, stage, (python, "-m", module, "--config", config), shared)
    return [_single("task", name, stage, (python, "-m", f"llava.{stage.kind}", "--config", config), shared)]


def _gang(
    name: str, resources: dict[str, Any], processes: int, command: tuple[str, ...], shared: dict[str, Any]
) -> Step:
    nodes = int(resources["nodes"])
    return Step(
        name=name, kind="gang", nodes=nodes, processes_per_node=processes, per_node=1, parallel=nodes,
        gpus_per_node=int(resources["gpus_per_node"]), command=command, **shared,
    )  # fmt: skip


def _single(kind: StepKind, name: str, stage: Stage, command: tuple[str, ...], shared: dict[str, Any]) -> Step:
    """One process without a GPU."""
    return Step(
        name=name,
        kind=kind,
        nodes=1,
        processes_per_node=1,
        per_node=processes_per_node(stage),
        parallel=1,
        gpus_per_node=0,
        command=command,
        **shared,
    )


def _eval_steps(name: str, stage: Stage, command: tuple[str, ...], shared: dict[str, Any]) -> list[Step]:
    shards = int(config_values(stage)["eval"]["shards"])
    gpus = 1 if stage.tree.values["resources"]["gpus_per_node"] else 0
    array = Step(
        name=name, kind="array", nodes=shards, processes_per_node=1, gpus_per_node=gpus,
        per_node=processes_per_node(stage), parallel=min(shards, world_size(stage)),
        command=(*command, "--shard", SHARD), members=tuple(range(shards)), **shared,
    )  # fmt: skip
    return [array, _single("merge", f"{name}-merge", stage, (*command, "--merge"), shared)]
