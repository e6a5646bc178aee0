"""What a batch script asks before and after each attempt: ``begin`` and ``settle``. Both print lines for its shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.backends.slurm.batch_job import Batch
from launcher.backends.slurm.begin import begin
from launcher.backends.slurm.files import plan_file
from launcher.backends.slurm.settle import settle
from launcher.plan_text import load_plan
from launcher.run_folder import RunFolder


def main(arguments: list[str]) -> int:
    """Answer a batch script: ``begin FOLDER STEP`` or ``settle FOLDER STEP EXIT_CODE_OF_SRUN``."""
    what, folder, name, *rest = arguments
    plan = load_plan(plan_file(RunFolder(Path(folder))))
    step = next(step for step in plan.steps if step.name == name)
    index = os.environ.get("SLURM_ARRAY_TASK_ID") if step.kind == "array" else None
    batch = Batch(RunFolder(plan.folder), plan, step, None if index is None else int(index))
    print(begin(batch) if what == "begin" else settle(batch, int(rest[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
