"""A copy of the code at submission, so that what was submitted is what runs, also after a requeue hours later."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher.origin import code_diff, git_commit
from launcher.run_folder import write_aside

_PACKAGES = ("launcher", "llava")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def take_snapshot(folder: Path) -> dict[str, Any]:
    """Copy the packages that jobs import; return what goes into the run's record.

    Args:
        folder: where the copy goes; an older copy is replaced as a whole.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    sources = {name: _source(name) for name in _PACKAGES}
    try:
        for name, source in sources.items():
            shutil.copytree(source, aside / name, ignore=_LEFT_OUT)
        checkout = sources["llava"].parent
        write_aside(aside / "code.diff", code_diff(checkout))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {"folder": folder.name, "from": str(checkout), "git_commit": git_commit(checkout), "diff": "code.diff"}


def _source(package: str) -> Path:
    # Finding a top-level package does not import it.
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
