"""Text that has to stay on one line: which characters cannot, and a shell word that never breaks its line."""

from __future__ import annotations

import shlex
import unicodedata

_NAMES = {"\n": "a line break", "\r": "a carriage return", "\0": "a NUL character", "\t": "a tab"}
# Control characters, halves of surrogate pairs (bytes that are not UTF-8), line and paragraph separators.
_BREAKING = ("Cc", "Cs", "Zl", "Zp")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", "'": "\\'"}


def breaking_character(text: str, allowed: str = "") -> str:
    """Name the first character that does not belong in a line of text; empty: there is none.

    Args:
        text: the text.
        allowed: characters that do no harm where the text goes.
    """
    for character in text:
        if unicodedata.category(character) in _BREAKING and character not in allowed:
            return _NAMES.get(character, _numbered(character))
    return ""


def unencodable_character(text: str) -> str:
    """Name the first character that no process can be given: a NUL, or a byte that is not UTF-8; empty: none."""
    for character in text:
        if character == "\0" or unicodedata.category(character) == "Cs":
            return _NAMES.get(character, _numbered(character))
    return ""


def shell_word(text: str) -> str:
    """Quote a text for bash, on one line whatever it holds."""
    if not breaking_character(text):
        return shlex.quote(text)
    parts = [_escaped(character) for character in text]
    return "$'" + "".join(parts) + "'"


def shell_line(words: tuple[str, ...]) -> str:
    """Quote a command for bash, on one line whatever its words hold."""
    return " ".join(shell_word(word) for word in words)


def _numbered(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"the byte {number - 0xDC00:#04x}, which is not UTF-8"
    return f"the character U+{number:04X}"


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if unicodedata.category(character) not in _BREAKING:
        return character
    # The bytes themselves, which bash reads alike in every locale; escaped bytes of a name stay bytes.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))
