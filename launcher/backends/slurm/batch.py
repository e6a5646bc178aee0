"""What a batch script asks before and after each attempt: ``begin`` and ``settle``. Both print lines for its shell.

So does ``setup``, which is asked only where a set-up line failed, before anything was started.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.backends.slurm.batch_job import Batch
from launcher.backends.slurm.begin import begin, setup_failed
from launcher.backends.slurm.files import plan_file
from launcher.backends.slurm.settle import settle
from launcher.plan_text import load_plan
from launcher.run_folder import RunFolder


def main(arguments: list[str]) -> int:
    """Answer a batch script: ``begin FOLDER STEP``, ``settle FOLDER STEP EXIT_CODE_OF_SRUN``, ``setup FOLDER STEP
    EXIT_CODE LINE``."""
    what, folder, name, *rest = arguments
    plan = load_plan(plan_file(RunFolder(Path(folder))))
    step = next(step for step in plan.steps if step.name == name)
    index = os.environ.get("SLURM_ARRAY_TASK_ID") if step.kind == "array" else None
    batch = Batch(RunFolder(plan.folder), plan, step, None if index is None else int(index))
    if what == "setup":
        print(setup_failed(batch, int(rest[0]), int(rest[1])))
    else:
        print(begin(batch) if what == "begin" else settle(batch, int(rest[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
