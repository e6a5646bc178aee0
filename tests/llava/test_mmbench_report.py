"""What an evaluation leaves behind: scores, predictions, a spreadsheet, a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook

from llava import mmbench
from llava.config import EvalJob
from llava.evals.fingerprint import fingerprint
from llava.evals.mmbench.rows import read
from llava.evals.mmbench.sheet import sheet
from llava.evals.run import subjects
from llava.evals.store import Answer, AnswerFile
from tests.llava.tiny_hf import COLUMNS, build_llava, question_rows, some_rows, write_tsv


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> tuple[Path, Path]:
    trained, untrained = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("untrained")
    build_llava(trained, tiny_language, tiny_vision, {"template": "vicuna"})
    build_llava(untrained, tiny_language, tiny_vision, {"template": "chatml"})
    return trained, untrained


def prepared(folder: Path, models: tuple[Path, Path], data: Path, answers: dict[int, str], wrong: str = "D") -> EvalJob:
    """A job whose answers stand there already: the model's as given, the baseline's all the same."""
    values = {"model": str(models[0]), "baseline": str(models[1]), "data": str(data)}
    job = EvalJob.model_validate({"kind": "eval", "run_dir": str(folder), "eval": values})
    model, baseline = subjects(job, read(data))
    for subject, texts in ((model, answers), (baseline, dict.fromkeys(answers, wrong))):
        assert subject.fingerprint == fingerprint(subject.settings)
        with AnswerFile(subject.answers, 0, 1) as file:
            file.add([Answer(i, text, subject.fingerprint, "fp32", 1) for i, text in texts.items()])
    return job


def scores(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "eval/mmbench/scores.json").read_text())
    return values


def test_scores_predictions_and_table(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tsv(tmp_path / "TINY_DEV.tsv", some_rows())
    right = {row.index: row.answer for row in read(data).rows}
    right[1] = "Both"  # the letter B to one scorer, nothing to the other
    mmbench.start(prepared(tmp_path, models, data, right), merge=True)
    found = scores(tmp_path)
    assert found["circular"] == 0.9
    assert found["vanilla"] == 28 / 29
    assert found["vanilla_0"] == 0.9
    assert found["by_category"] == {"colour": 0.8, "count": 1}
    assert found["by_l2_category"] == {"perception": 5 / 6, "reasoning": 1}
    assert (found["rows"], found["questions"], found["scorer"]) == (29, 10, "vlmevalkit")
    assert found["data_md5"] == read(data).md5
    assert found["baseline"]["circular"] == 0
    assert found["baseline"]["model"] == str(models[1])
    lines = (tmp_path / "eval/mmbench/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [row.index for row in read(data).rows]
    assert json.loads(lines[1]) == {
        "index": 1,
        "group": 1,
        "prediction": "Both",
        "letter": "",
        "answer": "B",
        "correct": False,
        "category": "colour",
        "l2_category": "perception",
    }
    out = capsys.readouterr().out
    assert "TINY_DEV: 10 questions, 29 rows" in out
    assert "trained" in out and "untrained" in out
    (line,) = (line for line in out.splitlines() if "circular" in line)
    assert "90.0" in line and "0.0" in line
    assert len(list((tmp_path / "eval/mmbench/baseline").glob("TINY_DEV.xlsx"))) == 1


def test_xtuners_scorer_is_a_choice(tmp_path: Path, models: tuple[Path, Path]) -> None:
    data = write_tsv(tmp_path / "TINY_DEV.tsv", some_rows())
    right = {row.index: row.answer for row in read(data).rows}
    job = prepared(tmp_path, models, data, {**right, 1: "Both"})
    mmbench.start(job.model_copy(update={"eval": job.eval.model_copy(update={"scorer": "xtuner"})}), merge=True)
    assert scores(tmp_path)["circular"] == 1


def test_a_test_file_gives_a_spreadsheet_and_no_score(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tsv(tmp_path / "TINY_TEST.tsv", some_rows(2), [name for name in COLUMNS if name != "answer"])
    mmbench.start(prepared(tmp_path, models, data, {row.index: "A" for row in read(data).rows}), merge=True)
    assert not (tmp_path / "eval/mmbench/scores.json").exists()
    assert "has no answers, so there is no score here" in capsys.readouterr().out.replace("\n", " ")
    head, first, *rest = load_workbook(tmp_path / "eval/mmbench/TINY_TEST.xlsx").active.iter_rows(values_only=True)
    assert dict(zip(head, first, strict=True))["answer"] is None
    assert len(rest) == 4
    assert "correct" not in (tmp_path / "eval/mmbench/predictions.jsonl").read_text()


def test_the_spreadsheet_has_the_servers_columns_and_only_text(tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "TINY_DEV.tsv", question_rows(3, ["=1+1", "#N/A", "None"], answer=2))
    table = read(data)
    texts = ["=HYPERLINK(1)", "+1\x00\x0b", ""]
    path = tmp_path / "out.xlsx"
    path.write_bytes(sheet(table, {row.index: text for row, text in zip(table.rows, texts, strict=True)}))
    page = load_workbook(path).active
    head, *rows = page.iter_rows()
    names = [cell.value for cell in head]
    assert names == [
        "index", "question", "hint", "A", "B", "C", "D", "answer", "prediction", "category", "l2-category", "source",
        "split",
    ]  # fmt: skip
    first = dict(zip(names, rows[0], strict=True))
    assert (first["prediction"].value, first["prediction"].data_type) == ("=HYPERLINK(1)", "s")
    assert (first["A"].value, first["A"].data_type) == ("=1+1", "s")
    assert (first["B"].value, first["B"].data_type) == ("#N/A", "s")
    assert (first["C"].value, first["D"].value, first["hint"].value) == ("None", None, None)
    assert (first["index"].value, first["answer"].value, first["split"].value) == (3, "C", "dev")
    second = dict(zip(names, rows[1], strict=True))
    assert (second["index"].value, second["prediction"].value) == (1_000_003, "+1")
