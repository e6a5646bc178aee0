"""One line: its time and level, and what must never reach a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.logs.clean import LONGEST_LINE, Partial, clean, shorten
from launcher.logs.files import Splitter
from launcher.logs.lines import parse_line
from launcher.logs.source import LogSource

SOURCE = LogSource(Path("rank0000.log"), attempt=0, rank=0)


@pytest.mark.parametrize(
    ("raw", "time", "level", "text"),
    [
        (b"2026-11-23T20:01:02.345Z INFO step 5", 1795464062.345, "INFO", "INFO step 5"),
        (b"2026-11-23T20:01:02Z WARNING slow", 1795464062.0, "WARNING", "WARNING slow"),
        (b"2026-11-23T20:01:02.5Z no level here", 1795464062.5, None, "no level here"),
        (b"2026-11-23T20:01:02.345Z INFORMAL", 1795464062.345, None, "INFORMAL"),
        (b"2026-11-23T20:01:02.345Z", 1795464062.345, None, ""),
        (b"2026-02-30T20:01:02.345Z INFO no such day", None, None, "2026-02-30T20:01:02.345Z INFO no such day"),
        (b"  File 2026-11-23T20:01:02Z", None, None, "  File 2026-11-23T20:01:02Z"),
        (b"", None, None, ""),
    ],
)
def test_time_level_and_text(raw: bytes, time: float | None, level: str | None, text: str) -> None:
    line = parse_line(raw, SOURCE)
    assert (line.time, line.level, line.text) == (pytest.approx(time) if time else None, level, text)
    assert line.shown == raw.decode()


def test_spaces_are_kept() -> None:
    raw = "2026-11-23T20:01:02.345Z  INFO   wide"
    assert parse_line(raw.encode(), SOURCE).shown == raw


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[1;38;5;9mbold\x1b[m", "red and bold"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;ZXZpbA==\x07after", "after"),
        ("\x1b]0;no end, but text", "0;no end, but text"),
        ("\x1bPdevice\x1b\\text", "text"),
        ("\x1bc\x1b7\x1b(Breset", "reset"),
        ("\x9b31mred\x9d0;t\x9ctext", "redtext"),
        ("\x1b\x1b[31m[2Jtwice", "[2Jtwice"),
        ("a\x00b\x08c\x07d\x7fe", "abcde"),
        ("tab\tstays", "tab\tstays"),
        ("user\u202etxt.exe\u2028x", "usertxt.exex"),
        ("übergröße 图 🙂", "übergröße 图 🙂"),
        ("10%\r50%\r100%", "100%"),
        ("windows\r", "windows"),
        ("10%\r\x1b[K", ""),
    ],
)
def test_cleaning(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_no_control_character_survives_whatever_the_bytes() -> None:
    import random

    dice = random.Random(7)
    alphabet = b"\x1b\x1b[]P;?0m\x9b\x9d\x07\\\r\x00\xc2\xffab \xe2\x80\xae"
    for _ in range(3000):
        raw = bytes(dice.choice(alphabet) for _ in range(dice.randrange(30)))
        shown = parse_line(raw, SOURCE).shown
        assert not [sign for sign in shown if ord(sign) < 32 or 127 <= ord(sign) < 160 or sign == "\u202e"], raw


def test_bytes_that_are_no_text_become_signs() -> None:
    assert parse_line(b"caf\xe9 \xff!", SOURCE).shown == "caf\ufffd \ufffd!"


def test_a_long_line_is_cut_with_a_mark() -> None:
    shown = shorten(b"x" * 100_000).decode()
    assert shown == "x" * LONGEST_LINE + f" … ({100_000 - LONGEST_LINE} more bytes)"
    assert shorten(b"x" * LONGEST_LINE) == b"x" * LONGEST_LINE


@pytest.mark.parametrize("piece", [1, 1000, 70_000])
def test_a_growing_line_is_cut_alike_in_whatever_pieces_it_comes(piece: int) -> None:
    line = b"head " + bytes(range(97, 123)) * 8000
    if piece == 1:
        line = line[: 2 * LONGEST_LINE + 100]
    forwards, backwards, splitter = Partial(), Partial(), Splitter()
    pieces = [line[at : at + piece] for at in range(0, len(line), piece)]
    for part in pieces:
        forwards.append(part)
    for part in reversed(pieces):
        backwards.prepend(part)
    fed = [done for part in [*pieces, b"\n"] for done in splitter.feed(part)]
    assert forwards.text() == backwards.text() == shorten(line) == fed[0]


def test_the_last_state_of_a_long_progress_bar_is_kept() -> None:
    splitter = Splitter()
    for step in range(20_000):
        splitter.feed(f"\rstep {step}/20000".encode())
    assert splitter.close() == [b"step 19999/20000"]


def test_a_hole_before_a_line_is_no_part_of_it() -> None:
    splitter = Splitter()
    splitter.feed(b"\0" * 200_000)
    assert splitter.feed(b"after the hole\n") == [b"after the hole"]
