"""What is a box, as a model reads and writes it? ``{<x1><y1><x2><y2>}``, whole hundredths of the picture's sides.

Corners are rounded down, in coordinates of the picture as it is, not of the square it is padded to (XTuner 0.1.23,
xtuner/dataset/refcoco_json.py; the form is MiniGPT-v2's, arXiv 2310.09478).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_INTEGER = re.compile(r"\d+")
_WRITTEN = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")
_MOST_DIGITS = 9
"""A longer number is no coordinate; Python refuses to read very long ones."""


class Box(NamedTuple):
    """Left, upper, right, lower edge in hundredths of the picture's width and height."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def text(self) -> str:
        """As it stands in training texts."""
        return f"{{<{self.x1}><{self.y1}><{self.x2}><{self.y2}>}}"

    @property
    def swapped(self) -> bool:
        """Whether the second corner is left of the first one, or above it: no box."""
        return self.x2 < self.x1 or self.y2 < self.y1


def normalised(corner_and_size: Sequence[float], height: float, width: float) -> Box:
    """A box in hundredths.

    Args:
        corner_and_size: left, upper edge, width and height in pixels, as in COCO's annotations.
        height: of the picture in pixels.
        width: of the picture in pixels.
    """
    x, y, w, h = corner_and_size
    x1, y1, x2, y2 = (int(part * 100) for part in (x / width, y / height, (x + w) / width, (y + h) / height))
    return Box(x1, y1, x2, y2)


def read_box(answer: str) -> Box | None:
    """The box of an answer: all of its whole numbers, which must be four; else None."""
    numbers = _INTEGER.findall(answer)
    if len(numbers) != 4 or any(len(number) > _MOST_DIGITS for number in numbers):
        return None
    x1, y1, x2, y2 = map(int, numbers)
    return Box(x1, y1, x2, y2)


def as_fractions(answer: str) -> str:
    """An answer with its boxes as ``[x1, y1, x2, y2]`` in fractions of the picture's sides, for other programs."""
    return _WRITTEN.sub(lambda box: "[" + ", ".join(f"{int(edge) / 100}" for edge in box.groups()) + "]", answer)


def iou(one: Box, other: Box) -> float:
    """Intersection over union on the grid of hundredths, where both edges belong to a box: from 0 to 1.

    A box with swapped corners covers nothing.
    """
    if one.swapped or other.swapped:
        return 0.0
    shared = Box(max(one.x1, other.x1), max(one.y1, other.y1), min(one.x2, other.x2), min(one.y2, other.y2))
    inter = 0 if shared.swapped else _cells(shared)
    return inter / (_cells(one) + _cells(other) - inter)


def _cells(box: Box) -> int:
    return (box.x2 - box.x1 + 1) * (box.y2 - box.y1 + 1)
