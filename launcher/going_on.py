"""What to do with a run that ended early: resume it, or start it again where there is nothing to go on from."""

from __future__ import annotations

import shlex

from launcher.run_folder import RunFolder, read_json


def going_on(name: str, folder: RunFolder) -> str:
    """Return the command that starts a run's work again, which is never one that would be refused.

    Args:
        name: the run's name.
        folder: its folder.
    """
    record = read_json(folder.record) or {}
    if record.get("kind") != "train" or folder.checkpoint_steps() or not has_started(folder):
        return f"llavajob resume {name}"
    return _submit_again(str(record.get("command") or f"llavajob submit {record.get('recipe')}"))


def _submit_again(command: str) -> str:
    """The command that a run was submitted with, without the run's name, which is taken now."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    kept, is_name = [], False
    for word in words:
        if not is_name and word != "--name" and not word.startswith("--name="):
            kept.append(word)
        is_name = word == "--name" and not is_name
    return shlex.join(kept)


def has_started(folder: RunFolder) -> bool:
    """Tell whether any process of it was started: what never was begins at its first step."""
    return any(any(folder.attempt(number).glob("*.log")) for number in folder.attempt_numbers())
