"""Whether the Python that is to run the jobs has the runtime in it, as far as can be seen from here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

from launcher.plan import Plan

_EXTRA = "'llavajob[train]'"


def lacking_runtime(python: str) -> list[str]:
    """Say what the Python that is to run the jobs lacks, as far as can be seen without starting it.

    A dry run may be of somebody else's profile, so it starts no program that a profile names.
    """
    if python == sys.executable:
        return [] if find_spec("torch") else [f"torch is not installed here: {sys.executable} -m pip install {_EXTRA}"]
    if shutil.which(python) is None:
        return [f"the profile's python {python} is not there"]
    return []


def ask_runtime(python: str) -> list[str]:
    """As ``lacking_runtime``, by starting that Python where it is another one."""
    lacking = lacking_runtime(python)
    if lacking or python == sys.executable:
        return lacking
    code = "import sys; from importlib.util import find_spec as has; sys.exit(not (has('torch') and has('llava')))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return [f"the profile's python {python} does not answer within 60 s"]
    except OSError as error:
        return [f"the profile's python {python} cannot be started: {error.strerror}"]
    if done.returncode == 0:
        return []
    return [f"the profile's python {python} lacks the runtime: {python} -m pip install {_EXTRA}"]


def ask_runtime_of(plan: Plan) -> list[str]:
    """Ask the Python of a plan that is about to be sent, where it is one of this machine."""
    python = plan.steps[0].command[0]
    if plan.backend == "kubernetes" or plan.settings.get("container"):
        return []
    # On Slurm, what is not here may still be on the nodes.
    if plan.backend == "slurm" and not os.path.exists(python):
        return []
    return ask_runtime(python)
