"""The copy of a run's folder that is made of what real pods print: through restarts, deletions and a lost server."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher import logs
from launcher.backends.kubernetes.bases import CONTAINERS
from launcher.backends.kubernetes.client import Client
from launcher.backends.kubernetes.labels import RUN_LABEL
from launcher.backends.kubernetes.mirror import split_log
from launcher.backends.kubernetes.sync import Syncer, sync
from launcher.backends.kubernetes.told import Line, hear
from launcher.errors import NotAnswering
from launcher.run_folder import RunFolder
from tests.kubernetes.bed import Bed, Cluster
from tests.kubernetes.image import REPOSITORY, give, pod_template
from tests.slurm.bed import until

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT_S = 90.0
ROTATED = 10 * 1024 * 1024
"""Bytes of a container's log after which a node begins another, by default."""
LOOKS_EVERY_S = 10.0
"""And so often it looks."""
START = 4 * 1024 * 1024
"""Bytes at the start of a log in which a pod tells each of its files: more than a turn's worth of the largest."""
# One node of a gang: each start is an attempt, of so many seconds (once some bytes are written as fast as it goes); it
# ends with a code, or when it is told to.
NODE = """
import os, random, signal, sys, time
from pathlib import Path
from launcher.backends.kubernetes.telling import telling
from launcher.plan import Step
from launcher.run_folder import RunFolder, append_line, write_json

run, node, seconds, code = RunFolder(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
step = Step("train", "", "gang", 2, 1, 0, 1, 2, None, ("python",), {}, 3, 30)
attempt = max([-1, *(n for n in run.attempt_numbers() if run.node_log(n, node).exists())]) + 1
dice, told = random.Random(attempt), []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print("the wrapper says", attempt, flush=True)
with telling(run, step, node):
    run.attempt(attempt).mkdir(parents=True, exist_ok=True)
    log, rank, number = run.node_log(attempt, node).open("ab", 0), run.rank_log(attempt, node).open("ab", 0), 0
    end = time.monotonic() + seconds
    while (time.monotonic() < end or rank.tell() < SOME) and not told:
        number += 1
        log.write(b"%d node\\n" % number)
        piece = dice.choice((b"x", b"\\r50%\\r100%", b"\\xff\\x00", b"y" * 9000))
        rank.write(b"%d " % number + piece + dice.choice((b"\\n", b"")))
        if node == 0:
            append_line(run.metrics, {"step": number})
        if number % 50 == 0:
            write_json(run.attempt(attempt) / f"exits/node{node:04d}.json", {"code": number})
        if rank.tell() < SOME:
            rank.write((b"z" * 99 + b"\\n") * 200)
            end = time.monotonic() + seconds
        time.sleep(0.01)
    log.write(b"the end, without a line's end")
    write_json(run.attempt(attempt) / f"exits/node{node:04d}.json", {"code": 0})
sys.exit(0 if attempt else code)
"""


@pytest.fixture
def there(own_place: Path) -> RunFolder:
    """The run's folder that the pods write to."""
    folder = own_place / "there" / "run"
    folder.mkdir(parents=True)
    give(folder)
    return RunFolder(folder)


@pytest.fixture
def here(own_place: Path) -> RunFolder:
    """The submitter's."""
    folder = own_place / "here" / "run"
    folder.mkdir(parents=True)
    return RunFolder(folder)


