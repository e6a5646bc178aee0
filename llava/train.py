"""Training one stage: ``python -m llava.train --config FILE``, alone or under torchrun or ``llava.agent``.

The loop reads from top to bottom in ``train``. Nothing random outlives a micro-batch: dropout is seeded from (seed,
update, micro-batch), the order of samples from (seed, epoch). So a resumed run repeats the uninterrupted one, and any
number of ranks does the same work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava import failure, interrupt, logs, peers
from llava.config import TrainJob, load
from llava.errors import ConfigError, Interrupted, LlavaError
from llava.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

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
    from llava.trainer import Trainer

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
        trains = ", ".join(f"{size:,} of {part}" for part, size in sizes.items())
        LOG.info("world size %s, %s updates of %s samples", world.size, total, job.train.global_batch)
        LOG.info("trains %s", trains)

    # Where it stands
    trainer = Trainer(job, run, world, strategy, schedule, total)
    position.done = trainer.resume()
    window = batches(job, loaded, index, schedule, world, position.done, total)

    # The loop
    if world.size > 1 and world.device.type == "cpu":
        peers.watch()
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
    from llava.data.index import LEFT_OUT, TokenIndex, build_index
    from llava.run_folder import write_aside

    def check() -> None:
        if interrupt.requested():
            raise Interrupted(f"{interrupt.requested()} came while records were encoded; nothing is lost")

    def make() -> Path:
        template = templates.get(job.model.template)
        warn_of_other_template(template, loaded.tokenizer)
        try:
            longest = (job.data.max_length, job.data.max_length_text_only or job.data.max_length)
            folder = build_index(job.data.records, loaded.tokenizer, template, longest, run.root / "cache", check)
            write_aside(run.left_out, (folder / LEFT_OUT).read_bytes())
            return folder
        except OSError as error:
            raise failure.as_training_error(error, f"writing the token index below {run.root}") from error

    index = TokenIndex(world.first_does(make))
    if index.has_image.any() and not Path(job.data.images).is_dir():
        raise ConfigError(f"data.images: folder not found: {job.data.images}")
    if world.rank == 0:
        LOG.info("%s", index.counts)
        if index.counts.samples < index.counts.records or index.counts.truncated:
            LOG.info("what is dropped or cut is listed in %s", run.left_out)
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
        index.lengths,
        index.has_image,
        train.global_batch,
        train.device_batch,
        job.seed,
        train.group_by_length,
        train.rules,
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


if __name__ == "__main__":
    main()
