"""Speed of the quickstart's stage 2 and MMBench: ``python -m tests.benchmarks.throughput QUICKSTART_RUN_FOLDER``.

Stage 2 is trained once on one process and once on two, each process with one thread; MMBench is answered by one
process at batch 1 and at batch 32, and the answers are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(config: dict[str, Any], folder: Path, processes: int) -> float:
    """Median samples/s of the logged spans, the first left out."""
    values = {**config, "run_dir": str(folder), "train": {**config["train"], "max_steps": 60, "log_every_steps": 10}}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    agent = [sys.executable, "-m", "llava.agent", "--nproc-per-node", str(processes), "--", "-m", "llava.train"]
    subprocess.run([*agent, "--config", str(path)], check=True, env=ONE_THREAD, capture_output=True)
    return statistics.median(line["samples_per_s"] for line in lines(folder / "metrics.jsonl")[1:])


def answer(config: dict[str, Any], folder: Path, batch: int) -> tuple[float, dict[int, str]]:
    """Rows/s of one process, and its answers."""
    evaluation = {**config["eval"], "batch": batch, "shards": 1, "baseline": None}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**config, "run_dir": str(folder), "eval": evaluation}))
    subprocess.run(
        [sys.executable, "-m", "llava.mmbench", "--config", str(path)], check=True, env=ONE_THREAD, capture_output=True
    )
    predictions = lines(folder / "eval/mmbench/predictions.jsonl")
    return lines(folder / "metrics.jsonl")[-1]["samples_per_s"], {p["index"]: p["prediction"] for p in predictions}


def main() -> None:
    """Print the figures."""
    run = Path(sys.argv[1])
    stage, rows = (yaml.safe_load((run / f"stages/{n}/config.yaml").read_text()) for n in ("finetune", "mmbench"))
    with tempfile.TemporaryDirectory() as name:
        speeds = [train(stage, Path(name) / f"train{n}", n) for n in (1, 2)]
        print(
            f"stage 2: {speeds[0]:.1f} samples/s on 1 process, {speeds[1]:.1f} on 2, ratio {speeds[1] / speeds[0]:.2f}"
        )
        (slow, one), (fast, many) = (answer(rows, Path(name) / f"eval{n}", n) for n in (1, 32))
        print(f"MMBench: {slow:.0f} rows/s at batch 1, {fast:.0f} at batch 32, ratio {fast / slow:.2f}")
        print(f"MMBench: {sum(one[i] == many[i] for i in one)} of {len(one)} answers equal")


if __name__ == "__main__":
    main()
