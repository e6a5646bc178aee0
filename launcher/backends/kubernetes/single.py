"""A shard, a task or a merge inside its pod: one process, its word in the run's folder, its exit code the pod's."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from launcher.backends.base import FAILED, REQUEUED, RUNNING, SUCCEEDED
from launcher.ending import judge
from launcher.exits import write_exit
from launcher.failure import first_failure
from launcher.node_process import NodePart, shell_code
from launcher.plan import Step
from launcher.run_folder import RunFolder, append_line
from launcher.step_word import Word, last_word, write_word

_POLL_S = 0.2


@dataclass
class Single:
    """The pod's one process."""

    folder: RunFolder
    run_id: str
    step: Step
    number: int
    code: Path | None = None
    asked: bool = False
    """The pod was told to end."""
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def run(self) -> int:
        """Run it to its end; return the pod's exit code."""
        for name in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(name, self._leave)
        part = NodePart(self.folder, self.run_id, self.step, self.step.attempt, self.number, self.code)
        word = self._begin()
        self.child = part.start({})
        if self.asked:
            self.child.send_signal(signal.SIGTERM)
        while self.child.poll() is None:
            time.sleep(_POLL_S)
        part.end_orphans(self.child.returncode)
        code = shell_code(self.child.returncode)
        write_exit(part.stage, self.step, part.attempt, self.number, code)
        self._end(word, part.stage, code)
        return code

    @property
    def _member(self) -> int | None:
        return self.number if self.step.kind == "array" else None

    def _begin(self) -> Word:
        before = last_word(self.folder, self.step.name, self._member)
        word = Word(job_id=socket.gethostname(), state=RUNNING, attempt=self.step.attempt, started=time.time())
        if before.attempt == word.attempt and before.state in (RUNNING, REQUEUED, FAILED):
            word.fruitless, word.started = before.fruitless + 1, before.started
        write_word(self.folder, self.step.name, self._member, word)
        event = {"time": time.time(), "event": "run.attempt", "step": self.step.name, "number": word.attempt}
        append_line(self.folder.events, event if self._member is None else {**event, "shard": self.number})
        return word

    def _end(self, word: Word, stage: RunFolder, code: int) -> None:
        ending = judge(self.step, [(self.number, code)])
        word.state, word.reason, word.ended = SUCCEEDED, "", time.time()
        if ending.kind != "done" and self.asked:
            word.state, word.reason = REQUEUED, "its pod was to end (evicted, drained or deleted)"
        elif ending.kind != "done":
            failure = first_failure(stage, word.attempt) if self._member is None else None
            word.state, word.reason = FAILED, failure.summary if failure else ending.reason
        write_word(self.folder, self.step.name, self._member, word)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
