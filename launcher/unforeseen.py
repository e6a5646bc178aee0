"""Errors that nobody foresaw: one line for people, and the traceback in a file for whoever mends it."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from launcher import __version__


def describe(error: BaseException) -> tuple[str, str]:
    """Write an error's traceback to a file; return the message and the hint for people. Never raises."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    what = " ".join("".join(letter if letter.isprintable() else " " for letter in what).split())
    message = f"unforeseen error: {what[:300]}{_place(error)}"
    path = _write(error)
    if path is None:
        return message, "Its traceback could not be written: no folder for temporary files can be written to."
    return message, f"Its traceback is in {path}"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _write(error: BaseException) -> Path | None:
    text = "".join(traceback.format_exception(error))
    command = shlex.join(["llavajob", *sys.argv[1:]])
    content = f"llavajob {__version__}, Python {sys.version}\n{command}\n\n{text}".encode(errors="backslashreplace")
    for folder in (_state_folder(), None):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # mkstemp makes files that only this user can read.
            descriptor, name = tempfile.mkstemp(
                prefix="error-" if folder else "llavajob-error-", suffix=".txt", dir=folder
            )
            with open(descriptor, "wb") as file:
                file.write(content)
            return Path(name)
        except (OSError, ValueError):
            continue
    return None


def _state_folder() -> Path | None:
    base = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "state") / "llavajob" / "errors"
    except (RuntimeError, KeyError):
        return None
