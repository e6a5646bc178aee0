"""Text from outside, a file's name or a model's answer, without what would steer the terminal it is shown on."""

from __future__ import annotations

import re

# Control characters but the tab and the line feed, line separators of Unicode, what turns the direction of the text
# after it, and halves of characters. A sequence without its first character is harmless text.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Return a text without such characters; tabs and line ends stay.

    Each character is looked at by itself, so that a text that grows only ever grows when it is cleaned.
    """
    return _HARMFUL.sub("", text)
