"""What is written down and shown at the end?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from llava.config import EvalJob
from llava.evals.benchmark import Answered
from llava.evals.mmbench.names import with_abbreviation
from llava.evals.mmbench.rows import Table
from llava.evals.mmbench.score import Judged, Scores, judge, score
from llava.evals.mmbench.sheet import for_the_server, for_vlmevalkit
from llava.evals.report import Line, as_text, comparison, with_origin, write_json, write_jsonl
from llava.run_folder import write_aside


@dataclass(frozen=True)
class Result:
    """One model's answers and, where the file has answers, its scores."""

    answered: Answered
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
    sheets = [write_predictions(table, result) for result in results]
    write_scores(table, job.eval.scorer, results)
    if table.has_answers:
        return as_text(score_table(table, job.eval.scorer, results), str(sheets[0]))
    words = f"{table.path} has no answers, so there is no score here. Upload to the benchmark's server:"
    return as_text(words, str(sheets[0]))


def _result(scorer: str, one: Answered, table: Table) -> Result:
    judged = judge(table, one.merged.predictions, scorer)
    return Result(one, judged, score(judged) if table.has_answers else None)


def write_predictions(table: Table, result: Result) -> Path:
    """Write ``predictions.jsonl`` and the spreadsheets, in the rows' order.

    Returns:
        path of the spreadsheet for the benchmark's server.
    """
    folder, predictions = result.answered.folder, result.answered.merged.predictions
    scored = result.scores is not None
    write_jsonl(folder / "predictions.jsonl", (_line(one, scored=scored) for one in result.judged))
    benchmark, model = Path(table.path).stem, Path(result.answered.model).name
    path = folder / f"{benchmark}.xlsx"
    write_aside(path, for_the_server(table, predictions))
    write_aside(folder / "vlmevalkit" / f"{model}_{benchmark}.xlsx", for_vlmevalkit(table, predictions))
    return path


def _line(one: Judged, *, scored: bool) -> dict[str, Any]:
    row = one.row
    line: dict[str, Any] = {"index": row.index, "group": row.group, "prediction": one.prediction, "letter": one.letter}
    if scored:
        line |= {"answer": row.answer, "correct": one.correct}
    return line | {"category": row.category, "l2_category": row.l2_category}


def write_scores(table: Table, scorer: str, results: list[Result]) -> None:
    """Write ``scores.json``: fractions, with what they were measured on.

    A file without answers has no scores; one left from other data is removed.
    """
    model, *baseline = results
    path = model.answered.folder / "scores.json"
    if model.scores is None:
        path.unlink(missing_ok=True)
        return
    values = {
        "benchmark": "mmbench",
        **_scores(model),
        "rows": len(table.rows),
        "questions": len(table.groups()),
        "scorer": scorer,
        "data": table.path,
        "data_md5": table.md5,
    }
    if baseline:
        values["baseline"] = _scores(baseline[0])
    write_json(path, values)


def _scores(result: Result) -> dict[str, Any]:
    return with_origin(result.answered, asdict(result.scores) if result.scores else {})


def score_table(table: Table, scorer: str, results: list[Result]) -> RichTable:
    """Percentages, one column a model."""
    title = f"{Path(table.path).stem}: {len(table.groups())} questions, {len(table.rows)} rows, scorer {scorer}"
    scores = [one.scores for one in results if one.scores]
    return comparison(title, "%", [one.answered for one in results], _lines(scores))


def _lines(scores: list[Scores]) -> Iterator[Line]:
    yield "circular", [_percent(s.circular) for s in scores], False
    yield "vanilla, every row", [_percent(s.vanilla) for s in scores], False
    yield "vanilla, main rows", [_percent(s.vanilla_0) for s in scores], True
    for by_kind in ([s.by_l2_category for s in scores], [s.by_category for s in scores]):
        kinds = list(by_kind[0])
        for kind in kinds:
            values = [_percent(of_kind[kind]) for of_kind in by_kind]
            yield with_abbreviation(kind), values, kind == kinds[-1]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
