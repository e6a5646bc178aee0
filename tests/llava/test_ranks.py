"""Two real ranks under the real agent: same numbers as one, signals, deaths."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llava.run_folder import RunFolder, read_lines
from tests.llava.train_helpers import (
    Bases,
    alive,
    end,
    events,
    losses,
    make_job,
    rank_pids,
    start_ranks,
    steps_saved,
    train_here,
    wait_for,
    wait_for_step,
)

UPDATES = 160
"""Enough that a run is still going when a signal reaches it."""


@pytest.fixture(scope="module")
def bases(
    tiny_language: Path, tiny_vision: Path, tiny_records: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bases:
    """The tiny data with one picture missing, so that ranks have to agree on that, too."""
    data = shutil.copytree(tiny_records, tmp_path_factory.mktemp("ranks") / "data")
    (data / "images" / "004.png").unlink()
    return Bases(tiny_language, tiny_vision, data)


@pytest.fixture(scope="module")
def two(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What two ranks do when nothing disturbs them."""
    run = RunFolder(tmp_path_factory.mktemp("two"))
    code, output = end(start_ranks(long_job(bases, run.root)))
    assert code == 0, output
    return run


def long_job(bases: Bases, run: Path, **train: Any) -> Any:
    train = {"learning_rate": 1e-3, "save_every_steps": 100, "max_bad_images": 1, **train}
    return make_job(bases, run, max_steps=UPDATES, **train)


def start_two_nodes(job: Any) -> list[subprocess.Popen[str]]:
    """Two agents as on two machines, with one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    return [start_ranks(job, 0, 1, *where, "--node-rank", str(node)) for node in (0, 1)]


def rank_error(run: RunFolder, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.rank_error(0, rank).read_text())
    return found


def same_until(one: RunFolder, other: RunFolder, step: int) -> bool:
    mine, theirs = losses(one), losses(other)
    return all(mine[n] == theirs[n] for n in range(1, step + 1))


def test_two_ranks_equal_one_with_dropout(bases: Bases, two: RunFolder, tmp_path: Path) -> None:
    one = train_here(long_job(bases, tmp_path))
    mine, theirs = losses(one), losses(two)
    assert events(two, "started")[0]["world_size"] == 2
    assert mine.keys() == theirs.keys() == set(range(1, UPDATES + 1))
    # The sums of both ranks' gradients round otherwise than one rank's; Adam carries that on.
    for step in range(1, 11):
        assert mine[step] == pytest.approx(theirs[step], rel=2e-5), step


def test_a_bad_picture_is_named_once_by_all_ranks_together(bases: Bases, two: RunFolder, tmp_path: Path) -> None:
    assert [e["path"] for e in events(two, "skipped_image")] == [str(bases.data / "images" / "004.png")]
    code, output = end(start_ranks(long_job(bases, tmp_path, max_bad_images=0)))
    assert code == 3, output
    run = RunFolder(tmp_path)
    for rank in (0, 1):
        assert rank_error(run, rank)["message"].startswith("bad pictures: 1, allowed: 0: ")
        assert rank_error(run, rank)["collective"] is False


def test_logs_are_per_rank_with_times_in_utc(two: RunFolder) -> None:
    lines = two.rank_log(0, 0).read_text().splitlines()
    form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) .+")
    assert [line for line in lines if not form.fullmatch(line)] == []
    assert sum(" step " in line for line in lines) == UPDATES
    assert not any(" step " in line for line in two.rank_log(0, 1).read_text().splitlines())
    assert not (two.attempt(0) / "errors").exists()


def test_signals_save_and_resume_with_the_same_and_with_fewer_ranks(
    bases: Bases, two: RunFolder, tmp_path: Path
) -> None:
    run, job = RunFolder(tmp_path), long_job(bases, tmp_path)
    saved = []
    for attempt, number in enumerate((signal.SIGTERM, signal.SIGUSR2)):
        agent = start_ranks(job, attempt)
        wait_for_step(run, (saved[-1] if saved else 0) + 5, agent)
        agent.send_signal(number)
        code, output = end(agent)
        assert code == 175, output
        stop = events(run, "interrupted")[-1]
        assert (stop["signal"], stop["attempt"]) == (number.name, attempt)
        assert stop["step"] == max(losses(run)), "the next update was waited for"
        assert steps_saved(run)[-1] == stop["step"]
        assert not (run.attempt(attempt) / "errors").exists()
        saved.append(stop["step"])
    assert saved[0] < saved[1] < UPDATES
    assert events(run, "resumed")[0]["step"] == saved[0]
    assert same_until(run, two, saved[1]), "resumed on as many ranks, every update is the same to the bit"

    train_here(job)  # one rank instead of two
    assert events(run, "started")[-1]["world_size"] == 1
    after = losses(run)
    for step in range(saved[1] + 1, saved[1] + 6):
        assert after[step] == pytest.approx(losses(two)[step], rel=2e-5), step
    assert run.model.is_dir()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_rank_costs_no_finished_update(bases: Bases, two: RunFolder, tmp_path: Path, victim: int) -> None:
    run, job = RunFolder(tmp_path), long_job(bases, tmp_path)
    agent = start_ranks(job)
    wait_for_step(run, 5, agent)
    pids = rank_pids(agent)
    os.kill(pids[victim], signal.SIGKILL)
    code, output = end(agent)
    assert code == 1, output
    assert f"rank {victim}: ended by SIGKILL" in output
    assert not any(alive(pid) for pid in pids.values())

    lost, echo = rank_error(run, victim), rank_error(run, 1 - victim)
    assert (lost["exit_code"], lost["signal"], lost["exception"], lost["collective"]) == (-9, "SIGKILL", None, False)
    assert (echo["exit_code"], echo["signal"], echo["collective"], echo["final"]) == (1, None, True, False)
    assert {"rank", "local_rank", "node", "host", "pid", "time", "message", "hint", "traceback", "step"} <= echo.keys()
    assert (echo["rank"], echo["pid"], lost["pid"]) == (1 - victim, pids[1 - victim], pids[victim])
    assert not events(run, "failed"), "an echo is no failure of its own"

    # The survivor saved the last finished update; rank 0 may have died before it wrote that update's metrics.
    last = max(losses(run))
    assert steps_saved(run)[-1] in (last, last + 1)
    assert echo["step"] == steps_saved(run)[-1]
    if victim == 1:
        agent = start_ranks(job, 1)
        wait_for_step(run, last + 5, agent)
        agent.send_signal(signal.SIGTERM)
        assert end(agent)[0] == 175
        assert same_until(run, two, last + 5)


def test_ranks_save_and_leave_when_their_agent_is_killed(bases: Bases, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    agent = start_ranks(long_job(bases, tmp_path))
    wait_for_step(run, 5, agent)
    pids = rank_pids(agent)
    assert pids.keys() == {0, 1}
    agent.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in pids.values()), "the ranks' end")
    assert events(run, "interrupted")[0]["signal"] == "SIGTERM"
    assert steps_saved(run)[-1] == events(run, "interrupted")[0]["step"] == max(losses(run))
    end(agent)


def test_a_lost_node_costs_no_finished_update(bases: Bases, tmp_path: Path) -> None:
    """Two agents as on two machines; one is gone at once, its rank and the other node's agree and save."""
    run, job = RunFolder(tmp_path), long_job(bases, tmp_path)
    agents = start_two_nodes(job)
    wait_for_step(run, 5, agents[0])
    assert (events(run, "started")[0]["world_size"], events(run, "started")[0]["nodes"]) == (2, 2)
    pids = {**rank_pids(agents[0]), **rank_pids(agents[1])}
    assert pids.keys() == {0, 1}
    agents[1].send_signal(signal.SIGKILL)
    assert end(agents[0])[0] == 175
    wait_for(lambda: not any(alive(pid) for pid in pids.values()), "the ranks' end")
    assert steps_saved(run)[-1] == events(run, "interrupted")[0]["step"] == max(losses(run))
    end(agents[1])


