"""When may a rank give up waiting for its peers? When it was asked to stop and a collective no longer ends.

A peer whose machine lost power or network closes no connection, so gloo goes on waiting for as long as its limit allows
(half an hour here), and a signal's handler does not run meanwhile. The state of the last finished update is whole on
every rank of strategy ``ddp``: a rank that leaves the collective can save it.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llava import interrupt
from llava.logs import LOG

SHORTEST_WAIT_S = 10.0
"""A launcher kills what is left 20 s after it asked: there must be time to save."""
_POLL_S = 0.5


class Collectives:
    """When this rank entered the collective that it is in, and how long the last ones took."""

    def __init__(self) -> None:
        self.entered: float | None = None
        self.lasted: deque[float] = deque(maxlen=20)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait in one collective of the training loop."""
        entered = self.entered = time.monotonic()
        try:
            yield
        finally:
            self.entered = None
            self.lasted.append(time.monotonic() - entered)

    def longest_wait_s(self) -> float:
        """How long a collective may last before its peers count as gone: ranks that compute are waited for."""
        return max([SHORTEST_WAIT_S, *(2 * lasted for lasted in tuple(self.lasted))])


COLLECTIVES = Collectives()


def watch() -> None:
    """Leave a collective that does not end although this rank was asked to stop; its caller sees a lost peer.

    For gloo alone: NCCL's work cannot be ended without leaving half a sum in the gradients.
    """
    threading.Thread(target=_watch, daemon=True, name="peers").start()


def _watch() -> None:
    asked: float | None = None
    while True:
        time.sleep(_POLL_S)
        if not interrupt.requested():
            continue
        now, entered, most_s = time.monotonic(), COLLECTIVES.entered, COLLECTIVES.longest_wait_s()
        asked = asked or now
        if entered is not None and now - max(asked, entered) > most_s:
            LOG.warning("the other ranks have been silent for %.0f s: leaving without them", now - entered)
            _close_connections()
            return


def _close_connections() -> None:
    """End this process's TCP connections: gloo then says that its peers are gone."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    connection.getpeername()  # raises for one that listens, whose end gloo would not survive
                    connection.shutdown(socket.SHUT_RDWR)
