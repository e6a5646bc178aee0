"""Was every row answered exactly once? Only then is there a score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llava.errors import DataError
from llava.evals.benchmark import Table
from llava.evals.shards import split
from llava.evals.store import Answer

_MOST_SHOWN = 20


@dataclass(frozen=True)
class Merged:
    """One prediction for each row, and how it came about."""

    predictions: dict[int, str]
    repeated: int
    """Lines dropped because another one gave the same row the same text (two shards ran at the same time)."""
    others: int
    """Lines with another fingerprint: other weights, data or settings; not used."""
    dtypes: list[str]
    batches: list[int]


def merge(table: Table, answers: Iterable[Answer], fingerprint: str, shards: int) -> Merged:
    """Join all shards.

    Args:
        table: the rows that must be answered.
        answers: every stored line.
        fingerprint: of the answers that count.
        shards: number of shards, to say which of them lack rows.

    Raises:
        DataError: a row without an answer, or with two different ones, or an answer to no row.
    """
    lines = list(answers)
    used = [a for a in lines if a.fingerprint == fingerprint]
    texts: dict[int, set[str]] = {row.index: set() for row in table.rows}
    strange = sorted({a.index for a in used} - texts.keys())
    if strange:
        raise DataError(f"answers to rows that are not in {table.path}: {_some(strange)}")
    for answer in used:
        texts[answer.index].add(answer.prediction)
    _refuse_missing(table, [i for i, found in texts.items() if not found], len(lines) - len(used), shards)
    _refuse_different([i for i, found in texts.items() if len(found) > 1])
    return Merged(
        predictions={i: next(iter(found)) for i, found in texts.items()},
        repeated=len(used) - len(texts),
        others=len(lines) - len(used),
        dtypes=sorted({a.dtype for a in used}),
        batches=sorted({a.batch for a in used}),
    )


def _refuse_missing(table: Table, missing: list[int], others: int, shards: int) -> None:
    if not missing:
        return
    gaps = set(missing)
    lacking = [i for i, share in enumerate(split(table.rows, shards)) if any(row.index in gaps for row in share)]
    hint = f"Run these shards of {shards} again, they answer only what is missing: {_some(lacking)}."
    if others:
        hint += f" {others} answers with other weights, data or settings were not used (answers/settings-*.json)."
    raise DataError(f"{len(missing)} of {len(table.rows)} rows have no answer: {_some(missing)}", hint)


def _refuse_different(rows: list[int]) -> None:
    if rows:
        raise DataError(
            f"{len(rows)} rows have two different answers from the same weights and settings: {_some(rows)}",
            "Two processes answered them at the same time in 16 bits; remove the answers folder and run again.",
        )


def _some(numbers: list[int]) -> str:
    more = len(numbers) - _MOST_SHOWN
    return ", ".join(map(str, numbers[:_MOST_SHOWN])) + (f" and {more} more" if more > 0 else "")
