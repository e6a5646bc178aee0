"""Fetching what the pods of a run have printed since the last time, many pods at once, slow ones without the others.

pods/seen.json   up to when each container's log has been read, by the container's id
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.bases import CONTAINERS
from launcher.backends.kubernetes.client import Client, Object
from launcher.backends.kubernetes.mirror import Mirror
from launcher.backends.kubernetes.ownership import owner_in
from launcher.backends.kubernetes.stream import Stream
from launcher.errors import BackendError
from launcher.run_folder import RunFolder, read_json, write_json

READERS = 8
MOST_STREAMS = 128
"""So many logs are listened to, with a thread and a connection each; more are looked at again and again."""
_GONE_S = 2.0
"""So long one sync waits for the last words of pods that are gone; nodes notice an ended container once a second."""
PATIENCE_S = 10.0
"""So long one sync waits for the slowest log; what comes later the next one takes in."""
_LAST_READS = 2
"""An ended container's log is read once more, should the node still have been writing it."""


@dataclass(frozen=True)
class Source:
    """One container's log."""

    pod: str
    container: str
    id: str
    """The runtime's name of the container: a restarted one has another."""
    previous: bool
    """Whether it was restarted since."""
    over: bool
    """Whether it has ended."""


@dataclass
class _Reading:
    """One look at a log, by one of the readers."""

    source: Source
    since: str | None
    done: threading.Event = field(default_factory=threading.Event)
    data: bytes | None = None
    error: Exception | None = None


