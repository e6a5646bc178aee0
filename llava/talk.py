"""How does a person talk to a model line by line? Questions, commands that begin with a slash, Ctrl-C and the end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from llava.chat import Conversation
from llava.errors import LlavaError
from llava.plain_text import plain
from llava.run_folder import write_aside

RESET, EXIT = "RESET", "EXIT"
"""XTuner's words for /reset and /exit."""
_PROMPT = "you: "
_GREETING = "Ask, and end with the enter key. /help lists what else there is; Ctrl-D leaves."
HELP = """\
/image FILE [QUESTION]  look at a picture too, with this question or the next
/history                what was said
/save FILE              write the conversation as a LLaVA record
/reset                  forget the conversation; the first pictures stay
/exit                   leave
Ctrl-C                  cut an answer short
"""


def answer(conversation: Conversation, question: str, out: TextIO) -> None:
    """Write one answer as it grows, and a newline."""
    shown = ""
    for text in map(plain, conversation.ask(question)):
        out.write(text[len(shown) :])
        out.flush()
        shown = text
    out.write("\n")
    out.flush()


def talk(conversation: Conversation, source: TextIO, out: TextIO) -> None:
    """Read questions and commands line by line until /exit or the end."""
    interactive = source.isatty()
    if interactive:
        out.write(_GREETING + "\n")
    while True:
        line = _read(source, out, interactive)
        if not line or line.strip() in (EXIT, "/exit"):
            return
        try:
            _obey(conversation, line.strip(), out)
        except LlavaError as error:
            out.write(plain(f"{error}\n"))
        except KeyboardInterrupt:
            if not interactive:
                raise
            out.write("\n(cut short, and not remembered)\n")
        out.flush()


def _read(source: TextIO, out: TextIO, interactive: bool) -> str:
    """A line with its end; empty at the end of all."""
    if interactive and source is sys.stdin and out is sys.stdout:
        with suppress(ImportError):  # not every Python is built with it
            import readline  # noqa: F401  # arrow keys, and the lines before
        try:
            return input(_PROMPT) + "\n"
        except EOFError:
            out.write("\n")
            return ""
    if interactive:
        out.write(_PROMPT)
        out.flush()
    return source.readline()


def _obey(conversation: Conversation, line: str, out: TextIO) -> None:
    command, _, rest = line.partition(" ")
    command = {RESET: "/reset"}.get(line, command)
    if command in _COMMANDS:
        _COMMANDS[command](conversation, rest.strip(), out)
    elif re.fullmatch(r"/[a-z]+", command):
        out.write(f"no command {command}; /help lists those there are\n")
    elif line:
        answer(conversation, line, out)


def _image(conversation: Conversation, rest: str, out: TextIO) -> None:
    path, question = path_and_rest(rest)
    if not path:
        out.write("which picture? /image FILE\n")
        return
    conversation.show(Path(path).expanduser())
    if question:
        answer(conversation, question, out)
    else:
        out.write("(shown with the next question)\n")


def path_and_rest(text: str) -> tuple[str, str]:
    """A path, in quotes or with escaped blanks where it has any, and what follows it."""
    found = re.match(r"""(?:"([^"]+)"|'([^']+)'|((?:\\.|\S)+))\s*(.*)""", text, re.DOTALL)
    if found is None:
        return "", ""
    double, single, bare, rest = found.groups()
    return double or single or re.sub(r"\\(.)", r"\1", bare), rest


def _history(conversation: Conversation, rest: str, out: TextIO) -> None:
    for number, picture in enumerate(conversation.pictures, 1):
        out.write(plain(f"picture {number}: {picture}\n"))
    for turn in conversation.turns:
        question = turn.question.replace("<image>\n", "<image> ")
        out.write(plain(f"{_PROMPT}{question}\n{turn.answer}\n"))


def _save(conversation: Conversation, rest: str, out: TextIO) -> None:
    path, _ = path_and_rest(rest)
    if not path:
        out.write("where to? /save FILE\n")
        return
    try:
        write_aside(Path(path).expanduser(), json.dumps([conversation.record()], indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        out.write(f"cannot write {path}: {error}\n")
        return
    out.write(f"(saved to {path})\n")


def _reset(conversation: Conversation, rest: str, out: TextIO) -> None:
    conversation.reset()
    out.write("(forgotten)\n")


def _help(conversation: Conversation, rest: str, out: TextIO) -> None:
    out.write(HELP)


_COMMANDS: dict[str, Callable[[Conversation, str, TextIO], None]] = {
    "/image": _image,
    "/history": _history,
    "/save": _save,
    "/reset": _reset,
    "/help": _help,
}
