"""What is a row's question, word for word? As XTuner asks it (xtuner/tools/mmbench.py, v0.1.23)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llava.evals.mmbench.rows import Row

ENGLISH = "Answer with the option's letter from the given choices directly."
CHINESE = "请直接回答选项字母。"
PROMPT_VERSION = 1
"""Raise it with any change that alters a prompt."""

_CHINESE_CHARACTER = re.compile("[\u4e00-\u9fff]")


def question_text(row: Row) -> str:
    """A row's question without the picture's placeholder."""
    return choice_question(row.hint, row.question, row.options)


def choice_question(hint: str, question: str, options: Mapping[str, str]) -> str:
    """Hint, question, one line an option and the request for a letter.

    A literal ``<image>`` in them is dropped: it would become a second picture.

    Args:
        hint: "" for none.
        question: as the file has it.
        options: letter to text.
    """
    lines = [hint] if hint else []
    lines += [question, *(f"{letter}. {text}" for letter, text in options.items())]
    text = "".join(line + "\n" for line in lines).replace("<image>", "")
    return text + (CHINESE if _CHINESE_CHARACTER.search(text) else ENGLISH)


def picture_question(row: Row) -> str:
    """The user's whole turn: the picture, a newline, the question."""
    return "<image>\n" + question_text(row)
