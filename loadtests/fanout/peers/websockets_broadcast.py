"""websockets: its own `broadcast()`, which encodes once and skips who is not open."""

from __future__ import annotations

import logging

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from loadtests.fanout.peers.pace import frames


async def main() -> None:
    viewers: set[ServerConnection] = set()

    async def stay(viewer: ServerConnection) -> None:
        viewers.add(viewer)
        try:
            await viewer.wait_closed()
        finally:
            viewers.discard(viewer)

    logging.getLogger("websockets").setLevel(logging.ERROR)
    async with serve(stay, "127.0.0.1", 0, compression=None, backlog=4096) as server:
        async for text in frames(next(iter(server.sockets)).getsockname()[1]):
            broadcast(viewers, text)


if __name__ == "__main__":
    uvloop.run(main())
