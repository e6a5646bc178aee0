"""Starting what a node of a gang, a shard or a task runs, with its log, and ending what it leaves behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher import processes
from launcher.node_environment import node_environment
from launcher.plan import SHARD, Step
from launcher.run_folder import ENV_ATTEMPT, ENV_NODE, RunFolder


@dataclass(frozen=True)
class NodePart:
    """One node's part of one attempt, or one shard, or a task."""

    run: RunFolder
    run_id: str
    step: Step
    attempt: int
    number: int
    """Node or shard, from 0."""
    code: Path | None = None
    """Copy of the code that is to run."""

    @property
    def stage(self) -> RunFolder:
        return self.run.stage(self.step.stage)

    def start(self, more: Mapping[str, str], less: frozenset[str] = frozenset()) -> subprocess.Popen[bytes]:
        """Start it, with its output appended to its log.

        Args:
            more: environment variables beside what every backend gives.
            less: inherited ones that it must not see.
        """
        self.stage.attempt(self.attempt).mkdir(parents=True, exist_ok=True)
        command = [part.replace(SHARD, str(self.number)) for part in self.step.command]
        own = node_environment(self.step, self.run, self.run_id, self.attempt, self.number, sharing=1, code=self.code)
        inherited = {name: value for name, value in os.environ.items() if name not in less}
        with self.stage.node_log(self.attempt, self.number).open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**inherited, **more, **own},
            )  # fmt: skip

    def end_orphans(self, code: int) -> None:
        """Let ranks that outlive a killed agent save; then nothing stays, also where no scheduler would find it.

        Args:
            code: how the process ended; negative: killed.
        """
        mark = {ENV_NODE: str(self.number), ENV_ATTEMPT: str(self.attempt)}
        if code < 0:
            processes.wait_gone(self.run.root, self.step.grace_s, also=mark, run_id=self.run_id)
        processes.end_all(self.run.root, 0.0, polite=False, also=mark, run_id=self.run_id)


def shell_code(code: int) -> int:
    """An exit code as a shell gives it: 128 and more for signals."""
    return code if code >= 0 else 128 - code
