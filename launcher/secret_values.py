"""Secrets that a profile names: where each value comes from, taken at submit and never written down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from launcher import paths
from launcher.errors import Problem, RequestError
from launcher.secret_looks import secret_in
from launcher.tree import Tree

SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"type": "string"}},
    ],
    "default": [],
    "description": "Environment variables whose values are taken from the shell at submit and written nowhere: "
    "[HF_TOKEN], or where each comes from: {HF_TOKEN: MY_TOKEN, WANDB_API_KEY: ~/.wandb-key}.",
}
"""The key ``secrets`` of a profile: names, or names with the variable or the file that holds each value."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("LLAVAJOB_", "SLURM_", "SBATCH_", "PET_")
_MOST_BYTES = 65536


def secret_names(settings: Mapping[str, Any]) -> list[str]:
    """Names of the variables that a place's settings name as secrets."""
    return list(settings.get("secrets") or ())


def secret_values(settings: Mapping[str, Any]) -> dict[str, str]:
    """Take every secret's value from this process's environment or its file.

    Raises:
        RequestError: one of them is not there.
    """
    lacking = lacking_secrets(settings)
    if lacking:
        raise RequestError("\n".join(lacking))
    return {name: _value(source) for name, source in _sources(settings).items()}


def lacking_secrets(settings: Mapping[str, Any]) -> list[str]:
    """Say of every secret that cannot be had here what is missing."""
    found = []
    for name, source in _sources(settings).items():
        try:
            _value(source)
        except _NotThere as error:
            found.append(f"the secret {name} is missing: {error}")
    return found


@contextmanager
def secrets_in_environment(settings: Mapping[str, Any]) -> Iterator[None]:
    """Hold the secrets in this process's environment, for a program that hands its own on to what it starts."""
    values = secret_values(settings)
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def secret_problems(tree: Tree, shown: str = "secrets") -> list[Problem]:
    """List what the schema cannot see: names that no variable can have, values in the place of names.

    Args:
        tree: the settings that hold the key ``secrets``.
        shown: how the key is called in messages.
    """
    given = tree.get(("secrets",))
    found = []
    for number, name in enumerate(given if isinstance(given, list | dict) else ()):
        where = tree.origin(("secrets", name if isinstance(given, dict) else str(number)))
        text = _name_error(str(name))
        if not text and isinstance(given, dict):
            text = _source_error(str(name), given[name])
        if text:
            found.append(Problem(where, f"{shown}: {text}"))
    return found


class _NotThere(Exception):
    """Why a value cannot be had."""


def _sources(settings: Mapping[str, Any]) -> dict[str, str]:
    given = settings.get("secrets") or {}
    if isinstance(given, Mapping):
        return {str(name): str(source) or str(name) for name, source in given.items()}
    return {str(name): str(name) for name in given}


def _value(source: str) -> str:
    if not _is_file(source):
        value = os.environ.get(source, "")
        if not value:
            raise _NotThere(f"the environment variable {source} is not set; export {source}=... and try again")
        return value
    path = paths.expand(source)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _NotThere(f"{source} cannot be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES or b"\0" in data:
        raise _NotThere(f"{source} holds no text of at most {_MOST_BYTES} bytes")
    value = data.decode(errors="surrogateescape").rstrip("\r\n")
    if not value:
        raise _NotThere(f"{source} is empty")
    return value


def _is_file(source: str) -> bool:
    return "/" in source


def _name_error(name: str) -> str:
    # What is no name may be the value itself: it is not repeated.
    if not _NAME.fullmatch(name) or secret_in(name):
        return "one entry is no name of an environment variable; a name is needed here, not the value"
    if name.startswith(_OURS):
        return f"{name} is set by llavajob or the scheduler and cannot be a secret"
    return ""


def _source_error(name: str, source: object) -> str:
    if not isinstance(source, str):
        return ""  # the schema says so
    is_path = source.startswith(("/", "~")) and "\n" not in source
    if source and not is_path and (not _NAME.fullmatch(source) or secret_in(source)):
        return f"{name} needs the name of a variable or the full path of a file, not the value"
    return ""
