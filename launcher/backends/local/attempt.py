"""One attempt of a step: start its nodes, watch them, end them together, and say how it ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from launcher import processes
from launcher.backends.local.launch import Node, Site, start_gang, start_node
from launcher.ending import LOST_PEER_GRACE_S, Ending, judge
from launcher.exits import write_exit
from launcher.plan import Step
from launcher.run_folder import EXIT_INTERRUPTED

POLL_S = 0.1


class Attempt:
    """The processes of one attempt."""

    def __init__(self, step: Step, site: Site, check_stop: Callable[[], None]) -> None:
        self.step = step
        self.site = site
        self.check_stop = check_stop
        self.nodes: list[Node] = []

    def run(self) -> Ending:
        """Start everything and wait for the end. Whatever check_stop raises passes through."""
        try:
            return self._gang() if self.step.kind == "gang" else self._members()
        except OSError as error:
            return Ending("final", f"cannot start {error.filename or self.step.command[0]}: {error.strerror}")

    def end_nodes(self) -> None:
        """Ask every process to save and leave; kill what is left after the grace."""
        self._signal_nodes(signal.SIGTERM)
        self._wait_gone()

    def _gang(self) -> Ending:
        self.nodes = start_gang(self.step, self.site)
        while all(code in (None, 0) for code in self._codes()):
            if all(code == 0 for code in self._codes()):
                return Ending("done")
            self._pause()
        self._end_survivors()
        return self._judge()

    def _members(self) -> Ending:
        waiting = list(self.step.members) if self.step.kind == "array" else [0]
        free = list(self.site.gpus)
        running: list[Node] = []
        while waiting or running:
            for node in [node for node in running if node.process.poll() is not None]:
                running.remove(node)
                write_exit(self.site.run.stage(self.step.stage), self.step, self.site.attempt, node.number,
                           node.process.returncode)  # fmt: skip
                free += node.gpus
            while waiting and len(running) < self.step.parallel:
                gpus = [free.pop(0) for _ in range(self.step.gpus_per_node)]
                running.append(self._start_member(waiting.pop(0), gpus))
            self._pause()
        return self._judge()

    def _start_member(self, number: int, gpus: list[str]) -> Node:
        node = start_node(self.step, self.site, number, gpus)
        self.nodes.append(node)
        return node

    def _pause(self) -> None:
        self.check_stop()
        time.sleep(POLL_S)

    def _codes(self) -> list[int | None]:
        return [node.process.poll() for node in self.nodes]

    def _end_survivors(self) -> None:
        """One node left early: give the others time to notice and save, then end what is left."""
        saving = EXIT_INTERRUPTED in self._codes()
        start = time.monotonic()
        most_s = self.step.grace_s if saving else min(self.step.grace_s, LOST_PEER_GRACE_S)
        told = False
        while time.monotonic() < start + most_s and self._still_leaving():
            if not told and time.monotonic() > start + 1.0:
                self._signal_nodes(signal.SIGTERM)
                told = True
            self._pause()
        self._kill_rest()

    def _signal_nodes(self, number: signal.Signals) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                os.kill(node.process.pid, number)

    def _wait_gone(self) -> None:
        deadline = time.monotonic() + self.step.grace_s
        while time.monotonic() < deadline and self._still_leaving():
            time.sleep(POLL_S)
        self._kill_rest()

    def _still_leaving(self) -> bool:
        """A node that was killed leaves ranks behind that may be saving; a node that returned left nothing of use."""
        codes = self._codes()
        if None in codes:
            return True
        return any(code < 0 for code in codes if code) and bool(
            processes.marked(self.site.run.root, run_id=self.site.run_id)
        )

    def _kill_rest(self) -> None:
        processes.end_all(self.site.run.root, 0.0, polite=False, run_id=self.site.run_id)
        for node in self.nodes:
            node.process.wait()

    def _judge(self) -> Ending:
        return judge(self.step, [(node.number, node.process.returncode) for node in self.nodes])
