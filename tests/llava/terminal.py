"""A command on a terminal of its own, typed to as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from types import TracebackType

DEADLINE_S = 120.0


class Terminal:
    """Starts a command whose standard streams are a pseudo-terminal; Ctrl-C and Ctrl-D work."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = ""
        self._told = 0
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        """Press keys; \\x03 is Ctrl-C, \\x04 Ctrl-D."""
        os.write(self._ours, text.encode())

    def until(self, text: str) -> str:
        """Wait for text; returns what came since the last one that was waited for, up to and with it."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self._seen[self._told :]:
            assert self._read(deadline), f"waited for {text!r}, seen: {self._seen!r}"
        end = self._seen.index(text, self._told) + len(text)
        came, self._told = self._seen[self._told : end], end
        return came

    def more(self) -> None:
        """Wait for anything that was not waited for."""
        while len(self._seen) == self._told:
            assert self._read(time.monotonic() + DEADLINE_S), f"nothing came after {self._seen!r}"

    def end(self) -> int:
        """Exit code of a command that shall end by itself."""
        while self._read(time.monotonic() + DEADLINE_S):
            pass
        return self.process.wait(DEADLINE_S)

    def _read(self, deadline: float) -> bool:
        """Take in what comes next; False: nothing will."""
        if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # Linux's word for the other end being closed
            return False
        self._seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
