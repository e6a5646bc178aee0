"""What this machine is called."""

from __future__ import annotations

import os
import socket


def host_name() -> str:
    """The name its scheduler has for it, else its own: several Slurm nodes may share one host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
