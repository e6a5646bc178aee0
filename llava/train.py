"""Training one stage: ``python -m llava.train --config FILE``, alone or under torchrun or ``llava.agent``.

The loop reads from top to bottom in ``train``. Nothing random outlives a micro-batch: dropout is seeded from (seed,
update, micro-batch), the order of samples from (seed, epoch). So a resumed run repeats the uninterrupted one, and any
number of ranks does the same work.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava import failure, interrupt, logs
from llava.config import TrainJob, load
from llava.errors import ConfigError, DataError, Interrupted, LlavaError, TrainingError
from llava.run_folder import RunFolder, read_lines

if TYPE_CHECKING:
    import torch

    from llava.checkpoint import Progress
    from llava.data.collate import Batch
    from llava.data.index import TokenIndex
    from llava.data.sampler import Schedule
    from llava.distributed import World
    from llava.model.load import Loaded
    from llava.strategy import Strategy

LOG = logs.LOG


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train; ends the process with an exit code of ``llava.errors``."""
    prepare_process()
    parser = argparse.ArgumentParser(prog="python -m llava.train", description="Train one stage of a LLaVA model.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of kind: train")
    path = parser.parse_args(arguments).config
    try:
        job = load(path)
        if not isinstance(job, TrainJob):
            raise ConfigError(f"{path} is of kind: {job.kind}", "python -m llava.train takes kind: train")
    except LlavaError as error:
        failure.record(error, None)
        sys.exit(error.exit_code)
    train_job(job)


def prepare_process() -> None:
    """What must stand before anything heavy is imported: the log, and the handlers of signals."""
    logs.start(int(os.environ.get("RANK", "0")))
    interrupt.install(ctrl_c=True)
    if "LOCAL_RANK" in os.environ:  # started by an agent: save and leave when it is gone
        import signal

        interrupt.die_with_parent(signal.SIGTERM)


def train_job(job: TrainJob) -> None:
    """Train; returns when the final model is written.

    A failure is recorded and said here, then the process ends with its exit code, without waiting for other ranks.
    """
    prepare_process()
    run = RunFolder(Path(job.run_dir))
    position = Position()
    try:
        train(job, run, position)
    except BaseException as caught:
        error = failure.of_the_run(caught, run.root)
        logs.end_progress()
        failure.record(error, run, position.done)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            failure.leave(failure.exit_code(error))
        sys.exit(failure.exit_code(error))


@dataclass
class Position:
    """How far this process has come, for whoever reports a failure."""

    done: int = 0
    """Updates done."""


def train(job: TrainJob, run: RunFolder, position: Position) -> None:
    """Train one stage, from its newest checkpoint where there is one.

    Raises:
        LlavaError: one of ``llava.errors``, with what to do.
        RuntimeError: a collective failed because a peer is gone; what was done is saved.
    """
    from llava import optim
    from llava.data.sampler import check_split
    from llava.distributed import join, number_format
    from llava.model.load import build

    # Who takes part
    world = join(job.train.device, needs_group=job.train.strategy != "ddp")
    check_split(job.train.global_batch, job.train.device_batch, world.size)
    dtype = number_format(job.train.precision, world.device)
    stop_if_asked(world)

    # What learns
    loaded = replace(build(job.model, dtype, str(world.device), job.seed), square=job.data.square)
    groups = optim.groups(loaded.model, job.model, job.train)
    sizes = {group.part: group.size for group in groups}
    strategy = share_work(job, loaded, groups, world, dtype)
    stop_if_asked(world)

    # What it learns from, and for how long
    index = shared_index(job, loaded, world, run)
    schedule = make_schedule(job, index)
    total = schedule.total_steps(job.train.epochs, job.train.max_steps)
    if world.rank == 0:
        run.add_event("started", world_size=world.size, nodes=world.nodes, total_steps=total, trainable=sizes)
        LOG.info("%s ranks, %s updates of %s samples, trains %s", world.size, total, job.train.global_batch, sizes)

    # Where it stands
    trainer = Trainer(job, run, world, strategy, schedule, total)
    position.done = trainer.resume()
    window = batches(job, loaded, index, schedule, world, position.done, total)

    # The loop
    try:
        for step in range(position.done, total):
            trainer.update(step, next(window))
            position.done = step + 1
            if position.done % job.train.save_every_steps == 0 or position.done == total:
                trainer.save(position.done)
    except Exception as error:
        if failure.is_collective(error):
            trainer.save_alone(position.done)
        raise

    # The result
    finish(run, world, strategy, replace(loaded, step=position.done))
    world.close()


class Trainer:
    """One run's updates and checkpoints, seen from one rank."""

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
        from llava import checkpoint

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
        from llava.optim import factor

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
        share = factor(step, self._total, self._job.train.warmup_ratio)
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
        from llava import checkpoint

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
        import torch

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
        from llava import checkpoint

        for name in checkpoint.clean(self._run.checkpoints):
            LOG.info("removed an unfinished checkpoint: %s", name)

    def _write(self, step: int, state: Any) -> None:
        from llava import checkpoint

        train, folder = self._job.train, self._run.checkpoint(step)
        try:
            checkpoint.write(folder, state, self._progress(step))
            checkpoint.prune(self._run.checkpoints, train.keep_last, train.keep_every_steps)
            self._run.add_event("checkpoint", step=step)
        except OSError as error:
            raise failure.as_training_error(error, f"saving the checkpoint of update {step} to {folder}") from error

    def _progress(self, step: int) -> Progress:
        from llava.checkpoint import Progress
        from llava.model.load import versions

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


