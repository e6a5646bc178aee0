"""A run whose files were tampered with, or made by another version or person, hides no other and breaks no command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.odd_folders import METRICS, OWN_FILE, RECORD, STATE, Call, call, make_run, root

__all__ = ["call", "root"]

FILES = (
    "run.json", "state.json", "cancel.json", "metrics.jsonl", "events.jsonl", "config.yaml", "eval/b/report.txt",
    "steps/train.json", "attempts/0/rendered.yaml", "attempts/0/rank0000.log", "attempts/0/node0.log",
    "attempts/0/errors/rank0000.json", "attempts/0/exits/node0000.json", "attempts/0/errors", "attempts/0", "attempts",
    "checkpoints", "checkpoints/step-000001/COMPLETE", "stages", "eval",
)  # fmt: skip
SHOWN_ALONE = ("run.json", "state.json", "eval/b/report.txt", "eval")
"""What `status` reads beside what `list` does."""
LOGS = ("run.json", "config.yaml", "attempts/0/rank0000.log", "attempts/0", "stages")
UNKNOWN_WHEN_ODD = ("run.json", "state.json")


def make_good(root: Path) -> None:
    """The others, which must be told as if nothing else were there."""
    for name, backend in (("good", "local"), ("fine-slurm", "slurm"), ("fine-kubernetes", "kubernetes")):
        make_run(root, name, backend)


def in_place_of(path: Path) -> None:
    """Take a file or folder away, with a folder to put something else in."""
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def _socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(before)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _writes(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


ODD: dict[str, Callable[[Path], Any]] = {
    "fifo": os.mkfifo,
    "socket": _socket,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nothing"),
    "sparse": _sparse,
    "empty": _writes(b""),
    "torn": _writes(b'{"created": 17'),
    "list": _writes(b"[1, 2]"),
    "text": _writes(b'"words"'),
    "number": _writes(b"5"),
    "null": _writes(b"null"),
    "nan": _writes(b"NaN"),
    "deep": _writes(b"[" * 100_000),
    "deep-object": _writes(b'{"a":' * 100_000),
    "digits": _writes(b'{"created": ' + b"9" * 5000 + b"}"),
    "latin": _writes(b'{"created": "\xff\xfe\x80"}'),
    "nul": _writes(b"\0" * 4096),
}


def require_good(call: Call) -> dict[str, Any]:
    """Check all that is asked about the other runs, and return every run as it is listed, by name."""
    listed = call("list", "--json")
    assert listed.code == 0, listed.err
    runs = {run["run"]: run for run in json.loads(listed.out)}
    for name in ("good", "fine-slurm", "fine-kubernetes"):
        assert (runs[name]["state"], runs[name]["reason"], runs[name]["step"]) == ("FAILED", "it broke", 3)
    table = call("list")
    assert table.code == 0
    assert len(table.out.splitlines()) == len(runs) + 1
    for name in ("good", "goo"):
        assert call("status", name).out.startswith("good  FAILED  it broke")
        assert "INFO hello" in call("logs", name).out
    return runs


def test_whatever_stands_in_the_place_of_a_file_hides_no_other_run(root: Path, call: Call) -> None:
    make_good(root)
    expected = {}
    for number, file in enumerate(FILES):
        for kind, make in ODD.items():
            run = make_run(root, f"odd-{number}-{kind}")
            in_place_of(run / file)
            make(run / file)
            expected[run.name] = file
    runs = require_good(call)
    assert expected.keys() <= runs.keys()
    for name, file in expected.items():
        if file in UNKNOWN_WHEN_ODD:
            assert runs[name]["state"] == "UNKNOWN", name
            assert file in runs[name]["reason"], runs[name]
        if file in SHOWN_ALONE:
            status = call("status", name)
            assert (status.code, status.out.split()[0]) == (0, name)
        if file in LOGS:
            assert call("logs", name).code == 0
        if file == "run.json":
            assert call("logs", name, "--follow").code == 0
            assert call("cancel", name).code in (1, 2)
            assert call("resume", name).code in (1, 2)


VALUES: tuple[Any, ...] = (None, True, "soon", -1, 10**30, float("nan"), [], [1], {}, {"a": 1}, [None], [[1]], "\ud800")


@pytest.mark.parametrize("backend", OWN_FILE)
def test_a_value_of_another_type_makes_one_run_unknown(root: Path, call: Call, backend: str) -> None:
    make_good(root)
    _, own = OWN_FILE[backend]
    for number, value in enumerate(VALUES):
        for place in own:
            make_run(root, f"own-{place.replace('_', '-')}-{number}", backend, own=own | {place: value})
        if backend != "local":
            continue
        for place in RECORD:
            run = make_run(root, f"record-{place.replace('_', '-')}-{number}")
            (run / "run.json").write_text(json.dumps(RECORD | {place: value}))
        for place in METRICS:
            run = make_run(root, f"metrics-{place.replace('_', '-')}-{number}")
            (run / "metrics.jsonl").write_text(json.dumps(METRICS | {place: value}))
        for place in ("rank", "node", "host", "exit_code", "message", "time", "traceback", "collective", "final"):
            run = make_run(root, f"error-{place.replace('_', '-')}-{number}")
            (run / "attempts/0/errors/rank0000.json").write_text(json.dumps({"rank": 0, place: value}))
    make_run(root, "lacks-all", backend)
    (root / "lacks-all/run.json").write_text("{}")
    make_run(root, "no-backend")
    (root / "no-backend/run.json").write_text(json.dumps(RECORD | {"backend": "ray"}))
    runs = require_good(call)
    assert len(runs) == sum(1 for _ in root.iterdir())
    assert (runs["lacks-all"]["state"], runs["no-backend"]["state"]) == ("UNKNOWN", "UNKNOWN")
    assert "lacks backend and created" in runs["lacks-all"]["reason"]
    assert "'ray'" in runs["no-backend"]["reason"]
    if backend != "local":
        return
    assert runs["record-created-0"]["state"] == "UNKNOWN"
    assert "created" in runs["record-created-0"]["reason"]
    assert {run["state"] for name, run in runs.items() if name.startswith(("metrics-", "error-"))} == {"FAILED"}
    for name in ("lacks-all", "no-backend", "record-created-0"):
        assert call("status", name).code == 0
        assert call("cancel", name).code in (1, 2)
        assert call("resume", name).code in (1, 2)


@pytest.mark.parametrize("backend", OWN_FILE)
def test_what_a_newer_version_adds_is_passed_over(root: Path, call: Call, backend: str) -> None:
    _, own = OWN_FILE[backend]
    newer = json.loads(json.dumps(own).replace('"attempt": 0', '"attempt": 0, "colour": "red"')) | {"region": {"a": 1}}
    make_run(root, "newer", backend, own=newer, shape=[1])
    paused = json.loads(json.dumps(own).replace('"FAILED"', '"PAUSED"'))
    make_run(root, "paused", backend, own=paused)
    runs = {run["run"]: run for run in json.loads(call("list", "--json").out)}
    assert (runs["newer"]["state"], runs["newer"]["reason"]) == ("FAILED", "it broke")
    assert runs["paused"]["state"] == "UNKNOWN"


def test_a_record_without_anything_sent_is_being_sent_and_later_was_never_sent(root: Path, call: Call) -> None:
    for backend in ("slurm", "kubernetes"):
        shutil.rmtree(make_run(root, f"old-{backend}", backend) / backend)
        shutil.rmtree(make_run(root, f"new-{backend}", backend, created=time.time()) / backend)
    runs = {run["run"]: run for run in json.loads(call("list", "--json").out)}
    for backend in ("slurm", "kubernetes"):
        assert (runs[f"new-{backend}"]["state"], runs[f"new-{backend}"]["reason"]) == ("PENDING", "being sent")
        assert runs[f"old-{backend}"]["state"] == "FAILED"
        assert "never sent" in runs[f"old-{backend}"]["reason"]


def test_latest_looks_past_odd_runs(root: Path) -> None:
    from launcher.runs import _latest_finished

    succeeded = STATE | {"state": "SUCCEEDED"}
    make_run(root, "done", own=succeeded, there="/there/done")
    make_run(root, "odd-state", own=[1], created=1_800_000_000.0)
    make_run(root, "odd-record", created=None)
    make_run(root, "odd-kind", own=succeeded, kind=5)
    assert _latest_finished("train") == "/there/done"


@pytest.fixture
def as_somebody(root: Path, call: Call) -> Iterator[Callable[[], None]]:
    """Go on as a user without rights, once everything is imported."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")

    def become() -> None:
        call("list")
        call("status", "good")
        os.seteuid(65534)

    yield become
    os.seteuid(0)


