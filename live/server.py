"""uvicorn, with the door and the end that a live evening needs.

The door bounds header bytes and the time to a complete request, and keeps what was read together with an
upgrade. The end drains the sockets before uvicorn closes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket as sockets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from live.app import build_parts, close_parts, create_app, open_tail
from live.metrics import Metrics
from live.node import Node
from live.rounds import Rounds
from live.settings import Settings
from live.socket import Socket

log = logging.getLogger("companion.server")

HEADER_BYTES_MAX: Final = 16_384
REQUEST_WAIT_S: Final = 10.0  # from the connection, or a request's first byte, to its complete headers
BACKLOG: Final = 4_096
GC_THRESHOLDS: Final = (10_000, 20, 50)  # Python's own are 700, 10, 10


class Door(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds on what comes before a request is complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_bytes = 0
        self._waiting: asyncio.TimerHandle | None = self.loop.call_later(REQUEST_WAIT_S, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def _too_late(self) -> None:
        self._waiting = None
        self._refuse(b"408 Request Timeout")

    def _in_time(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        if self._waiting is None:
            self._waiting = self.loop.call_later(REQUEST_WAIT_S, self._too_late)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._header_bytes += size

    def on_headers_complete(self) -> None:
        self._in_time()
        if self._header_bytes > HEADER_BYTES_MAX:
            self._refuse(b"431 Request Header Fields Too Large")
            return
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        # A header without an end gives the parser nothing to call back for: bytes are counted here too.
        if self._waiting is not None:
            self._raw_bytes = getattr(self, "_raw_bytes", 0) + len(data)
            if self._raw_bytes > HEADER_BYTES_MAX + 65_536:
                self._refuse(b"431 Request Header Fields Too Large")
                return
        else:
            self._raw_bytes = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            if self.transport.is_closing():
                return
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                rest = data[upgrade.args[0] :] if upgrade.args else b""
                if rest:
                    protocol = self.transport.get_protocol()
                    assert isinstance(protocol, asyncio.Protocol)
                    protocol.data_received(rest)
            else:  # h2c, which curl and Java's client offer: declined by answering in HTTP/1.1
                self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]


class CompanionServer(uvicorn.Server):
    """Drains before it shuts down, and leaves signals to its caller."""

    def __init__(self, config: uvicorn.Config, node: Node, sock: sockets.socket, drain_s: float) -> None:
        super().__init__(config)
        self.node = node
        self._sock = sock
        self._ready: Callable[[], Any] | None = None
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[sockets.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()

    async def run_until_stopped(self, ready: Callable[[], Any] | None = None) -> None:
        """`ready` is called once requests are answered."""
        self._ready = ready
        await self.serve(sockets=[self._sock])

    async def shutdown(self, sockets: list[sockets.socket] | None = None) -> None:
        self.node.draining = True
        for server in self.servers:
            server.close()
        await self.node.drain(self._drain_s)
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def serving(settings: Settings, sock: sockets.socket) -> AsyncIterator[CompanionServer]:
    """Parts, node, clock work and a server on a bound socket; all of it closed at the end."""
    metrics = Metrics()
    parts = await build_parts(settings, metrics)
    tail_redis = open_tail(settings)
    node = Node(parts, metrics, tail_redis)
    rounds = Rounds(node, metrics)
    try:
        await node.start()
        rounds.start()
        config = uvicorn.Config(
            create_app(parts, node),
            http=Door,
            ws=lambda config, server_state, app_state: Socket(node, server_state.connections),  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies) or None,
        )
        yield CompanionServer(config, node, sock, settings.drain_s)
    finally:
        await rounds.stop()
        await node.stop()
        await tail_redis.aclose()
        await close_parts(parts)


def settle_memory() -> None:
    """What was made until now stays: the collector does not look at it again, and looks less often.

    A full collection walks every object it knows and the loop stands still: 123,000 after the start, 30 to 50 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def run_server(
    settings: Settings, sock: sockets.socket, ready: Callable[[], Any] | None = None
) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM; returns when everything is closed."""
    async with serving(settings, sock) as server:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):  # the loop's own: also when SIGINT came ignored
            loop.add_signal_handler(number, server.stop)
        settle_memory()
        await server.run_until_stopped(ready)
