"""picows: a loop over the transports with the call that copies nothing, on uvloop."""

from __future__ import annotations

from typing import Final

import uvloop
from picows import WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from loadtests.fanout.peers.pace import frames

HEAD: Final = 14  # bytes picows wants free before the message, for the frame's head


class Viewer(WSListener):
    """One connection; it is in `all` as long as it is open."""

    def __init__(self, everyone: set[WSTransport]) -> None:
        self.everyone = everyone

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.everyone.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.everyone.discard(transport)


async def main() -> None:
    viewers: set[WSTransport] = set()

    def come(_: WSUpgradeRequest) -> Viewer:
        return Viewer(viewers)

    server = await ws_create_server(come, "127.0.0.1", 0, backlog=4096)
    async for text in frames(server.sockets[0].getsockname()[1]):
        buffer = bytearray(HEAD) + text.encode()
        for viewer in viewers:
            viewer.send_reuse_external_bytearray(WSMsgType.TEXT, buffer, HEAD)


if __name__ == "__main__":
    uvloop.run(main())
