"""The order of samples: the same for every number of ranks, a function of seed and epoch alone.

An epoch is its samples in some order, wrapped around until it fills whole global batches. A global batch is cut into
M = global_batch / device_batch micro-batches; rank r of W takes numbers r, W + r, 2 W + r, ... (a = 0, 1, 2, ...).

Under the rules ``xtuner``, the samples of each update are those that XTuner 0.1.23 takes for the same seed, epoch and
lengths on any number of ranks, drawn from the same random numbers (``samplers/length_grouped.py``, and mmengine's
``DefaultSampler`` for the plain shuffle). Three things differ. Within an update, XTuner deals the samples out to ranks
one by one, and here a micro-batch is a run of them, which pads less; an update's loss is the mean over all its tokens,
so that makes no other number. XTuner ends a plain shuffle with a smaller batch, where here the epoch's first
samples fill it up; records that are all text it sorts shortest first, by an accident of signs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llava.config import Rules
from llava.errors import ConfigError

Indices = NDArray[np.int64]
_MEGABATCH = 50
"""Global batches among which XTuner sorts by length, at most."""


@dataclass(frozen=True)
class Schedule:
    """Which samples make up which update."""

    lengths: Indices
    """(samples,) tokens of each."""
    has_image: NDArray[np.bool_]
    """(samples,) which are about a picture."""
    global_batch: int
    device_batch: int
    seed: int
    group_by_length: bool
    rules: Rules = "xtuner"

    @property
    def steps_per_epoch(self) -> int:
        """Updates that see every sample once."""
        return math.ceil(len(self.lengths) / self.global_batch)

    @property
    def micro_batches(self) -> int:
        """Micro-batches in an update (M)."""
        return self.global_batch // self.device_batch

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        """Updates of the whole run."""
        # The rounding keeps 0.1 x 30 from becoming four updates.
        steps = max(1, math.ceil(round(epochs * self.steps_per_epoch, 6)))
        return steps if max_steps is None else min(steps, max_steps)

    def epoch(self, number: int) -> Indices:
        """Order of one epoch, wrapped around to whole global batches."""
        random = torch.Generator().manual_seed(self.seed + number)
        order = _grouped(self, random) if self.group_by_length else _shuffled(self.size, random)
        whole = np.resize(order, self.steps_per_epoch * self.global_batch)
        if self.group_by_length and self.rules == "llava":
            return np.concatenate([_dealt(batch, self) for batch in whole.reshape(-1, self.global_batch)])
        return whole

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    def micro_batches_of(self, rank: int, world: int, first: int, end: int) -> Iterator[Indices]:
        """The micro-batches of a rank for updates ``first`` up to but without ``end``, (device_batch,) each."""
        order, known = np.zeros(0, np.int64), -1
        for step in range(first, end):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                order, known = self.epoch(epoch), epoch
            start = place * self.global_batch
            for m in range(rank, self.micro_batches, world):
                yield order[start + m * self.device_batch : start + (m + 1) * self.device_batch]


def check_split(global_batch: int, device_batch: int, world: int) -> None:
    """Every rank must get the same number of micro-batches.

    Raises:
        ConfigError: with numbers that would work.
    """
    micro_batches = global_batch // device_batch
    if micro_batches % world == 0:
        return
    ranks = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    batches = [b for b in range(1, global_batch + 1) if global_batch % b == 0 and (global_batch // b) % world == 0]
    hint = f"ranks that work: {', '.join(map(str, ranks))}"
    if batches:
        hint += f"; or train.device_batch: {', '.join(map(str, batches))}"
    raise ConfigError(
        f"global_batch {global_batch} makes {micro_batches} micro-batches of device_batch {device_batch}, "
        f"which {world} ranks cannot share evenly",
        hint,
    )


def _shuffled(count: int, random: torch.Generator) -> Indices:
    return np.asarray(torch.randperm(count, generator=random).numpy())


def _grouped(schedule: Schedule, random: torch.Generator) -> Indices:
    """Batches of alike length and of one modality.

    The megabatches of ``xtuner`` hold up to 50 global batches, longest sample first, and so does what is left over; the
    longest sample of all comes first, so that too little memory shows at once. Those of ``llava``
    (``llava_trainer.py``; it counts words, here are tokens) are single global batches, each dealt out into
    micro-batches of even length.
    """
    if schedule.rules == "llava":
        megabatches, rest = _megabatches(schedule, random, schedule.global_batch)
        return np.concatenate([*megabatches, np.sort(rest)])
    batches = max(1, min(schedule.size // (4 * schedule.global_batch), _MEGABATCH))
    megabatches, rest = _megabatches(schedule, random, batches * schedule.global_batch)
    order = np.concatenate([_longest_first(batch, schedule.lengths) for batch in (*megabatches, rest)])
    longest = int(np.argmax(schedule.lengths[order]))
    order[[0, longest]] = order[[longest, 0]]
    return order


def _megabatches(schedule: Schedule, random: torch.Generator, size: int) -> tuple[list[Indices], Indices]:
    """Each modality shuffled and cut, the whole pieces of both in any order; and what is left over of both."""
    rest: list[Indices] = []
    megabatches: list[Indices] = []
    kinds = [kind for kind in (np.flatnonzero(schedule.has_image), np.flatnonzero(~schedule.has_image)) if len(kind)]
    for kind in kinds:
        shuffled = kind[_shuffled(len(kind), random)]
        chunks = [shuffled[start : start + size] for start in range(0, len(kind), size)]
        megabatches += chunks[:-1]
        rest.append(chunks[-1])
    if len(kinds) > 1:
        megabatches = [megabatches[n] for n in _shuffled(len(megabatches), random)]
    return megabatches, np.concatenate(rest)


def _longest_first(batch: Indices, lengths: Indices) -> Indices:
    return np.asarray(batch[np.argsort(-lengths[batch], kind="stable")])


def _dealt(batch: Indices, schedule: Schedule) -> Indices:
    """A global batch as micro-batches of about the same sum of lengths: the longest next goes to the shortest."""
    dealt: list[list[int]] = [[] for _ in range(schedule.micro_batches)]
    sums = [0.0] * schedule.micro_batches
    for sample in _longest_first(batch, schedule.lengths):
        part = sums.index(min(sums))
        dealt[part].append(int(sample))
        full = len(dealt[part]) == schedule.device_batch
        sums[part] = math.inf if full else sums[part] + float(schedule.lengths[sample])
    return np.array(dealt, np.int64).ravel()
