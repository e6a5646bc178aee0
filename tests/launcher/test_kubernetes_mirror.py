"""What pods tell of a run's folder, and the copy that is made of it: real files, real processes, byte for byte."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from launcher import logs
from launcher.backends.kubernetes.mirror import Mirror
from launcher.backends.kubernetes.telling import LATE_BYTES, Teller, telling
from launcher.backends.kubernetes.told import LONGEST_PIECE, Line, hear, say_line
from launcher.plan import Step
from launcher.progress import read_progress
from launcher.run_folder import RunFolder, append_line, write_json

TRAIN = Step("train", "pretrain", "gang", 2, 2, 0, 1, 2, None, ("python",), {}, 3, 30)
SHARDS = Step("eval", "", "array", 4, 1, 0, 1, 4, None, ("python",), {}, 3, 30, members=(0, 1, 2, 3))
START = datetime(2026, 11, 23, 20, 0, 0, tzinfo=timezone.utc)
PIECES = (b"word ", b"\n", b"\n", b"\r 50%|###", b"\xff\xfe\x00", "äöü│".encode(), b"metrics.jsonl@0 x", b"\x1b[2K")


@pytest.fixture
def there(tmp_path: Path) -> RunFolder:
    """The run's folder as pods see it."""
    (tmp_path / "there/run").mkdir(parents=True)
    return RunFolder(tmp_path / "there/run")


@pytest.fixture
def here(tmp_path: Path) -> RunFolder:
    """The submitter's."""
    (tmp_path / "here/run").mkdir(parents=True)
    return RunFolder(tmp_path / "here/run")


def stamped(data: bytes, zone: str = "Z") -> bytes:
    """A pod's log as the node gives it: every line with its time."""
    *lines, rest = data.split(b"\n")
    times = ((START + timedelta(milliseconds=n)).strftime("%Y-%m-%dT%H:%M:%S.%f000") for n in itertools.count())
    return b"".join(f"{t}{zone} ".encode() + line + b"\n" for t, line in zip(times, lines, strict=False)) + rest


def tell(folder: RunFolder, step: Step = TRAIN, number: int = 0) -> bytes:
    """All that a pod that begins now tells."""
    out = io.BytesIO()
    Teller(folder, step, number, out).close()
    return out.getvalue()


def mirrored(folder: RunFolder) -> dict[str, bytes]:
    """What a copy holds of the run's own files."""
    paths = (path for path in folder.root.rglob("*") if path.is_file() and "pods" not in path.parts)
    return {path.relative_to(folder.root).as_posix(): path.read_bytes() for path in paths}


def parts_of(data: bytes, dice: random.Random) -> Iterator[bytes]:
    """Overlapping parts of a log, each from the start of a line on, in order."""
    lines = data.split(b"\n")[:-1]
    at = 0
    while at < len(lines):
        end = min(len(lines), at + dice.randint(1, 40))
        yield b"".join(line + b"\n" for line in lines[max(0, at - dice.randint(0, 60)) : end])
        at = end


def noise(dice: random.Random, pieces: int) -> bytes:
    return b"".join(dice.choice(PIECES) for _ in range(pieces)) + b"y" * dice.choice((0, 1, 3 * LONGEST_PIECE)) + b"\n"


def fill(folder: RunFolder, dice: random.Random) -> None:
    """Write what a gang of four ranks, and the stage's own files, may hold."""
    stage = folder.stage("pretrain")
    stage.attempt(0).mkdir(parents=True)
    for path in (stage.node_log(0, 0), stage.node_log(0, 1), *(stage.rank_log(0, rank) for rank in range(4))):
        path.write_bytes(noise(dice, 400))
    for number in range(50):
        append_line(stage.metrics, {"step": number, "loss": dice.random()})
        append_line(folder.events, {"event": "ä" * number})


# Telling

