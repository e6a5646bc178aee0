"""Following: real writers, logs that appear late, lines that are not complete yet, and nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from launcher.logs import Selection, follow, read
from launcher.logs.follow import LONGEST_PAUSE
from launcher.logs.watch import _SELDOM
from launcher.run_folder import RunFolder
from tests.launcher.log_files import append, timed, unfold, without_time, write_node, write_rank

WRITER = """
import sys, time
from datetime import datetime, timezone
path, rank, steps, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
time.sleep(rank % 3 * 0.1)
with open(path, "ab", buffering=0) as log:
    for step in range(steps):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        line = f"{now} INFO step {step}\\n"
        if step % 7 == 0:
            line += f"{now} ERROR rank {rank} at {step}\\n  more of {rank}\\n"
        log.write(line[:11].encode())
        log.write(line[11:].encode())
        time.sleep(pause)
"""


class Script:
    """Plays a run: each pause of the follower is the moment for the next act; after the last one the run is over."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self._acts = list(acts)
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self._acts:
            self._acts.pop(0)()

    def is_over(self) -> bool:
        return not self._acts


def play(folder: Path, *acts: Callable[[], object], **choices: object) -> list[str]:
    script = Script(*acts)
    lines = follow(folder, Selection(**choices), is_over=script.is_over, wait=script.wait)
    return [line.replace("2026-11-23T20:", "") for line in lines]


def test_real_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    for rank in range(2):  # With two logs from the start, every line says whose it is.
        write_rank(tmp_path, rank, [])
    command = [sys.executable, "-S", "-c", WRITER]
    arguments = [[RunFolder(tmp_path).rank_log(0, rank), str(rank), "60", "0.01"] for rank in range(6)]
    writers = [subprocess.Popen([*command, *map(str, each)]) for each in arguments]
    lines = list(follow(tmp_path, Selection(), is_over=lambda: all(writer.poll() is not None for writer in writers)))
    said = unfold(lines)
    for rank in range(6):
        written = RunFolder(tmp_path).rank_log(0, rank).read_text().splitlines()
        assert len(written) == 60 + 2 * 9
        assert said[f"rank {rank}"] == [without_time(line) for line in written]
    assert any(line.startswith("[ranks ") for line in lines)


