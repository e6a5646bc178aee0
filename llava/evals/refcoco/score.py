"""How good are these boxes? Pure functions; nothing is read or written here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava.evals.refcoco.boxes import Box, iou, read_box
from llava.evals.refcoco.rows import Row, Table

THRESHOLD = 0.5
"""An answer is right when its intersection over union is above this."""


@dataclass(frozen=True)
class Judged:
    """One row's prediction and what was made of it."""

    row: Row
    prediction: str
    box: Box | None
    """None: the answer has not exactly four whole numbers."""
    iou: float

    @property
    def correct(self) -> bool:
        return self.iou > THRESHOLD


@dataclass(frozen=True)
class Scores:
    """Fractions from 0 to 1, and what could not be right whatever the picture."""

    accuracy: float
    """Rows with an intersection over union above 0.5."""
    mean_iou: float
    unreadable: int
    """Answers without exactly four whole numbers; they are wrong."""
    swapped: int
    """Answers whose second corner is left of the first one, or above it; they are wrong."""


def judge(table: Table, predictions: Mapping[int, str]) -> list[Judged]:
    """Read a box from every prediction and compare it with the file's.

    Args:
        table: the evaluation file.
        predictions: text by row index, one for each row.
    """
    judged = []
    for row in table.rows:
        box = read_box(predictions[row.index])
        judged.append(Judged(row, predictions[row.index], box, iou(box, row.box) if box else 0.0))
    return judged


def score(judged: list[Judged]) -> Scores:
    """All scores of a file."""
    return Scores(
        accuracy=sum(one.correct for one in judged) / len(judged),
        mean_iou=sum(one.iou for one in judged) / len(judged),
        unreadable=sum(one.box is None for one in judged),
        swapped=sum(one.box is not None and one.box.swapped for one in judged),
    )
