"""How the nodes of a gang notice that one of them is silent: each renews a file of its own in the attempt's folder.

Slurm itself waits for SlurmdTimeout, five minutes where nobody changed it. Times of different machines are never
compared: a node is silent when its file has not changed for so long by this node's own clock.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from launcher.plan import Step
from launcher.run_folder import RunFolder, read_json, write_json

BEAT_S = 3.0
SILENCE_S = 30.0
"""A node that has not been heard for so long counts as lost."""


class Heartbeat:
    """One node's own sign of life, and what it has seen of the others'."""

    def __init__(self, stage: RunFolder, step: Step, attempt: int, number: int) -> None:
        self._folder = stage.attempt(attempt) / "beats"
        self._number = number
        self._nodes = step.nodes if step.kind == "gang" else 1
        self._looked = float("-inf")
        self._seen: dict[int, tuple[int, float]] = {}
        """Each other node's last beat, and when it was new here."""
        self._names: dict[int, str] = {}

    def start(self) -> None:
        """Give signs of life from here on, until this process ends."""
        if self._nodes > 1:
            threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def look(self, ended: set[int]) -> str:
        """Return which nodes are silent, in words, or nothing.

        Args:
            ended: nodes that have said how they ended.
        """
        now = time.monotonic()
        if self._nodes == 1 or now < self._looked + BEAT_S:
            return ""
        held_up = now > self._looked + 3 * BEAT_S
        self._looked = now
        stale = [number for number in range(self._nodes) if number not in ended and self._is_silent(number, held_up)]
        # On a full or dead file system this node's own beats stand still as well: that tells nothing of the others.
        return "" if self._number in stale else self._in_words(stale)

    def _beat(self) -> None:
        name, beat = os.environ.get("SLURMD_NODENAME") or socket.gethostname(), 0
        while True:
            beat += 1
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(self._file(self._number), {"beat": beat, "node": name})
            time.sleep(BEAT_S)

    def _is_silent(self, number: int, held_up: bool) -> bool:
        """Whether a node has been silent for too long; when this node was held up itself, the time begins anew."""
        record = read_json(self._file(number))
        if record is None:
            return False
        beat, now = int(record.get("beat", 0)), time.monotonic()
        self._names[number] = str(record.get("node", ""))
        if held_up or number not in self._seen or self._seen[number][0] != beat:
            self._seen[number] = (beat, now)
        return now > self._seen[number][1] + SILENCE_S

    def _file(self, number: int) -> Path:
        return self._folder / f"node{number:04d}.json"

    def _in_words(self, silent: list[int]) -> str:
        if not silent:
            return ""
        who = ", ".join(f"{number} ({self._names[number]})" for number in silent)
        nodes = "node" if len(silent) == 1 else "nodes"
        return f"{nodes} {who} was lost: not heard for {SILENCE_S:.0f} s (did its machine lose power or network?)"
