"""How failures are written down and said, and how the agent reads its workers' ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava import failure, logs
from llava.agent import Agent, Worker, split, write_error
from llava.errors import ConfigError, Interrupted, TrainingError
from llava.run_folder import RunFolder, read_lines

KEYS = {
    "rank",
    "local_rank",
    "node",
    "host",
    "pid",
    "time",
    "exit_code",
    "signal",
    "exception",
    "message",
    "hint",
    "traceback",
    "collective",
    "final",
    "step",
}


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "attempts" / "0"
    monkeypatch.setenv("LLAVAJOB_ATTEMPT_DIR", str(folder))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LLAVAJOB_NODE", "1")
    return folder


def recorded(attempt: Path, error: BaseException, step: int | None = 5) -> dict[str, Any]:
    try:
        raise error
    except BaseException as caught:
        failure.record(caught, RunFolder(attempt.parent.parent), step)
    found: dict[str, Any] = json.loads((attempt / "errors" / "rank0003.json").read_text())
    assert found.keys() == KEYS
    assert (found["rank"], found["local_rank"], found["node"], found["pid"]) == (3, 1, 1, os.getpid())
    return found


def test_a_bug_keeps_its_traceback_and_may_be_tried_again(attempt: Path) -> None:
    found = recorded(attempt, ZeroDivisionError("division by zero"))
    assert (found["exit_code"], found["final"], found["collective"], found["step"]) == (1, False, False, 5)
    assert found["exception"] == "ZeroDivisionError"
    assert "raise error\nZeroDivisionError: division by zero" in found["traceback"]
    (event,) = read_lines(attempt.parent.parent / "events.jsonl")
    assert (event["event"], event["rank"], event["message"]) == ("failed", 3, "division by zero")


def test_an_error_raised_on_purpose_has_message_and_hint_and_no_traceback(
    attempt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logs.LOG, "handlers", [handler])
    found = recorded(attempt, ConfigError("no such file: x", "make it"))
    assert (found["exit_code"], found["final"], found["traceback"]) == (2, True, "")
    assert (found["message"], found["hint"]) == ("no such file: x", "make it")
    assert capsys.readouterr().err == "no such file: x\nhint: make it\n"


@pytest.mark.parametrize(
    "text",
    [
        "[/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:63143: Connection reset by peer",
        "Connection closed by peer [127.0.0.1]:5000",
        "NCCL communicator was aborted on rank 1",
    ],
)
def test_a_peers_death_is_an_echo_and_no_event(attempt: Path, text: str) -> None:
    found = recorded(attempt, RuntimeError(text))
    assert (found["collective"], found["final"], found["exit_code"]) == (True, False, 1)
    assert found["message"].startswith("another rank is gone: ")
    assert "pair.cc" not in found["message"] and found["hint"] == "its own error says why"
    assert not (attempt.parent.parent / "events.jsonl").exists()


def test_other_errors_are_no_echoes() -> None:
    assert not failure.is_collective(RuntimeError("shape mismatch"))
    assert not failure.is_collective(OSError("Connection reset by peer"))
    assert not failure.is_collective(TrainingError("gloo"))


def test_out_of_memory_says_what_to_lower(attempt: Path) -> None:
    import torch

    found = recorded(attempt, torch.OutOfMemoryError("CUDA out of memory"))
    assert "lower train.device_batch" in found["hint"]


def test_an_interrupted_rank_has_not_failed(attempt: Path) -> None:
    failure.record(Interrupted("SIGTERM: stopped"), RunFolder(attempt.parent.parent), 5)
    assert not attempt.exists()
    assert failure.exit_code(Interrupted("")) == 175


def test_a_disk_that_takes_no_error_file_hides_nothing(attempt: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt.parent.mkdir(parents=True)
    attempt.write_text("a file where the folder should be")
    failure.record(ValueError("what went wrong"), None)
    assert "what went wrong" in caplog.text


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "the disk is full: free space"),
        (errno.EROFS, "read-only: mount it writable"),
        (errno.EACCES, "no permission to write there"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EIO, "resume when the file system works again; the last checkpoint is kept"),
    ],
)
def test_file_system_errors_name_path_and_cure(code: int, cure: str) -> None:
    error = failure.as_training_error(OSError(code, os.strerror(code), "/data/x"), "saving")
    assert error.message == f"saving failed: {os.strerror(code)} (/data/x)"
    assert cure in error.hint
    assert error.exit_code == 3


class Ended:
    """A process that has ended."""

    pid = 77

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code


def node(*codes: int, asked: bool = False, first: int = 0) -> Agent:
    workers = [Worker(Ended(code), rank, rank) for rank, code in enumerate(codes)]
    return Agent(workers, workers[first : first + 1], asked)


@pytest.mark.parametrize(
    ("agent", "code"),
    [
        (node(0, 0), 0),
        (node(2, 2), 2),
        (node(3, 3), 3),
        (node(1, 3), 3),  # the other heard of the death first
        (node(175, 175, asked=True), 175),
        (node(175, 175), 175),  # another node was asked
        (node(175, -signal.SIGTERM, asked=True), 175),  # no handler yet
        (node(-signal.SIGUSR2, -signal.SIGUSR2, asked=True), 175),
        (node(-signal.SIGTERM, -signal.SIGTERM), 1),  # nobody asked us
        (node(-signal.SIGKILL, 1), 1),
        (node(-signal.SIGKILL, 175, asked=True), 1),
        (node(1, 1), 1),
        (Agent(), 1),  # the workers never started
    ],
)
def test_what_the_workers_ends_mean(agent: Agent, code: int) -> None:
    assert agent.exit_code() == code


def test_a_worker_that_wrote_its_own_error_keeps_it(attempt: Path) -> None:
    worker = Worker(Ended(-9), 3, 1)
    write_error(worker, -9, "SIGKILL", collective=False)
    path = attempt / "errors" / "rank0003.json"
    found = json.loads(path.read_text())
    assert found.keys() == KEYS
    assert (found["signal"], found["exception"], found["exit_code"], found["pid"]) == ("SIGKILL", None, -9, 77)
    path.write_text("its own")
    write_error(worker, -9, "SIGKILL", collective=False)
    assert path.read_text() == "its own"


def test_agents_words_are_torchruns_and_the_programs() -> None:
    assert split(["--nnodes", "2", "--", "-m", "x", "--", "y"]) == (20, ["--nnodes", "2"], ["-m", "x", "--", "y"])
    assert split(["--grace", "5", "--nnodes=2", "--", "-m", "x"]) == (5, ["--nnodes=2"], ["-m", "x"])
    assert split(["--grace=7", "--", "x"]) == (7, [], ["x"])
    with pytest.raises(SystemExit, match=r"usage: python -m llava.agent"):
        split(["--nnodes", "2"])


def test_light_modules_need_no_torch() -> None:
    code = (
        "import sys, llava.agent, llava.train, llava.failure, llava.logs, llava.interrupt; "
        "sys.exit(str([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
