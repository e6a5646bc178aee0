"""How does every command but training begin and end: logs, signals, errors, exit code?"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal, TypeVar

from llava import config, failure, interrupt, logs
from llava.config import ConvertJob, EvalJob, ToyJob, TrainJob
from llava.errors import EXIT_DONE, ConfigError, Interrupted, LlavaError
from llava.named_paths import key_of
from llava.run_folder import ENV_RUN, RunFolder

AJob = TypeVar("AJob", TrainJob, ConvertJob, EvalJob, ToyJob)
OnSignal = Literal["remember", "stop", "default"]
"""What SIGTERM and SIGUSR2 do: set the flag that a loop looks at; stop at once, nothing half done; what they always
do."""


def guarded(
    work: Callable[[], None],
    *,
    on_signal: OnSignal,
    rank: int = 0,
    config_path: str | None = None,
) -> int:
    """Do something; what goes wrong ends as a message, an error file where a launcher wants one, and an exit code.

    Args:
        work: what to do; heavy imports belong inside.
        on_signal: what a signal to stop does.
        rank: names the log and the error file under a launcher.
        config_path: the job's config, which names the run folder where a failure is noted; None: by hand.

    Returns:
        the exit code.
    """
    prepare(rank, on_signal)
    try:
        work()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # whoever read the output went away
    except Exception as error:
        named = _of_file_system(error, config_path)
        failure.record(named, _run_folder(config_path))
        return failure.exit_code(named)
    return EXIT_DONE


def prepare(rank: int, on_signal: OnSignal) -> None:
    """Set up logs and signals, before anything heavy is imported."""
    os.environ["RANK"] = str(rank)
    # Idle OpenMP threads otherwise spin: on shared cores a tiny model was seen to take 100 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logs.start(rank)
    if ENV_RUN in os.environ and on_signal != "default":  # whoever launched it is to know how it ends, or it ends
        interrupt.die_with_parent(signal.SIGTERM)
    if on_signal == "remember":
        interrupt.install()
    elif on_signal == "stop":
        for number in interrupt.ASKED_BY:
            signal.signal(number, _stop)


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


def _stop(number: int, frame: FrameType | None) -> None:
    # One more would break the tidying up; a launcher that cannot wait sends SIGKILL.
    for asked_by in interrupt.ASKED_BY:
        signal.signal(asked_by, signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(number).name}; nothing half done is left", "Start again.")


def _of_file_system(error: Exception, config_path: str | None) -> Exception:
    """A message for what only a person can mend; any other error as it is."""
    hint = _FILE_SYSTEM.get(error.errno or 0) if isinstance(error, OSError) else None
    if hint is None or not isinstance(error, OSError):
        return error
    key = _key_of(error, config_path)
    named = f" The path comes from {key} of the config; another one may do." if key else ""
    return LlavaError(str(error), f"{hint}{named} What was written before is kept; start again afterwards.")


def _key_of(error: OSError, config_path: str | None) -> str:
    """The config's key for the path that an error names."""
    if config_path is None:
        return ""
    try:
        values = config.load(config_path).model_dump()
    except LlavaError:
        return ""
    return key_of(error.filename2 or error.filename, values)


_FILE_SYSTEM = {
    errno.ENOSPC: "The disk is full: free space there.",
    errno.EDQUOT: "The quota is used up: free space there.",
    errno.EROFS: "The file system is read-only: mount it writable.",
    errno.EACCES: "No permission to write there: give it.",
    errno.EFBIG: "Files there may not grow that large (ulimit -f).",
}


def _run_folder(config_path: str | None) -> RunFolder | None:
    try:
        return None if config_path is None else RunFolder(Path(config.load(config_path).run_dir))
    except LlavaError:
        return None
