"""Checkpoints: written aside, marked complete last, moved in place; the newest complete one is always there.

::

    checkpoints/step-000500/
        weights.safetensors     what trains, whole, in float32, by parameter name
        optimizer.safetensors   exp_avg/NAME and exp_avg_sq/NAME
        state.json              step, seed, batches, world size, config hash, bad pictures, versions
        COMPLETE                sizes of the files above, written last

Nothing is pickled, and nothing depends on the number of ranks: the order of samples and all dropout are functions of
seed and step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from llava.disk import disk_errors, sync
from llava.errors import ConfigError, WeightsError
from llava.strategy import MOMENTS, State

COMPLETE = "COMPLETE"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)")
_ASIDE = re.compile(r"\.(step-\d+|old-step-\d+)\.tmp-")


@dataclass(frozen=True)
class Progress:
    """Where a run stands, beside its weights."""

    step: int
    """Updates done."""
    seed: int
    global_batch: int
    samples: int
    """Records in an epoch."""
    epoch: float
    """Passes over them so far."""
    world_size: int
    """Ranks that wrote it; any other number can go on."""
    strategy: str
    config_hash: str
    bad_pictures: list[str] = field(default_factory=list)
    """Paths that could not be read."""
    extra: dict[str, float] = field(default_factory=dict)
    """The strategy's own numbers."""
    versions: dict[str, str] = field(default_factory=dict)


def write(folder: Path, state: State, progress: Progress) -> None:
    """Write a checkpoint; where a complete one of that step stands already, it stays.

    Args:
        folder: where it shall stand (``checkpoints/step-000500``).

    Raises:
        OSError: disk full, read-only, ...; what was written aside is gone again.
    """
    aside = folder.with_name(f".{folder.name}.tmp-{os.uname().nodename}-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        _write_tensors(aside / WEIGHTS, state["weights"])
        moments = {f"{kind}/{n}": t for kind in MOMENTS for n, t in state[kind].items()}
        _write_tensors(aside / OPTIMIZER, moments)
        _write_text(aside / STATE, json.dumps(asdict(progress), indent=2) + "\n")
        sizes = {name: (aside / name).stat().st_size for name in (WEIGHTS, OPTIMIZER, STATE)}
        _write_text(aside / COMPLETE, json.dumps(sizes) + "\n")
        sync(aside)
        _move_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def newest(checkpoints: Path) -> Path | None:
    """The complete checkpoint with the most updates."""
    found = complete(checkpoints)
    return found[-1] if found else None


def complete(checkpoints: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    named = [(int(m[1]), path) for path in checkpoints.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named) if is_complete(path)]


def is_complete(folder: Path) -> bool:
    """The marker is there and every file has the size that it says."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def clean(checkpoints: Path) -> list[str]:
    """Remove what killed writers left behind: folders aside and folders that are not complete.

    Returns:
        Names of those removed.
    """
    if not checkpoints.is_dir():
        return []
    torn = [
        path
        for path in checkpoints.iterdir()
        if _ASIDE.match(path.name) or (_NAME.fullmatch(path.name) and not is_complete(path))
    ]
    for path in torn:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in torn]


def prune(checkpoints: Path, keep_last: int, keep_every_steps: int | None) -> None:
    """Remove older checkpoints; called after a newer one stands."""
    for path in complete(checkpoints)[:-keep_last]:
        if keep_every_steps and int(path.name.removeprefix("step-")) % keep_every_steps == 0:
            continue
        # Renamed first, so that a kill in between leaves nothing that looks complete and is not.
        gone = path.with_name(f".old-{path.name}.tmp-{os.getpid()}")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def read(folder: Path) -> tuple[State, Progress]:
    """A complete checkpoint's state, on the CPU.

    Raises:
        WeightsError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: State = {"weights": load_file(folder / WEIGHTS), **{kind: {} for kind in MOMENTS}}
        for name, tensor in load_file(folder / OPTIMIZER).items():
            kind, parameter = name.split("/", 1)
            state[kind][parameter] = tensor
        values: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        known = {f.name for f in fields(Progress)}
        return state, Progress(**{key: value for key, value in values.items() if key in known})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(
            f"checkpoint {folder} is damaged: {error}", "remove the folder to go on from the one before it"
        ) from None


def check_fits(folder: Path, seen: State, progress: Progress, weights: dict[str, Tensor], now: Progress) -> None:
    """A checkpoint must belong to this run: same seed, batch, number of samples, and trained weights.

    Args:
        weights: what trains now, by name.
        now: this run's own numbers.

    Raises:
        ConfigError: naming the numbers that differ.
        WeightsError: naming the weights that differ.
    """
    from llava.model.projector import check_state

    differing = [
        f"{key} was {getattr(progress, key)} and is {getattr(now, key)}"
        for key in ("seed", "global_batch", "samples")
        if getattr(progress, key) != getattr(now, key)
    ]
    if differing:
        raise ConfigError(
            f"cannot resume from {folder}: {'; '.join(differing)}",
            "a run keeps its seed, batch and records; start another run for other ones",
        )
    for kind, tensors in seen.items():
        check_state(f"{kind} of checkpoint {folder}", weights, tensors)


def _move_in_place(aside: Path, folder: Path) -> None:
    if folder.exists() and not is_complete(folder):
        shutil.rmtree(folder)
    try:
        os.rename(aside, folder)
    except OSError:
        if not is_complete(folder):  # else another survivor was first, with the same content
            raise
    sync(folder.parent)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with disk_errors(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    sync(path)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
