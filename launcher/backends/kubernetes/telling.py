"""What a pod tells in its log: the lines and small files of the run's folder that it answers for, as they are written.

Who cannot see the folder makes a copy of all this from the pods' logs; who reads a pod's log can read it as it is.
Every pod tells its own logs, exit and errors, of attempts that begin while it is there and the end of the last one
before. The first node of a gang, every shard and every task tell what belongs to the whole as well; several then tell
the same, which costs nothing but room.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from launcher.backends.kubernetes.told import LARGEST_WHOLE, LONGEST_PIECE, Line, say_line, say_whole
from launcher.exits import exit_file
from launcher.logs.files import read_at
from launcher.plan import Step
from launcher.run_folder import RunFolder

POLL_S = 0.3
LARGEST_READ = 1024 * 1024
"""Bytes of a file that are read in one turn."""
LATE_BYTES = 256 * 1024
"""So much is told of the end of what was there before this pod: the last words of a pod that it stands in for."""
_SELDOM = 4
"""Turns between two looks for files whose names are not known beforehand."""
_ANY_NODE = 10**9
_OWNED = re.compile(r"(node|rank)([0-9]+)\.(?:log|json)")


class Teller:
    """Tells what is new in a run's folder.

    Args:
        run: the run's folder, as this pod sees it.
        step: what the pod works on; None: on the run as a whole, as the conductor does.
        number: node of a gang, or shard of an array.
        out: where to; None: standard output.
    """

    def __init__(self, run: RunFolder, step: Step | None = None, number: int = 0, out: BinaryIO | None = None) -> None:
        self._run = run
        self._step = step
        self._number = number
        self._voice = _Voice(run.root, sys.stdout.buffer if out is None else out)
        numbers = self._numbers()
        self._newest = self._before = numbers[-1] if numbers else -1
        self._again: deque[tuple[int, int, Collection[int] | None]] = deque()
        self._turn = 0
        self._lock = threading.Lock()
        if step is not None and step.kind == "gang" and self._leads and numbers:
            # Nobody stands in for the nodes that a smaller gang has no more.
            self.tell_again(numbers[-1], LATE_BYTES, range(step.nodes, _ANY_NODE))

    def poll(self) -> bool:
        """Tell what is new; say whether more is there already.

        Raises:
            BrokenPipeError: nobody listens.
        """
        with self._lock:
            return self._poll(everything=False)

    def tell_again(self, attempt: int, most_bytes: int = 65536, nodes: Collection[int] | None = None) -> None:
        """Have the ends of an attempt's logs, and its exits and errors, told at the next turn; never waits.

        A pod's log goes with the pod: what a lost one told last nobody may have read.

        Args:
            attempt: the attempt that a pod was lost in.
            most_bytes: how much of each log.
            nodes: whose; None: everybody's.
        """
        self._again.append((attempt, most_bytes, nodes))

    def close(self) -> None:
        """Tell all that has been written until now, unfinished lines included.

        Raises:
            BrokenPipeError: nobody listens.
        """
        with self._lock:
            while self._poll(everything=True):
                pass
            for path, late, _ in self._growing():
                self._voice.tell_growth(path, late, torn=True)

    @property
    def _stage(self) -> RunFolder:
        return self._run.stage(self._step.stage if self._step else "")

    @property
    def _leads(self) -> bool:
        """Whether what belongs to the whole step is told here."""
        return self._step is None or self._step.kind != "gang" or self._number == 0

    def _poll(self, everything: bool) -> bool:
        seldom = self._turn % _SELDOM == 0 or everything
        self._turn += 1
        self._look_for_attempts(seldom)
        while self._again:
            self._tell_ends(*self._again.popleft())
        more = [self._voice.tell_growth(*growing) for growing in self._growing()]
        for path in [*self._known(), *(self._found() if seldom else ())]:
            self._voice.tell_whole(path, changed=True)
        return any(more)

    def _look_for_attempts(self, thoroughly: bool) -> None:
        # A network file system may list a folder as it was a minute ago; a log of one's own pod it knows at once.
        while _size(self._stage.node_log(self._newest + 1, self._number)) is not None:
            self._newest += 1
        if thoroughly:
            self._newest = max([self._newest, *self._numbers()])

    def _numbers(self) -> list[int]:
        try:
            return self._stage.attempt_numbers()
        except OSError:
            return []

    def _tell_ends(self, attempt: int, most_bytes: int, nodes: Collection[int] | None) -> None:
        folder = self._stage.attempt(attempt)
        for path in _listed(folder, "*.log"):
            if self._is_of(path, nodes):
                self._voice.tell_end(path, most_bytes)
        for path in _listed(folder, "exits/*.json", "errors/*.json"):
            if self._is_of(path, nodes):
                self._voice.tell_whole(path)

    def _attempts(self) -> range:
        """What ended before the last attempt but one grows no more."""
        return range(max(0, self._newest - 1), self._newest + 1)

    def _growing(self) -> Iterator[tuple[Path, bool, bool]]:
        """Growing files, each with whether others told it before this pod came, and whether its end is its end."""
        for attempt in self._attempts():
            late, over = attempt <= self._before, attempt < self._newest
            yield self._stage.node_log(attempt, self._number), late, over
            for rank in self._ranks():
                yield self._stage.rank_log(attempt, rank), late, over
        if self._leads:
            for folder in dict.fromkeys((self._run, self._stage)):
                yield folder.events, True, False
                yield folder.metrics, True, False

    def _known(self) -> Iterator[Path]:
        for attempt in self._attempts():
            yield exit_file(self._stage, attempt, self._number)
            for rank in self._ranks():
                yield self._stage.rank_error(attempt, rank)

    def _found(self) -> Iterator[Path]:
        if self._step is None:
            yield from _listed(self._run.root, "steps/*.json")
        elif self._step.kind == "array":
            yield self._run.root / "steps" / f"{self._step.name}-{self._number}.json"
        elif self._leads:
            yield self._run.root / "steps" / f"{self._step.name}.json"
            yield from _listed(
                self._stage.root, "checkpoints/step-*/COMPLETE", "eval/*/scores.json", "eval/*/report.txt"
            )

    def _ranks(self) -> range:
        return range(self._number * self._each, (self._number + 1) * self._each)

    @property
    def _each(self) -> int:
        """Ranks of a node; a shard is its own rank, a task rank 0."""
        return 0 if self._step is None else self._step.processes_per_node if self._step.kind == "gang" else 1

    def _is_of(self, path: Path, nodes: Collection[int] | None) -> bool:
        """Tell whether a file is a node's or a rank's, and one of these nodes'."""
        match = _OWNED.fullmatch(path.name)
        if match is None or nodes is None:
            return match is not None
        return int(match[2]) // (max(1, self._each) if match[1] == "rank" else 1) in nodes


