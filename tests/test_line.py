"""The whole line with the real runtime: two local nodes that train, are hit, and lose nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.shell import Shell, shell
from tests.world import build_world, losses, train_recipe, write_recipe

__all__ = ["shell"]
STEPS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


def _rank(shell: Shell, run: str, rank: int) -> psutil.Process:
    """The process of one rank: the one that an agent started."""

    def looked_for() -> psutil.Process | None:
        for process in psutil.process_iter():
            try:
                env = process.environ()
                words = process.cmdline()
            except psutil.Error:
                continue
            mine = env.get("LLAVAJOB_RUN") == str(shell.runs / run) and env.get("RANK") == str(rank)
            if mine and "llava.train" in words:
                return process
        return None

    found: psutil.Process = shell.until(looked_for, f"rank {rank} of {run}")
    return found


def test_hit_runs_equal_the_uninterrupted_one(shell: Shell, world: Path) -> None:
    """One run in one go; one whose rank is killed; one cancelled and resumed on one node."""
    slow = train_recipe(world, STEPS, save_every=5)
    recipe = str(write_recipe(shell.folder / "tiny.yaml", slow))
    shell("submit", recipe, "--name", "whole", "--follow")
    whole = losses(shell.runs / "whole")
    assert sorted(whole) == list(range(1, STEPS + 1))

    shell("submit", recipe, "--name", "hit")
    shell.wait_step("hit", 7)
    _rank(shell, "hit", 1).kill()
    hit = shell.wait("hit", most_s=120)
    assert (hit["state"], hit["attempts"]) == ("SUCCEEDED", 2), (shell.runs / "hit/events.jsonl").read_text()
    assert losses(shell.runs / "hit") == whole, "bit for bit"
    error = json.loads((shell.runs / "hit/attempts/0/errors/rank0001.json").read_text())
    assert (error["exit_code"], error["signal"]) == (-9, "SIGKILL")
    events = (shell.runs / "hit/events.jsonl").read_text()
    assert "SIGKILL" in events

    shell("submit", recipe, "--name", "cut")
    shell.wait_step("cut", 6)
    shell("cancel", "cut")
    assert shell.left("cut") == []
    shell("resume", "cut", "--nodes", "1", "--follow")
    cut = losses(shell.runs / "cut")
    assert sorted(cut) == sorted(whole)
    for step, (loss, norm) in whole.items():
        assert cut[step] == pytest.approx((loss, norm), rel=1e-5), f"step {step} within rounding"


def test_a_killed_supervisor_lets_the_ranks_save(shell: Shell, world: Path) -> None:
    recipe = str(write_recipe(shell.folder / "tiny.yaml", train_recipe(world, 2000, save_every=1000)))
    shell("submit", recipe, "--name", "headless")
    shell.wait_step("headless", 5)
    os.kill(shell.supervisor("headless"), signal.SIGKILL)
    shell.until(lambda: not shell.left("headless"), "every process gone")
    dead = shell.status("headless")
    assert dead["state"] == "FAILED" and "its supervisor died" in dead["reason"]
    saved = max(int(p.name[5:]) for p in (shell.runs / "headless/checkpoints").glob("step-*"))
    assert saved == dead["step"], "the last finished update is saved"


def test_mistakes_of_the_runtime_reach_the_status(shell: Shell, world: Path) -> None:
    values = train_recipe(world, 4, save_every=2)
    records = json.loads((world / "data/records.json").read_text())
    records[0]["image"] = "not there.png"
    (shell.folder / "records.json").write_text(json.dumps(records))
    values["data"]["records"] = str(shell.folder / "records.json")
    recipe = str(write_recipe(shell.folder / "broken.yaml", values))
    shell("submit", recipe, "--name", "broken", "--follow", check=1)
    status = shell.status("broken")
    assert (status["state"], status["attempts"]) == ("FAILED", 1)
    assert "bad picture" in status["reason"] and "not there.png" in status["reason"]
    assert "data.max_bad_images" in shell("status", "broken").out
