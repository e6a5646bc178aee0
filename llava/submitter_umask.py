"""The umask of what is written outside of a run's folder: its user's, not the narrow one that runs have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava.run_folder import ENV_RUN

ENV_UMASK = "LLAVAJOB_UMASK"
"""The umask of the shell that submitted, in octal digits; unset when run by hand."""


@contextmanager
def submitter_umask(target: Path) -> Iterator[None]:
    """Write with the submitter's umask for a while, unless the target lies in the run's folder.

    Models and caches may be meant for others; what lies in a run's folder is the user's own.
    """
    given, run = os.environ.get(ENV_UMASK, ""), os.environ.get(ENV_RUN, "")
    inside = bool(run) and Path(os.path.realpath(target)).is_relative_to(os.path.realpath(run))
    if inside or not given or not set(given) <= set("01234567"):
        yield
        return
    before = os.umask(int(given, 8) & 0o777)
    try:
        yield
    finally:
        os.umask(before)