def test_agent_asked_before_it_has_workers_leaves_at_once(bases: Bases, tmp_path: Path) -> None:
    agent = start_ranks(long_job(bases, tmp_path))
    wait_for(lambda: _handles_sigterm(agent.pid), "the handler", agent)
    agent.send_signal(signal.SIGTERM)
    assert end(agent)[0] == 175
    assert not list(read_lines(RunFolder(tmp_path).events))


def _handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_errors_that_all_ranks_share_end_with_their_own_code(bases: Bases, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    agent = start_ranks(make_job(bases, tmp_path, device_batch=8))
    code, output = end(agent)
    assert code == 2, output
    for rank in (0, 1):
        error = rank_error(run, rank)
        assert (error["exit_code"], error["exception"], error["final"]) == (2, "ConfigError", True)
        assert "makes 1 micro-batches of device_batch 8, which 2 ranks cannot share evenly" in error["message"]
        assert error["hint"] == "ranks that work: 1; or train.device_batch: 1, 2, 4"
        assert error["traceback"] == ""
        assert "Traceback" not in run.rank_log(0, rank).read_text()
    assert {e["exit_code"] for e in events(run, "failed")} == {2}


def test_what_only_rank_0_finds_is_said_by_all(bases: Bases, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    records = tmp_path / "records.json"
    records.write_text('[{"id": "x", "conversations": [{"from": "robot", "value": "hi"}]}]')
    code, output = end(start_ranks(make_job(bases, tmp_path, records=str(records))))
    assert code == 3, output
    for rank in (0, 1):
        error = rank_error(run, rank)
        assert (error["exception"], error["collective"]) == ("DataError", False)
        assert error["message"] == "record 0 (id 'x') has a message from 'robot'; human and gpt are known"


def test_a_frozen_node_costs_no_finished_update(bases: Bases, tmp_path: Path) -> None:
    """A machine that loses power or network closes no connection: the other's rank leaves the collective by itself."""
    run, job = RunFolder(tmp_path), long_job(bases, tmp_path)
    agents = start_two_nodes(job)
    wait_for_step(run, 5, agents[0])
    frozen = [agents[1].pid, *rank_pids(agents[1]).values()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        agents[0].send_signal(signal.SIGTERM)
        code, output = end(agents[0])
        assert code == 1, output
        echo = rank_error(run, 0)
        assert echo["collective"] is True and "another rank is gone" in echo["message"], echo
        assert steps_saved(run)[-1] == echo["step"] == max(losses(run))
        assert "the other ranks have been silent for" in run.rank_log(0, 0).read_text()
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
    end(agents[1])
