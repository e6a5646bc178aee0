"""Where words go: data to stdout, words for people to stderr, colours and progress only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def data(text: str) -> None:
    """Print data: what another program may read."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def data_json(value: Any) -> None:
    """Print one JSON value."""
    data(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print words for people."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(message: str, hint: str = "") -> None:
    """Print what went wrong and, on lines of their own, what to do."""
    say(f"{paint('Error:', '1;31')} {message}")
    if hint:
        say(hint)


def paint(text: str, code: str) -> str:
    """Wrap text in an ANSI colour when stderr is a terminal that wants one."""
    return f"\x1b[{code}m{text}\x1b[0m" if wants_colour(sys.stderr) else text


def wants_colour(stream: Any) -> bool:
    """Tell whether a stream is a terminal and colours are not switched off (no-color.org)."""
    return bool(stream.isatty()) and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
