"""What is written down and shown at the end?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava.config import EvalJob
from llava.evals.benchmark import Answered
from llava.evals.refcoco.rows import Table
from llava.evals.refcoco.score import THRESHOLD, Judged, Scores, judge, score
from llava.evals.report import Line, as_text, comparison, with_origin, write_json, write_jsonl


def report(job: EvalJob, table: Table, answered: list[Answered]) -> str:
    """Score what was answered; write ``predictions.jsonl`` for each model, and ``scores.json``.

    Args:
        job: the evaluation.
        table: the evaluation file.
        answered: by the model, then by its baseline where there is one.

    Returns:
        the table to show.
    """
    judged = [judge(table, one.merged.predictions) for one in answered]
    for one, lines in zip(answered, judged, strict=True):
        write_jsonl(one.folder / "predictions.jsonl", map(_line, lines))
    scores = [score(lines) for lines in judged]
    both = [with_origin(one, asdict(values)) for one, values in zip(answered, scores, strict=True)]
    values = {"benchmark": "refcoco", **both[0], "rows": len(table.rows), "threshold": THRESHOLD}
    values |= {"data": table.path, "data_md5": table.md5, **({"baseline": both[1]} if both[1:] else {})}
    write_json(answered[0].folder / "scores.json", values)
    title = f"{Path(table.path).stem}: {len(table.rows)} phrases"
    return as_text(comparison(title, "", answered, _lines(scores)), str(answered[0].folder / "predictions.jsonl"))


def _line(one: Judged) -> dict[str, Any]:
    return {
        "index": one.row.index,
        "picture": one.row.picture,
        "phrase": one.row.phrase,
        "prediction": one.prediction,
        "box": one.box,
        "true_box": one.row.box,
        "iou": round(one.iou, 4),
        "correct": one.correct,
    }


def _lines(scores: list[Scores]) -> Iterator[Line]:
    yield f"right, IoU > {THRESHOLD} (%)", [f"{100 * s.accuracy:.1f}" for s in scores], False
    yield "mean IoU (%)", [f"{100 * s.mean_iou:.1f}" for s in scores], True
    yield "answers without four numbers", [f"{s.unreadable:,}" for s in scores], False
    yield "answers with swapped corners", [f"{s.swapped:,}" for s in scores], True