def pod(
    there: RunFolder, node: int, seconds: float, code: int = 0, policy: str = "Never", some: int = 0
) -> dict[str, Any]:
    """A pod of the run."""
    program = NODE.replace("SOME", str(some))
    command = (sys.executable, "-c", program, str(there.root), str(node), str(seconds), str(code))
    template = pod_template(command, there.root, env=[{"name": "PYTHONPATH", "value": str(REPOSITORY)}])
    meta = {"name": f"run-{node}", "labels": {RUN_LABEL: "run"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {**template["spec"], "restartPolicy": policy}}


def files(folder: RunFolder) -> dict[str, bytes]:
    """What a folder holds of the run's own files; small ones by what they say."""
    paths = [path for path in folder.root.rglob("*") if path.is_file() and "pods" not in path.parts]
    return {path.relative_to(folder.root).as_posix(): content(path) for path in paths}


def content(path: Path) -> bytes:
    return json.dumps(json.loads(path.read_bytes())).encode() if path.suffix == ".json" else path.read_bytes()


def lost(here: RunFolder, there: RunFolder) -> dict[str, str]:
    """Files of which the copy is another than the original, with how."""
    copy = files(here)
    return {
        name: f"{len(copy.get(name, b''))} of {len(data)} bytes, {_agree(copy.get(name, b''), data)} the same"
        for name, data in files(there).items()
        if copy.get(name) != data
    }


def _agree(one: bytes, other: bytes) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Beside(ABC):
    """Does something again and again beside the test, and a last time at its end."""

    def __init__(self, pause_s: float = 1.0) -> None:
        self._pause_s = pause_s
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    @abstractmethod
    def turn(self) -> None:
        """Do it once."""

    def last_turn(self) -> None:
        """Do it at the end."""
        self.turn()

    def _work(self) -> None:
        while not self._over.is_set():
            self.turn()
            self._over.wait(self._pause_s)
        self.last_turn()

    def __enter__(self) -> Self:
        self._working = self._pool.submit(self._work)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._working.result()


class Follower(Beside):
    """Brings the copy up to date, as following the logs does."""

    def __init__(self, namespace: str, here: RunFolder, listen: bool = True, pause_s: float = 1.0) -> None:
        super().__init__(pause_s)
        self.silent = 0
        self._syncer = Syncer(Client({"namespace": namespace}), here, listen=listen)

    def turn(self) -> None:
        try:
            self.last_turn()
        except NotAnswering:
            self.silent += 1

    def last_turn(self) -> None:
        self._syncer.sync()


@dataclass(frozen=True)
class Stage:
    """A cluster, and the test's namespace in it."""

    cluster: Cluster
    namespace: str

    def phase(self, name: str) -> str:
        """A pod's phase; empty when there is no such pod."""
        pods = self.cluster.get("pods", namespace=self.namespace)["items"]
        return next((pod["status"].get("phase", "") for pod in pods if pod["metadata"]["name"] == name), "")

    def await_phase(self, name: str, phase: str) -> None:
        until(lambda: self.phase(name) == phase, LIMIT_S, lambda: f"{name}: {self.phase(name)}")

    def start(self, *pods: dict[str, Any]) -> None:
        self.cluster.create(self.namespace, *pods)
        for pod in pods:
            self.await_phase(pod["metadata"]["name"], "Running")

    def delete(self, name: str, *how: str) -> None:
        self.cluster.kubectl("delete", "pod", name, f"--namespace={self.namespace}", "--wait=false", *how)


@pytest.fixture
def stage(cluster: Cluster, namespace: str) -> Stage:
    return Stage(cluster, namespace)


def sync_once(namespace: str, folder: RunFolder) -> list[str]:
    folder.root.mkdir(parents=True, exist_ok=True)
    return sync(Client({"namespace": namespace}), folder)


def gaps(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder.root / "pods/mirror.json").read_text())["gaps"]
    return found


def test_following_loses_and_doubles_nothing(
    own_bed: Bed, stage: Stage, there: RunFolder, here: RunFolder, own_place: Path
) -> None:
    """From before the pods start, through a container's restart, a deleted pod and a restart of the API server."""
    with Follower(stage.namespace, here) as follower, Follower(stage.namespace, here, listen=False, pause_s=0.4):
        time.sleep(1)
        stage.start(pod(there, 0, seconds=5, code=3, policy="OnFailure"), pod(there, 1, seconds=600))
        stage.await_phase("run-0", "Succeeded")
        own_bed.stop_api()
        time.sleep(3)
        own_bed.start_api()
        time.sleep(1)
        stage.delete("run-1")
        stage.await_phase("run-1", "")
        stage.start(pod(there, 1, seconds=3))
        stage.await_phase("run-1", "Succeeded")
    assert follower.silent and not lost(here, there) and not gaps(here)
    said = [(here.root / f"pods/run-{n}.log").read_text().split(" ", 1)[1] for n in (0, 1)]
    assert re.findall(r"says (\d)", "".join(said)) == ["0", "1", "0", "1"]
    assert len(list(there.root.glob("attempts/*/node*.log"))) == 4
    # What the pods that are still there told can be had at any time.
    late = RunFolder(own_place / "late" / "run")
    assert sync_once(stage.namespace, late) == []
    assert {name: data for name, data in files(there).items() if name.endswith("node0.log")}.items() <= files(
        late
    ).items()


