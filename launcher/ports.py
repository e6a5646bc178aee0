"""A port for the rendezvous of one attempt."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _LOWEST_PASSING = 20000, 32768
_TRIES = 50


def free_port(address: str = "") -> int:
    """Return a TCP port of this machine that is free now, and that no passing connection is given in the meantime.

    Seconds go by until the agent listens there. A port that the kernel itself hands out may by then be the near end of
    somebody's connection, so one below those is taken, by lot: two runs on a machine do not meet.

    Args:
        address: the address that it must be free at; empty: all.
    """
    for port in random.sample(range(_LOWEST, max(_lowest_passing(), _LOWEST + _TRIES)), _TRIES):
        if _is_free(address, port):
            return port
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def _lowest_passing() -> int:
    """The lowest port that the kernel gives to a connection's near end."""
    try:
        return int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _LOWEST_PASSING
