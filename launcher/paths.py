"""Paths that a person writes: ``~`` written out, the home and the current folder found, or an error in words."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.errors import RequestError


def expand(text: str) -> Path:
    """Return a path with its ``~`` or ``~user`` written out.

    Raises:
        RequestError: there is no such user, no home folder is known, or the text cannot be a path.
    """
    if "\0" in text:
        raise RequestError(f"{text!r} cannot be a path: it has a NUL character in it")
    if not text.startswith("~"):
        return Path(text)
    user = text[1:].partition("/")[0]
    if not user:
        return home() / text[1:].lstrip("/")
    expanded = os.path.expanduser(text)
    if expanded == text:
        raise RequestError(f"{text}: there is no user named '{user}' here", f"For a folder of that name: ./{text}")
    return Path(expanded)


def home() -> Path:
    """Return the user's home folder.

    Raises:
        RequestError: HOME is not set, and the system knows no home folder of this user.
    """
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        hint = "Set HOME, or name the folder: LLAVAJOB_RUNS for runs, LLAVAJOB_PROFILES for profiles."
        raise RequestError("the home folder is not known: HOME is not set", hint) from None


def current() -> Path:
    """Return the current folder.

    Raises:
        RequestError: it was removed.
    """
    try:
        return Path.cwd()
    except OSError as error:
        hint = "Go to a folder that is there: cd"
        raise RequestError(f"the current folder cannot be used: {error.strerror}", hint) from None


def absolute(path: Path, base: Path | None = None) -> Path:
    """Return a path in full, meant from a base folder or from the current one."""
    if path.is_absolute():
        return path
    return (base or current()) / path
