"""A copy of the code at submission, so that what was submitted is what runs, also after a requeue hours later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher import console
from launcher.code_changes import keep_changes
from launcher.file_modes import open_tree_like
from launcher.origin import git_commit
from launcher.private_files import holds_private_key, ignored_among, ignored_below, is_key_file

_PACKAGES = ("launcher", "llava")
_LEFT_OUT = ("__pycache__", "*.pyc")


def take_snapshot(folder: Path) -> dict[str, Any]:
    """Copy the packages that jobs import; return what goes into the run's record.

    Args:
        folder: where the copy goes; an older copy is replaced as a whole.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    sources = {name: _source(name) for name in _PACKAGES}
    kept_out: list[str] = []
    try:
        for name, source in sources.items():
            shutil.copytree(source, aside / name, ignore=_choose(source, kept_out))
        if kept_out:
            console.say(f"Not copied with the code: {', '.join(kept_out)}")
        checkout = sources["llava"].parent
        (aside / "code.diff").touch()
        kept_out += keep_changes(checkout, aside / "code.diff")
        open_tree_like(aside, folder.parent)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    copied = {"folder": folder.name, "from": str(checkout), "git_commit": git_commit(checkout), "diff": "code.diff"}
    return {**copied, "kept_out": kept_out} if kept_out else copied


def _choose(source: Path, kept_out: list[str]) -> Callable[[str, list[str]], set[str]]:
    """What is not copied of each folder of a package; what a person may miss is noted."""
    ignored = ignored_below(source) if source.name not in ignored_among(source.parent, [source.name]) else set()

    def left_out(folder: str, names: list[str]) -> set[str]:
        out = set()
        for name in names:
            path = Path(folder) / name
            why = _why_out(path, ignored)
            if any(fnmatchcase(name, pattern) for pattern in _LEFT_OUT):
                out.add(name)
            elif why:
                out.add(name)
                kept_out.append(f"{path.relative_to(source.parent)} ({why})")
            elif name.startswith("."):
                out.add(name)
        return out

    return left_out


def _why_out(path: Path, ignored: set[Path]) -> str:
    if path in ignored:
        return "git ignores it"
    if path.is_dir():
        return ""
    if is_key_file(path.name) or (path.is_symlink() and is_key_file(str(path.resolve()))):
        return "its name is that of a key file"
    return "it holds a private key" if path.suffix != ".py" and holds_private_key(path) else ""


def _source(package: str) -> Path:
    # Finding a top-level package does not import it.
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
