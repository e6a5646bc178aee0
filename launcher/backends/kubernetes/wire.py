"""What the pods of a gang tell each other: JSON lines over one connection each, with a heartbeat.

A pod that is killed closes its connection, and the other side knows at once; a node that is cut off falls silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

BEAT_S = 2.0
SILENCE_S = 30.0
"""A side that has not been heard for so long is lost."""
_DIAL_S = 3.0
"""A pod that is gone answers no more: its address, which a name server may hold for a while, is tried no longer."""
_LONGEST = 1 << 16


class Wire:
    """One connection between a node and its coordinator."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._beats = asyncio.create_task(self._beat())
        self.silent = False
        """The other side was not heard for so long that it counts as lost."""

    @property
    def own_address(self) -> str:
        """This side's address, as the other side sees it."""
        return str(self._writer.get_extra_info("sockname")[0])

    def send(self, **message: Any) -> None:
        """Say something; on a connection that is lost nothing happens, the reader notices."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the other side says, until it is gone or silent for too long."""
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), SILENCE_S)
                message = json.loads(line) if line.endswith(b"\n") else None
            except asyncio.TimeoutError:
                self.silent = True
                return
            except (OSError, ValueError):
                return
            if not isinstance(message, dict):
                return
            if message:
                yield message

    def close(self) -> None:
        """End the connection."""
        self._beats.cancel()
        self._writer.close()

    async def flush(self) -> None:
        """Wait until all that was said is on its way."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def _beat(self) -> None:
        while True:
            self.send()
            await asyncio.sleep(BEAT_S)


async def dial(address: str, port: int) -> Wire:
    """Connect to a coordinator.

    Raises:
        OSError: nobody listens or answers there, or the name is not known (yet).
    """
    opening = asyncio.open_connection(address, port, limit=_LONGEST)
    try:
        return Wire(*await asyncio.wait_for(opening, _DIAL_S))
    except asyncio.TimeoutError:
        raise OSError(f"{address} does not answer") from None
