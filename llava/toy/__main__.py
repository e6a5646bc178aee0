"""``python -m llava.toy --config FILE``: draw the quickstart's data and build its bases."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.config import ToyJob
from llava.entry import guarded, load_job
from llava.run_folder import RunFolder

log = logging.getLogger("llava.toy")


def toy_job(job: ToyJob) -> None:
    """Draw the data, then train the tiny bases on it, or take them from the cache."""
    from llava.toy.bases import build_bases
    from llava.toy.draw import draw_data

    run = RunFolder(Path(job.run_dir))
    draw_data(job.toy.data, job.seed, report=_reporter(run, "draw"))
    log.info("drew %s", job.toy.data)
    build_bases(job.toy.bases, job.toy.data, job.seed, job.toy.cache, report=_reporter(run, "bases"))
    log.info("built %s", job.toy.bases)


def _reporter(run: RunFolder, phase: str) -> Callable[[int, int, Any], None]:
    def report(step: int, total_steps: int, metrics: Any) -> None:
        run.add_metrics(phase=phase, step=step, total_steps=total_steps, **metrics)

    return report


def from_config(path: str) -> int:
    """What the command lines do; returns the exit code."""
    return guarded(lambda: toy_job(load_job(path, ToyJob)), on_signal="stop", config_path=path)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llava.toy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="config of kind toy")
    return from_config(parser.parse_args(arguments).config)


if __name__ == "__main__":
    sys.exit(main())
