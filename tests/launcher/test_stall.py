"""A run that makes no step any more is told as such, and one that only takes its time is not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.run_folder import RunFolder
from launcher.stall import find_stall
from tests.shell import Shell

NOW = 1_800_000_000.0


def write(folder: Path, lines: Sequence[dict[str, Any]], written: float | None = None) -> RunFolder:
    """Write metrics whose file was changed when its last line was written, by the file's own clock."""
    run = RunFolder(folder)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    moment = lines[-1]["time"] if written is None else written
    os.utime(run.metrics, (moment, moment))
    return run


def training(
    last: float, every_s: float = 0.2, steps: int = 1, count: int = 20, total: int = 1000, **more: Any
) -> list[dict[str, Any]]:
    """Lines of a training, one each so many steps, the last one so many seconds ago."""
    return [
        {"time": NOW - last - (count - n) * every_s, "attempt": 0, "step": n * steps, "total_steps": total} | more
        for n in range(1, count + 1)
    ]


def text(run: RunFolder, attempt: int = 0) -> str | None:
    stall = find_stall(run, attempt, NOW)
    return None if stall is None else stall.text


def test_words_and_numbers(tmp_path: Path) -> None:
    run = write(tmp_path, training(65))
    assert text(run) == "no step for 1 min 05 s (a step took 0.2 s)"
    stall = find_stall(run, 0, NOW)
    assert stall is not None
    assert stall.quiet_s == pytest.approx(65)
    assert stall.step_s == pytest.approx(0.2)
    assert text(write(tmp_path, training(7200, every_s=0.04))) == "no step for 2 h 00 min (a step took 40 ms)"
    assert text(write(tmp_path, training(1300, every_s=70))) == "no step for 21 min 40 s (a step took 1 min 10 s)"


@pytest.mark.parametrize(
    ("last", "every_s", "steps", "told"),
    [
        (29, 0.2, 1, False),
        (31, 0.2, 1, True),
        (45, 5, 1, False),  # ten steps of 5 s are still usual
        (51, 5, 1, True),
        (250, 100, 10, False),  # a line each 100 s, each of ten steps
        (301, 100, 10, True),
        (590, 60, 1, False),
        (601, 60, 1, True),
    ],
)
def test_how_long_is_much_longer(tmp_path: Path, last: float, every_s: float, steps: int, told: bool) -> None:
    run = write(tmp_path, training(last, every_s, steps))
    assert (text(run) is not None) is told


def test_pauses_that_were_there_before_are_usual(tmp_path: Path) -> None:
    """A checkpoint of 60 s every few lines."""
    lines, moment = [], NOW
    for n in range(20, 0, -1):
        lines.append({"time": moment, "step": n, "total_steps": 99, "attempt": 0})
        moment -= 60 if n % 5 == 0 else 1
    lines.reverse()
    assert text(write(tmp_path, [line | {"time": line["time"] - 100} for line in lines])) is None
    assert text(write(tmp_path, [line | {"time": line["time"] - 121} for line in lines])) is not None


def test_a_standstill_that_was_overcome_does_not_hide_the_next(tmp_path: Path) -> None:
    lines = training(700)
    for line in lines[:10]:
        line["time"] -= 36_000
    assert text(write(tmp_path, lines)) == "no step for 11 min 40 s (a step took 0.2 s)"


def test_nothing_is_told_without_anything_to_compare(tmp_path: Path) -> None:
    assert text(RunFolder(tmp_path)) is None
    assert text(write(tmp_path, training(900, count=1))) is None
    assert text(write(tmp_path, training(900)), attempt=1) is None  # the new attempt loads its model
    assert text(write(tmp_path, training(900, total=20))) is None  # all steps are made; the model is saved
    assert text(write(tmp_path, [{"time": "soon", "step": 1, "total_steps": 2}, training(900)[0]])) is None


