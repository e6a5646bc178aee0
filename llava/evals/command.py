"""``python -m llava.BENCHMARK --config FILE [--shard I] [--merge]``: a benchmark in shards, then one score.

With ``--shard`` the shard of that number out of ``eval.shards`` is answered. Without it, under torchrun, every rank is
a shard and the one that finds all rows answered scores them; alone, all rows are answered and scored. ``--merge`` only
scores.
"""

from __future__ import annotations

import argparse
import os

from llava import interrupt
from llava.config import EvalJob
from llava.entry import guarded, load_job
from llava.errors import ConfigError
from llava.evals import run


def start(job: EvalJob, shard: int | None = None, *, merge: bool = False) -> None:
    """Do one process's part of an evaluation.

    Raises:
        ConfigError: there is no such shard, or a folder is missing.
        Interrupted: a signal asked to stop; the answers so far are kept.
        DataError, WeightsError: the file or a model cannot be used, or rows have no answer.
    """
    if merge:
        run.finish(job)
        return
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if shard is not None:
        shards = job.eval.shards or world
        if not 0 <= shard < shards:
            raise ConfigError(f"shard {shard} of {shards} does not exist", "Shards count from 0.")
        run.answer_shard(job, shard, shards, stop_asked)
        return
    run.answer_shard(job, rank, world, stop_asked)
    if run.all_answered(job):
        run.finish(job)


def stop_asked() -> bool:
    """Whether a signal asked this process to stop."""
    return bool(interrupt.requested())


def rank_of(shard: int | None) -> int:
    """What names this process's log: its shard, or its rank under torchrun."""
    return int(os.environ.get("RANK", "0")) if shard is None else shard


def from_config(benchmark: str, path: str, shard: int | None, merge: bool) -> int:
    """What the command lines do; returns the exit code."""
    return guarded(
        lambda: start(_load(benchmark, path), shard, merge=merge),
        on_signal="remember",
        rank=rank_of(shard),
        config_path=path,
    )


def _load(benchmark: str, path: str) -> EvalJob:
    job = load_job(path, EvalJob)
    if job.eval.benchmark != benchmark:
        raise ConfigError(f"{path} asks for {job.eval.benchmark}, not {benchmark}", f"llava {job.eval.benchmark}")
    return job


def main(benchmark: str, arguments: list[str] | None = None) -> int:
    """Parse the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m llava.{benchmark}", description=f"{benchmark} in shards, then one score."
    )
    parser.add_argument("--config", required=True, help="config of kind eval")
    parser.add_argument("--shard", type=int, help="answer only the shard of this number")
    parser.add_argument("--merge", action="store_true", help="only merge and score what is answered")
    given = parser.parse_args(arguments)
    return from_config(benchmark, given.config, given.shard, given.merge)
