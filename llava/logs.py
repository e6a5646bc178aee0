"""What a rank says: log lines in its own file under a launcher, on the terminal by hand."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path

from llava.plain_text import plain
from llava.run_folder import ENV_ATTEMPT_DIR

LOG = logging.getLogger("llava")


class _Lines(logging.Formatter):
    """``2026-11-23T20:01:02.345Z LEVEL message``, in UTC."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # subscripts need Python 3.11
    """On a terminal a log line takes the progress line's place."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")
        super().emit(record)


def start(rank: int) -> None:
    """Send standard output and errors to this rank's file where the launcher asks for it, and set the log up.

    Called before heavy imports, so that what they print or crash with is in the file too.
    """
    folder = os.environ.get(ENV_ATTEMPT_DIR)
    if folder and not LOG.handlers:
        _redirect(Path(folder) / f"rank{rank:04d}.log")
    if not LOG.handlers:
        handler = _Handler(sys.stderr)
        handler.setFormatter(_Lines())
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
    _silence()


def show_progress(line: str) -> None:
    """The progress line: written over itself on a terminal, a log line elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{plain(line)}")
        sys.stderr.flush()
    else:
        LOG.info("%s", line)


def end_progress() -> None:
    """Leave the progress line standing."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")


def flush() -> None:
    """Bring everything to disk that was said."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


def _redirect(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for target in (1, 2):
        os.dup2(descriptor, target)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def _silence() -> None:
    """Third parties may warn about what matters to a user, not about their own plans."""
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    # Loading problems are errors here (model/weights.py), so the libraries' own reports say nothing new.
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    for name in ("bitsandbytes", "peft", "torch.distributed", "deepspeed", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