def test_lines_come_while_the_run_goes_on(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    over, seen = threading.Event(), []
    lines = follow(tmp_path, Selection(), is_over=over.is_set)
    seen.append(next(lines))
    threading.Timer(0.2, lambda: append(path, timed(1, "b") + "\n")).start()
    begun = time.monotonic()
    seen.append(next(lines))
    assert time.monotonic() - begun < 5
    over.set()
    assert [line.split()[-1] for line in [*seen, *lines]] == ["a", "b"]


def test_a_torn_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    append(path, timed(1, "beg"))
    script = Script(lambda: append(path, "in"), lambda: append(path, " end\n"), lambda: None)
    lines = list(follow(tmp_path, Selection(), is_over=script.is_over, wait=script.wait))
    assert [without_time(line) for line in lines] == ["INFO a", "INFO begin end"]


def test_a_torn_line_is_shown_when_the_run_is_over(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [])
    assert play(tmp_path, lambda: append(path, b"last words \xe2\x80"))[0].startswith("last words \ufffd")


def test_a_sign_that_comes_in_two_pieces_stays_whole(tmp_path: Path) -> None:
    path, data = write_rank(tmp_path, 0, []), "é图\n".encode()
    acts = [lambda at=at: append(path, data[at : at + 1]) for at in range(len(data))]
    assert play(tmp_path, *acts) == ["é图"]


def test_what_is_written_as_the_run_ends_is_shown(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    os.utime(path.parent, (1e9, 1e9))

    def is_over() -> bool:
        append(path, timed(1, "last") + "\n")
        late = write_rank(tmp_path, 1, [timed(1, "late log")])
        os.utime(late.parent, (1e9, 1e9))  # Some file servers show a folder's change late.
        return True

    lines = list(follow(tmp_path, Selection(), is_over=is_over, wait=lambda _: None))
    assert [line.split()[-1] for line in lines] == ["a", "last", "log"]


def test_a_writer_that_never_stops_does_not_keep_the_reader(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    acts = [lambda: append(path, timed(1, "again") + "\n")] * 1000
    script = Script(*acts)
    lines = follow(tmp_path, Selection(), is_over=lambda: len(script.pauses) > 5, wait=script.wait)
    assert len(list(lines)) < 40


def test_logs_that_begin_late_are_found(tmp_path: Path) -> None:
    lines = play(
        tmp_path,
        lambda: write_node(tmp_path, 0, ["agent"]),
        lambda: None,
        lambda: write_rank(tmp_path, 0, [timed(0, "a")]),
        lambda: None,
        lambda: write_rank(tmp_path, 1, [timed(1, "b")]),
        lambda: None,
    )
    assert lines == ["agent", "[rank 0] 00:00.000Z INFO a", "[rank 1] 00:01.000Z INFO b"]


def test_a_new_attempt_has_a_header(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "a")])
    lines = play(
        tmp_path,
        lambda: write_rank(tmp_path, 0, [timed(60, "b")], attempt=1),
        lambda: None,
        lambda: append(RunFolder(tmp_path).rank_log(1, 0), timed(61, "c") + "\n"),
        lambda: None,
    )
    assert [line.split("INFO ")[-1] for line in lines] == ["a", "── attempt 1 ──", "b", "c"]


def test_headers_do_not_come_twice(tmp_path: Path) -> None:
    for attempt in range(2):
        path = write_rank(tmp_path, 0, [timed(attempt, f"a{attempt}")], attempt)
    lines = play(tmp_path, lambda: append(path, timed(5, "b") + "\n"), lambda: None)
    assert [line.split("INFO ")[-1] for line in lines] == ["── attempt 0 ──", "a0", "── attempt 1 ──", "a1", "b"]
    assert play(tmp_path, attempt=1) == lines[3:]


def test_new_stages_are_found(tmp_path: Path) -> None:
    lines = play(
        tmp_path,
        lambda: write_rank(tmp_path, 0, [timed(0, "a")], stage="pretrain"),
        lambda: None,
        lambda: write_rank(tmp_path, 0, [timed(9, "b")], stage="finetune"),
        lambda: None,
        lambda: write_rank(tmp_path, 0, [timed(10, "c")], attempt=1, stage="finetune"),
    )
    assert [line.split("INFO ")[-1] for line in lines] == [
        "a", "── stage finetune ──", "b", "── stage finetune, attempt 1 ──", "c",
    ]  # fmt: skip


def test_choices_hold_for_what_comes(tmp_path: Path) -> None:
    paths = [write_rank(tmp_path, rank, [timed(n, f"old {n}") for n in range(5)]) for rank in range(3)]
    both = [lambda: [append(path, timed(9, "new") + "\n" + timed(9, "no") + "\n") for path in paths]]
    acts = [*both, lambda: write_rank(tmp_path, 7, [timed(9, "new 7")]), lambda: None]
    assert [line.split("INFO ")[1] for line in play(tmp_path, *acts, ranks=(1,), grep="old|new", tail=2)] == [
        "old 3", "old 4", "new",
    ]  # fmt: skip


def test_ranks_that_write_at_the_same_time_share_a_line(tmp_path: Path) -> None:
    paths = [write_rank(tmp_path, rank, []) for rank in range(4)]
    script = [lambda path=path: append(path, timed(1, "step") + "\n") for path in paths[:2]]
    rest = [lambda: [append(path, timed(1.5, "step") + "\n") for path in paths[2:]]]
    lines = play(tmp_path, lambda: script[0](), lambda: [script[1](), *[act() for act in rest]], lambda: None)
    assert lines == ["[ranks 0-3] 00:01.000Z INFO step"]


def test_a_log_that_is_begun_anew_is_read_anew(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a long first line"), timed(1, "b")])

    def replace() -> None:
        aside = path.with_name("aside")
        aside.write_text(timed(8, "another file, and a longer one than before: " + "x" * 500) + "\n")
        os.replace(aside, path)

    lines = play(
        tmp_path,
        lambda: append(path, "torn"),
        lambda: None,
        lambda: path.write_text(timed(5, "short") + "\n"),
        lambda: None,
        replace,
        lambda: None,
        lambda: append(path, timed(9, "z") + "\n"),
    )
    assert [line.split("INFO ")[-1][:12] for line in lines] == [
        "a long first", "b", "torn", "short", "another file", "z",
    ]  # fmt: skip


def test_another_inode_alone_is_no_new_log(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])

    def copy() -> None:
        aside = path.with_name("aside")
        aside.write_bytes(path.read_bytes() + timed(1, "b").encode() + b"\n")
        os.replace(aside, path)

    assert [line.split()[-1] for line in play(tmp_path, copy, lambda: None)] == ["a", "b"]


def test_a_log_that_vanishes_ends_nothing(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    other = write_rank(tmp_path, 1, [timed(1, "b")])
    lines = play(tmp_path, path.unlink, lambda: append(other, timed(2, "c") + "\n"), lambda: None)
    assert [line.split()[-1] for line in lines] == ["a", "b", "c"]


def test_the_last_words_of_an_earlier_attempt_are_not_lost(tmp_path: Path) -> None:
    old = write_rank(tmp_path, 0, [timed(0, "a")])
    lines = play(
        tmp_path,
        lambda: write_rank(tmp_path, 0, [timed(9, "b")], attempt=1),
        lambda: None,
        lambda: append(old, timed(1, "late") + "\n"),
    )
    assert [line.split("INFO ")[-1] for line in lines] == ["a", "── attempt 1 ──", "b", "── attempt 0 ──", "late"]


def test_a_backlog_comes_in_pieces_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.logs.watch._LARGEST_PIECE", 4096)
    monkeypatch.setattr("launcher.logs.watch._SMALLEST_PIECE", 4096)
    log = [timed(step / 10, f"step {step}") for step in range(3000)]
    lines = play(tmp_path, lambda: [write_rank(tmp_path, rank, log) for rank in range(2)], lambda: None)
    assert unfold(lines) == {f"rank {rank}": [without_time(line) for line in log] for rank in range(2)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    counts = {"open": 0, "scandir": 0, "stat": 0}
    for name in counts:
        real = getattr(os, name)

        def count(*rest: object, _name: str = name, _real: Callable[..., object] = real, **more: object) -> object:
            counts[_name] += 1
            return _real(*rest, **more)

        monkeypatch.setattr(os, name, count)
    return counts


def test_an_idle_follower_only_looks_and_ever_more_seldom(tmp_path: Path, calls: dict[str, int]) -> None:
    for rank in range(512):
        write_rank(tmp_path, rank, [timed(0, "a")])
    for folder in ("attempts/0", "attempts"):
        os.utime(tmp_path / folder, (1e9, 1e9))
    pauses: list[float] = []
    lines = follow(tmp_path, Selection(), is_over=lambda: sum(pauses) >= 60, wait=pauses.append)
    next(lines)
    before = dict(calls)
    monitored: list[dict[str, int]] = []
    pauses_at = pauses.append

    def wait(seconds: float) -> None:
        pauses_at(seconds)
        monitored.append(dict(calls))

    lines = follow(tmp_path, Selection(), is_over=lambda: sum(pauses) >= 60, wait=wait)
    assert len(list(lines)) == 1
    assert before["open"] > 0
    assert 60 <= len(pauses) <= 66 and max(pauses) == LONGEST_PAUSE
    first, last = monitored[0], monitored[-1]
    polls = len(monitored) - 1
    assert last["open"] == first["open"], "an idle log was opened again"
    assert last["scandir"] - first["scandir"] <= 2 * (polls // _SELDOM + 1)
    assert last["stat"] - first["stat"] <= polls * (512 + 5)


def test_logs_of_earlier_attempts_cost_little(tmp_path: Path, calls: dict[str, int]) -> None:
    for attempt in range(5):
        for rank in range(20):
            write_rank(tmp_path, rank, [timed(attempt, "a")], attempt)
    monitored: list[int] = []
    script = Script(*[lambda: monitored.append(calls["stat"])] * 40)
    list(follow(tmp_path, Selection(), is_over=script.is_over, wait=script.wait))
    assert monitored[-1] - monitored[0] < 40 * (20 + 80 / _SELDOM + 10) * 1.2


def test_a_run_without_logs_ends_quietly(tmp_path: Path) -> None:
    assert play(tmp_path / "not made yet", lambda: None, lambda: None) == []


def test_following_a_run_that_is_over_is_reading_it(tmp_path: Path) -> None:
    for attempt in range(2):
        for rank in range(3):
            write_rank(tmp_path, rank, [timed(attempt * 60 + n, f"step {n}") for n in range(10)], attempt)
    append(RunFolder(tmp_path).rank_log(1, 2), "torn")
    for choices in ({}, {"grep": "[35n]$"}, {"ranks": (2,)}, {"attempt": 1}):
        select = Selection(**choices)
        followed = list(follow(tmp_path, select, is_over=lambda: True, wait=lambda _: None))
        assert followed[-1].endswith("torn")
        # Reading counts a torn line to the line before it, which makes a block that no other rank has said.
        assert unfold(_labelled(followed)) == unfold(_labelled(read(tmp_path, select)))


def _labelled(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith("[") else f"[rank 2] {line}" for line in lines if not line.startswith("──")]