WRITER = """
import os, random, sys, time
dice, path, seconds = random.Random(7), sys.argv[1], float(sys.argv[2])
file, end = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), time.monotonic() + seconds
while time.monotonic() < end:
    os.write(file, dice.randbytes(dice.choice((1, 7, 100, 900, 9000))))
    time.sleep(0.02)
os.write(file, b"torn at its end")
"""
POD = """
import sys, time
from pathlib import Path
from tests.launcher.test_kubernetes_mirror import TRAIN
from launcher.backends.kubernetes.telling import telling
from launcher.run_folder import RunFolder
with telling(RunFolder(Path(sys.argv[1])), TRAIN, 0, every_s=0.02):
    sys.stdin.read()
"""


def start(script: str, *arguments: object, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], **more)  # type: ignore[call-overload]


def test_a_log_is_copied_byte_for_byte_through_killed_pods(there: RunFolder, here: RunFolder, tmp_path: Path) -> None:
    log = there.stage("pretrain").rank_log(0, 1)
    log.parent.mkdir(parents=True)
    there.stage("pretrain").node_log(0, 0).touch()
    writer = start(WRITER, log, 3)
    mirror, outputs = Mirror(here), [tmp_path / f"pod{n}" for n in range(4)]
    for output in outputs:
        with output.open("wb") as file:
            pod = start(POD, there.root, stdin=subprocess.PIPE, stdout=file)
        if output is outputs[-1]:
            writer.wait()
            pod.communicate()
            assert pod.returncode == 0
        else:
            time.sleep(0.7)
            pod.send_signal(signal.SIGKILL)
            pod.wait()
        mirror.take(stamped(output.read_bytes()), "pod", over=True)
    assert log.read_bytes().endswith(b"torn at its end") and log.stat().st_size > 10 * LONGEST_PIECE
    assert mirrored(here) == mirrored(there)
    assert not (here.root / "pods/pod.log").exists()


def test_a_pod_tells_what_it_answers_for(there: RunFolder) -> None:
    stage = there.stage("pretrain")
    fill(there, random.Random(1))
    for number in range(2):
        write_json(stage.attempt(0) / f"exits/node{number:04d}.json", {"code": number})
    for rank in range(4):
        write_json(stage.rank_error(0, rank), {"rank": rank})
    for name in ("train", "train-0", "merge"):
        write_json(there.root / f"steps/{name}.json", {"state": "RUNNING"})
    for path in (stage.checkpoint(5) / "COMPLETE", stage.benchmark("mmbench") / "scores.json", there.record):
        write_json(path, {"a": 1})
    (stage.benchmark("mmbench") / "report.txt").write_text("│ table\n")
    (stage.checkpoint(5) / "state.json").write_text("{}")
    of_all = {"events.jsonl", "stages/pretrain/metrics.jsonl"}
    of_both = {f"stages/pretrain/{name}" for name in ("checkpoints/step-000005/COMPLETE", "eval/mmbench/scores.json",
                                                      "eval/mmbench/report.txt")}  # fmt: skip

    def own(number: int) -> set[str]:
        ranks = [2 * number, 2 * number + 1]
        names = [f"node{number}.log", *(f"rank{rank:04d}.log" for rank in ranks), f"exits/node{number:04d}.json",
                 *(f"errors/rank{rank:04d}.json" for rank in ranks)]  # fmt: skip
        return {f"stages/pretrain/attempts/0/{name}" for name in names}

    def told(step: Step | None, number: int) -> set[str]:
        out = io.BytesIO()
        Teller(there, step, number, out).close()
        return {item.path for line in out.getvalue().split(b"\n")[:-1] if (item := hear(line + b"\n"))}

    assert told(TRAIN, 0) == of_all | of_both | own(0) | {"steps/train.json"}
    assert told(TRAIN, 1) == own(1)
    assert told(SHARDS, 0) == {"events.jsonl"}
    assert told(None, 0) == {"events.jsonl", *(f"steps/{name}.json" for name in ("train", "train-0", "merge"))}