class _Voice:
    """Says files, and knows how far each has been told."""

    def __init__(self, root: Path, out: BinaryIO) -> None:
        self._root = root
        self._out = out
        self._told: dict[Path, int] = {}
        """Place up to which a growing file has been told."""
        self._sizes: dict[Path, int] = {}
        """Size at which there was no complete line left to tell."""
        self._wholes: dict[Path, tuple[int, int, int]] = {}

    def tell_growth(self, path: Path, late: bool, torn: bool = False) -> bool:
        """Tell what a file has grown by, at most one read's worth; say whether there is more.

        Args:
            path: the file.
            late: whether to tell only the end of what is there at the first look.
            torn: whether to tell a last line that has no end yet.
        """
        size = _size(path)
        if not size:  # what begins under our eyes is told from its start
            self._told.setdefault(path, 0)
        if size is None:
            return False
        if size == 0 and path not in self._sizes:
            self._say(say_line(Line(self._name(path), 0, b"")))  # a log that is there says that its node began
            self._sizes[path] = 0
        start = self._told.get(path)
        if size == (start if torn else self._sizes.get(path)):
            return False
        if start is None:
            start = _tail_start(path, size, LATE_BYTES) if late else 0
        read, told = self._tell(path, start, size, torn)
        self._told[path] = told
        if read == size:
            self._sizes[path] = size
        return start < read < size

    def tell_end(self, path: Path, most_bytes: int) -> None:
        """Tell the last lines of a file."""
        size = _size(path) or 0
        start = _tail_start(path, size, most_bytes)
        while start < size:
            _, told = self._tell(path, start, size, torn=True)
            if told == start:
                return
            start = told

    def tell_whole(self, path: Path, changed: bool = False) -> None:
        """Tell a small file; with ``changed``, only when it is another than was told."""
        try:
            status = path.stat()
            now = status.st_ino, status.st_size, status.st_mtime_ns
            if changed and self._wholes.get(path) == now:
                return
            said = say_whole(self._name(path), status.st_mtime_ns, read_at(path, 0, LARGEST_WHOLE + 1))
        except OSError:
            return
        if said is not None:
            self._say(said)
        self._wholes[path] = now

    def _tell(self, path: Path, start: int, size: int, torn: bool) -> tuple[int, int]:
        """Tell a stretch of a file; return the places up to which it was read and told."""
        try:
            data = read_at(path, start, min(size - start, LARGEST_READ)) if size > start else b""
        except OSError:
            return start, start
        read = max(start, start + len(data))
        lines = list(split_lines(self._name(path), start, data, torn and read >= size))
        if lines:
            self._say(b"".join(map(say_line, lines)))
        return read, lines[-1].offset + len(lines[-1].data) if lines else start

    def _say(self, said: bytes) -> None:
        self._out.write(said)
        self._out.flush()

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def split_lines(name: str, start: int, data: bytes, torn: bool) -> Iterator[Line]:
    """Yield the complete lines of a stretch of a file, long ones in pieces; with ``torn`` also what is left."""
    at = 0
    while at < len(data):
        end = data.find(b"\n", at, at + LONGEST_PIECE) + 1
        if not end and len(data) - at >= LONGEST_PIECE:
            end = at + LONGEST_PIECE
        if not end and torn:
            end = len(data)
        if not end:
            return
        yield Line(name, start + at, data[at:end])
        at = end


@contextlib.contextmanager
def telling(
    run: RunFolder, step: Step | None = None, number: int = 0, out: BinaryIO | None = None, every_s: float = POLL_S
) -> Iterator[Teller]:
    """Tell beside what else is done, and all that is left in the end; arguments as for ``Teller``."""
    teller, over = Teller(run, step, number, out), threading.Event()

    def tell() -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end what is told about
            while not over.wait(0.0 if teller.poll() else every_s):
                pass

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield teller
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(BrokenPipeError):
            teller.close()


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _tail_start(path: Path, size: int, most_bytes: int) -> int:
    """Where the last lines of a file begin; in the midst of the last one where it is longer than that."""
    place = max(0, size - most_bytes)
    if place == 0:
        return 0
    try:
        return place + max(0, read_at(path, place - 1, most_bytes).find(b"\n"))
    except OSError:
        return place


def _listed(folder: Path, *patterns: str) -> list[Path]:
    try:
        return [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    except OSError:
        return []
