"""A node of a gang inside its pod: starts the agent when the coordinator says so, and says how it ended.

The pod outlives the attempts: a gang starts again without waiting for new pods, and a node whose coordinator is lost
ends its agent and waits for the next one.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.ending_note import leave_note
from launcher.backends.kubernetes.whereabouts import Whereabouts
from launcher.backends.kubernetes.wire import Wire
from launcher.durations import in_words
from launcher.ending import LOST_PEER_GRACE_S
from launcher.exits import write_exit
from launcher.node_process import NodePart, shell_code
from launcher.plan import Step
from launcher.run_folder import EXIT_INTERRUPTED, RunFolder

_POLL_S = 0.1
_DIAL_AGAIN_S = 0.5
# The operator's idea of ranks counts pods, and its rendezvous is that of one attempt only.
_NOT_HANDED_ON = frozenset({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PET_MASTER_ADDR", "PET_MASTER_PORT"})


def gang_of(folder: RunFolder, step: Step, run_id: str = "") -> str:
    """What tells a gang from another: an address may by now belong to another run's pod."""
    return f"{folder.root}: {step.name}{f' of run {run_id}' if run_id else ''}"


def gave_up(what: str, waited_s: float) -> str:
    """Why a gang that is not complete gives its place back."""
    limit = f"within {in_words(waited_s)} (kubernetes.start_timeout_s)"
    return f"{what} {limit}; the pods that waited gave their place back"


@dataclass
class Participant:
    """One node of a gang."""

    folder: RunFolder
    run_id: str
    step: Step
    number: int
    coordinator: Whereabouts
    code: Path | None = None
    start_timeout_s: float = 0.0
    """So long it holds its place without a coordinator; 0: without end."""
    leaving: bool = False
    """The pod was told to end."""
    at_once: bool = False
    """The coordinator waits no longer for what runs here."""
    wire: Wire | None = field(default=None, repr=False)
    part: NodePart | None = None
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def leave(self, number: signal.Signals) -> None:
        """Signal handler: have the ranks save and leave, and end when they have."""
        self.leaving = True
        if self.wire is not None:
            self.wire.send(leaving=True)
        self._signal(number)

    async def run(self) -> int:
        """Take part until the run is over or the pod is to go; return the pod's exit code."""
        alone_since = time.monotonic()
        while not (self.leaving and self.child is None):
            try:
                wire = self.wire = await self.coordinator.dial()
            except OSError:
                if self.start_timeout_s and time.monotonic() - alone_since > self.start_timeout_s:
                    why = gave_up("the master's pod did not come", self.start_timeout_s)
                    print(why, flush=True)
                    leave_note(why)
                    return 1
                await asyncio.sleep(_DIAL_AGAIN_S)
                continue
            gang = gang_of(self.folder, self.step, self.run_id)
            wire.send(hello=self.number, gang=gang, pod=socket.gethostname())
            code = await self._take_part(wire)
            wire.close()
            self.wire = None
            alone_since = time.monotonic()
            # Whatever still runs belongs to a gang that is gone.
            await self._end(self.step.grace_s if self.leaving else LOST_PEER_GRACE_S)
            if code is not None:
                return code
            await asyncio.sleep(_DIAL_AGAIN_S)
        return EXIT_INTERRUPTED

    async def _take_part(self, wire: Wire) -> int | None:
        """Do what the coordinator says; return the pod's exit code, or None when the connection is lost."""
        listening = asyncio.create_task(self._listen(wire))
        watching = asyncio.create_task(self._watch(wire))
        done, left = await asyncio.wait({listening, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await wire.flush()
        return next(iter(done)).result()

    async def _listen(self, wire: Wire) -> int | None:
        async for message in wire.messages():
            if "begin" in message:
                await self._begin(message["begin"])
            elif "end" in message:
                self.at_once = message["end"] == "kill"
                self._signal(signal.SIGKILL if self.at_once else signal.SIGTERM)
            elif "over" in message:
                return int(message["over"])
        return None

    async def _begin(self, told: dict[str, Any]) -> None:
        await self._end(0.0)
        self.at_once = False
        self.part = NodePart(self.folder, self.run_id, self.step, int(told["attempt"]), self.number, self.code)
        more = {
            "PET_NODE_RANK": str(self.number), "PET_NNODES": str(self.step.nodes),
            "PET_NPROC_PER_NODE": str(self.step.processes_per_node),
            "PET_MASTER_ADDR": str(told["address"]), "PET_MASTER_PORT": str(told["port"]),
        }  # fmt: skip
        self.child = self.part.start(more, _NOT_HANDED_ON)
        if self.leaving:
            self._signal(signal.SIGTERM)

    async def _watch(self, wire: Wire) -> int | None:
        """Say how each agent ended; end with it when the pod is to go."""
        while True:
            if self.child is not None and self.child.poll() is not None and self.part is not None:
                part, code = self.part, self.child.returncode
                # Ranks that outlive a killed agent may save, but not those that were given their time before.
                await asyncio.to_thread(part.end_orphans, 0 if self.at_once else code)
                self.child = None
                await asyncio.to_thread(write_exit, part.stage, self.step, part.attempt, self.number, shell_code(code))
                wire.send(exit={"attempt": part.attempt, "code": shell_code(code)})
            if self.leaving and self.child is None:
                return EXIT_INTERRUPTED
            await asyncio.sleep(_POLL_S)

    async def _end(self, grace_s: float) -> None:
        """End what runs: politely, then for good."""
        if self.child is None or self.part is None:
            return
        self._signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + grace_s
        while self.child.poll() is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_S)
        self._signal(signal.SIGKILL)
        await asyncio.to_thread(self.child.wait)
        await asyncio.to_thread(self.part.end_orphans, 0)
        await asyncio.to_thread(
            write_exit, self.part.stage, self.step, self.part.attempt, self.number, shell_code(self.child.returncode)
        )
        self.child = None

    def _signal(self, number: signal.Signals) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
