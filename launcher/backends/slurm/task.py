"""What submitit starts on each node: the node's agent, a shard, or a task, watched to its end together with its peers.

srun is told to end all tasks as soon as one ends badly. A lost rank must not cost the others the state that they are
saving, so a task that ended badly waits for its peers, though not for long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from launcher.backends.base import RUNNING
from launcher.backends.slurm.files import plan_file
from launcher.backends.slurm.heartbeat import Heartbeat
from launcher.ending import LOST_PEER_GRACE_S
from launcher.exits import exit_codes, write_exit
from launcher.node_process import NodePart, shell_code
from launcher.plan import Step
from launcher.plan_text import load_plan
from launcher.run_folder import ENV_ATTEMPT, EXIT_INTERRUPTED, RunFolder
from launcher.step_word import read_word, write_word

POLL_S = 0.2
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TELL_AGAIN_S = 5.0
"""An agent that had no handler yet when the signal came is told once more after so long."""


def run(folder: str, step_name: str, member: int | None) -> None:
    """Run this node's part of a step, called by submitit; ends the process with the part's exit code.

    Args:
        folder: the run's folder.
        step_name: which step of its plan.
        member: shard of an array; None: the node's number is the task's rank in the job.
    """
    plan = load_plan(plan_file(RunFolder(Path(folder))))
    step = next(step for step in plan.steps if step.name == step_name)
    number = int(os.environ.get("SLURM_PROCID", "0")) if member is None else member
    code = Task(RunFolder(plan.folder), plan.run_id, step, int(os.environ[ENV_ATTEMPT]), number, plan.code).run()
    if code:
        raise SystemExit(code)


@dataclass
class Task:
    """One node's part of one attempt."""

    folder: RunFolder
    run_id: str
    step: Step
    attempt: int
    number: int
    code: Path | None = None
    """Copy of the code that is to run."""
    asked: float | None = None
    """When a signal asked to save and leave."""
    asked_by: signal.Signals = signal.SIGTERM
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def stage(self) -> RunFolder:
        return self.folder.stage(self.step.stage)

    def run(self) -> int:
        """Start, watch, and return the exit code, once every peer has ended as well."""
        # Slurm signals every process of a step; what this one does not handle it hands on.
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        _keep_orphans()
        child = self.child = self._start()
        heartbeat = Heartbeat(self.stage, self.step, self.attempt, self.number)
        heartbeat.start()
        told_again, lost = False, _LostPeer(self, heartbeat)
        while child.poll() is None:
            if self.asked and not told_again and time.monotonic() - self.asked > TELL_AGAIN_S:
                child.send_signal(self.asked_by)
                told_again = True
            lost.look(child)
            time.sleep(POLL_S)
        self.part.end_orphans(child.returncode)
        code = shell_code(child.returncode)
        write_exit(self.stage, self.step, self.attempt, self.number, code)
        if code:
            self._wait_for_peers(code)
        return code

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.asked_by = time.monotonic(), signal.Signals(number)
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)

    def _start(self) -> subprocess.Popen[bytes]:
        return self.part.start({"PET_NODE_RANK": str(self.number)})

    @property
    def part(self) -> NodePart:
        return NodePart(self.folder, self.run_id, self.step, self.attempt, self.number, self.code)

    def peers(self) -> list[int | None]:
        """Exit codes of all nodes of the gang; None while a node runs."""
        if self.step.kind != "gang":
            return []
        return exit_codes(self.stage, self.step, self.attempt)

    def say(self, reason: str) -> None:
        """Have the run's status tell what happens to an attempt that goes on for a while."""
        word = read_word(self.folder, self.step.name)
        if word.attempt == self.attempt and word.state == RUNNING and word.reason != reason:
            word.reason = reason
            write_word(self.folder, self.step.name, None, word)

    def _wait_for_peers(self, code: int) -> None:
        most_s = self.step.grace_s if code == EXIT_INTERRUPTED else min(self.step.grace_s, LOST_PEER_GRACE_S)
        deadline = time.monotonic() + most_s
        while None in self.peers() and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _keep_orphans() -> None:
    """Become the parent of those whose parent ends (Linux; else nothing).

    Where Slurm knows a step's processes by their parents alone (proctrack/linuxproc), it would not find these.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class _LostPeer:
    """Sees that another node ended badly, and has this one leave: politely after a second, for good after the grace."""

    def __init__(self, task: Task, heartbeat: Heartbeat) -> None:
        self.task = task
        self.heartbeat = heartbeat
        self.seen: float | None = None
        self.told = False
        self.most_s = 0.0

    def look(self, child: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        if self.seen is None:
            codes = self.task.peers()
            bad = [code for code in codes if code]
            lost = self.heartbeat.look({number for number, code in enumerate(codes) if code is not None})
            if lost:
                self.task.say(lost)
            if bad or lost:
                saving = EXIT_INTERRUPTED in bad
                self.most_s = self.task.step.grace_s if saving else min(self.task.step.grace_s, LOST_PEER_GRACE_S)
                self.seen = now
            return
        if not self.told and now > self.seen + 1.0:
            child.send_signal(signal.SIGTERM)
            self.told = True
        if now > self.seen + self.most_s:
            child.kill()
