"""How good are these predictions? Pure functions; nothing is read or written here.

CircularEval: a question is right when every one of its copies is answered right (arXiv 2307.06281, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava.evals.mmbench.letters import SCORERS
from llava.evals.mmbench.rows import Row, Table


@dataclass(frozen=True)
class Judged:
    """One row's prediction and what the scorer made of it."""

    row: Row
    prediction: str
    letter: str
    correct: bool


@dataclass(frozen=True)
class Scores:
    """Fractions from 0 to 1."""

    circular: float
    vanilla: float
    """Every row as its own question."""
    vanilla_0: float
    """Only the main row of each question."""
    by_l2_category: dict[str, float]
    """Circular, over the questions whose main row is of that kind."""
    by_category: dict[str, float]


def judge(table: Table, predictions: Mapping[int, str], scorer: str) -> list[Judged]:
    """Read a letter from every prediction and compare it with the file's answer.

    Args:
        table: the benchmark file; answers, options and categories all come from here.
        predictions: text by row index, one for each row.
        scorer: a key of SCORERS.
    """
    read_letter = SCORERS[scorer]
    judged = []
    for row in table.rows:
        letter = read_letter(predictions[row.index], row.options)
        judged.append(Judged(row, predictions[row.index], letter, bool(row.answer) and letter == row.answer))
    return judged


def score(judged: list[Judged]) -> Scores:
    """All scores of a file with answers."""
    groups: dict[int, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one.row.group, []).append(one)
    hits = {group: all(one.correct for one in copies) for group, copies in groups.items()}
    mains = [one for one in judged if one.row.index == one.row.group]
    return Scores(
        circular=_mean([hits[one.row.group] for one in mains]),
        vanilla=_mean([one.correct for one in judged]),
        vanilla_0=_mean([one.correct for one in mains]),
        by_l2_category=_by_kind([(one.row.l2_category, hits[one.row.group]) for one in mains]),
        by_category=_by_kind([(one.row.category, hits[one.row.group]) for one in mains]),
    )


def _by_kind(hits: list[tuple[str, bool]]) -> dict[str, float]:
    kinds: dict[str, list[bool]] = {}
    for kind, hit in hits:
        if kind:
            kinds.setdefault(kind, []).append(hit)
    return {kind: _mean(kinds[kind]) for kind in sorted(kinds)}


def _mean(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
