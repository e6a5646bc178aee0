"""The gang's coordinator, in the master's pod: numbers attempts, starts all nodes together, and ends them together.

The operator replaces single pods; it knows no gang. Here a node that is lost, or ends badly, ends the attempt: the
others are told to save and leave, and the next attempt begins when all nodes are there again, with a rendezvous of its
own. A coordinator that is lost itself is followed by that of the new master pod, which finds in the run's folder what
the old one knew.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from launcher.backends.base import FAILED, REQUEUED, RUNNING, STARTING, SUCCEEDED
from launcher.backends.kubernetes.participant import gang_of, gave_up
from launcher.backends.kubernetes.whereabouts import tell_address
from launcher.backends.kubernetes.wire import SILENCE_S, Wire
from launcher.ending import LOST_PEER_GRACE_S, Ending, Verdict, judge, next_attempt, weigh
from launcher.exits import expect_exits
from launcher.plan import Step
from launcher.ports import free_port
from launcher.progress import durable_progress
from launcher.run_folder import EXIT_INTERRUPTED, RunFolder, append_line
from launcher.step_word import Word, last_word, write_word

_POLL_S = 0.1
_NOTICE_S = 1.0
"""So long the nodes of a broken gang may take to notice by themselves, before they are told."""
_LONGEST_PAUSE_S = 30.0
_TOLD_TO_END = frozenset({EXIT_INTERRUPTED, 128 + 15, 128 + 12})


@dataclass
class Node:
    """One node as its coordinator sees it."""

    wire: Wire
    code: int | None = None
    """Exit code of its part of the attempt."""
    gone: bool = False
    leaving: bool = False
    pod: str = ""
    told_to_end: bool = False
    """It was ended because another node was lost: what it ended with is no cause."""


@dataclass
class Coordinator:
    """Runs the attempts of one gang."""

    folder: RunFolder
    step: Step
    port: int
    tell_again: Callable[[int, Collection[int] | None], None] = lambda attempt, nodes: None
    """Tells once more the ends of an attempt's logs, those of lost nodes or of all: their own pods may not have."""
    start_timeout_s: float = 0.0
    """So long nodes that are here hold their place for those that are not; 0: without end."""
    stopping: bool = False
    """The master's own pod is to go: no further attempt."""
    nodes: dict[int, Node] = field(default_factory=dict)
    attempt: int = -1
    _lost: list[int] = field(default_factory=list)
    """Nodes that the last attempt lost."""
    _gave_up: str = ""
    """Why the nodes that are here wait no longer for the others."""
    server: asyncio.Server | None = None
    run_id: str = ""
    """Nodes of another run are sent away."""

    @property
    def stage(self) -> RunFolder:
        return self.folder.stage(self.step.stage)

    async def start(self) -> None:
        """Listen for the nodes, and say where."""
        self.server = await asyncio.start_server(self._serve, None, self.port)
        await asyncio.to_thread(tell_address, self.folder, self.step.name)

    async def run(self) -> int:
        """Run attempts until the step is done, failed for good, or this pod is to go; return the pod's exit code."""
        word = self._word_before()
        verdict = await asyncio.to_thread(self._account_for_loss, word)
        if verdict is not None and not verdict.again:
            return await self._over(word, FAILED, verdict.reason, 1)
        while await self._all_are_here(word):
            await asyncio.to_thread(self._begin, word)
            ending = await self._attempt(word)
            await asyncio.to_thread(self.tell_again, self.attempt, self._lost)
            if ending.kind == "done":
                return await self._over(word, SUCCEEDED, "", 0)
            verdict = await asyncio.to_thread(
                weigh, self.step, self.stage, self.attempt, ending, word.before, word.fruitless
            )
            word.fruitless, word.ended = verdict.fruitless, time.time()
            if not verdict.again:
                return await self._over(word, FAILED, verdict.reason, 1)
            self._say(word, REQUEUED, verdict.reason)
            self._event("restarted", reason=verdict.reason)
            await self._pause(word.fruitless)
        if self._gave_up:
            return await self._over(word, FAILED, self._gave_up, 1)
        return EXIT_INTERRUPTED

    # What is written down

    def _word_before(self) -> Word:
        job = socket.gethostname()
        before = last_word(self.folder, self.step.name)
        return before if before.state in (RUNNING, REQUEUED) else Word(job_id=job)

    def _account_for_loss(self, word: Word) -> Verdict | None:
        """An attempt that nobody settled: the master's pod was lost with it."""
        if word.state != RUNNING:
            return None
        ending = Ending("broken", "the master's pod was lost", lost=True)
        verdict = weigh(self.step, self.stage, word.attempt, ending, word.before, word.fruitless)
        word.fruitless = verdict.fruitless
        self._event("restarted", reason=verdict.reason)
        self.tell_again(word.attempt, None)
        return verdict

    def _begin(self, word: Word) -> None:
        self.attempt = word.attempt = next_attempt(self.step, self.stage)
        word.before, word.started, word.ended = durable_progress(self.stage), word.started or time.time(), None
        expect_exits(self.stage, self.step, self.attempt)
        self._say(word, RUNNING, "")
        self._event("attempt", number=self.attempt, nodes=self.step.nodes)
        port = free_port()
        for number, node in self.nodes.items():
            node.code = None
            node.wire.send(begin={"attempt": self.attempt, "address": self._address_for(number), "port": port})

    def _address_for(self, number: int) -> str:
        """The master's address as a node reaches it: a name may still lead to the pod before this one.

        The master's own node reaches it at the loopback, where no other node would find the ranks that meet there.
        """
        others = [node for one, node in sorted(self.nodes.items()) if one]
        return (others[0] if number == 0 and others else self.nodes[number]).wire.own_address

    def _say(self, word: Word, state: str, reason: str) -> None:
        word.state, word.reason = state, reason
        write_word(self.folder, self.step.name, None, word)

    def _event(self, event: str, **fields: object) -> None:
        append_line(
            self.folder.events, {"time": time.time(), "event": f"run.{event}", "step": self.step.name, **fields}
        )

    async def _over(self, word: Word, state: str, reason: str, code: int) -> int:
        word.ended = time.time()
        await asyncio.to_thread(self._say, word, state, reason)
        if reason:
            self._event("failed", reason=reason)
        for node in self.nodes.values():
            node.wire.send(over=code)
            await node.wire.flush()
        return code

    # The nodes

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Listen to one node as long as its connection lasts."""
        wire = Wire(reader, writer)
        number, node = -1, Node(wire)
        async for message in wire.messages():
            if "hello" in message:
                if message.get("gang") != gang_of(self.folder, self.step, self.run_id):
                    break
                number, node.pod = int(message["hello"]), str(message.get("pod", ""))
                if number in self.nodes:
                    self.nodes[number].gone = True  # that one was lost, and this is its successor
                self.nodes[number] = node
            elif "exit" in message and message["exit"]["attempt"] == self.attempt:
                node.code = int(message["exit"]["code"])
            elif "leaving" in message:
                node.leaving = True
        node.gone = True
        wire.close()
        if self.nodes.get(number) is node:
            del self.nodes[number]

    async def _all_are_here(self, word: Word) -> bool:
        """Wait for every node; False: this pod is to go, or the wait has lasted too long."""
        said: list[int] = []
        begun = time.monotonic()
        while not self.stopping:
            absent = [n for n in range(self.step.nodes) if n not in self.nodes or self.nodes[n].leaving]
            if not absent:
                return True
            if self.start_timeout_s and time.monotonic() - begun > self.start_timeout_s:
                self._gave_up = gave_up(f"{_nodes([*map(str, absent)])} did not come", self.start_timeout_s)
                return False
            if absent != said:
                said = absent
                why = f"waits for {'node' if len(absent) == 1 else 'nodes'} {', '.join(map(str, absent))}"
                again = word.state in (RUNNING, REQUEUED)
                kept = word.reason.split("; waits for node")[0]
                await asyncio.to_thread(
                    self._say, word, REQUEUED if again else STARTING, f"{kept}; {why}" if again and kept else why
                )
            await asyncio.sleep(_POLL_S)
        return False

    async def _attempt(self, word: Word) -> Ending:
        """Follow an attempt until every node has ended or is lost."""
        nodes, ender = dict(self.nodes), _Ender(self.step)
        while any(node.code is None and not node.gone for node in nodes.values()):
            ender.look(nodes)
            lost = _what_was_lost(nodes)
            if lost and word.reason != lost:
                # Said before the others have saved and left, which takes its time.
                await asyncio.to_thread(self._say, word, RUNNING, lost)
            await asyncio.sleep(_POLL_S)
        return self._ending(nodes)

    def _ending(self, nodes: dict[int, Node]) -> Ending:
        ended = [(number, node) for number, node in sorted(nodes.items()) if node.code is not None]
        told = [(number, node.code) for number, node in ended if node.code is not None]
        self._lost = [number for number, node in sorted(nodes.items()) if node.gone]
        leaving = [str(number) for number, node in sorted(nodes.items()) if node.leaving]
        ending = judge(self.step, told)
        if leaving and ending.kind != "final" and all(code in _TOLD_TO_END for _, code in told):
            return Ending("interrupted", f"{_nodes(leaving)} left: its pod was to end (evicted, drained or deleted)")
        lost = _what_was_lost(nodes)
        if not lost or ending.kind == "final" or any(_was_killed(node) for _, node in ended):
            return ending
        return Ending("broken", lost, lost=True)

    async def _pause(self, fruitless: int) -> None:
        """Wait longer before each further attempt that may be as fruitless as the last."""
        most = min(_LONGEST_PAUSE_S, 2.0**fruitless) if fruitless else 0.0
        deadline = time.monotonic() + most
        while not self.stopping and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)


class _Ender:
    """Sees that a node is lost or ended badly, and has the others leave: politely, and for good after the grace."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.seen: float | None = None
        self.most_s = 0.0
        self.told: set[str] = set()

    def look(self, nodes: dict[int, Node]) -> None:
        now = time.monotonic()
        if self.seen is None:
            bad = [node for node in nodes.values() if node.code or (node.gone and node.code is None) or node.leaving]
            if bad:
                saving = any(node.leaving or node.code == EXIT_INTERRUPTED for node in bad)
                self.most_s = self.step.grace_s if saving else min(self.step.grace_s, LOST_PEER_GRACE_S)
                self.seen = now
            return
        if now > self.seen + self.most_s:
            self._tell(nodes, "kill")
        elif now > self.seen + _NOTICE_S:
            self._tell(nodes, "term")

    def _tell(self, nodes: dict[int, Node], how: str) -> None:
        if how in self.told:
            return
        self.told.add(how)
        for node in nodes.values():
            if node.code is None and not node.gone:
                node.told_to_end = True
                node.wire.send(end=how)


def _was_killed(node: Node) -> bool:
    """Whether something else than the coordinator ended a node's agent: that is a cause of its own."""
    return (node.code or 0) > 128 and node.code not in _TOLD_TO_END and not node.told_to_end


def _what_was_lost(nodes: Mapping[int, Node]) -> str:
    """In words, which nodes went without telling how they ended; empty where none did."""
    lost = {number: node for number, node in sorted(nodes.items()) if node.gone and node.code is None}
    if not lost:
        return ""
    who = _nodes([str(number) for number in lost])
    pods = ", ".join(node.pod for node in lost.values() if node.pod)
    who += f" ({pods})" if pods else ""
    if all(node.wire.silent for node in lost.values()):
        return f"{who} was lost: not heard for {SILENCE_S:.0f} s (did its machine lose power or network?)"
    return f"{who} was lost: its pod ended without a word"


def _nodes(numbers: list[str]) -> str:
    return f"node {numbers[0]}" if len(numbers) == 1 else f"nodes {', '.join(numbers)}"