def test_one_line_tells_how_long_steps_take(tmp_path: Path) -> None:
    """After 10 of 1000 steps, 990 s are left: 1 s each, and a line in 10 s."""
    one = {"time": NOW - 29, "attempt": 0, "step": 10, "total_steps": 1000, "eta_s": 990.0}
    assert text(write(tmp_path, [one])) is None
    assert text(write(tmp_path, [one | {"time": NOW - 40}])) == "no step for 40 s (a step took 1.0 s)"


def test_events_and_a_checkpoint_on_its_way_are_signs_of_life(tmp_path: Path) -> None:
    run = write(tmp_path, training(300))
    assert text(run) is not None
    run.events.touch()
    os.utime(run.events, (NOW - 10, NOW - 10))
    assert text(run) is None
    os.utime(run.events, (NOW - 400, NOW - 400))
    aside = run.checkpoints / ".step-000020.tmp-here-7"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").touch()
    for path in (aside, aside / "model.safetensors"):
        os.utime(path, (NOW - 299, NOW - 299))
    assert text(run) is not None
    os.utime(aside / "model.safetensors", (NOW - 5, NOW - 5))
    assert text(run) is None


@pytest.mark.parametrize("wrong", [-3600, -100, 100, 3600])
def test_a_clock_that_differs_raises_no_alarm(tmp_path: Path, wrong: float) -> None:
    """The node's clock, or the file server's, is wrong: the other one says that a step was just made."""
    lines = training(1)
    assert text(write(tmp_path, [line | {"time": line["time"] + wrong} for line in lines], NOW - 1)) is None
    assert text(write(tmp_path, lines, NOW - 1 + wrong)) is None


def test_a_clock_that_is_ahead_hides_no_standstill(tmp_path: Path) -> None:
    lines = training(65)
    ahead = [line | {"time": line["time"] + 3600} for line in lines]
    assert text(write(tmp_path, ahead, NOW - 65)) == "no step for 1 min 05 s (a step took 0.2 s)"
    assert text(write(tmp_path, lines, NOW + 3600)) == "no step for 1 min 05 s (a step took 0.2 s)"


def test_evaluations(tmp_path: Path) -> None:
    def shard(number: int, last: float, total: int = 200) -> list[dict[str, Any]]:
        return training(last, 2.0, 10, 10, total, shard=number)

    assert text(write(tmp_path, [*shard(0, 60), *shard(1, 59)])) == "no row for 59 s (a row took 0.2 s)"
    assert text(write(tmp_path, [*shard(0, 60), *shard(1, 5)])) is None
    assert text(write(tmp_path, shard(0, 60, total=100))) is None  # all rows are answered; the merge is to come


def test_a_rank_that_is_stopped_is_told(shell: Shell, recipe: Callable[..., str]) -> None:
    made = recipe(resources={"nodes": 1})
    shell("submit", made, "--name", "stopped", STANDIN_STEPS="5000", STANDIN_STEP_S="0.1")
    shell.wait_step("stopped", 5)
    (agent,) = shell.agents("stopped")
    os.kill(agent, signal.SIGSTOP)
    metrics = shell.runs / "stopped/metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    now = lines[-1]["time"]
    # As if it had been stopped a while ago.
    for line in lines:
        line["time"] -= 65
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in (metrics, shell.runs / "stopped/events.jsonl"):
        os.utime(path, (now - 65, now - 65))
    status = shell.status("stopped")
    assert status["state"] == "RUNNING"
    assert status["reason"].startswith("no step for 1 min ")
    assert 65 <= status["stalled_s"] < 120
    assert status["eta_s"] is None
    assert "no step for 1 min " in shell("status", "stopped").out
    assert "no step for 1 min " in shell("list").out
    os.kill(agent, signal.SIGCONT)
    going = shell.until(lambda: (s := shell.status("stopped"))["stalled_s"] is None and s, "a step again")
    assert going["eta_s"] is not None
    assert going["reason"] == ""
    shell("cancel", "stopped")
