"""How does every command but training begin and end: logs, signals, errors, exit code?"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from llava import config, failure, interrupt, logs
from llava.config import ConvertJob, EvalJob, ToyJob, TrainJob
from llava.errors import EXIT_DONE, ConfigError
from llava.run_folder import RunFolder

AJob = TypeVar("AJob", TrainJob, ConvertJob, EvalJob, ToyJob)


def guarded(work: Callable[[], None], rank: int = 0, run: Callable[[], RunFolder | None] = lambda: None) -> int:
    """Do something; what goes wrong ends as a message, an error file where a launcher wants one, and an exit code.

    Args:
        work: what to do; heavy imports belong inside.
        rank: names the log and the error file under a launcher.
        run: the run's folder, asked for only when something went wrong.

    Returns:
        the exit code.
    """
    prepare(rank)
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        failure.record(error, _quietly(run))
        return failure.exit_code(error)
    return EXIT_DONE


def prepare(rank: int) -> None:
    """Set up logs and signals, before anything heavy is imported."""
    os.environ["RANK"] = str(rank)
    # Idle OpenMP threads otherwise spin: on shared cores a tiny model was seen to take 100 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logs.start(rank)
    interrupt.install()


def load_job(path: str, kind: type[AJob]) -> AJob:
    """Read a config of one kind.

    Raises:
        ConfigError: it is not a config, or one of another kind.
    """
    job = config.load(path)
    if not isinstance(job, kind):
        wanted = kind.__name__.removesuffix("Job").lower()
        raise ConfigError(f"{path} is a config of kind {job.kind}, not {wanted}")
    return job


def _quietly(run: Callable[[], RunFolder | None]) -> RunFolder | None:
    try:
        return run()
    except Exception:
        return None
