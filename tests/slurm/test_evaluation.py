"""Sharded evaluation on a real Slurm: one array with a limit, a merge after it, and no row lost or answered twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.llava.conftest import tiny_language, tiny_vision
from tests.llava.tiny_hf import build_llava, some_rows, write_tsv
from tests.shell import STANDIN, Shell, shell
from tests.slurm.bed import Cluster
from tests.slurm.jobs import number, queued, shown
from tests.world import PLACE

__all__ = ["shell", "tiny_language", "tiny_vision"]
Score = Callable[..., str]


@pytest.fixture
def score(shell: Shell) -> Score:
    """Write a recipe of an evaluation; its shards share the memory of a node, so that only the limit holds them."""

    def write(environment: dict[str, str] | None = None, **settings: Any) -> str:
        values = {
            "kind": "eval",
            "resources": {"nodes": 2},
            "environment": environment or {"PYTHONPATH": str(STANDIN)},
            "eval": {"model": ".", "data": "records.json", **settings},
        }
        (shell.folder / "records.json").write_text("[]")
        (shell.folder / "score.yaml").write_text(yaml.safe_dump(values))
        place = {"backend": "slurm", "slurm": {"mem": "1G"}}
        (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"shared": place}}))
        return "score.yaml"

    return write


def submit(shell: Shell, recipe: str, run: str, **environment: str) -> tuple[str, str]:
    """Submit an evaluation; return the ids of its array and of its merge."""
    shell("submit", recipe, "--on", "shared", "--name", run, **environment)
    return number(shell, run, 0), number(shell, run, 1)


def steps(shell: Shell, run: str) -> dict[str, str]:
    """The states of shards and merge."""
    return {step["name"]: step["state"] for step in shell.status(run)["stages"]}


def words(shell: Shell, run: str) -> list[dict[str, Any]]:
    """What the members said last, in the order of their shards."""
    paths = sorted((shell.runs / run / "steps").glob("eval-[0-9]*.json"))
    return [json.loads(path.read_text()) for path in paths]


def array_of(shell: Shell, run: str, job: str) -> str:
    """The array line of the script that was sent."""
    text = (shell.runs / run / f"slurm/{job}_submission.sh").read_text()
    return next(line for line in text.splitlines() if "--array" in line)


def report(shell: Shell, run: str) -> str:
    """What the merge wrote."""
    return (shell.runs / run / "eval/mmbench/report.txt").read_text()


def test_shards_run_with_a_limit_and_the_merge_after_all(shell: Shell, score: Score, bed: Cluster) -> None:
    array, merge = submit(shell, score(shards=5), "five", STANDIN_STEP_S="1")
    assert array_of(shell, "five", array) == "#SBATCH --array=0-4%2"
    seen = shell.wait("five", "RUNNING")
    assert [(step["name"], step["state"]) for step in seen["stages"]] == [
        ("eval", "RUNNING"),
        ("eval-merge", "PENDING"),
    ]
    assert shown(bed, merge)["Dependency"].startswith(f"afterok:{array}_*")
    done = shell.wait("five")
    assert done["state"] == "SUCCEEDED" and done["job_ids"] == [array, merge]
    assert report(shell, "five") == "answered by 5 shards, 5 asked for\n"
    assert "answered by 5 shards" in shell("status", "five").out
    members = words(shell, "five")
    together = [sum(one["started"] <= m["started"] < one["ended"] for one in members) for m in members]
    assert max(together) == 2
    merged = next(step for step in done["stages"] if step["name"] == "eval-merge")
    assert merged["started"] >= max(member["ended"] for member in members)
    for shard in (0, 4):
        assert "gpus" in shell("logs", "five", "--shard", str(shard)).out
    assert shell.left("five") == []


def test_a_killed_shard_fails_the_run_and_only_it_is_sent_again(shell: Shell, score: Score, bed: Cluster) -> None:
    array, merge = submit(shell, score(shards=4), "hit", STANDIN_FAIL="shard:2")
    failed = shell.wait("hit")
    assert failed["state"] == "FAILED"
    assert failed["reason"].startswith("eval: shard 2: exit code 137 (SIGKILL): killed"), failed["reason"]
    assert steps(shell, "hit")["eval"] == "FAILED" and steps(shell, "hit")["eval-merge"] in ("PENDING", "CANCELLED")
    shell.until(lambda: queued(bed) == [], "an empty queue: nothing is run again")
    assert [member["state"] for member in words(shell, "hit")] == ["SUCCEEDED", "SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert shown(bed, f"{array}_2")["Restarts"] == "0" and shown(bed, f"{array}_2")["Requeue"] == "0"
    before = written(shell, "hit")
    shell("resume", "hit")
    again, _ = number(shell, "hit", 0), number(shell, "hit", 1)
    assert array_of(shell, "hit", again) == "#SBATCH --array=0-0%1" and again not in (array, merge)
    assert shell.wait("hit")["state"] == "SUCCEEDED"
    assert report(shell, "hit") == "answered by 4 shards, 4 asked for\n"
    after = written(shell, "hit")
    assert sorted(after) == ["0", "1", "2", "3"] and before.items() <= after.items()


def written(shell: Shell, run: str) -> dict[str, int]:
    """When each shard's answers were written."""
    return {path.stem: path.stat().st_mtime_ns for path in (shell.runs / run / "eval/mmbench/answers").iterdir()}


