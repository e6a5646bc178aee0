"""Text from outside, such as a job's output or a file's name, without what would steer the terminal it is shown on."""

from __future__ import annotations

import re

SEQUENCES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    # Titles, clipboard, device strings. One without an end loses only its introducer, below: its text may be a log's.
    "|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]*[0-~]"  # all others
)
# Control characters but the tab and the line feed, line separators of Unicode, and what turns the direction of the
# text after it. Halves of characters stand for bytes of a file's name that are no text; no stream can write them.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Return what a text of several lines shows: line feeds and tabs stay, whatever would steer a terminal goes."""
    if not _HARMFUL.search(text):
        return text
    # Line by line: what one line begins must not swallow those after it.
    return "\n".join(_HARMFUL.sub(_instead, SEQUENCES.sub("", line)) for line in text.split("\n"))


def one_line(value: object) -> str:
    """Return a value from outside as part of a line: it cannot begin another one."""
    text = str(value)
    return text if text.isprintable() else plain(" ".join(text.splitlines()))


def _instead(found: re.Match[str]) -> str:
    return "\ufffd" if found[0] >= "\ud800" else ""
