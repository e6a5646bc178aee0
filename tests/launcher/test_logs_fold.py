"""Folding: what is said alike is said once, and nothing is lost, doubled or moved within a rank."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from launcher.logs import Selection, read
from launcher.logs.filter import LineFilter
from launcher.logs.fold import WINDOW, fold
from launcher.logs.lines import LogLine
from launcher.logs.merge import Block, BlockMaker, merge
from launcher.logs.source import LogSource
from launcher.logs.view import lines_of
from tests.launcher.log_files import timed, unfold, without_time, write_node, write_rank

TEXTS = ["step", "loss", "saved", "", "Traceback", "x" * 50]


def _random_log(dice: random.Random) -> list[str]:
    lines, seconds = [], dice.uniform(0, 1)
    for _ in range(dice.randrange(40)):
        seconds += dice.choice([0, 0, 0.2, 1, 5])
        lines.append(timed(seconds, dice.choice(TEXTS)) if dice.random() < 0.7 else f"  {dice.choice(TEXTS)}")
    return lines


def test_every_rank_gets_its_lines_back_whatever_the_interleaving() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        logs = {rank: _random_log(dice) for rank in range(dice.randrange(2, 9))}
        streams = [_blocks(_rank(rank), [line.encode() for line in lines]) for rank, lines in logs.items()]
        _check(logs, (line.render() for line in lines_of(fold(merge(streams)), labelled=True)))


def test_every_rank_gets_its_lines_back_from_files(tmp_path: Path) -> None:
    logs = {rank: _random_log(random.Random(rank)) for rank in range(8)}
    for rank, lines in logs.items():
        write_rank(tmp_path, rank, lines)
    _check(logs, read(tmp_path, Selection()))


def _check(logs: dict[int, list[str]], shown: Iterable[str]) -> None:
    said = unfold(shown)
    for rank, lines in logs.items():
        assert said.get(f"rank {rank}", []) == [without_time(line) for line in lines]


def test_a_full_window_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.logs.fold._MOST_ENTRIES", 3)
    dice = random.Random(5)
    sources = [_rank(rank) for rank in range(4)]
    streams = [
        [Block(1.0, (LogLine(1.0, None, dice.choice("abc"), source),), source) for _ in range(50)] for source in sources
    ]
    folded = list(fold(merge(streams)))
    for source, stream in zip(sources, streams, strict=True):
        said = [entry.lines[0].text for entry in folded if source in entry.sources]
        assert said == [block.lines[0].text for block in stream]


def test_what_all_say_is_one_line(tmp_path: Path) -> None:
    for rank in (0, 1, 2, 3, 7):
        write_rank(tmp_path, rank, [timed(rank / 10, "step 1"), timed(3 + rank / 10, f"memory {rank // 7}")])
    write_rank(tmp_path, 5, [timed(2, "other", "ERROR")])
    write_node(tmp_path, 0, [timed(-1, "agent started")])
    assert [line.replace("2026-11-23T", "") for line in read(tmp_path, Selection())] == [
        "[node 0] 19:59:59.000Z INFO agent started",
        "[ranks 0-3,7] 20:00:00.000Z INFO step 1",
        "[rank 5] 20:00:02.000Z ERROR other",
        "[ranks 0-3] 20:00:03.000Z INFO memory 0",
        "[rank 7] 20:00:03.700Z INFO memory 1",
    ]


def test_the_same_words_much_later_are_said_again(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "step")])
    write_rank(tmp_path, 1, [timed(WINDOW + 0.1, "step")])
    assert [line.split()[1] for line in read(tmp_path, Selection())] == ["0]", "1]"]


def test_a_traceback_folds_as_a_block(tmp_path: Path) -> None:
    trace = ["Traceback (most recent call last):", '  File "train.py", line 3, in main', "ValueError: NaN"]
    for rank in range(3):
        write_rank(tmp_path, rank, [timed(rank / 10, "stopped", "ERROR"), *trace])
    write_rank(tmp_path, 3, [timed(0.05, "stopped", "ERROR"), *trace[:2], "KeyError: 'image'"])
    lines = list(read(tmp_path, Selection()))
    assert [line.split("] ")[0] for line in lines] == ["[ranks 0-2"] * 4 + ["[rank 3"] * 4
    assert lines[3] == "[ranks 0-2] ValueError: NaN"


def test_a_flood_without_times_stays_behind_its_line() -> None:
    source, other = _rank(0), _rank(1)
    flood = [timed(1, "start").encode(), *(f"flood {number}".encode() for number in range(1000))]
    streams = [_blocks(source, flood), _blocks(other, [timed(1, "other").encode()])]
    merged = list(merge(streams))
    assert [block.source for block in merged] == [source] * (len(merged) - 1) + [other]
    assert sum(len(block.lines) for block in merged) == 1002


def _rank(number: int) -> LogSource:
    return LogSource(Path(f"rank{number:04d}.log"), 0, rank=number)


def _blocks(source: LogSource, lines: list[bytes]) -> list[Block]:
    maker = BlockMaker(source, LineFilter())
    return [*maker.feed(lines), *maker.close()]
