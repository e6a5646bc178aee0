"""Reading the benchmark file: texts stay texts, references are followed, and every problem is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.errors import DataError
from llava.evals.mmbench.prompt import question_text
from llava.evals.mmbench.rows import Table, read
from llava.evals.shards import split, units
from tests.llava.tiny_hf import COLUMNS, picture, question_rows, some_rows, write_tsv


def table(folder: Path, rows: list[dict[str, str]], columns: list[str] | None = None) -> Table:
    return read(write_tsv(folder / "data.tsv", rows, columns))


def problems(folder: Path, rows: list[dict[str, str]], columns: list[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        table(folder, rows, columns)
    assert caught.value.exit_code == 3
    return caught.value.message


def test_options_that_pandas_would_lose_are_options(tmp_path: Path) -> None:
    rows = table(tmp_path, question_rows(1, ["None", "NA", "null", "nan"])).rows
    assert list(rows[0].options.values()) == ["None", "NA", "null", "nan"]
    assert len(rows) == 4


def test_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = table(tmp_path, question_rows(1, ["3", "", "4.50"][::2])).rows
    assert rows[0].options == {"A": "3", "B": "4.50"}


def test_five_options_are_read(tmp_path: Path) -> None:
    columns = [*COLUMNS[:7], "E", *COLUMNS[7:]]
    rows = table(tmp_path, question_rows(1, ["a", "b", "c", "d", "e"], answer=4), columns).rows
    assert [row.answer for row in sorted(rows, key=lambda row: row.index)] == ["E", "D", "C", "B", "A"]


def test_cells_may_hold_tabs_quotes_and_lines(tmp_path: Path) -> None:
    text = 'He said "no",\tthen\n\nleft.'
    rows = table(tmp_path, question_rows(1, ["yes", "no"], question=text)).rows
    assert rows[0].question == text
    assert [row.line for row in rows] == [2, 5]


def test_a_reference_is_followed_through_other_references(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"]) + question_rows(2, ["a", "b"]) + question_rows(3, ["a", "b"])
    rows[2]["image"], rows[4]["image"] = "1", "2"
    data = table(tmp_path, rows)
    assert {row.picture for row in data.rows} == {1}
    assert data.open_picture(1).mode == "RGB"


def test_the_same_picture_written_out_twice_is_one_picture(tmp_path: Path) -> None:
    data = table(tmp_path, question_rows(1, ["a", "b"], image=picture(1)))
    assert {row.picture for row in data.rows} == {1}


def test_a_reference_to_nothing_or_in_a_circle_is_a_problem(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"]) + question_rows(2, ["a", "b"]) + question_rows(3, ["a", "b"])
    rows[0]["image"], rows[2]["image"], rows[4]["image"] = "77", "3", "2"
    text = problems(tmp_path, rows)
    assert "line 2: the image's row 77 is not in the file" in text
    assert "line 4: the image's row 2 refers to itself" in text


def test_what_is_no_picture_is_a_problem(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"]) + question_rows(2, ["a", "b"])
    rows[0]["image"], rows[2]["image"] = "", "A" * 100
    text = problems(tmp_path, rows)
    assert "line 2: image '' is neither a picture nor the index of a row" in text
    assert "line 4: the image is not a base64 picture" in text


def test_all_problems_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b", "c"]) + question_rows(2, ["a", "b"]) + question_rows(3, ["a", "b"])
    del rows[2]  # the last copy of question 1
    rows[2]["answer"] = "C"
    rows[4]["index"] = "2"
    rows[5]["index"] = "3.0"
    text = problems(tmp_path, rows)
    for line in (
        "line 2: question 1: 2 rows for 3 options",
        "line 4: answer 'C' is none of the options A, B",
        "line 6: index 2 stands on line 4 already",
        "line 7: index '3.0' is not a whole number",
    ):
        assert line in text


@pytest.mark.parametrize("column", ["index", "question", "A", "B", "image"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    columns = [name for name in COLUMNS if name != column]
    assert f"column {column!r} is missing" in problems(tmp_path, question_rows(1, ["a", "b"]), columns)


def test_a_group_without_its_main_row_is_a_problem(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"])
    rows[0]["index"], rows[1]["image"] = "2000001", picture(1)
    assert "question 1: the row with index 1 is missing" in problems(tmp_path, rows)


def test_copies_must_be_the_first_ones(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"])
    rows[1]["index"] = "3000001"
    assert "question 1: its indexes are [1, 3000001]" in problems(tmp_path, rows)


def test_a_group_column_replaces_the_arithmetic_of_indexes(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"])
    rows[1] |= {"index": "9", "image": "1"}
    for row in rows:
        row["g_index"] = "1"
    assert list(table(tmp_path, rows, [*COLUMNS, "g_index"]).groups()) == [1]


def test_answers_are_there_for_all_rows_or_for_none(tmp_path: Path) -> None:
    rows = question_rows(1, ["a", "b"])
    rows[1]["answer"] = ""
    assert "line 3: the answer is empty" in problems(tmp_path, rows)
    rows[0]["answer"] = ""
    assert not table(tmp_path, rows).has_answers
    assert not table(tmp_path, rows, [name for name in COLUMNS if name != "answer"]).has_answers


def test_a_row_with_too_few_cells_and_an_empty_file_are_problems(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "short.tsv", question_rows(1, ["a", "b"]))
    path.write_text(path.read_text() + "5\tWhat?\n")
    with pytest.raises(DataError, match="line 4: 2 cells, but the header has 14"):
        read(path)
    with pytest.raises(DataError, match="the file has no rows"):
        read(write_tsv(tmp_path / "empty.tsv", []))
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "missing.tsv")


def test_the_prompt_is_xtuners_to_the_letter(tmp_path: Path) -> None:
    row, *_ = table(tmp_path, question_rows(1, ["red", "blue"], hint="It is late.", question="Which colour?")).rows
    assert question_text(row) == (
        "It is late.\nWhich colour?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )


def test_a_chinese_row_is_asked_in_chinese(tmp_path: Path) -> None:
    row, *_ = table(tmp_path, question_rows(1, ["红", "蓝"], question="Which?")).rows
    assert question_text(row) == "Which?\nA. 红\nB. 蓝\n请直接回答选项字母。"


def test_a_placeholder_in_the_question_is_not_a_second_picture(tmp_path: Path) -> None:
    row, *_ = table(tmp_path, question_rows(1, ["a", "b"], question="What is in <image>?")).rows
    assert "<image>" not in question_text(row)


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_share_rows_but_never_a_picture(tmp_path: Path, shards: int) -> None:
    data = table(tmp_path, some_rows())
    shares = split(data.rows, shards)
    assert sorted(row.index for share in shares for row in share) == sorted(row.index for row in data.rows)
    pictures = [{row.picture for row in share} for share in shares]
    assert sum(map(len, pictures)) == len(set().union(*pictures))
    assert max(map(len, shares)) - min(map(len, shares)) <= max(map(len, units(data.rows)))
    assert shares == split(read(data.path).rows, shards)
