"""Pieces of large files: read backwards, cut by time, and little read of much."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from launcher.logs import Selection, read
from launcher.logs.files import end_of_lines, read_backwards, read_forwards, start_of_tail, start_of_time
from tests.launcher.log_files import START, counted_reads, stamp, timed, write_rank

GIB = 1024**3


def _random_file(path: Path, dice: random.Random) -> bytes:
    size = dice.choice([0, 1, 100, 20_000, 100_000])
    text = bytes(dice.choice(b"ab\n" if dice.random() < 0.5 else b"cdefg ") for _ in range(size))
    path.write_bytes(text)
    return text


def test_backwards_gives_what_forwards_gives(tmp_path: Path) -> None:
    dice, path = random.Random(1), tmp_path / "log"
    for _ in range(25):
        text = _random_file(path, dice)
        forwards = [line for lines in read_forwards(path, 0, len(text), dice.choice([7, 4096])) for line in lines]
        backwards = list(read_backwards(path, 0, len(text)))
        assert [line for _, line in reversed(backwards)] == forwards
        for place, line in backwards:
            assert text[place : place + len(line)] == line
            assert place == 0 or text[place - 1 : place] == b"\n"
        assert end_of_lines(path, len(text)) == text.rfind(b"\n") + 1


def test_a_tail_begins_at_a_line_with_a_time(tmp_path: Path) -> None:
    lines = [timed(1, "first"), "  a", timed(2, "second"), "  b", "  c"]
    path = write_rank(tmp_path, 0, lines)
    size = path.stat().st_size
    assert start_of_tail(path, 0, size, 1, lambda raw: True) == len("\n".join(lines[:2])) + 1
    assert start_of_tail(path, 0, size, 0, lambda raw: True) == size
    assert start_of_tail(path, 0, size, 99, lambda raw: True) == 0


def test_a_flood_without_times_does_not_make_a_tail_read_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rank(tmp_path, 0, [timed(1, "start")])
    with path.open("ab") as file:
        for _ in range(80):
            file.write(b"[W Module.cpp:77] no time here\n" * 10_000)
    with counted_reads(monkeypatch) as total:
        assert len(list(read(tmp_path, Selection(tail=5)))) == 5
        assert total() < 6 * 1024**2 < path.stat().st_size


def test_the_tail_of_a_gigabyte_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "first")])
    with path.open("r+b") as file:
        file.seek(GIB)
        file.write(b"\n" + "".join(timed(step, f"step {step}") + "\n" for step in range(3000)).encode())
    with counted_reads(monkeypatch) as total:
        lines = list(read(tmp_path, Selection(tail=1000)))
        assert total() < 1024**2
    path.unlink()
    assert [line.split()[-1] for line in lines] == [str(step) for step in range(2000, 3000)]


def test_a_time_is_found_in_a_gigabyte_by_halving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rank(tmp_path, 0, [])
    step_bytes = 256 * 1024
    with path.open("r+b") as file:
        for step in range(GIB // step_bytes):
            file.seek(step * step_bytes)
            file.write(timed(step, f"step {step}").encode() + b"\n")
        file.truncate(GIB)
    os.utime(path, (2e9, 2e9))
    last = GIB // step_bytes - 1
    with counted_reads(monkeypatch) as total:
        lines = list(read(tmp_path, Selection(since=stamp(last - 9.5))))
        assert total() < 20 * 1024**2
    path.unlink()
    assert [line.split()[-1] for line in lines if "step" in line] == [str(step) for step in range(last - 9, last + 1)]


def test_halving_never_loses_a_line(tmp_path: Path) -> None:
    dice = random.Random(3)
    lines, seconds = [], 0.0
    for number in range(6000):
        seconds += dice.choice([0, 0, 0.001, 5])
        lines.append(timed(seconds, str(number)) if dice.random() < 0.6 else f"untimed {number} " + "y" * 60)
    path = write_rank(tmp_path, 0, lines)
    size, text = path.stat().st_size, path.read_bytes()
    for _ in range(60):
        since = round(dice.uniform(-10, seconds + 10), 3)
        wanted = [line for line in lines if line.endswith(("0", "5")) and line[:4] == "2026" and line >= stamp(since)]
        start = start_of_time(path, size, START.timestamp() + since)
        assert start == 0 or text[start - 1 : start] == b"\n"
        rest = set(text[start:].decode().splitlines())
        assert rest.issuperset(wanted)


def test_many_logs_need_few_open_files(tmp_path: Path) -> None:
    import resource

    for rank in range(60):
        write_rank(tmp_path, rank, [timed(step, f"step {step}") for step in range(3)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 20, hard))
    try:
        assert len(list(read(tmp_path, Selection()))) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
