"""What is written down and shown at the end?"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from llava.config import EvalJob
from llava.evals.benchmark import Answered
from llava.evals.merge import Merged
from llava.evals.mmbench.rows import Table
from llava.evals.mmbench.score import Judged, Scores, judge, score
from llava.evals.mmbench.sheet import sheet
from llava.run_folder import write_aside


@dataclass(frozen=True)
class Result:
    """One model's answers and, where the file has answers, its scores."""

    model: str
    fingerprint: str
    merged: Merged
    judged: list[Judged]
    scores: Scores | None


def report(job: EvalJob, table: Table, answered: list[Answered]) -> str:
    """Score what was answered and write it all down.

    Args:
        job: the evaluation.
        table: the benchmark file.
        answered: by the model, then by its baseline where there is one.

    Returns:
        the table to show, or where to upload what has no answers here.
    """
    results = [_result(job.eval.scorer, one, table) for one in answered]
    paths = [write_predictions(one.folder, table, result) for one, result in zip(answered, results, strict=True)]
    model, baseline = results[0], results[1] if len(results) > 1 else None
    write_scores(answered[0].folder, table, job.eval.scorer, model, baseline)
    text = io.StringIO()
    console = Console(file=text, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if table.has_answers:
        console.print(score_table(table, job.eval.scorer, model, baseline))
    else:
        console.print(f"{table.path} has no answers, so there is no score here. Upload to the benchmark's server:")
    console.print(str(paths[0]))
    return text.getvalue()


def _result(scorer: str, one: Answered, table: Table) -> Result:
    judged = judge(table, one.merged.predictions, scorer)
    return Result(one.model, one.fingerprint, one.merged, judged, score(judged) if table.has_answers else None)


def write_predictions(folder: Path, table: Table, result: Result) -> Path:
    """Write ``predictions.jsonl`` and the spreadsheet, in the rows' order.

    Returns:
        the spreadsheet's path.
    """
    lines = [json.dumps(_line(one, scored=result.scores is not None), ensure_ascii=False) for one in result.judged]
    write_aside(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    path = folder / f"{Path(table.path).stem}.xlsx"
    write_aside(path, sheet(table, result.merged.predictions))
    return path


def _line(one: Judged, *, scored: bool) -> dict[str, Any]:
    row = one.row
    line: dict[str, Any] = {"index": row.index, "group": row.group, "prediction": one.prediction, "letter": one.letter}
    if scored:
        line |= {"answer": row.answer, "correct": one.correct}
    return line | {"category": row.category, "l2_category": row.l2_category}


def write_scores(folder: Path, table: Table, scorer: str, result: Result, baseline: Result | None) -> None:
    """Write ``scores.json``: fractions, with what they were measured on.

    A file without answers has no scores; one left from other data is removed.
    """
    path = folder / "scores.json"
    if result.scores is None:
        path.unlink(missing_ok=True)
        return
    values = {
        "benchmark": "mmbench",
        **_scores(result),
        "rows": len(table.rows),
        "questions": len(table.groups()),
        "scorer": scorer,
        "data": table.path,
        "data_md5": table.md5,
    }
    if baseline:
        values["baseline"] = _scores(baseline)
    write_aside(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _scores(result: Result) -> dict[str, Any]:
    merged = result.merged
    return {
        "model": result.model,
        **(asdict(result.scores) if result.scores else {}),
        "fingerprint": result.fingerprint,
        "dtypes": merged.dtypes,
        "batches": merged.batches,
        "repeated_answers": merged.repeated,
    }


def score_table(table: Table, scorer: str, result: Result, baseline: Result | None) -> RichTable:
    """Percentages, one column a model."""
    shown = RichTable(
        title=f"{Path(table.path).stem}: {len(table.groups())} questions, {len(table.rows)} rows, scorer {scorer}"
    )
    columns = [one for one in (result, baseline) if one]
    shown.add_column("%")
    for role, one in zip(("model", "baseline"), columns, strict=False):
        shown.add_column(f"{role}\n{Path(one.model).name}", justify="right")
    for name, values, ends in _lines([one.scores for one in columns if one.scores]):
        shown.add_row(name, *("" if value is None else f"{100 * value:.1f}" for value in values), end_section=ends)
    return shown


def _lines(scores: list[Scores]) -> list[tuple[str, list[float | None], bool]]:
    lines: list[tuple[str, list[float | None], bool]] = [
        ("circular", [s.circular for s in scores], False),
        ("vanilla, every row", [s.vanilla for s in scores], False),
        ("vanilla, main rows", [s.vanilla_0 for s in scores], True),
    ]
    for by_kind in ([s.by_l2_category for s in scores], [s.by_category for s in scores]):
        kinds = list(by_kind[0])
        lines += [(kind, [kinds_of[kind] for kinds_of in by_kind], kind == kinds[-1]) for kind in kinds]
    return lines
