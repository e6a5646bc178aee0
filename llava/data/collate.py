"""One micro-batch: ragged samples laid out flat, with every index worked out here, on the CPU.

Letters: B samples, T positions of the longest sample after the splice, N pictures, P features of a picture, L text
tokens, K supervised tokens. A flat position is ``sample * T + position``.

The model needs no mask: padding stands on the right, and causal attention never looks there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGE_TOKEN: Final = -200
"""Stands in the ids where a picture goes (LLaVA's number)."""
IGNORE: Final = -100
"""Label of a token that is not learned (torch's cross entropy skips it)."""


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """A record ready for the model."""

    ids: NDArray[np.int32]
    """(T0,) tokens, with IMAGE_TOKEN in the picture's place."""
    labels: NDArray[np.int32]
    """(T0,) the same tokens where they are learned, IGNORE elsewhere."""
    picture: NDArray[np.uint8] | None = None
    """(3, S, S), or None for a record without one."""
    bad: BadPicture | None = None
    """Set where the picture could not be read: the sample then teaches nothing."""


@dataclass(frozen=True)
class Batch:
    """What the model sees; see the letters above."""

    text_ids: Tensor
    """(L,) int64 token ids, all samples in a row."""
    text_at: Tensor
    """(L,) int64 flat positions of the text."""
    image_at: Tensor
    """(N x P,) int64 flat positions of the pictures' features."""
    pixels: Tensor
    """(N, 3, S, S) uint8."""
    target_at: Tensor
    """(K,) int64 flat positions whose output foretells a supervised token."""
    targets: Tensor
    """(K,) int64 those tokens."""
    samples: int
    """B."""
    length: int
    """T."""
    bad: tuple[BadPicture, ...] = ()
    """Pictures that could not be read."""

    @property
    def supervised(self) -> int:
        """K, the number of supervised tokens."""
        return len(self.targets)

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return len(self.text_at) + len(self.image_at)

    def to(self, device: torch.device) -> Batch:
        """A copy on a device; the host does not wait when the memory is pinned."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in pinned memory (the data loader calls this by name)."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = move(value)
        return Batch(**values)


def collate(samples: list[Sample], patches: int, side: int) -> Batch:
    """Lay samples out.

    Args:
        patches: features a picture becomes (P).
        side: side of a picture in pixels (S).
    """
    # A sample without its picture keeps one token and no label: shapes stay valid and it teaches nothing.
    ids = [s.ids[:1] if s.bad else s.ids for s in samples]
    labels = [s.labels[:1] * 0 + IGNORE if s.bad else s.labels for s in samples]
    pictures = [s.picture for s in samples if s.picture is not None and not s.bad]

    flat_ids = np.concatenate(ids).astype(np.int64)
    flat_labels = np.concatenate(labels).astype(np.int64)
    rows = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    is_image = (flat_ids == IMAGE_TOKEN) & (len(pictures) > 0)
    widths = np.where(is_image, patches, 1)
    ends = np.cumsum(widths)
    row_ends = np.array([0, *ends[np.cumsum([len(i) for i in ids]) - 1]])
    length = int(np.diff(row_ends).max())
    starts = rows * length + ends - widths - row_ends[rows]

    is_text = flat_ids >= 0
    image_starts = starts[flat_ids == IMAGE_TOKEN] if pictures else starts[:0]
    # The token before a supervised one foretells it; no sample begins with a supervised token (conversation.py).
    learned = flat_labels >= 0
    tensor = torch.from_numpy
    return Batch(
        text_ids=tensor(flat_ids[is_text]),
        text_at=tensor(starts[is_text]),
        image_at=tensor((image_starts[:, None] + np.arange(patches)).reshape(-1)),
        pixels=tensor(np.stack(pictures) if pictures else np.zeros((0, 3, side, side), np.uint8)),
        target_at=tensor(starts[learned] - 1),
        targets=tensor(flat_labels[learned]),
        samples=len(samples),
        length=length,
        bad=tuple(s.bad for s in samples if s.bad),
    )
