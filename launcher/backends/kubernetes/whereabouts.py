"""Where a gang's coordinator is found: what it wrote into the run's folder, or what the name server says.

The master's pod is replaced while the others wait for it, and then its name leads nowhere for a while: a resolver was
seen to take 20 s to say so, again and again. So no look-up is waited for, and the folder's word counts as much.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from launcher.backends.kubernetes.wire import Wire, dial
from launcher.run_folder import RunFolder, read_json, write_json


def address_file(folder: RunFolder, step: str) -> Path:
    """Where the coordinator of a step writes its address."""
    return folder.root / "steps" / f"{step}.address"


def tell_address(folder: RunFolder, step: str) -> None:
    """Write down this pod's own address, where it knows one that others reach it at."""
    try:
        address = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return
    write_json(address_file(folder, step), {"address": address})


class Whereabouts:
    """Finds the coordinator.

    Args:
        folder: the run's folder.
        step: name of the gang's step.
        name: the coordinator's host name.
        port: where it listens.
    """

    def __init__(self, folder: RunFolder, step: str, name: str, port: int) -> None:
        self._folder = folder
        self._step = step
        self._name = name
        self._port = port
        self._found = ""
        self._looking = threading.Event()

    async def dial(self) -> Wire:
        """Connect to the coordinator.

        Raises:
            OSError: it is not there yet, or no more.
        """
        for address in dict.fromkeys(filter(None, (self._written(), self._looked_up()))):
            try:
                return await dial(address, self._port)
            except OSError:
                continue
        raise OSError(f"{self._name} is nowhere")

    def _written(self) -> str:
        return str((read_json(address_file(self._folder, self._step)) or {}).get("address", ""))

    def _looked_up(self) -> str:
        """What the last look-up said; begins another one, unless one is still under way."""
        found, self._found = self._found, ""
        if not self._looking.is_set():
            self._looking.set()
            threading.Thread(target=self._look_up, daemon=True).start()
        return found

    def _look_up(self) -> None:
        try:
            self._found = str(socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            self._found = ""
        finally:
            self._looking.clear()