def test_another_number_of_shards_does_all_of_them(shell: Shell, score: Score) -> None:
    submit(shell, score(shards=2), "more", STANDIN_FAIL="shard:1")
    assert shell.wait("more")["state"] == "FAILED"
    shell("resume", "more", "--set", "eval.shards=3")
    assert array_of(shell, "more", number(shell, "more")) == "#SBATCH --array=0-2%2"
    assert shell.wait("more")["state"] == "SUCCEEDED"
    assert report(shell, "more") == "answered by 3 shards, 3 asked for\n"


def test_members_that_others_end_are_named_and_not_run_again(shell: Shell, score: Score, bed: Cluster) -> None:
    """One is cancelled from outside, then the rest gives way to a job of a higher partition."""
    array, _ = submit(shell, score(shards=3), "ended", STANDIN_STEP_S="60")
    shell.until(lambda: len(words(shell, "ended")) == 2, "two members at work")
    bed.call("scancel", f"{array}_1")
    shell.until(lambda: len(words(shell, "ended")) == 3, "the third member at work")
    higher = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    bed.call("sbatch", "--parsable", *higher, "--wrap=sleep 1")
    ended = shell.wait("ended", most_s=90)
    assert ended["state"] == "FAILED", ended
    assert ended["reason"] == "eval: shard 0: gave way to a job of higher priority (and 2 more)"
    shell.until(lambda: queued(bed) == [], "an empty queue: nothing is run again")
    assert shell.left("ended") == []
    shell("resume", "ended", STANDIN_STEP_S="0")
    assert shell.wait("ended")["state"] == "SUCCEEDED"
    assert report(shell, "ended") == "answered by 3 shards, 3 asked for\n"


def test_cancel_ends_members_that_run_and_members_that_wait(shell: Shell, score: Score, bed: Cluster) -> None:
    submit(shell, score(shards=6), "array", STANDIN_STEP_S="600")
    shell.until(lambda: len(words(shell, "array")) == 2, "two members at work")
    shell("cancel", "array")
    assert queued(bed) == [] and shell.left("array") == []
    cancelled = shell.status("array")
    assert cancelled["state"] == "CANCELLED" and cancelled["reason"].startswith("cancelled by root@")
    assert set(steps(shell, "array").values()) == {"CANCELLED"}
    assert len(words(shell, "array")) == 2, "no member started because another had gone"


# With the real runtime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    """A tiny model as Hugging Face has it."""
    place = tmp_path_factory.mktemp("hf")
    return build_llava(place, tiny_language, tiny_vision, {"template": "vicuna", "square": "pad"})


def test_every_row_is_answered_once_after_a_kill_and_with_other_shards(
    shell: Shell, score: Score, model: Path, own_place: Path
) -> None:
    rows = some_rows(30)
    data = write_tsv(own_place / "TINY_DEV.tsv", rows)
    settings = {"model": str(model), "data": str(data), "device": "cpu", "shards": 2, "batch": 1}
    submit(shell, score(PLACE, **settings, max_new_tokens=100), "real")
    answers = shell.runs / "real/eval/mmbench/answers"
    shell.until(lambda: len(answered(answers, "0001of0002")) >= 2, "answers of shard 1")
    member(shell, "real", 1).kill()
    failed = shell.wait("real")
    assert failed["state"] == "FAILED" and "shard 1: exit code 137 (SIGKILL)" in failed["reason"]
    before = answered(answers)
    assert len(answered(answers, "0001of0002")) >= 2 and len(before) < len(rows)
    shell("resume", "real", "--set", "eval.shards=3", "--set", "eval.batch=8")
    assert shell.wait("real")["state"] == "SUCCEEDED"
    after = answered(answers)
    assert Counter(answer["index"] for answer in after) == Counter(int(row["index"]) for row in rows)
    assert all(answer in after for answer in before), "what was answered before the kill is not answered anew"
    assert {answer["batch"] for answer in after} == {1, 8}


def answered(folder: Path, shard: str = "") -> list[dict[str, Any]]:
    """The whole lines of answers, of all shards or of one."""
    paths = sorted(folder.glob(f"shard{shard}*.jsonl")) if folder.is_dir() else []
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def member(shell: Shell, run: str, shard: int) -> psutil.Process:
    """The process of a shard."""
    for process in psutil.process_iter():
        try:
            environment, command = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        mine = environment.get("LLAVAJOB_RUN") == str(shell.runs / run)
        if mine and environment.get("LLAVAJOB_NODE") == str(shard) and "llava.mmbench" in command:
            return process
    raise AssertionError(f"shard {shard} of {run} is not there")
