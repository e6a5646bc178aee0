"""Being asked to stop: SIGTERM and SIGUSR2 only set a flag, which the loop looks at between updates.

No torch here: the handlers stand before anything heavy is imported.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from types import FrameType

ASKED_BY = (signal.SIGTERM, signal.SIGUSR2)
"""SIGTERM: preemption, eviction, cancel, the agent's death. SIGUSR2: the time limit is near (Slurm)."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_seen: list[str] = []


def install(ctrl_c: bool = False) -> None:
    """From here on a signal is remembered instead of ending the process.

    Args:
        ctrl_c: remember Ctrl-C too; a second one ends the process as ever.
    """
    for number in ASKED_BY:
        signal.signal(number, _remember)
    if ctrl_c and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember_once)


def requested() -> str:
    """Name of the first signal that asked to stop; empty: none did."""
    return _seen[0] if _seen else ""


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the thread that started it is gone (Linux; else nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _remember_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.default_int_handler)
    _remember(number, frame)


def _remember(number: int, frame: FrameType | None) -> None:
    _seen.append(signal.Signals(number).name)