def test_a_shard_is_its_own_rank(there: RunFolder) -> None:
    there.attempt(2).mkdir(parents=True)
    for number in range(4):
        there.node_log(2, number).write_text("node\n")
        there.rank_log(2, number).write_text("rank\n")
        write_json(there.root / f"steps/eval-{number}.json", {"state": "RUNNING"})
    told = tell(there, SHARDS, 3).decode()
    assert re.findall(r"^[^@=]+", told, re.M) == [
        "attempts/2/node3.log",
        "attempts/2/rank0003.log",
        "steps/eval-3.json",
    ]


def test_what_is_told_can_be_read(there: RunFolder) -> None:
    log = there.stage("pretrain").rank_log(0, 0)
    log.parent.mkdir(parents=True)
    log.write_bytes(b"2026-11-23T20:00:00.000Z INFO step 1\n\nEpoch 1: 10%\rEpoch 1: 20%")
    assert tell(there).split(b"\n") == [
        b"stages/pretrain/attempts/0/rank0000.log@0 2026-11-23T20:00:00.000Z INFO step 1",
        b"stages/pretrain/attempts/0/rank0000.log@37 ",
        b"stages/pretrain/attempts/0/rank0000.log@38- Epoch 1: 10%\rEpoch 1: 20%",
        b"",
    ]


