"""What a run tells about itself while it trains: metrics, the progress line, memory."""

from __future__ import annotations

import resource
import time

import torch

from llava import logs
from llava.config import TrainJob
from llava.distributed import World
from llava.run_folder import RunFolder


class Meter:
    """Writes metrics and progress every few updates; rank 0 alone says anything."""

    def __init__(self, run: RunFolder, job: TrainJob, world: World, total: int, steps_per_epoch: int) -> None:
        self._run = run
        self._job = job
        self._world = world
        self._total = total
        self._steps_per_epoch = steps_per_epoch
        self._since = self._started = time.monotonic()
        self._updates = self._all_updates = 0
        self._tokens = 0.0

    def count(self, done: int, loss: float, rate: float, norm: float, tokens: float) -> None:
        """Take one finished update in; write where a line is due."""
        self._updates += 1
        self._all_updates += 1
        self._tokens += tokens
        if self._world.rank == 0 and (done % self._job.train.log_every_steps == 0 or done == self._total):
            self._write(done, loss, rate, norm)

    def _write(self, done: int, loss: float, rate: float, norm: float) -> None:
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        samples_per_s = self._updates * self._job.train.global_batch / seconds
        eta_s = (now - self._started) / self._all_updates * (self._total - done)
        self._run.add_metrics(
            step=done,
            total_steps=self._total,
            epoch=done / self._steps_per_epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            samples_per_s=round(samples_per_s, 3),
            tokens_per_s=round(self._tokens / seconds, 1),
            memory_mb=memory_mb(self._world.device),
            eta_s=round(eta_s, 1),
        )
        logs.show_progress(
            f"step {done}/{self._total}  loss {loss:.4f}  lr {rate:.2e}  {samples_per_s:.1f} samples/s  "
            f"ETA {int(eta_s) // 3600}:{int(eta_s) // 60 % 60:02d}:{int(eta_s) % 60:02d}"
        )
        self._since, self._updates, self._tokens = now, 0, 0.0


def memory_mb(device: torch.device) -> int:
    """Most memory held so far: on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) / 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
