"""Where words go: data to stdout, words for people to stderr, colours and progress only on a terminal.

Whatever comes from a job, a file or another person passes through here on its way to a terminal, and is cleaned here.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from launcher.plain_text import plain


def prepare() -> None:
    """Have the standard streams take every character, and be there at all.

    A terminal of another encoding, or a file's name that is not valid text, must not end a command: what a stream
    cannot show it shows as an escape. A stream that was closed by the caller (``>&-``) is one that nobody reads.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def close() -> None:
    """Drop what is still to be printed: nobody reads it, and Python would complain about that at its end."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    os.dup2(sys.stdout.fileno(), 1)


def data(text: str) -> None:
    """Print data: what another program may read."""
    _write(sys.stdout, plain(text))


def data_as_sent(text: str) -> None:
    """Print what is sent elsewhere, byte for byte; only a terminal is spared what would steer it."""
    _write(sys.stdout, plain(text) if sys.stdout is not None and sys.stdout.isatty() else text)


def data_line(line: str) -> None:
    """Print a line that is clean already and may have colours."""
    _write(sys.stdout, line)


def data_json(value: Any) -> None:
    """Print one JSON value."""
    _write(sys.stdout, _json(value, 2))


def data_json_list(values: Sequence[Any]) -> None:
    """Print a JSON list with one value a line, as there may be thousands."""
    lines = ",\n".join(_json(value) for value in values)
    _write(sys.stdout, f"[\n{lines}\n]" if values else "[]")


def say(text: str) -> None:
    """Print words for people."""
    _write(sys.stderr, plain(text))


def say_once(text: str) -> None:
    """Print words for people unless this process has said them before."""
    if text not in _said:
        _said.add(text)
        say(text)


_said: set[str] = set()


def fail(message: str, hint: str = "") -> None:
    """Print what went wrong and, on lines of their own, what to do."""
    _write(sys.stderr, f"{paint('Error:', '1;31')} {plain(message)}")
    if hint:
        say(hint)


def paint(text: str, code: str) -> str:
    """Wrap text in an ANSI colour when stderr is a terminal that wants one."""
    return f"\x1b[{code}m{text}\x1b[0m" if wants_colour(sys.stderr) else text


def wants_colour(stream: Any) -> bool:
    """Tell whether a stream is a terminal and colours are not switched off (no-color.org)."""
    if stream is None or not stream.isatty():
        return False
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _write(stream: Any, text: str) -> None:
    """Write a text as its own lines; a stream that was closed from outside takes nothing."""
    if stream is None:
        return
    line = text if text.endswith("\n") else text + "\n"
    try:
        stream.write(line)
    except UnicodeEncodeError:
        # A terminal, or a file's encoding, that lacks some of the characters.
        encoding = stream.encoding or "ascii"
        stream.write(line.encode(encoding, "replace").decode(encoding))
    stream.flush()


def _json(value: Any, indent: int | None = None) -> str:
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    """JSON has no word for what is no number, such as the loss of a run that went astray: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
