"""One run's updates and checkpoints, seen from one rank."""

from __future__ import annotations

import hashlib
import math

import torch

from llava import checkpoint, failure, interrupt
from llava.checkpoint import Progress
from llava.config import TrainJob
from llava.data.collate import Batch
from llava.data.sampler import Schedule
from llava.distributed import World
from llava.errors import DataError, Interrupted, TrainingError
from llava.logs import LOG
from llava.meter import Meter
from llava.model.load import versions
from llava.optim import factor
from llava.run_folder import RunFolder, read_lines
from llava.strategy import State, Strategy


class Trainer:
    """Does updates and saves them; every rank has one, and they agree at each update's start."""

    def __init__(
        self, job: TrainJob, run: RunFolder, world: World, strategy: Strategy, schedule: Schedule, total: int
    ) -> None:
        self._job = job
        self._run = run
        self._world = world
        self._strategy = strategy
        self._schedule = schedule
        self._total = total
        self._saved = -1
        self._bad: set[str] = set()
        self._meter = Meter(run, job, world, total, schedule.steps_per_epoch)

    def resume(self) -> int:
        """Take up the newest complete checkpoint.

        Returns:
            Updates already done.

        Raises:
            ConfigError: it belongs to another seed, batch or set of records.
            WeightsError: it is damaged, or other weights train now.
        """
        # Known from every earlier attempt, saved or not.
        self._bad = {str(e["path"]) for e in read_lines(self._run.events) if e.get("event") == "skipped_image"}
        self._world.first_does(self._clean)
        folder = self._world.from_first(checkpoint.newest(self._run.checkpoints))
        if folder is None:
            return 0
        state, progress = checkpoint.read(folder)
        checkpoint.check_fits(folder, state, progress, self._strategy.shapes(), self._progress(0))
        self._strategy.restore(state, progress.extra)
        self._bad |= set(progress.bad_pictures)
        self._saved = progress.step
        if self._world.rank == 0:
            self._run.add_event("resumed", step=progress.step, checkpoint=folder.name)
            LOG.info("resumed from %s", folder)
        return progress.step

    def update(self, step: int, window: list[Batch]) -> None:
        """One update on one global batch.

        Args:
            window: this rank's micro-batches.

        Raises:
            Interrupted: a signal asked some rank to stop; the state is saved.
            TrainingError: the loss is not finite.
            DataError: too many bad pictures.
        """
        supervised, tokens, asked, bad = self._world.sum(
            [
                sum(batch.supervised for batch in window),
                sum(batch.tokens for batch in window),
                float(bool(interrupt.requested())),
                sum(len(batch.bad) for batch in window),
            ]
        )
        if asked:
            self._leave(step)
        if bad:
            self._report(window)
        loss = self._accumulate(step, window, max(1.0, supervised))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at update {step + 1}",
                f"the last checkpoint ({max(self._saved, 0)} updates) is kept: lower the learning rate, or look at "
                "the data",
            )
        share = factor(step, self._total, self._job.train.warmup_ratio, self._job.train.rules)
        norm = self._strategy.step(share, self._job.train.clip_norm)
        self._meter.count(step + 1, loss, self._job.train.learning_rate * share, norm, tokens)

    def save(self, step: int) -> None:
        """Write a checkpoint and remove older ones.

        Raises:
            TrainingError: the file system refuses; earlier checkpoints are kept.
        """
        if step == self._saved:
            return
        state = self._strategy.state()
        self._world.first_does(lambda: self._write(step, state))
        self._saved = step

    def save_alone(self, step: int) -> None:
        """Save the last finished update when a peer is gone; every survivor tries, one of them wins.

        Never raises: the peer's death is what has to be reported.
        """
        if not self._strategy.settled or step <= max(self._saved, 0):
            return
        try:
            folder = self._run.checkpoint(step)
            if not checkpoint.is_complete(folder):
                checkpoint.write(folder, self._strategy.state(), self._progress(step))
                self._run.add_event("checkpoint", step=step, reason="a rank was lost")
            LOG.warning("a rank was lost; %s updates are saved", step)
        except OSError as error:
            LOG.error("a rank was lost, and its survivors cannot save: %s", error)

    def _accumulate(self, step: int, window: list[Batch], supervised: float) -> float:
        """Forward and backward over the window; the global batch's mean loss per supervised token."""
        world = self._world
        total = torch.zeros((), device=world.device)
        for number, batch in enumerate(window):
            torch.manual_seed(micro_seed(self._job.seed, step, number * world.size + world.rank))
            loss = self._strategy.loss(batch.to(world.device)) / supervised
            self._strategy.backward(loss, last=number == len(window) - 1)
            total += loss.detach()
        return world.sum([total.item()])[0]

    def _report(self, window: list[Batch]) -> None:
        """Tell of new bad pictures once, and stop when there are too many. All ranks come here together."""
        mine = [(bad.path, bad.reason) for batch in window for bad in batch.bad]
        found = {path: reason for some in self._world.gather(mine) for path, reason in some if path not in self._bad}
        for path, reason in sorted(found.items()):
            if self._world.rank == 0:
                self._run.add_event("skipped_image", path=path, reason=reason)
                LOG.warning("skipped a bad picture: %s (%s)", path, reason)
        self._bad |= found.keys()
        allowed = self._job.data.max_bad_images
        if len(self._bad) > allowed:
            some = ", ".join(sorted(self._bad)[:10]) + (" ..." if len(self._bad) > 10 else "")
            raise DataError(
                f"bad pictures: {len(self._bad)}, allowed: {allowed}: {some}",
                "mend or remove them, or raise data.max_bad_images; the last checkpoint is kept",
            )

    def _leave(self, step: int) -> None:
        signal = next((name for name in self._world.gather(interrupt.requested()) if name), "")
        if step > 0:
            self.save(step)
        if self._world.rank == 0:
            self._run.add_event("interrupted", step=step, signal=signal)
        raise Interrupted(f"{signal}: stopped after {step} updates, all saved", "resume to go on from there")

    def _clean(self) -> None:
        for name in checkpoint.clean(self._run.checkpoints):
            LOG.info("removed an unfinished checkpoint: %s", name)

    def _write(self, step: int, state: State) -> None:
        train, folder = self._job.train, self._run.checkpoint(step)
        try:
            checkpoint.write(folder, state, self._progress(step))
            checkpoint.prune(self._run.checkpoints, train.keep_last, train.keep_every_steps)
            self._run.add_event("checkpoint", step=step)
        except OSError as error:
            raise failure.as_training_error(error, f"saving the checkpoint of update {step} to {folder}") from error

    def _progress(self, step: int) -> Progress:
        return Progress(
            step=step,
            seed=self._job.seed,
            global_batch=self._job.train.global_batch,
            samples=self._schedule.size,
            epoch=step / self._schedule.steps_per_epoch,
            world_size=self._world.size,
            strategy=self._job.train.strategy,
            config_hash=config_hash(self._job),
            bad_pictures=sorted(self._bad),
            extra=self._strategy.extra(),
            versions=versions(),
        )


def micro_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of everything random in one micro-batch of one update."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def config_hash(job: TrainJob) -> str:
    """Tells configs apart, whatever folder they run in."""
    return hashlib.sha256(job.model_dump_json(exclude={"run_dir"}).encode()).hexdigest()[:16]
