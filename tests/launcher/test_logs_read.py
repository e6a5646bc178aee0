"""What is there: which logs, which lines, in what order, under which headers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.logs import Selection, explain_nothing, find_sources, read
from launcher.logs.filter import parse_since
from tests.launcher.log_files import append, stamp, timed, unfold, write_node, write_rank


def shown(folder: Path, **choices: object) -> list[str]:
    return [line.replace("2026-11-23T20:", "") for line in read(folder, Selection(**choices))]


def test_one_log_is_shown_as_it_is(tmp_path: Path) -> None:
    lines = [timed(0, "a"), "  b", timed(1, "c", "WARNING")]
    write_rank(tmp_path, 0, lines)
    assert list(read(tmp_path, Selection())) == lines


def test_logs_are_merged_by_time_and_lines_without_one_follow_theirs(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(1, "a"), "  of a", timed(5, "d")])
    write_rank(tmp_path, 1, [timed(2, "b"), "  of b"])
    write_node(tmp_path, 0, [timed(3, "c")])
    assert [line.split()[-1] for line in shown(tmp_path)] == ["a", "a", "b", "b", "c", "d"]


def test_at_equal_times_nodes_then_ranks(tmp_path: Path) -> None:
    for rank in (10, 2, 0):
        write_rank(tmp_path, rank, [timed(1, f"rank {rank}")])
    write_node(tmp_path, 1, [timed(1, "node")])
    assert [line.split("]")[0] for line in shown(tmp_path)] == ["[node 1", "[rank 0", "[rank 2", "[rank 10"]


def test_a_clock_that_jumps_back_does_not_reorder_a_log(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(5, "a"), timed(1, "b"), timed(6, "c")])
    write_rank(tmp_path, 1, [timed(5.5, "between")])
    assert [line.split()[-1] for line in shown(tmp_path)] == ["a", "b", "between", "c"]


def test_a_log_without_any_time_stands_where_it_was_last_written(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "a"), timed(100, "b")])
    path = write_node(tmp_path, 0, ["agent failed"])
    moment = os.stat(path).st_mtime
    os.utime(path, (moment, parse_since(stamp(50), moment)))
    assert [line.split()[-1] for line in shown(tmp_path)] == ["a", "failed", "b"]


def test_a_beginning_without_a_time_takes_the_first(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, ["banner", timed(10, "b")])
    write_rank(tmp_path, 1, [timed(9, "a")])
    assert [line.split()[-1] for line in shown(tmp_path)] == ["a", "banner", "b"]


def test_attempts_have_headers_when_there_are_several(tmp_path: Path) -> None:
    for attempt in (0, 1, 10, 2):
        write_rank(tmp_path, 0, [timed(attempt * 100, f"line {attempt}")], attempt)
    lines = shown(tmp_path)
    assert lines[::2] == [f"── attempt {n} ──" for n in (0, 1, 2, 10)]
    assert [line.split()[-1] for line in lines[1::2]] == ["0", "1", "2", "10"]
    assert [line.split()[-1] for line in shown(tmp_path, attempt=2)] == ["2"]


def test_stages_come_as_they_began_or_as_they_are_named(tmp_path: Path) -> None:
    for place, stage in enumerate(("pretrain", "finetune", "eval")):
        write_rank(tmp_path, 0, [timed(place * 100, stage)], stage=stage)
    write_rank(tmp_path, 0, [timed(150, "again")], attempt=1, stage="finetune")
    assert [line.split()[-1] for line in shown(tmp_path) if "──" not in line] == [
        "pretrain", "finetune", "again", "eval",
    ]  # fmt: skip
    assert "── stage finetune, attempt 1 ──" in shown(tmp_path)
    assert [line for line in shown(tmp_path, stages=("eval", "pretrain")) if "──" in line] == [
        "── stage eval ──", "── stage pretrain ──",
    ]  # fmt: skip


def test_ranks_and_nodes_are_chosen(tmp_path: Path) -> None:
    for rank in range(4):
        write_rank(tmp_path, rank, [timed(rank, f"rank {rank}")])
    for node in range(2):
        write_node(tmp_path, node, [timed(10 + node, f"node {node}")])
    assert [line.split("INFO ")[1] for line in shown(tmp_path, ranks=(2,))] == ["rank 2"]
    assert not shown(tmp_path, ranks=(2,))[0].startswith("[")
    assert [line.split("INFO ")[1] for line in shown(tmp_path, ranks=[1, 3], nodes=[1])] == [
        "rank 1", "rank 3", "node 1",
    ]  # fmt: skip


def test_ranks_of_an_evaluation_are_its_shards(tmp_path: Path) -> None:
    for stage, kind in (("learn", "train"), ("score", "eval")):
        write_rank(tmp_path, 1, [timed(1, "x")], stage=stage)
        write_rank(tmp_path, 0, [timed(1, "y")], stage=stage)
        (tmp_path / "stages" / stage / "config.yaml").write_text(f"kind: {kind}\nseed: 1\n")
    lines = [line.split("]")[0] for line in shown(tmp_path) if line.startswith("[")]
    assert lines == ["[rank 0", "[rank 1", "[shard 0", "[shard 1"]


def test_the_last_lines_are_counted_as_shown_and_after_the_filters(tmp_path: Path) -> None:
    for rank in range(3):
        write_rank(tmp_path, rank, [timed(step * 10 + rank / 10, f"step {step}") for step in range(20)])
    assert [line.split()[-1] for line in shown(tmp_path, tail=2)] == ["18", "19"]
    assert [line.split()[-1] for line in shown(tmp_path, tail=2, grep=r"step \d$")] == ["8", "9"]
    assert shown(tmp_path, tail=0) == []
    assert len(shown(tmp_path, tail=1000)) == 20


@pytest.mark.parametrize("tail", [1, 2, 7, 50])
def test_the_last_lines_are_the_end_of_all_lines(tmp_path: Path, tail: int) -> None:
    import random

    dice = random.Random(tail)
    for rank in range(5):
        moments = sorted(dice.uniform(0, 300) for _ in range(40))
        write_rank(tmp_path, rank, [timed(at, f"rank {rank} {number}") for number, at in enumerate(moments)])
    assert shown(tmp_path, tail=tail) == shown(tmp_path)[-tail:]


def test_the_last_lines_reach_into_the_attempt_before(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(n, f"old {n}") for n in range(5)])
    write_rank(tmp_path, 0, [timed(100, "new")], attempt=1)
    assert [line.split("INFO ")[-1] for line in shown(tmp_path, tail=3)] == [
        "── attempt 0 ──", "old 3", "old 4", "── attempt 1 ──", "new",
    ]  # fmt: skip
    assert shown(tmp_path, tail=1)[0] == "── attempt 1 ──"


def test_since_keeps_what_is_young_enough(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "old"), "  of old", timed(600, "new"), "  of new"])
    write_rank(tmp_path, 1, [timed(599, "nearly")])
    assert [line.split("] ")[-1] for line in shown(tmp_path, since=stamp(600))] == ["10:00.000Z INFO new", "  of new"]


def test_a_log_that_was_not_written_since_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "old")])
    os.utime(path, (1.0e9, 1.0e9))
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert shown(tmp_path, since="10m") == []


@pytest.mark.parametrize(("text", "age"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400)])
def test_ages(text: str, age: float) -> None:
    assert parse_since(text, 1e9) == 1e9 - age


@pytest.mark.parametrize(
    "text", ["2026-11-23T20:00:00Z", "2026-11-23T20:00:00", "2026-11-23T21:00:00+01:00", "2026-11-23 20:00"]
)
def test_times_are_utc_unless_they_say_otherwise(text: str) -> None:
    assert parse_since(text, 0) == 1795464000.0


@pytest.mark.parametrize(
    ("choices", "seen"),
    [
        ({"since": "yesterday"}, "'yesterday'.*10m"),
        ({"since": "2026-13-01"}, "2026-13-01"),
        ({"since": ""}, "no time"),
        ({"grep": "step ("}, "at position 5"),
        ({"grep": "*"}, "nothing to repeat at position 0"),
        ({"tail": -1}, "-1.*negative"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_at_once(choices: dict[str, object], seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        Selection(**choices)


def test_grep_sees_each_line_and_keeps_the_order(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "loss 1"), "  loss of heart", timed(1, "nothing"), timed(2, "loss 2")])
    assert [line.split("Z ")[-1] for line in shown(tmp_path, grep="loss")] == [
        "INFO loss 1", "  loss of heart", "INFO loss 2",
    ]  # fmt: skip
    assert len(shown(tmp_path, grep="^Traceback|INFO loss")) == 2


def test_headers_without_lines_are_left_out(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "a")])
    write_rank(tmp_path, 0, [timed(9, "b")], attempt=1)
    assert shown(tmp_path, grep="b$") == ["── attempt 1 ──", "00:09.000Z INFO b"]


def test_hostile_content_reaches_nobody(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [])
    append(path, b"\x1b]0;owned\x07\x1b[2J" + timed(0, "caf\xe9").encode("latin-1") + b"\x00\n10%\r100%\n\xff\xfe torn")
    assert shown(tmp_path) == ["00:00.000Z INFO caf\ufffd", "100%", "\ufffd\ufffd torn"]


@pytest.mark.parametrize("name", ["two words", 'it\'s "quoted"; rm -rf $HOME', "line\nbreak\x1b[31m", "-rf", "ünï"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    write_rank(folder, 0, [timed(0, "a")], stage=name)
    write_rank(folder, 0, [timed(1, "b")], attempt=1, stage=name)
    header = shown(folder)[0]
    assert header.startswith("── stage ") and "\n" not in header and "\x1b" not in header
    assert [line.split()[-1] for line in shown(folder, stages=[name])[1::2]] == ["a", "b"]


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    stage = os.fsdecode(b"bad\xff")
    for attempt in range(2):
        write_rank(tmp_path, 0, [timed(attempt, "a")], attempt, stage)
    assert shown(tmp_path)[0].encode() == "── stage bad\ufffd ──".encode()


def test_only_logs_are_logs(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    below = path.parent
    (below / "rank0001.log").mkdir()
    os.mkfifo(below / "rank0002.log")
    (below / "rank0003.log").symlink_to(below / "rank0003.log")
    others = ("rank.log", "rank-1.log", "rank0.log", "rank٣.log", "rank0004.log.gz", "node00.log", "node0.log\n")
    for name in (*others, "rendered.yaml"):
        (below / name).write_text("no log\n")
    (tmp_path / "attempts" / "notes").mkdir()
    (tmp_path / "attempts" / "7").write_text("no folder")
    assert [source.path for source in find_sources(tmp_path)] == [path]


def test_a_log_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rank(tmp_path, 0, [timed(0, "a")])
    write_rank(tmp_path, 1, [timed(0, "b")])
    real = os.open

    def refuse(name: object, *rest: int) -> int:
        if name == path:
            raise PermissionError(13, "Permission denied")
        return real(name, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert shown(tmp_path) == ["[rank 1] 00:00.000Z INFO b", "[rank 0] (cannot read rank0000.log: Permission denied)"]


def test_nothing_is_explained(tmp_path: Path) -> None:
    assert shown(tmp_path) == [] == list(read(tmp_path / "missing", Selection()))
    assert explain_nothing(tmp_path, Selection()) == "there are no logs yet"
    for rank in range(4):
        write_rank(tmp_path, rank, [timed(0, "a")], stage="eval")
    assert explain_nothing(tmp_path, Selection(grep="x")) == "no line of the logs fits"
    assert explain_nothing(tmp_path, Selection(ranks=(9,))) == (
        "no such log; there are logs of ranks 0-3, attempts 0, stages eval"
    )


def test_colour_marks_levels_and_headers_only(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, [timed(0, "bad ERROR", "ERROR"), timed(1, "fine"), "  plain"])
    write_rank(tmp_path, 0, [timed(2, "slow", "WARNING")], attempt=1)
    assert [line.replace("2026-11-23T20:", "") for line in read(tmp_path, Selection(), colour=True)] == [
        "\x1b[1;36m── attempt 0 ──\x1b[0m",
        "00:00.000Z \x1b[31mERROR\x1b[0m bad ERROR",
        "00:01.000Z INFO fine",
        "  plain",
        "\x1b[1;36m── attempt 1 ──\x1b[0m",
        "00:02.000Z \x1b[33mWARNING\x1b[0m slow",
    ]


def test_nodes_and_ranks_that_say_the_same_share_a_line(tmp_path: Path) -> None:
    for node in range(2):
        write_node(tmp_path, node, [timed(0, "same")])
    write_rank(tmp_path, 3, [timed(0.5, "same")])
    assert shown(tmp_path) == ["[nodes 0-1, rank 3] 00:00.000Z INFO same"]
    assert set(unfold(read(tmp_path, Selection()))) == {"node 0", "node 1", "rank 3"}


def test_the_reader_stays_light() -> None:
    code = "import sys, launcher.logs; print(sorted({'torch', 'llava', 'rich', 'typer', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
