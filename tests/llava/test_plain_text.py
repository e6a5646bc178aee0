"""What files and models say is shown without what would steer a terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

from llava.logs import _Lines
from llava.plain_text import plain
from llava.talk import answer

EVIL = "a\x1b]52;c;eHg=\x07b\x9b2Jc\u202ed\re\x7ff"


def test_control_characters_go_and_text_stays() -> None:
    assert plain(EVIL) == "a]52;c;eHg=b2Jcdef"
    assert plain("é\t漢字\n🙂\n") == "é\t漢字\n🙂\n"


def test_log_lines_are_plain() -> None:
    record = logging.LogRecord("llava", logging.INFO, __file__, 1, "picture %s", (EVIL,), None)
    assert _Lines().format(record).endswith(" INFO picture a]52;c;eHg=b2Jcdef")


def test_an_answer_is_plain_while_it_grows() -> None:
    class Conversation:
        def ask(self, question: str) -> Iterator[str]:
            said = "first\nline" + EVIL
            return (said[:length] for length in range(1, len(said) + 1))

    out, conversation = io.StringIO(), Conversation()
    said: Any = conversation
    answer(said, "?", out)
    assert out.getvalue() == "first\nlinea]52;c;eHg=b2Jcdef\n"
