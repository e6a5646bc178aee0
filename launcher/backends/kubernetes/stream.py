"""A container's log as it is printed: a thread gathers it until somebody takes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from launcher.errors import BackendError

_MOST_HELD = 16 * 1024 * 1024
"""Bytes that wait to be taken; the server waits with the rest."""


class Stream:
    """What comes until the container ends or the line is lost.

    Args:
        pod: the pod's name.
        chunks: the log as it comes.
    """

    def __init__(self, pod: str, chunks: Iterator[bytes]) -> None:
        self.pod = pod
        self._held = bytearray()
        self._ended = self._closed = False
        self.error: BackendError | None = None
        """Why it ended before the container did."""
        self._changed = threading.Condition()
        threading.Thread(target=self._gather, args=(chunks,), daemon=True).start()

    def take(self) -> tuple[bytes, bool]:
        """Return the complete lines that have come; once it has ended, all that is left, and True."""
        with self._changed:
            length = len(self._held) if self._ended else self._held.rfind(b"\n") + 1
            data = bytes(self._held[:length])
            del self._held[:length]
            self._changed.notify_all()
            return data, self._ended

    def wait(self, most_s: float) -> None:
        """Wait for its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, most_s)

    def close(self) -> None:
        """Want no more; the thread ends when the next piece comes, or its time is up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _gather(self, chunks: Iterator[bytes]) -> None:
        try:
            for chunk in chunks:
                with self._changed:
                    self._held += chunk
                    self._changed.wait_for(lambda: self._closed or len(self._held) < _MOST_HELD)
                if self._closed:
                    return
        except BackendError as error:
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