def test_what_may_not_be_read_is_unknown(root: Path, call: Call, as_somebody: Callable[[], None]) -> None:
    make_good(root)
    for number, file in enumerate(FILES):
        path = make_run(root, f"closed-{number}") / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        path.chmod(0)
    make_run(root, "somebody-elses").chmod(0o700)
    (root / "lost+found").mkdir(mode=0o700)
    as_somebody()
    runs = require_good(call)
    assert "lost+found" not in runs
    for name in ("somebody-elses", "closed-0", "closed-1"):
        assert runs[name]["state"] == "UNKNOWN"
        assert "Permission denied" in runs[name]["reason"]
        assert call("status", name).code == 0
        assert call("logs", name).code == 0


def test_a_root_that_may_not_be_read_is_told(root: Path, call: Call, as_somebody: Callable[[], None]) -> None:
    make_good(root)
    as_somebody()
    os.seteuid(0)
    root.chmod(0)
    os.seteuid(65534)
    listed = call("list")
    assert listed.code == 0
    assert f"The runs in {root} are left out" in listed.err


@pytest.mark.parametrize("backend", ["slurm", "kubernetes"])
def test_an_end_that_cannot_be_written_down_is_shown(
    root: Path, call: Call, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the end is seen for the first time."""
    from launcher import run_folder
    from launcher.backends.base import BackendState
    from launcher.backends.kubernetes import backend as on_kubernetes
    from launcher.backends.kubernetes.files import load_sent
    from launcher.backends.slurm import backend as on_slurm
    from launcher.backends.slurm.files import load_jobs

    folder = run_folder.RunFolder(make_run(root, "ended", backend))

    def no_room(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "write_aside", no_room)
    state = BackendState("FAILED", "seen")
    if backend == "slurm":
        jobs = load_jobs(folder)
        on_slurm._remember(folder, jobs, state)
        assert jobs.end == state
    else:
        assert on_kubernetes._remembered(folder, load_sent(folder), state) == state


def test_looking_writes_nothing(root: Path, call: Call, as_somebody: Callable[[], None]) -> None:
    """A folder that may only be read, as on a full or broken disk."""
    make_good(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    as_somebody()
    require_good(call)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
