"""Leads connections from the host to the API server of a bed, which has a network of its own.

Run in the bed as ``relay.py SOCKET ADDRESS PORT``. The socket was bound in the host's network and stays there wherever
it is used. SIGTERM makes it refuse connections, as the port of a stopped server does, and it can be used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys

CHUNK_BYTES = 1 << 16


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until either side is gone."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


async def relay(listener: socket.socket, address: str, port: int) -> None:
    """Lead every connection to the address until SIGTERM."""

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(address, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.start_server(lead, sock=listener)
    await ended.wait()
    listener.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    asyncio.run(relay(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
