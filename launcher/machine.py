"""Which machine this is, told by what no clock moves: its name, its boot's id, the namespace of its process ids."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

Where = dict[str, str]


def this_machine() -> Where:
    """Return where a process started now would run.

    The keys are ``host``, ``machine_id``, ``boot_id`` and ``pid_namespace``; what this system does not know is empty.
    """
    return {
        "host": socket.gethostname(),
        "machine_id": _first_line("/etc/machine-id"),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link("/proc/self/ns/pid"),
    }


def is_same(there: Mapping[str, str], here: Mapping[str, str]) -> bool:
    """Tell whether processes started there can be seen here, if they still run.

    The host's name does not count where there is better: it can be changed while the machine runs.
    """
    if not here["boot_id"]:
        return there.get("host") == here["host"]
    return there.get("boot_id") == here["boot_id"] and there.get("pid_namespace") == here["pid_namespace"]


def was_restarted(there: Mapping[str, str], here: Mapping[str, str]) -> bool:
    """Tell whether this is the machine of that place after a restart, so that nothing of then can run any more.

    Clones share a machine id and containers a host's name, so both must agree.
    """
    same_name = there.get("host") == here["host"] and there.get("machine_id") == here["machine_id"]
    return same_name and there.get("boot_id") != here["boot_id"]


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
