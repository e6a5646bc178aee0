"""The order of samples: the same for every number of ranks, a function of seed and epoch alone.

An epoch is its samples in some order, wrapped around until it fills whole global batches. A global batch is cut into
M = global_batch / device_batch micro-batches; rank r of W takes numbers r, W + r, 2 W + r, ... (a = 0, 1, 2, ...).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava.errors import ConfigError

Indices = NDArray[np.int64]


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
        order = _grouped(self, number) if self.group_by_length else _random(self.seed, number).permutation(self.size)
        return np.resize(order, self.steps_per_epoch * self.global_batch)

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


def _random(seed: int, epoch: int) -> np.random.RandomState:
    # RandomState's stream is frozen for good; Generator's may change between numpy versions.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))


def _grouped(schedule: Schedule, epoch: int) -> Indices:
    """Batches of alike length and modality, by the rules of XTuner 0.1.23 (``samplers/length_grouped.py``).

    Each modality is shuffled and cut into megabatches of up to 50 global batches, longest sample first. The last one
    of each modality goes into one mixed megabatch at the end; the others are shuffled. The longest sample of all comes
    first, so that too little memory shows at once.
    """
    random = _random(schedule.seed, epoch)
    batches = max(1, min(schedule.size // (4 * schedule.global_batch), 50))
    size = batches * schedule.global_batch
    mixed: list[Indices] = []
    megabatches: list[Indices] = []
    for kind in (np.flatnonzero(schedule.has_image), np.flatnonzero(~schedule.has_image)):
        if not len(kind):
            continue
        shuffled = random.permutation(kind)
        chunks = [shuffled[start : start + size] for start in range(0, len(kind), size)]
        megabatches += chunks[:-1]
        mixed.append(chunks[-1])
    megabatches = [megabatches[n] for n in random.permutation(len(megabatches))] + [np.concatenate(mixed)]
    order = np.concatenate([_longest_first(batch, schedule.lengths) for batch in megabatches])
    longest = int(np.argmax(schedule.lengths[order]))
    order[[0, longest]] = order[[longest, 0]]
    return order


def _longest_first(batch: Indices, lengths: Indices) -> Indices:
    return np.asarray(batch[np.argsort(-lengths[batch], kind="stable")])
