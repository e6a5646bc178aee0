"""Train several jobs one after the other in one process: ranks of an agent meet once, and stay together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from llava import config
from llava.run_folder import RunFolder
from llava.train import Position, prepare_process, train


def main() -> None:
    """Take the jobs' config files from the command line; the first error ends it."""
    prepare_process()
    meet = dist.init_process_group

    def meet_once(*words: Any, **options: Any) -> None:
        if not dist.is_initialized():
            meet(*words, **options)

    # DeepSpeed keeps the group that it saw first for good.
    dist.init_process_group = meet_once
    dist.destroy_process_group = lambda: None
    for path in sys.argv[1:]:
        job = config.load(path)
        assert isinstance(job, config.TrainJob)
        train(job, RunFolder(Path(job.run_dir)), Position())


if __name__ == "__main__":
    main()
