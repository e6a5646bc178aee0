"""``python -m llava.mmbench --config FILE [--shard I] [--merge]``: MMBench in shards, then one score.

With ``--shard`` the shard of that number out of ``eval.shards`` is answered. Without it, under torchrun, every rank is
a shard and the one that finds all rows answered scores them; alone, all rows are answered and scored. ``--merge`` only
scores.
"""

from __future__ import annotations

import argparse
import os
import sys

from llava import interrupt
from llava.config import EvalJob
from llava.entry import guarded, load_job
from llava.errors import ConfigError
from llava.evals.mmbench import run


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


def from_config(path: str, shard: int | None, merge: bool) -> int:
    """What the command lines do; returns the exit code."""
    return guarded(
        lambda: start(load_job(path, EvalJob), shard, merge=merge),
        on_signal="remember",
        rank=rank_of(shard),
        config_path=path,
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llava.mmbench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="config of kind eval")
    parser.add_argument("--shard", type=int, help="answer only the shard of this number")
    parser.add_argument("--merge", action="store_true", help="only merge and score what is answered")
    given = parser.parse_args(arguments)
    return from_config(given.config, given.shard, given.merge)


if __name__ == "__main__":
    sys.exit(main())
