"""Starlette on uvicorn: the manager of connections that tutorials show, `send_text` to each in turn."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from loadtests.fanout.peers.pace import frames

viewers: set[WebSocket] = set()


async def stay(viewer: WebSocket) -> None:
    await viewer.accept()
    viewers.add(viewer)
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await viewer.receive_text()
    viewers.discard(viewer)


async def main() -> None:
    door = socket.create_server(("127.0.0.1", 0), backlog=4096)
    settings = uvicorn.Config(
        Starlette(routes=[WebSocketRoute("/", stay)]),
        ws="websockets-sansio",  # the quickest of its three
        ws_per_message_deflate=False,
        log_level="error",
        access_log=False,
        lifespan="off",
    )
    serving = asyncio.create_task(uvicorn.Server(settings).serve([door]))
    async for text in frames(door.getsockname()[1]):
        for viewer in list(viewers):
            with contextlib.suppress(WebSocketDisconnect):
                await viewer.send_text(text)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    uvloop.run(main())
