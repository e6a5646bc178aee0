"""Whether the Python that is to run the jobs has the runtime in it, as far as can be seen from here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec

_EXTRA = "'llavajob[train]'"


def lacking_runtime(python: str) -> list[str]:
    """Say what the Python that is to run the jobs lacks; it is not started when it is this one."""
    if python == sys.executable:
        return [] if find_spec("torch") else [f"torch is not installed here: {sys.executable} -m pip install {_EXTRA}"]
    if shutil.which(python) is None:
        return [f"the profile's python {python} is not there"]
    code = "import sys; from importlib.util import find_spec as has; sys.exit(not (has('torch') and has('llava')))"
    if subprocess.run([python, "-c", code], capture_output=True, check=False, timeout=60).returncode == 0:
        return []
    return [f"the profile's python {python} lacks the runtime: {python} -m pip install {_EXTRA}"]