class Syncer:
    """Brings the copy of a run up to date, again and again.

    From the second time on it listens to the logs of running containers in between: what a pod prints just before it
    is deleted, or its node drops its log, is lost otherwise.

    Args:
        client: the run's cluster and namespace.
        folder: the run's folder here.
        apart: whether the pods' folder is another; see ``Mirror``.
        listen: whether to do so; else logs are only looked at.
    """

    def __init__(self, client: Client, folder: RunFolder, apart: bool = True, listen: bool = True) -> None:
        self._client = client
        self._folder = folder
        self._listen = listen
        self._first = True
        self._mirror = Mirror(folder, apart)
        self._place = folder.root / "pods" / "seen.json"
        self._streams: dict[str, Stream] = {}
        self._lacking: set[str] = set()
        """Logs of which what was heard did not follow what is here: they are read whole."""
        self._readings: dict[str, _Reading] = {}
        self._waiting: deque[_Reading] = deque()
        self._readers = 0
        self._lock = threading.Lock()
        self._one = threading.Lock()

    def sync(self, patience_s: float = PATIENCE_S) -> list[str]:
        """Fetch and keep what is new; return in words which logs cannot be read.

        What containers that have ended printed is here afterwards, unless the words say otherwise.

        Args:
            patience_s: how long to wait for logs that come slowly.

        Raises:
            NotAnswering: the server is silent.
            BackendError: it refuses to list the pods.
            OSError: the copy cannot be written.
        """
        with self._one:
            seen: dict[str, Any] = read_json(self._place) or {}
            found = dict(seen)
            words = list(self._sync(found, patience_s))
            if found != seen:
                with self._mirror.alone():
                    write_json(self._place, found)
            self._first = False
        return words

    def _sync(self, seen: dict[str, Any], patience_s: float) -> Iterator[str]:
        owner = owner_in(self._folder)
        # Another run may have had the name before, or have it now.
        pods = [pod for pod in self._client.list("Pod", selector=owner.selector) if owner.owns(pod)]
        # In the order in which they were made: what several of them told, the first told first.
        pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
        sources = [source for pod in pods for source in sources_of(pod)]
        yield from self._take_streams(sources, seen)
        slow, fresh = list(self._readings), list[str]()
        for source in sources:
            if _is_open(source, seen) and source.id not in self._streams and source.id not in self._readings:
                fresh += self._begin(source, seen.get(source.id, {}).get("until"))
        deadline = time.monotonic() + patience_s
        for keys, until in ((slow, 0.0), (fresh, deadline)):
            for key in keys:
                yield from self._finish(key, until, seen)

    def _take_streams(self, sources: Sequence[Source], seen: dict[str, Any]) -> Iterator[str]:
        """Take in what was heard; yield what is wrong."""
        there = {source.id: source for source in sources}
        deadline = time.monotonic() + _GONE_S
        for key, stream in list(self._streams.items()):
            if key not in there:  # its pod is gone, and its last words are on their way
                stream.wait(max(0.0, deadline - time.monotonic()))
            data, ended = stream.take()
            # What follows something that is not here is left to a look at the whole log, as is an ended one's rest.
            lacks, over = self._mirror.lacks(data), key in there and there[key].over
            if lacks:
                self._lacking.add(key)
                seen.pop(key, None)
            elif data:
                until = self._mirror.take(data, stream.pod, over=ended and stream.error is None)
                seen[key] = {"last_reads": 0, **seen.get(key, {}), **({"until": until} if until else {})}
            if ended or lacks or over:
                stream.close()
                del self._streams[key]
            if ended and not over and stream.error is not None:
                yield _words(stream.pod, stream.error)

    def _begin(self, source: Source, until: str | None) -> list[str]:
        """Begin to listen to a log, or to read it; return what is to be waited for."""
        # The node counts seconds, and may give the log of a container that began since we looked for the one before.
        since = f"{until[:19]}Z" if until and not source.previous else None
        lacking = source.id in self._lacking
        self._lacking.discard(source.id)
        if self._listen and not (self._first or lacking or source.over) and len(self._streams) < MOST_STREAMS:
            chunks = self._client.follow_log(source.pod, source.container, since)
            self._streams[source.id] = Stream(source.pod, chunks)
            return []
        self._read(source, since)
        return [source.id]

    def _read(self, source: Source, since: str | None) -> None:
        reading = self._readings[source.id] = _Reading(source, since)
        with self._lock:
            self._waiting.append(reading)
            if self._readers < READERS:
                self._readers += 1
                threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._readers -= 1
                    return
                reading = self._waiting.popleft()
            try:
                reading.data = self._fetch(reading)
            except Exception as error:  # raised where it is waited for
                reading.error = error
            reading.done.set()

    def _fetch(self, reading: _Reading) -> bytes | None:
        data = self._log(reading.source, reading.since)
        if reading.since and data and self._mirror.lacks(data):
            return self._log(reading.source, None)  # the node's clock went back, or the copy was begun anew
        return data

    def _log(self, source: Source, since: str | None) -> bytes | None:
        return self._client.pod_log(source.pod, source.container, since, source.previous, timestamps=True)

    def _finish(self, key: str, deadline: float, seen: dict[str, Any]) -> Iterator[str]:
        """Take in what a reading brought, once it is there; yield what is wrong."""
        reading = self._readings[key]
        pod = reading.source.pod
        if not reading.done.wait(max(0.0, deadline - time.monotonic())):
            yield f"the log of pod '{pod}' is slow to come"
            return
        del self._readings[key]
        if reading.error is not None:
            yield _words(pod, reading.error)
        if reading.data:
            until = self._mirror.take(reading.data, pod, reading.source.over)
            before = seen.get(key, {})
            last_reads = before.get("last_reads", 0) + reading.source.over
            seen[key] = {"until": until or before.get("until"), "last_reads": last_reads}


def sources_of(pod: Object) -> Iterator[Source]:
    """Yield the logs of a pod's own container, the one before its restart first."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") not in CONTAINERS.values():
            continue
        for which in ("lastState", "state"):
            state = status.get(which) or {}
            ended, runs = state.get("terminated"), "running" in state
            key = (ended or {}).get("containerID") or (status.get("containerID") if runs else None)
            if key:
                yield Source(pod["metadata"]["name"], status["name"], key, which == "lastState", ended is not None)


def _words(pod: str, error: Exception) -> str:
    if not isinstance(error, BackendError):
        raise error
    return f"the log of pod '{pod}' cannot be read: {error.message}"


def _is_open(source: Source, seen: dict[str, Any]) -> bool:
    """Whether a log may hold what was not read yet."""
    return bool(seen.get(source.id, {}).get("last_reads", 0) < _LAST_READS)


_syncers: dict[tuple[Path, str, str, bool], Syncer] = {}


def sync(client: Client, folder: RunFolder, apart: bool = True) -> list[str]:
    """Bring the copy of a run up to date; who does so again and again in one process listens in between.

    Arguments as for ``Syncer``; what it returns and raises as ``Syncer.sync``.
    """
    key = folder.root, client.context, client.namespace, apart
    return _syncers.setdefault(key, Syncer(client, folder, apart)).sync()
