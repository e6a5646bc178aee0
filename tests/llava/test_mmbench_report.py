"""What an evaluation leaves behind: scores, predictions, a spreadsheet, a table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook

from llava import mmbench
from llava.config import EvalJob
from llava.evals.fingerprint import fingerprint
from llava.evals.mmbench.names import with_abbreviation
from llava.evals.mmbench.rows import read
from llava.evals.mmbench.sheet import for_the_server, for_vlmevalkit
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
    path.write_bytes(for_the_server(table, {row.index: text for row, text in zip(table.rows, texts, strict=True)}))
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


def rows_of(data: bytes | Path) -> tuple[list[str], list[dict[str, Any]]]:
    book = load_workbook(io.BytesIO(data) if isinstance(data, bytes) else data)
    assert book.sheetnames == ["Sheet1"]
    head, *rows = book.active.iter_rows(values_only=True)
    return list(head), [dict(zip(head, row, strict=True)) for row in rows]


def test_vlmevalkit_finds_the_files_own_columns_and_nothing_else(tmp_path: Path) -> None:
    table = read(write_tsv(tmp_path / "MMBench_DEV_EN.tsv", some_rows(4)))
    names, rows = rows_of(for_vlmevalkit(table, {row.index: f"{row.answer}." for row in table.rows}))
    assert names == [*(name for name in COLUMNS if name != "image"), "prediction"]
    assert [row["index"] for row in rows] == [row.index for row in table.rows]
    assert all(row["prediction"] == f"{row['answer']}." for row in rows)
    assert {row["split"] for row in rows} == {"dev"}


def test_vlmevalkit_gets_no_split_and_no_abilities_where_the_file_has_none(tmp_path: Path) -> None:
    columns = ["index", "question", "A", "B", "answer", "category", "image", "source"]  # as CCBench
    table = read(
        write_tsv(tmp_path / "CCBench.tsv", question_rows(7, ["春节", "3"], category="traditional_show"), columns)
    )
    names, rows = rows_of(for_vlmevalkit(table, {7: "A", 1_000_007: ""}))
    assert names == ["index", "question", "A", "B", "answer", "category", "source", "prediction"]
    # Text that looks like a number stays text; an empty answer is a blank, which pandas does not read as nan.
    assert [row["B"] for row in rows] == ["3", "春节"]
    assert [row["prediction"] for row in rows] == ["A", " "]


def test_vlmevalkit_gets_group_numbers_as_numbers(tmp_path: Path) -> None:
    rows = [{**row, "g_index": "1"} for row in question_rows(1, ["a", "b"])]
    table = read(write_tsv(tmp_path / "MMBench_DEV_EN_V11.tsv", rows, [*COLUMNS, "g_index"]))
    _, written = rows_of(for_vlmevalkit(table, dict.fromkeys([1, 1_000_001], "A")))
    assert [row["g_index"] for row in written] == [1, 1]


def test_the_file_for_vlmevalkit_is_named_as_it_looks_for_it(tmp_path: Path, models: tuple[Path, Path]) -> None:
    data = write_tsv(tmp_path / "MMBench_TEST_EN.tsv", some_rows(2), [name for name in COLUMNS if name != "answer"])
    mmbench.start(prepared(tmp_path, models, data, {row.index: "A" for row in read(data).rows}), merge=True)
    (path,) = (tmp_path / "eval/mmbench/vlmevalkit").iterdir()
    assert path.name == f"{models[0].name}_MMBench_TEST_EN.xlsx"
    names, _ = rows_of(path)
    assert "answer" not in names


def test_ccbench_is_scored_by_its_seven_categories(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["calligraphy_painting", "cultural_relic", "food_clothes", "historical_figure", "scenery_building",
             "sketch_reasoning", "traditional_show"]  # fmt: skip
    rows = [row for i, kind in enumerate(kinds) for row in question_rows(i, ["甲", "乙"], category=kind)]
    columns = ["index", "question", "A", "B", "C", "D", "answer", "category", "image", "source"]
    data = write_tsv(tmp_path / "CCBench.tsv", rows, columns)
    right = {row.index: row.answer for row in read(data).rows}
    mmbench.start(prepared(tmp_path, models, data, {**right, 1_000_005: "A"}), merge=True)
    found = scores(tmp_path)
    assert found["by_l2_category"] == {}
    assert found["by_category"] == {kind: float(kind != "sketch_reasoning") for kind in kinds}
    assert found["circular"] == 6 / 7
    shown = capsys.readouterr().out
    for name in ("Sketch Reasoning", "Scenery & Building", "Food & Clothes", "Historical Figure", "Traditional Show",
                 "Calligraphy Painting", "Cultural Relic"):  # fmt: skip
        assert f"[{name}]" in shown


@pytest.mark.parametrize(
    ("category", "shown"),
    [
        ("coarse_perception", "coarse_perception [CP]"),
        ("finegrained_perception (instance-level)", "finegrained_perception (instance-level) [FP-S]"),
        ("finegrained_perception (cross-instance)", "finegrained_perception (cross-instance) [FP-C]"),
        ("logic_reasoning", "logic_reasoning [LR]"),
        ("relation_reasoning", "relation_reasoning [RR]"),
        ("attribute_reasoning", "attribute_reasoning [AR]"),
        ("celebrity_recognition", "celebrity_recognition"),
    ],
)
def test_abilities_are_shown_with_the_abbreviations_of_published_tables(category: str, shown: str) -> None:
    assert with_abbreviation(category) == shown
