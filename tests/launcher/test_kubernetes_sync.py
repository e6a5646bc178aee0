"""Reading the logs of many pods again and again, where nodes behave as no test bed can be made to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.kubernetes.sync import READERS, Syncer
from launcher.errors import BackendError, NotAnswering
from launcher.run_folder import RunFolder

START = datetime(2026, 11, 23, 20, 0, 0, tzinfo=timezone.utc)


def stamp(second: float) -> str:
    return (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


@dataclass
class Pod:
    """A pod, and the log that its node keeps."""

    name: str
    created: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)
    over: bool = False
    trouble: BackendError | None = None
    answers: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.answers.set()

    def say(self, second: float, text: str) -> None:
        self.lines.append((second, text))

    def log(self, since: str | None) -> bytes:
        self.answers.wait()
        if self.trouble:
            raise self.trouble
        kept = [line for line in self.lines if since is None or stamp(line[0]) >= since[:19]]
        return b"".join(f"{stamp(second)} {text}\n".encode() for second, text in kept)

    def object(self) -> dict[str, Any]:
        state = {"terminated": {"containerID": f"x://{self.name}"}} if self.over else {"running": {}}
        status = {"name": "pytorch", "containerID": f"x://{self.name}", "state": state, "lastState": {}}
        labels = {"llavajob/run": "run"}
        meta = {"name": self.name, "creationTimestamp": stamp(self.created), "labels": labels}
        return {"metadata": meta, "status": {"containerStatuses": [status]}}


class Cluster:
    """Stands in for the client."""

    def __init__(self, *pods: Pod) -> None:
        self.pods = list(pods)
        self.asked: list[tuple[str, str | None]] = []
        self.at_once, self.most_at_once = 0, 0
        self._lock = threading.Lock()

    def list(self, kind: str, selector: str) -> list[dict[str, Any]]:
        assert (kind, selector) == ("Pod", "llavajob/run=run")
        return [pod.object() for pod in reversed(self.pods)]

    def pod_log(self, pod: str, container: str, since: str | None, previous: bool, timestamps: bool) -> bytes:
        assert container == "pytorch" and timestamps and not previous
        with self._lock:
            self.asked.append((pod, since))
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            return next(one for one in self.pods if one.name == pod).log(since)
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def here(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def held() -> Iterator[Pod]:
    """A pod whose node hangs; it answers when the test is over."""
    pod = Pod("held")
    pod.answers.clear()
    yield pod
    pod.answers.set()


def syncer(cluster: Cluster, here: RunFolder) -> Syncer:
    return Syncer(cluster, here, listen=False)  # type: ignore[arg-type]


def test_a_node_that_hangs_holds_up_nobody_else(here: RunFolder, held: Pod) -> None:
    other = Pod("other", created=1, lines=[(1, "events.jsonl@0 {}")])
    held.say(0, "attempts/0/node0.log@0 late")
    cluster = Cluster(held, other)
    one = syncer(cluster, here)
    assert one.sync(patience_s=0.1) == ["the log of pod 'held' is slow to come"]
    assert here.events.read_text() == "{}\n"
    other.say(2, "events.jsonl@3 {}")
    start = time.monotonic()
    assert one.sync(patience_s=60) == ["the log of pod 'held' is slow to come"]
    assert time.monotonic() - start < 10 and here.events.read_text() == "{}\n{}\n"
    assert [name for name, _ in cluster.asked].count("held") == 1
    held.answers.set()
    cluster.pods.remove(held)  # what it said counts although it is gone
    while one.sync():
        pass
    assert here.node_log(0, 0).read_text() == "late\n"


def test_a_clock_that_goes_back_loses_nothing(here: RunFolder) -> None:
    pod = Pod("pod", lines=[(10, "events.jsonl@0 1"), (20, "events.jsonl@2 2")])
    cluster = Cluster(pod)
    one = syncer(cluster, here)
    one.sync()
    pod.say(15, "events.jsonl@4 3")
    one.sync()
    pod.say(21, "events.jsonl@6 4")
    one.sync()
    assert here.events.read_text() == "1\n2\n3\n4\n"
    since = stamp(20)[:19] + "Z"
    assert cluster.asked == [("pod", None), ("pod", since), ("pod", since), ("pod", None)]


def test_older_pods_are_heard_first(here: RunFolder, held: Pod) -> None:
    held.say(0, "metrics.jsonl@0 first")
    newer = Pod("newer", created=1, lines=[(1, "metrics.jsonl@6 second")])
    one = syncer(Cluster(held, newer), here)
    threading.Timer(0.2, held.answers.set).start()
    assert one.sync() == []
    assert here.metrics.read_text() == "first\nsecond\n"


def test_many_pods_are_read_a_few_at_a_time_and_ended_ones_twice(here: RunFolder) -> None:
    pods = [Pod(f"pod-{n}", n, [(n, f"attempts/0/rank{n:04d}.log@0 rank {n}")], over=True) for n in range(50)]
    pods.append(Pod("silent", 99, over=True))
    cluster = Cluster(*pods)
    one = syncer(cluster, here)
    for _ in range(4):
        assert one.sync() == []
    assert [here.rank_log(0, n).read_text() for n in range(50)] == [f"rank {n}\n" for n in range(50)]
    assert cluster.most_at_once <= READERS
    assert [[name for name, _ in cluster.asked].count(name) for name in ("pod-0", "pod-49", "silent")] == [2, 2, 4]


@pytest.mark.parametrize("trouble", [NotAnswering("the node is away"), BackendError("no right to get pods/log")])
def test_a_log_that_cannot_be_read_is_said(here: RunFolder, trouble: BackendError) -> None:
    pod = Pod("pod", lines=[(0, "events.jsonl@0 1")], trouble=trouble)
    other = Pod("other", lines=[(0, "metrics.jsonl@0 1")])
    one = syncer(Cluster(pod, other), here)
    assert one.sync() == [f"the log of pod 'pod' cannot be read: {trouble.message}"]
    assert here.metrics.exists() and not here.events.exists()
    pod.trouble = None
    assert one.sync() == [] and here.events.exists()


def test_what_breaks_is_not_hidden(here: RunFolder) -> None:
    pod = Pod("pod")
    pod.log = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        syncer(Cluster(pod), here).sync()