def test_nothing_new_costs_one_question(
    stage: Stage, there: RunFolder, here: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start(pod(there, 0, seconds=2))
    stage.await_phase("run-0", "Succeeded")
    for _ in range(2):
        assert sync_once(stage.namespace, here) == []
    assert not lost(here, there)
    asked: list[str] = []
    client = Client({"namespace": stage.namespace})
    call = client._connection.call
    monkeypatch.setattr(client._connection, "call", lambda *what: asked.append(what[1]) or call(*what))
    assert Syncer(client, here).sync() == []
    assert asked == [f"/api/v1/namespaces/{stage.namespace}/pods"]


def test_deleted_pods_say_their_last_words(stage: Stage, there: RunFolder, here: RunFolder) -> None:
    dice = random.Random(5)
    with Follower(stage.namespace, here):
        stage.start(*(pod(there, node, seconds=600) for node in range(4)))
        time.sleep(3)
        for node in range(4):
            time.sleep(dice.random())
            stage.delete(f"run-{node}", *(["--force", "--grace-period=0"] if node % 2 else []))
        for node in range(4):
            stage.await_phase(f"run-{node}", "")
        time.sleep(6)  # what is deleted by force ends after it is gone
    assert not lost(here, there) and not gaps(here)


class Starts(Beside):
    """Asks where in the run's files the log begins that the node now has of a pod."""

    def __init__(self, namespace: str, pod: str) -> None:
        super().__init__()
        self.by_path: dict[str, set[int]] = {}
        self._client = Client({"namespace": namespace})
        self._pod = pod

    def turn(self) -> None:
        data = b""
        for chunk in self._client.follow_log(self._pod, CONTAINERS["PyTorchJob"]):
            data += chunk
            if len(data) >= START:
                break
        first: dict[str, int] = {}
        for told in (hear(raw) for _, raw in split_log(data, over=False)):
            if isinstance(told, Line):
                first.setdefault(told.path, told.offset)
        for path, offset in first.items():
            self.by_path.setdefault(path, set()).add(offset)


def test_a_node_that_rotates_a_log_loses_no_follower_a_line(
    stage: Stage, there: RunFolder, here: RunFolder, own_place: Path
) -> None:
    with Follower(stage.namespace, here):
        # Long enough for the node to look at the log once more, so that the last one holds something.
        stage.start(pod(there, 0, seconds=LOOKS_EVERY_S + 2, some=2 * ROTATED))
        with Starts(stage.namespace, "run-0") as starts:
            stage.await_phase("run-0", "Succeeded")
    assert there.rank_log(0, 0).stat().st_size > 2 * ROTATED
    # A node ends a follower's reading of the old log when it begins a new one; what a busy runtime still writes to the
    # old is lost to all who follow. No line else may be missing, and that has to be said.
    missing = gaps(here)
    assert set(lost(here, there)) == set(missing)
    for path, some in missing.items():
        whole, copy = (bytearray((folder.root / path).read_bytes()) for folder in (there, here))
        for start, end in some:
            before = [place for place in starts.by_path[path] if place < end]
            assert end in starts.by_path[path] and start > max(before, default=0), (start, end, starts.by_path[path])
            whole[start:end] = copy[start:end]
        assert whole == copy
    late = RunFolder(own_place / "late" / "run")
    assert sync_once(stage.namespace, late) == []
    whole, copy = there.rank_log(0, 0).read_bytes(), late.rank_log(0, 0).read_bytes()
    ((_, end),) = gaps(late)["attempts/0/rank0000.log"]
    assert 0 < end < len(whole) == len(copy) and copy[end:] == whole[end:]
    assert f"[{end} bytes are not here: the cluster dropped them]" in "".join(logs.read(late.root, logs.Selection()))


def test_a_silent_node_holds_up_nothing(own_bed: Bed, stage: Stage, there: RunFolder, here: RunFolder) -> None:
    stage.start(pod(there, 0, seconds=8))
    client = Client({"namespace": stage.namespace})
    until(lambda: sync(client, here) == [] and here.metrics.exists(), LIMIT_S, lambda: "nothing told")
    own_bed.stop_daemon("kubelet")
    words: list[str] = []
    until(lambda: bool(words) or words.extend(sync(client, here)) is not None, LIMIT_S, lambda: "no words")
    assert re.match(r"the log of pod 'run-0' cannot be read: ", words[0]), words
    own_bed.mend()
    stage.await_phase("run-0", "Succeeded")
    assert sync(client, here) == []
    assert not lost(here, there) and not gaps(here)
