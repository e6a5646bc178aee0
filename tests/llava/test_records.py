"""Reading and mapping records; every error names the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.data.records import Record, Turn, read_records, to_record
from llava.errors import ConfigError, DataError


def record(*messages: str, **more: Any) -> Record:
    """Messages as 'h:...' and 'g:...'."""
    roles = {"h": "human", "g": "gpt", "s": "system"}
    conversations = [{"from": roles[m[0]], "value": m[2:]} for m in messages]
    return to_record({"id": "x", "conversations": conversations, **more}, 7)


def turns(*pairs: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("question", "mapped"),
    [
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("What <image> is?", "<image>\nWhat  is?"),
        ("<image><image> What?", "<image>\nWhat?"),
        ("<image>", "<image>"),
    ],
)
def test_the_tag_moves_to_the_front(question: str, mapped: str) -> None:
    assert record(f"h:{question}", "g:a", image="p.jpg").turns == turns((mapped, "a"))


def test_turns() -> None:
    assert record("h:a", "g:b", "h:c", "g:d").turns == turns(("a", "b"), ("c", "d"))
    assert record("g:lead", "h:a", "g:b").turns == turns(("a", "b")), "the model's words before a question"
    assert record("h:a", "g:b", "h:c").turns == turns(("a", "b")), "a question without an answer"
    assert record("h:a", "h:b", "g:c").turns == turns(("a\nb", "c")), "two questions in a row"
    assert record("h:a", "g:b", "g:c").turns == turns(("a", "b"), ("", "c")), "two answers in a row"
    assert record("g:a").turns == record().turns == ()


def test_tags_in_two_questions_in_a_row_are_one_picture() -> None:
    asked = record("h:<image>\na", "h:<image>\nb", "g:c", image="p.jpg")
    assert asked.turns == turns(("<image>\na\n\nb", "c"))


def test_a_tag_in_a_later_question_stays_there() -> None:
    asked = record("h:hello", "g:hi", "h:see <image>", "g:ok", image="p.jpg")
    assert asked.turns == turns(("hello", "hi"), ("<image>\nsee", "ok"))


def test_text_that_speaks_of_the_tag_stays_text() -> None:
    asked = record("h:What does <image> mean in RSS?", "g:a logo")
    assert (asked.image, asked.turns) == (None, turns(("What does <image> mean in RSS?", "a logo")))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "record 7 is no JSON object"),
        ({"id": 5}, r"record 7 \(id 5\) has no list of conversations"),
        ({"conversations": [{"from": "user", "value": "a"}]}, "record 7 has a message from 'user'"),
        ({"conversations": [{"from": "human", "value": 1}]}, "record 7 has a message whose value is no text: 1"),
        ({"conversations": ["a"]}, "record 7 has a message from None"),
        ({"image": ["a", "b"], "conversations": []}, r"record 7 has an image that is no path: \['a', 'b'\]"),
    ],
)
def test_wrong_records_are_named(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_record(value, 7)


def test_tags_and_pictures_must_match() -> None:
    with pytest.raises(DataError, match=r"record 7 \(id 'x'\) has an image and <image> in 0 of its questions"):
        record("h:a", "g:b", image="p.jpg")
    with pytest.raises(DataError, match="in 2 of its questions; it must be in one"):
        record("h:<image> a", "g:b", "h:<image> c", "g:d", image="p.jpg")
    with pytest.raises(DataError, match="asks about <image> but names no image"):
        record("h:<image>\nWhat?", "g:b")


def test_json_and_json_lines_give_the_same(tmp_path: Path) -> None:
    values = [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "image": None},
        {
            "id": 3,
            "image": "ü.png",
            "extra": 1,
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}],
        },
    ]
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(v, ensure_ascii=False) for v in values) + "\n\n")
    read = list(read_records(tmp_path / "a.json"))
    assert [r.image for r in read] == [None, "ü.png"], "a first record without a picture hides none of the others"
    assert list(read_records(tmp_path / "a.jsonl")) == read


def test_files_that_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.records: file not found"):
        list(read_records(tmp_path / "none.json"))
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    with pytest.raises(DataError, match="holds no JSON list"):
        list(read_records(file))
    file.write_text('[{"a": 1}')
    with pytest.raises(DataError, match=r"cannot read .*a.json: Expecting"):
        list(read_records(file))
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"conversations": []}\n{"a"\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: "):
        list(read_records(lines))
