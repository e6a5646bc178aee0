"""Micro-batches for one rank, in order: prepared by worker processes, or in this one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava.data.collate import BadPicture, Batch, Sample, collate
from llava.data.images import Pictures
from llava.data.index import TokenIndex


class MicroBatches:
    """Turns the numbers of samples into a micro-batch; what a worker process runs."""

    def __init__(self, index: TokenIndex, pictures: Pictures, patches: int, side: int) -> None:
        self._index = index
        self._pictures = pictures
        self._patches = patches
        self._side = side

    def __getitem__(self, samples: NDArray[np.int64]) -> Batch:
        return collate([self._sample(int(n)) for n in samples], self._patches, self._side)

    def _sample(self, number: int) -> Sample:
        ids, labels = self._index.tokens(number)
        name = self._index.image(number)
        if name is None:
            return Sample(ids, labels)
        picture = self._pictures.read(name)
        if isinstance(picture, BadPicture):
            return Sample(ids, labels, bad=picture)
        return Sample(ids, labels, picture)


class _Order:
    """An iterator that the data loader takes for a sampler."""

    def __init__(self, order: Iterator[NDArray[np.int64]]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return self._order


def load(source: MicroBatches, order: Iterator[NDArray[np.int64]], workers: int, pin: bool) -> Iterator[Batch]:
    """Micro-batches in order.

    Args:
        workers: processes that prepare them ahead; 0: this process, when asked.
        pin: hand them over in pinned memory, for copies that do not wait.
    """
    if workers == 0:
        return (source[samples].pin_memory() if pin else source[samples] for samples in order)
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Order(order),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4,
        worker_init_fn=_leave_with_the_parent,
        # Workers share the index's mapped arrays; other ways of starting would copy them through a pipe.
        multiprocessing_context="fork",
    )
    return iter(loader)


def _leave_with_the_parent(worker: int) -> None:
    """Signals that ask to save are for the rank alone; a worker ends when its rank does."""
    from llava.interrupt import die_with_parent

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
