"""How a rank fails: an error file for the launcher, an event, and out within seconds whatever the others do."""

from __future__ import annotations

import errno
import json
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from llava import logs, unforeseen
from llava.errors import EXIT_BAD_REQUEST, EXIT_FAILED, EXIT_FINAL, Interrupted, LlavaError, TrainingError
from llava.host import host_name
from llava.run_folder import ENV_ATTEMPT_DIR, ENV_NODE, ENV_RUN, RunFolder, write_aside

# How gloo, NCCL and the store say that a peer is gone.
_PEER_IS_GONE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was)|broken pipe|recvvalue failed|tcpstore|socket", re.IGNORECASE
)

_CURES = {
    errno.ENOSPC: "the disk is full: free space there, or lower train.keep_last",
    errno.EDQUOT: "the quota is used up: free space there, or lower train.keep_last",
    errno.EROFS: "the file system is read-only: mount it writable and resume",
    errno.EACCES: "no permission to write there: give it and resume",
    errno.EFBIG: "files there may not grow that large (ulimit -f): raise the limit and resume",
}


def exit_code(error: BaseException) -> int:
    """The code that a process ends with for this error."""
    return error.exit_code if isinstance(error, LlavaError) else EXIT_FAILED


def is_collective(error: BaseException) -> bool:
    """Whether an error is only the echo of a peer's death: a collective that found a connection closed."""
    if isinstance(error, LlavaError) or not isinstance(error, RuntimeError):
        return False
    name = type(error).__name__
    return name in ("DistBackendError", "DistNetworkError", "DistStoreError") or (
        name == "RuntimeError" and bool(_PEER_IS_GONE.search(str(error)))
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory was too small."""
    return type(error).__name__ == "OutOfMemoryError"


def explain(error: BaseException) -> tuple[str, str]:
    """Message and hint for a person."""
    if isinstance(error, LlavaError):
        return error.message, error.hint
    message = str(error) or type(error).__name__
    if is_out_of_memory(error):
        return message, (
            "lower train.device_batch (the global batch stays as it is), set train.gradient_checkpointing: true, "
            "or use train.strategy: zero2 or zero3"
        )
    if is_collective(error):
        # "[/path/pair.cc:545] Read error ...: Connection reset by peer. This is typically ..."
        short = re.sub(r"^\[[^\]]*\]\s*", "", message).partition(". ")[0]
        return f"another rank is gone: {short}", "its own error says why"
    return message, ""


def record(error: BaseException, run: RunFolder | None, step: int | None = None) -> None:
    """Write the rank's error file (under a launcher) and the event, then say it in the log.

    Never raises: a full disk must not hide what went wrong first.
    """
    fields = describe(error, step)
    folder = os.environ.get(ENV_ATTEMPT_DIR)
    try:
        if folder and not isinstance(error, Interrupted):
            path = Path(folder) / "errors" / f"rank{fields['rank']:04d}.json"
            write_aside(path, json.dumps(fields, ensure_ascii=False, indent=2) + "\n")
        if run is not None and not isinstance(error, Interrupted) and not fields["collective"]:
            short = {key: fields[key] for key in ("rank", "exit_code", "exception", "message", "hint", "step")}
            run.add_event("failed", **short)
    except OSError as problem:
        logs.LOG.error("cannot write the error file: %s", problem)
    say(error)


def say(error: BaseException) -> None:
    """Log an error: message and hint where it was raised on purpose, the traceback where it was not."""
    message, hint = explain(error)
    if isinstance(error, Interrupted):
        logs.LOG.warning("%s", message)
    elif not isinstance(error, LlavaError) and _by_hand():
        line, where = unforeseen.describe(error)
        logs.LOG.error("%s", line)
        logs.LOG.error("%s", where)
    elif isinstance(error, LlavaError) or is_collective(error):
        logs.LOG.error("%s", message)
    else:
        logs.LOG.error("%s", "".join(traceback.format_exception(error)).rstrip())
    if hint:
        logs.LOG.error("hint: %s", hint) if not isinstance(error, Interrupted) else logs.LOG.warning("%s", hint)


def _by_hand() -> bool:
    """Whether a person started this process: nobody keeps its log, and a traceback would hide the message."""
    return not any(name in os.environ for name in (ENV_RUN, ENV_ATTEMPT_DIR, "WORLD_SIZE"))


def describe(error: BaseException, step: int | None = None) -> dict[str, Any]:
    """The error file's content."""
    message, hint = explain(error)
    code = exit_code(error)
    text = "" if isinstance(error, LlavaError) else "".join(traceback.format_exception(error))
    return {
        **whoami(),
        "pid": os.getpid(),
        "time": time.time(),
        "exit_code": code,
        "signal": None,
        "exception": type(error).__name__,
        "message": message,
        "hint": hint,
        "traceback": text,
        "collective": is_collective(error),
        "final": code in (EXIT_BAD_REQUEST, EXIT_FINAL),
        "step": step,
    }


def whoami() -> dict[str, Any]:
    """Which rank this process is, and where it runs."""
    node = os.environ.get(ENV_NODE) or os.environ.get("GROUP_RANK") or "0"
    return {
        "rank": int(os.environ.get("RANK", "0")),
        "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
        "node": int(node),
        "host": host_name(),
    }


def leave(code: int) -> NoReturn:
    """End this process now: no exit handlers, no waiting for peers, threads or collectives."""
    logs.flush()
    os._exit(code)


def as_training_error(error: OSError, doing: str) -> TrainingError:
    """What a failing file system means for a run."""
    where = f" ({error.filename})" if error.filename else ""
    cure = _CURES.get(error.errno or 0, "resume when the file system works again")
    return TrainingError(f"{doing} failed: {error.strerror or error}{where}", f"{cure}; the last checkpoint is kept")


def of_the_run(error: BaseException, folder: Path) -> BaseException:
    """The error itself, or what it means where the run's own folder could not be written."""
    if not isinstance(error, OSError) or error.errno not in _CURES:
        return error
    only_writing_meets_it = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if only_writing_meets_it or str(error.filename).startswith(str(folder)):
        return as_training_error(error, f"writing to {folder}")
    return error