def test_a_stand_in_tells_the_end_of_what_was_there_and_all_that_comes(there: RunFolder) -> None:
    stage = there.stage("pretrain")
    stage.attempt(0).mkdir(parents=True)
    line = b"0123456789abcdef" * 3 + b"\n"
    stage.rank_log(0, 0).write_bytes(line * (3 * LATE_BYTES // len(line)) + b"torn")
    size = stage.rank_log(0, 0).stat().st_size
    out = io.BytesIO()
    teller = Teller(there, TRAIN, 0, out)
    teller.poll()
    assert 0 <= LATE_BYTES - (size - hear(out.getvalue()).offset) < len(line)
    stage.attempt(1).mkdir()
    stage.node_log(1, 0).touch()
    stage.rank_log(1, 0).write_bytes(line * (3 * LATE_BYTES // len(line)))
    while teller.poll():
        pass
    told = [hear(raw + b"\n") for raw in out.getvalue().split(b"\n")[:-1]]
    assert next(item.offset for item in told if "attempts/1/rank0000" in item.path) == 0
    assert [item.data for item in told if "attempts/0/rank0000" in item.path][-1] == b"torn"


def test_the_first_node_tells_the_ends_of_nodes_that_are_no_more(there: RunFolder) -> None:
    stage = there.stage("pretrain")
    fill(there, random.Random(6))
    stage.node_log(0, 2).write_bytes(b"last words\n")
    stage.rank_log(0, 5).write_bytes(b"torn")
    write_json(stage.rank_error(0, 4), {"rank": 4})
    last = [f"stages/pretrain/attempts/0/{name}" for name in ("node2.log", "rank0005.log", "errors/rank0004.json")]
    assert re.findall(r"^[^@=\n]+(?=@0-? [lt]|=)", tell(there).decode(errors="replace"), re.M) == last
    assert not any(name in tell(there, number=1).decode(errors="replace") for name in last)


def test_ends_are_told_again(there: RunFolder) -> None:
    fill(there, random.Random(7))
    out = io.BytesIO()
    teller = Teller(there, TRAIN, 0, out)
    teller.close()
    out.truncate(out.seek(0))
    teller.tell_again(0, most_bytes=100, nodes=[1])
    teller.poll()
    told = [item for line in out.getvalue().split(b"\n")[:-1] if isinstance(item := hear(line + b"\n"), Line)]
    assert {item.path.rpartition("/")[2] for item in told} == {"node1.log", "rank0002.log", "rank0003.log"}
    for name, items in itertools.groupby(told, lambda item: item.path):
        data, first = (there.root / name).read_bytes(), next(items).offset
        end = data[-100:]
        assert first == len(data) - 100 + (
            end.index(b"\n") + 1 if b"\n" in end[:-1] and data[-101:-100] != b"\n" else 0
        )
        assert b"".join(item.data for item in told if item.path == name) == data[first:]


def test_a_quiet_folder_is_not_read(there: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(there, random.Random(2))
    teller = Teller(there, TRAIN, 0, io.BytesIO())
    while teller.poll():
        pass
    opened: list[object] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more, **others: opened.append(path) or real(path, *more, **others))
    for _ in range(20):
        teller.poll()
    assert not opened


def test_that_a_log_or_a_marker_is_there_is_told(there: RunFolder, here: RunFolder) -> None:
    stage, out = there.stage("pretrain"), io.BytesIO()
    teller = Teller(there, TRAIN, 0, out)
    for path in (stage.node_log(0, 0), stage.checkpoint(5) / "COMPLETE", stage.metrics):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    teller.poll()
    stage.metrics.write_bytes(b"{}\n" * LATE_BYTES)
    teller.close()
    Mirror(here).take(stamped(out.getvalue()), "pod")
    assert mirrored(here)["stages/pretrain/attempts/0/node0.log"] == b""
    assert here.stage("pretrain").checkpoint_steps() == [5]
    assert mirrored(here)["stages/pretrain/metrics.jsonl"] == b"{}\n" * LATE_BYTES


def test_a_file_system_that_is_away_is_waited_for(there: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "stale file handle")

    stage, out = there.stage("pretrain"), io.BytesIO()
    with telling(there, TRAIN, 0, out, every_s=0.01):
        with monkeypatch.context() as patch:
            for module, name in ((os, "stat"), (os, "listdir"), (os, "scandir"), (os, "open")):
                patch.setattr(module, name, away)
            time.sleep(0.2)
        stage.attempt(0).mkdir(parents=True)
        stage.node_log(0, 0).write_bytes(b"here again\n")
        deadline = time.monotonic() + 10
        while b"here again" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert out.getvalue().count(b"here again") == 1


def test_telling_never_holds_up_what_it_tells_about(there: RunFolder) -> None:
    """Nobody reads: the pipe is full, then broken."""
    stage = there.stage("pretrain")
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as out:
        with telling(there, TRAIN, 0, out, every_s=0.01) as teller:
            stage.attempt(0).mkdir(parents=True)
            stage.node_log(0, 0).write_bytes(b"x\n" * 1000000)
            time.sleep(0.2)
            teller.tell_again(0)
            os.close(reader)
        with pytest.raises(BrokenPipeError):
            teller.poll()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


# The copy


@pytest.mark.parametrize("seed", range(8))
def test_overlapping_reads_change_nothing(there: RunFolder, here: RunFolder, seed: int) -> None:
    dice = random.Random(seed)
    fill(there, dice)
    logs = {f"pod{number}": stamped(tell(there, number=number)) for number in (0, 1)}
    reads = [[(name, part) for part in parts_of(data, dice)] for name, data in logs.items()]
    mirror = Mirror(here)
    while any(reads):
        name, part = dice.choice([read for read in reads if read]).pop(0)
        mirror.take(part, name)
    assert mirrored(here) == mirrored(there)


@pytest.mark.parametrize("seed", range(8))
def test_reads_in_any_order_end_in_the_same(there: RunFolder, here: RunFolder, seed: int) -> None:
    dice = random.Random(seed)
    fill(there, dice)
    parts = [part for number in (0, 1) for part in parts_of(stamped(tell(there, number=number)), dice)]
    dice.shuffle(parts)
    for part in parts:
        Mirror(here).take(part, "pod")
    assert mirrored(here) == mirrored(there)
    assert json.loads((here.root / "pods/mirror.json").read_text())["gaps"] == {}


TAKER = """
import sys
from pathlib import Path
from launcher.backends.kubernetes.mirror import Mirror
from launcher.run_folder import RunFolder
mirror = Mirror(RunFolder(Path(sys.argv[1])))
lines = Path(sys.argv[2]).read_bytes().split(b"\\n")[:-1]
sys.stdin.readline()
for at in range(0, len(lines), 7):
    mirror.take(b"".join(line + b"\\n" for line in lines[max(0, at - 20) : at + 7]), "pod")
"""


def test_two_readers_at_once_double_nothing(there: RunFolder, here: RunFolder, tmp_path: Path) -> None:
    fill(there, random.Random(3))
    (tmp_path / "log").write_bytes(stamped(tell(there) + b"Traceback\n" * 30 + tell(there, number=1)))
    takers = [start(TAKER, here.root, tmp_path / "log", stdin=subprocess.PIPE) for _ in range(3)]
    for taker in takers:
        taker.stdin.write(b"\n")  # type: ignore[union-attr]
        taker.stdin.flush()  # type: ignore[union-attr]
    assert [taker.wait() for taker in takers] == [0, 0, 0]
    assert mirrored(here) == mirrored(there)
    assert (here.root / "pods/pod.log").read_bytes().count(b"Traceback") == 30


LOSSES = pytest.mark.parametrize("lost", [1, 2, 40, 53, 54, 55, 100, 5000, 3 * 1024 * 1024])
RANK = "attempts/0/rank0000.log"


def lose(mirror: Mirror, lost: int) -> str:
    """Have a stretch of a file missing; return the words for it, where there is room for them."""
    lines = ((0, b"first\n"), (6 + lost, b"after\n"), (12 + lost, b"last\n"))
    mirror.take(stamped(b"".join(say_line(Line(RANK, *line)) for line in lines)), "pod")
    words = f"[{lost} bytes are not here: the cluster dropped them]"
    return words if len(words) + 2 <= lost else ""


@LOSSES
def test_what_the_cluster_dropped_is_said(here: RunFolder, lost: int) -> None:
    words, path = lose(Mirror(here), lost), here.root / RANK
    first, filler, *after = path.read_bytes().split(b"\n")
    assert path.stat().st_size == 17 + lost and len(filler) == lost - 1
    assert (first, after) == (b"first", [b"after", b"last", b""])
    assert filler.strip(b"\0 ").decode() == (f"\r{words}" if words else "")
    assert path.stat().st_blocks * 512 < 2 * 1024 * 1024
    shown = [line.strip() for line in logs.read(here.root, logs.Selection())]
    assert list(filter(None, shown)) == ["first", *filter(None, [words]), "after", "last"]


@LOSSES
@pytest.mark.parametrize("seed", range(3))
def test_what_comes_late_takes_its_place(here: RunFolder, lost: int, seed: int) -> None:
    mirror, dice = Mirror(here), random.Random(seed)
    lose(mirror, lost)
    truth = dice.randbytes(lost).replace(b"\n", b"\r")
    starts = sorted({0, *(dice.randrange(lost) for _ in range(30))})
    lines = [Line(RANK, 6 + start, truth[start:end]) for start, end in zip(starts, [*starts[1:], lost], strict=True)]
    dice.shuffle(lines)
    for line in lines:
        mirror.take(stamped(say_line(line)), "pod")
        data = (here.root / RANK).read_bytes()
        assert data[line.offset :].startswith(line.data) and len(data) == 17 + lost
    assert data == b"first\n" + truth + b"after\nlast\n"
    assert json.loads((here.root / "pods/mirror.json").read_text())["gaps"] == {}


def test_metrics_with_a_gap_can_be_read(here: RunFolder) -> None:
    for offset in (0, 9000):
        Mirror(here).take(stamped(b'metrics.jsonl@%d {"step": 7, "loss": 1.5}\n' % offset), "pod")
    assert (read_progress(here).step, read_progress(here).loss) == (7, 1.5)
    Mirror(here).take(stamped(b'metrics.jsonl@9500 {"step": 8, "loss": 1.5}\n'), "pod")
    assert read_progress(here).step == 8


@pytest.mark.parametrize(
    "path",
    ["../other/run.json", "/etc/passwd", "run.json", "state.json", "config.yaml", "code/x.py", "pods/seen.json",
     "attempts/../../x/events.jsonl", "attempts/0/rendered.yaml", "attempts/0/../node0.log", "stages/../events.jsonl",
     "stages/./events.jsonl", "attempts/0/exits/../../../x.json", "steps/../run.json", "steps/.json",
     "eval/../scores.json", "eval/x/y/scores.json",
     "checkpoints/step-1/state.json", "model/config.json", "attempts/0/node0.log\0", "events.jsonl/x", "", "steps/a b"],
)  # fmt: skip
def test_a_pod_cannot_write_elsewhere(here: RunFolder, path: str) -> None:
    lines = f'{path}@0 {{}}\n{path}@0- x\n{path}=1 {{"a": 1}}\n'.encode()
    Mirror(here).take(stamped(lines), "pod")
    assert mirrored(here) == {}
    assert len((here.root / "pods/pod.log").read_bytes().split(b"\n")) == 4
    assert {path.name for folder in here.root.parents[:2] for path in folder.iterdir()} == {"run", "here", "home"}


def test_a_link_is_not_followed(here: RunFolder, tmp_path: Path) -> None:
    here.events.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Mirror(here).take(stamped(b"events.jsonl@0 {}\n"), "pod")
    assert not (tmp_path / "elsewhere").exists()


def test_small_files_hold_what_was_written_last(there: RunFolder, here: RunFolder) -> None:
    word, logs = there.root / "steps/train.json", []
    out = io.BytesIO()
    teller = Teller(there, TRAIN, 0, out)
    for number in range(30):
        write_json(word, {"state": f"Zustand {number} ä"})
        while b"Zustand %d " % number not in out.getvalue():
            teller.poll()
    logs = list(parts_of(stamped(out.getvalue()), random.Random(4)))
    mirror, copy = Mirror(here), here.root / "steps/train.json"
    for log in logs:
        mirror.take(log, "pod")
    assert copy.read_bytes() == word.read_bytes()
    for log in logs[:-1]:
        mirror.take(log, "pod")
        assert copy.read_bytes() == word.read_bytes()


def test_what_a_pod_prints_beside_is_kept_once(here: RunFolder) -> None:
    log = stamped(b"warning: \xff\nevents.jsonl@0 {}\nTraceback (most recent call last):\n  File\nno end")
    mirror = Mirror(here)
    for data, over in ((log[:200], False), (log, False), (log, True), (log, True)):
        mirror.take(data, "pod-0", over)
    assert (here.root / "pods/pod-0.log").read_bytes().split(b"\n") == [
        b"2026-11-23T20:00:00.000000000Z warning: \xff",
        b"2026-11-23T20:00:00.002000000Z Traceback (most recent call last):",
        b"2026-11-23T20:00:00.003000000Z   File",
        b"",
    ]


def test_times_of_other_zones_are_understood(here: RunFolder) -> None:
    until = Mirror(here).take(b"2026-11-23T22:30:00.5+02:30 words\n", "pod")
    assert until == "2026-11-23T20:00:00.500000000Z"
    assert (here.root / "pods/pod.log").read_text() == "2026-11-23T20:00:00.500000000Z words\n"


def test_a_folder_that_is_seen_here_is_left_alone(here: RunFolder) -> None:
    append_line(here.events, {"event": "own"})
    Mirror(here, apart=False).take(stamped(b'events.jsonl@9000 {}\nsteps/a.json=1 {"a": 1}\nwords\n'), "pod")
    assert list(mirrored(here)) == ["events.jsonl"] and here.events.stat().st_size == len('{"event": "own"}\n')
    assert (here.root / "pods/pod.log").read_text().endswith(" words\n")
