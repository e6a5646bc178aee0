"""LLaVA records: reading, checking, and turning conversations into turns of question and answer.

Mapping as in XTuner 0.1.23 (``llava_map_fn.py``): messages of the model before the first question are passed over, the
picture's tag moves to the front of its question, a question without an answer at the end is left out. Where XTuner
glues questions in a row, loses pictures or stops with an assertion, this joins them with a new line or names the
record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import ConfigError, DataError
from llava.templates import IMAGE_TAG


@dataclass(frozen=True)
class Turn:
    """One question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Record:
    """One conversation, about a picture or about none."""

    name: str
    """The record's id, or its number in the file; for messages."""
    image: str | None
    """Path below the image folder. The tag stands in exactly one question where there is one."""
    turns: tuple[Turn, ...]
    """May be empty: such a record teaches nothing."""


def read_records(path: str | Path) -> Iterator[Record]:
    """Read a file of records: a JSON list, or JSON lines when the name ends in .jsonl (blank lines are passed over).

    Raises:
        ConfigError: the file is missing.
        DataError: it is not JSON, or a record is wrong; the message names the record.
    """
    for number, value in enumerate(read_values(path)):
        yield to_record(value, number)


def to_record(value: Any, number: int) -> Record:
    """Check one record and map its conversation.

    Args:
        value: what the JSON held.
        number: its place in the file, from 0.

    Raises:
        DataError: naming the record and what is wrong.
    """
    name = _name(value, number)
    if not isinstance(value, dict):
        raise DataError(f"{name} is no JSON object")
    image = value.get("image") or None
    if image is not None and not isinstance(image, str):
        raise DataError(f"{name} has an image that is no path: {image!r} (one picture a record)")
    turns = _turns(_messages(value, name))
    return Record(name, image, _place_tag(turns, image, name))


def read_values(path: str | Path) -> Iterator[Any]:
    """What the JSON of a file of records holds, one value a record, unchecked.

    Raises:
        ConfigError, DataError: as ``read_records``, but for what a record holds.
    """
    path = Path(path)
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                yield from (_line(path, number, line) for number, line in enumerate(file, 1) if line.strip())
            return
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"data.records: file not found: {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if not isinstance(values, list):
        raise DataError(f"{path} holds no JSON list", "a file of JSON lines must end in .jsonl")
    yield from values


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from None


def _name(value: Any, number: int) -> str:
    given = value.get("id") if isinstance(value, dict) else None
    return f"record {number}" + (f" (id {given!r})" if given is not None else "")


def _messages(value: dict[str, Any], name: str) -> list[tuple[str, str]]:
    messages = value.get("conversations")
    if not isinstance(messages, list):
        raise DataError(f"{name} has no list of conversations")
    checked = []
    for message in messages:
        role, text = (message.get("from"), message.get("value")) if isinstance(message, dict) else (None, None)
        if role not in ("human", "gpt"):
            raise DataError(f"{name} has a message from {role!r}; human and gpt are known")
        if not isinstance(text, str):
            raise DataError(f"{name} has a message whose value is no text: {text!r}")
        checked.append((role, text))
    return checked


def _turns(messages: list[tuple[str, str]]) -> list[Turn]:
    turns: list[Turn] = []
    questions: list[str] = []
    for role, text in messages:
        if role == "human":
            questions.append(text)
        elif questions:
            turns.append(Turn("\n".join(questions), text))
            questions = []
        elif turns:  # a second answer in a row: a turn without words of the human
            turns.append(Turn("", text))
    return turns


def _place_tag(turns: list[Turn], image: str | None, name: str) -> tuple[Turn, ...]:
    tagged = [turn for turn in turns if IMAGE_TAG in turn.question]
    if image is None:
        # Text may speak of the tag (code, XML); a line of its own at an edge is a picture that was forgotten.
        first = turns[0].question if turns else ""
        if first.startswith(IMAGE_TAG + "\n") or first.endswith("\n" + IMAGE_TAG):
            raise DataError(f"{name} asks about {IMAGE_TAG} but names no image")
        return tuple(turns)
    if turns and len(tagged) != 1:
        raise DataError(f"{name} has an image and {IMAGE_TAG} in {len(tagged)} of its questions; it must be in one")
    return tuple(Turn(_tag_first(t.question), t.answer) if t in tagged else t for t in turns)


def _tag_first(question: str) -> str:
    words = question.replace(IMAGE_TAG, "").strip()
    return f"{IMAGE_TAG}\n{words}".strip()
