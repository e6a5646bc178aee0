"""Asking again: schedulers are restarted while jobs run, and silence is no answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from launcher.errors import NotAnswering

T = TypeVar("T")


def insist(
    call: Callable[[], T], patience_s: float, say: Callable[[str], None] = lambda text: None, pause_s: float = 3.0
) -> T:
    """Make a call that may be repeated safely, again and again while the scheduler is silent.

    Raises:
        NotAnswering: still silent when the patience ended.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except NotAnswering as error:
            if time.monotonic() >= deadline:
                raise
            say(f"{error.message}; trying again ...")
            time.sleep(pause_s)
