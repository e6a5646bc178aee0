"""Jobs on tiny bases: run in this process, alone in another, or in several under the agent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llava import interrupt
from llava.config import TrainJob
from llava.run_folder import RunFolder, read_lines

DEADLINE_S = 240.0
"""How long anything may take before a test gives up; nothing is asserted about speed."""


@dataclass(frozen=True)
class Bases:
    """Folders that every job starts from."""

    language: Path
    vision: Path
    data: Path


def make_job(bases: Bases, run: Path, model: dict[str, Any] | None = None, **train: Any) -> TrainJob:
    """LoRA with dropout on the language model, projector in full, 16 updates of 8 samples."""
    data = {key: train.pop(key) for key in ("workers", "max_bad_images", "records", "images") if key in train}
    lora = {"rank": 4, "alpha": 8, "dropout": 0.2}
    values: dict[str, Any] = {
        "kind": "train",
        "run_dir": str(run),
        "seed": train.pop("seed", 1),
        "model": {
            "language": {"path": str(bases.language), "tuning": "lora", "lora": lora},
            "vision": {"path": str(bases.vision)},
            **(model or {}),
        },
        "data": {
            "records": str(bases.data / "records.json"),
            "images": str(bases.data / "images"),
            "workers": 0,
            **data,
        },
        "train": {
            "global_batch": 8,
            "device_batch": 2,
            "max_steps": 16,
            "epochs": 1000,
            "learning_rate": 1e-2,
            "log_every_steps": 1,
            "save_every_steps": 4,
            "device": "cpu",
            **train,
        },
    }
    return TrainJob.model_validate(values)


def train_here(job: TrainJob) -> RunFolder:
    """Run a job in this process; errors come out as they are."""
    from llava.train import Position, train

    run = RunFolder(Path(job.run_dir))
    interrupt._seen.clear()
    train(job, run, Position())
    return run


def write_config(job: TrainJob) -> Path:
    """The job's config file, in its run folder."""
    path = Path(job.run_dir) / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return path


def start_alone(job: TrainJob, **environment: str) -> subprocess.Popen[str]:
    """``python -m llava.train`` by hand."""
    return _start(["-m", "llava.train", "--config", str(write_config(job))], environment)


def start_ranks(job: TrainJob, attempt: int = 0, ranks: int = 2, *options: str) -> subprocess.Popen[str]:
    """The node's agent with so many ranks, as a launcher starts it."""
    folder = RunFolder(Path(job.run_dir)).attempt(attempt)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["-m", "llava.agent", "--nproc-per-node", str(ranks), *options]
    words += ["--", "-m", "llava.train", "--config", str(write_config(job))]
    environment = {"LLAVAJOB_ATTEMPT": str(attempt), "LLAVAJOB_ATTEMPT_DIR": str(folder)}
    return _start(words, environment)


def start_script(root: Path, module: str, *arguments: str, ranks: int = 2) -> subprocess.Popen[str]:
    """The node's agent with ranks that run another module."""
    folder = RunFolder(root).attempt(0)
    folder.mkdir(parents=True)
    words = ["-m", "llava.agent", "--nproc-per-node", str(ranks), "--", "-m", module, *arguments]
    return _start(words, {"LLAVAJOB_ATTEMPT": "0", "LLAVAJOB_ATTEMPT_DIR": str(folder)})


def _start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process that shall end by itself."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def wait_for(condition: Callable[[], Any], what: str, process: subprocess.Popen[str] | None = None) -> Any:
    """Poll until a condition holds; fails when the process ends before."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode} before {what}: {end(process)[1]}")
        time.sleep(0.02)
    raise AssertionError(f"waited too long for {what}")


def wait_for_step(run: RunFolder, step: int, process: subprocess.Popen[str]) -> None:
    """Until the metrics show an update."""
    wait_for(lambda: any(m["step"] >= step for m in read_lines(run.metrics)), f"update {step}", process)


def rank_pids(agent: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of an agent's ranks."""
    import psutil

    ranks = {}
    for child in psutil.Process(agent.pid).children():
        try:
            ranks[int(child.environ()["RANK"])] = child.pid
        except (psutil.Error, KeyError):
            continue
    return ranks


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def losses(run: RunFolder) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of every update, the latest line of each."""
    return {m["step"]: (m["loss"], m["grad_norm"]) for m in read_lines(run.metrics)}


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The run's events of a kind."""
    return [event for event in read_lines(run.events) if event["event"] == kind]


def steps_saved(run: RunFolder) -> list[int]:
    """Updates of the checkpoints that are complete."""
    from llava import checkpoint

    return [int(path.name.removeprefix("step-")) for path in checkpoint.complete(run.checkpoints)]