def stop_if_asked(world: World) -> None:
    """Leave before training when a signal came during the start; all ranks agree on it.

    Raises:
        Interrupted: some rank was asked to stop.
    """
    if world.sum([float(bool(interrupt.requested()))])[0]:
        raise Interrupted(f"{interrupt.requested() or 'a signal'} came before the first update; nothing is lost")


def share_work(job: TrainJob, loaded: Loaded, groups: list[Any], world: World, dtype: torch.dtype) -> Strategy:
    """Put the model into training and behind the chosen strategy."""
    from llava.strategy import Replicated

    model = loaded.model.train()
    if job.model.vision.tuning == "frozen":
        model.vision.eval()
    if job.train.gradient_checkpointing:
        recompute(model.language)
        if job.model.vision.tuning != "frozen":
            recompute(model.vision.clip)
    if job.train.strategy == "ddp":
        return Replicated(model, groups, job.train, world, dtype)
    from llava.zero import Sharded

    return Sharded(model, groups, job, world, dtype)


def recompute(part: Any) -> None:
    """Keep no activations of a transformers model's layers between forward and backward."""
    enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def shared_index(job: TrainJob, loaded: Loaded, world: World, run: RunFolder) -> TokenIndex:
    """The token index: rank 0 finds or makes it, all ranks map it.

    Raises:
        ConfigError, DataError: the records are missing or wrong, on every rank.
        TrainingError: the file system refuses.
    """
    from llava import templates
    from llava.data.index import TokenIndex, build_index

    def check() -> None:
        if interrupt.requested():
            raise Interrupted(f"{interrupt.requested()} came while records were encoded; nothing is lost")

    def make() -> Path:
        template = templates.get(job.model.template)
        warn_of_other_template(template, loaded.tokenizer)
        try:
            return build_index(
                job.data.records, loaded.tokenizer, template, job.data.max_length, run.root / "cache", check
            )
        except OSError as error:
            raise failure.as_training_error(error, f"writing the token index below {run.root}") from error

    index = TokenIndex(world.first_does(make))
    if index.has_image.any() and not Path(job.data.images).is_dir():
        raise ConfigError(f"data.images: folder not found: {job.data.images}")
    if world.rank == 0:
        LOG.info("records: %s", index.counts)
    return index


def warn_of_other_template(template: Any, tokenizer: Any) -> None:
    """A marker that falls into pieces is a sign of a template made for another language model."""
    for word in template.stop_words:
        pieces = tokenizer(word, add_special_tokens=False).input_ids
        if len(pieces) > 2:
            LOG.warning("template %s: the tokenizer cuts %r into %s tokens", template.name, word, len(pieces))


def make_schedule(job: TrainJob, index: TokenIndex) -> Schedule:
    """The order of samples that the config asks for."""
    from llava.data.sampler import Schedule

    train = job.train
    return Schedule(
        index.lengths, index.has_image, train.global_batch, train.device_batch, job.seed, train.group_by_length
    )


def batches(
    job: TrainJob, loaded: Loaded, index: TokenIndex, schedule: Schedule, world: World, first: int, end: int
) -> Iterator[list[Batch]]:
    """This rank's micro-batches, one list for each update."""
    from llava.data.images import Pictures, fits_in_memory
    from llava.data.loader import MicroBatches, load

    tower = loaded.model.vision
    pictures = Pictures(
        job.data.images,
        loaded.processor,
        job.data.square,
        keep=fits_in_memory(int(index.has_image.sum()), tower.side),
    )
    source = MicroBatches(index, pictures, tower.patches, tower.side)
    order = schedule.micro_batches_of(world.rank, world.size, first, end)
    stream = load(source, order, job.data.workers, pin=world.device.type == "cuda")
    for _ in range(first, end):
        yield [next(stream) for _ in range(schedule.micro_batches // world.size)]


def finish(run: RunFolder, world: World, strategy: Strategy, loaded: Loaded) -> None:
    """Write the final ``model`` folder.

    Raises:
        TrainingError: the file system refuses; the last checkpoint holds everything.
    """
    from llava.model.load import save_trained

    def write() -> None:
        try:
            save_trained(loaded, weights, run.model)
        except OSError as error:
            raise failure.as_training_error(error, f"writing the final model to {run.model}") from error
        run.add_event("finished", step=loaded.step)

    weights = strategy.state(moments=False)["weights"]
    with strategy.whole_model():
        world.first_does(write)
    if world.rank == 0:
        logs.end_progress()
        LOG.info("finished: the model is in %s", run.model)


def micro_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of everything random in one micro-batch of one update."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def config_hash(job: TrainJob) -> str:
    """Tells configs apart, whatever folder they run in."""
    return hashlib.sha256(job.model_dump_json(exclude={"run_dir"}).encode()).hexdigest()[:16]


def memory_mb(device: torch.device) -> int:
    """Most memory held so far: on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device) / 2**20)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
