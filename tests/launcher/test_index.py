"""The index of ended runs saves reading, and never shows anything that is not so."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import index, listing
from tests.launcher.odd_folders import METRICS, OWN_FILE, STATE, Call, call, make_run, root

__all__ = ["call", "root"]

OLD = time.time() - 3600


@pytest.fixture(autouse=True)
def own_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a user of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    return root.parent / "cache" / "llavajob"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs whose files were read."""
    found: list[str] = []
    real = listing.run_at

    def run_at(folder: Path) -> Any:
        found.append(folder.name)
        return real(folder)

    monkeypatch.setattr(listing, "run_at", run_at)
    return found


def age(folder: Path, moment: float = OLD) -> None:
    """Make files look as if they had been written a while ago."""
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment))


def make_three(root: Path) -> None:
    for backend in OWN_FILE:
        age(make_run(root, f"run-{backend}", backend))


def listed(call: Call) -> dict[str, Any]:
    done = call("list", "--json")
    assert done.code == 0, done.err
    return {run["run"]: run for run in json.loads(done.out)}


def test_ended_runs_are_read_once(root: Path, call: Call, reads: list[str], own_cache: Path) -> None:
    make_three(root)
    first, table = listed(call), call("list").out
    assert len(reads) == 3
    assert first["run-local"]["failure"]["message"] == "oh"
    assert first["run-local"]["stages"][0]["name"] == "train"
    assert listed(call) == first
    assert call("list").out == table
    assert len(reads) == 3
    (place,) = own_cache.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    place.unlink()
    assert listed(call) == first
    assert len(reads) == 6


@pytest.mark.parametrize(
    ("file", "content", "key", "expected"),
    [
        ("run.json", {"recipe": "other", "backend": "local", "created": 1.0}, "recipe", "other"),
        ("state.json", STATE | {"reason": "it fell"}, "reason", "it fell"),
        ("state.json", STATE | {"reason": "it brokE"}, "reason", "it brokE"),  # as long as before
        ("metrics.jsonl", METRICS | {"step": 4}, "step", 4),
        ("run.json", [], "state", "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("same_time", [False, True])
def test_a_changed_file_is_read_again(
    root: Path, call: Call, file: str, content: Any, key: str, expected: Any, same_time: bool
) -> None:
    make_three(root)
    before = listed(call)
    aside = root / "run-local" / "aside"
    aside.write_text(json.dumps(content) + "\n")
    os.utime(aside, (OLD, OLD) if same_time else None)
    aside.rename(root / "run-local" / file)
    after = listed(call)
    assert after.pop("run-local")[key] == expected
    assert after.items() <= before.items()


def test_only_an_end_that_is_written_down_is_remembered(root: Path, call: Call, reads: list[str]) -> None:
    """A run whose supervisor is not seen counts as failed, and may be seen again."""
    age(make_run(root, "lost", own=STATE | {"state": "RUNNING"}))
    assert listed(call)["lost"]["state"] in ("FAILED", "UNKNOWN")
    listed(call)
    assert reads == ["lost", "lost"]


def test_what_was_written_just_now_is_not_remembered_yet(root: Path, call: Call, reads: list[str]) -> None:
    make_run(root, "fresh")
    listed(call)
    listed(call)
    assert reads == ["fresh", "fresh"]


def test_runs_come_and_go(root: Path, call: Call, own_cache: Path) -> None:
    make_three(root)
    listed(call)
    shutil.rmtree(root / "run-slurm")
    age(make_run(root, "new"))
    assert listed(call).keys() == {"run-local", "run-kubernetes", "new"}
    (place,) = own_cache.iterdir()
    assert "run-slurm" not in place.read_text()
    shutil.rmtree(root)
    assert listed(call) == {}


def _damage(place: Path, data: bytes) -> None:
    place.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda place: _damage(place, b""),
    "nonsense": lambda place: _damage(place, os.urandom(4096)),
    "torn": lambda place: _damage(place, place.read_bytes()[:-100]),
    "changed": lambda place: _damage(place, place.read_bytes().replace(b"it broke", b"it lied!")),
    "list": lambda place: _damage(place, b"[]\n[]"),
    "deep": lambda place: _damage(place, b"[" * 100_000),
    "folder": lambda place: (place.unlink(), place.mkdir()),
    "fifo": lambda place: (place.unlink(), os.mkfifo(place)),
    "zeros": lambda place: (place.unlink(), place.symlink_to("/dev/zero")),
    "loop": lambda place: (place.unlink(), place.symlink_to(place.name)),
    "no cache": lambda place: (shutil.rmtree(place.parent.parent), place.parent.parent.write_text("")),
    "full": lambda place: (shutil.rmtree(place.parent.parent), place.parent.parent.symlink_to("/dev/full")),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_index_is_none(root: Path, call: Call, own_cache: Path, kind: str) -> None:
    make_three(root)
    before = listed(call)
    (place,) = own_cache.iterdir()
    DAMAGES[kind](place)
    assert listed(call) == before
    assert listed(call) == before


def test_an_index_of_somebody_else_or_another_version_is_none(
    root: Path, call: Call, own_cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_three(root)
    before = listed(call)
    monkeypatch.setattr(index, "_SHAPE", [0])
    assert listed(call) == before
    assert len(reads) == 6
    if os.geteuid() == 0:
        (place,) = own_cache.iterdir()
        os.chown(place, 65534, 65534)
        assert listed(call) == before
        assert len(reads) == 9


def test_many_writers_at_once_leave_a_whole_index(root: Path, call: Call, reads: list[str]) -> None:
    make_three(root)
    script = (
        "from pathlib import Path; from launcher.listing import list_all; import sys; list_all([Path(sys.argv[1])])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(root)]) for _ in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(listed(call)) == 3
    assert reads == []


def test_a_prefix_reads_only_what_begins_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher import store
    from launcher.errors import RunNotFound

    for number in range(20):
        moment = OLD + 100 * number
        age(make_run(root, f"run-{number:02d}", created=moment), moment)
    read: list[str] = []
    real = store.read_object
    monkeypatch.setattr(store, "read_object", lambda path: (read.append(path.parent.name), real(path))[1])
    assert store.find_run([root], "run-07").name == "run-07"
    assert read == ["run-07"]
    read.clear()
    with pytest.raises(RunNotFound, match=r"'run-0' fits 10 runs: run-02, .*run-09$"):
        store.find_run([root], "run-0")
    assert len([name for name in read if name != "run-0"]) == 10
    read.clear()
    assert store.find_run([root], None).name == "run-19"
    assert read == ["run-19", "run-18", "run-17", "run-16", "run-15"]
    with pytest.raises(RunNotFound, match="no run named 'other'") as told:
        store.find_run([root], "other")
    assert told.value.hint.startswith("Latest runs: run-19, run-18, run-17, run-16, run-15.")
