"""Looking at a run's state beside what else is done, and saying when it changes."""

from __future__ import annotations

import re
import threading

from launcher import console
from launcher.backends.base import ENDED, PENDING, REQUEUED, BackendState
from launcher.errors import LauncherError
from launcher.plain_text import one_line
from launcher.runs import state_of
from launcher.store import Run

_POLL_S = 0.5
_COUNTDOWN = re.compile(r"\d+ (?:s|min|h|days)\b(?: \d+ (?:s|min|h)\b)?")


def without_countdown(text: str) -> str:
    """A reason without the time that is left, which differs from second to second."""
    return _COUNTDOWN.sub("", text)


class Lookout:
    """Asks for a run's state beside the reader of its logs, who would else stand still while a scheduler is slow."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._over = threading.Event()
        self._left = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Lookout:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def is_over(self) -> bool:
        """Tell whether the run has ended.

        Raises:
            LauncherError: its scheduler cannot be asked at all.
        """
        if self._error is not None:
            raise self._error
        return self._over.is_set()

    def _watch(self) -> None:
        said = ""
        while not self._left.is_set():
            try:
                state = state_of(self._run)
            except (LauncherError, OSError) as error:
                self._error = error
                return
            if state.state in ENDED:
                self._over.set()
                return
            said = _say_change(state, said)
            self._left.wait(_POLL_S)


def _say_change(state: BackendState, said: str) -> str:
    """Say why nothing comes: the run waits, or its scheduler is silent."""
    waits = state.state in (PENDING, REQUEUED) or "does not answer" in state.reason
    now = without_countdown(f"{state.state}: {state.reason}") if waits and state.reason else ""
    if now and now != said:
        console.say(f"{state.state.lower()}: {one_line(state.reason)}")
    return now
