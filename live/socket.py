"""One viewer's connection: bytes in to commands, bounded frames to bytes out.

Our own `asyncio.Protocol` over websockets' Sans-I/O `ServerProtocol`, given to uvicorn as its `ws`
class. Shared frames are written as they are: no extension changes them per viewer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from enum import IntEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from websockets.exceptions import InvalidMessage
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from live import protocol as wire
from membership.actor import Actor, ShowId

if TYPE_CHECKING:
    from live.node import Node

log = logging.getLogger("companion.socket")

WRITE_HIGH, WRITE_LOW = 32_768, 16_384  # bytes; the transport's marks
SKIP_TRANSIENT = 65_536  # bytes waiting: what is only of the moment is skipped
STATE_ONLY = 262_144  # bytes waiting: events are skipped, healed from the ring when it drains
DROP = 1_048_576  # bytes waiting: closed 4102
STALL_S = 5.0  # without progress above the high mark: closed 4102
COMMANDS_QUEUED_MAX = 16
FRAMES_AT_ONCE, FRAMES_PER_S = 400, 100  # of a viewer, control frames and fragments too; more is 4504
FRAGMENTS_MAX = 64  # of one command; empty ones count too
STRIKES_MAX = 5  # undecodable frames before 4504
CLOSE_WAIT_S = 5.0  # for the peer's close frame
NO_FD = -1  # a write to it fails: the frame goes to the transport


# One message in 15 bits of window, nothing kept between messages: 0 bytes of state a viewer, and what comes
# in is inflated up to the size a command may have.
_DEFLATE = [ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)]


_NO_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Kind(IntEnum):
    """What a frame carries, for a viewer whose buffer is filling."""

    TRANSIENT = 0  # likes, presence: gone in a moment anyway
    EVENTS = 1  # numbered; a skipped one is sent later from the ring
    STATE = 2  # latest wins
    PERSONAL = 3  # answers and notices: never skipped


class Socket(asyncio.Protocol):
    """A connection of one viewer to one show on this node."""

    __slots__ = (
        "actor",
        "at",
        "behind",
        "client",
        "closing",
        "commands",
        "connections",
        "cookies",
        "deflates",
        "easy",
        "expires_at",
        "fd",
        "frames",
        "frames_at",
        "hello_id",
        "joined",
        "joining",
        "looks_only",
        "made_at",
        "mask",
        "node",
        "partial",
        "paused",
        "ping_at",
        "pinged_at",
        "public_id",
        "rates",
        "refresh_by",
        "seen_at",
        "show",
        "slot",
        "stalled_at",
        "strikes",
        "tokens",
        "tokens_at",
        "transport",
        "voted",
        "waiting",
        "watch_from",
        "watching_since",
        "working",
        "ws",
    )  # fmt: skip

    def __init__(self, node: Node, connections: set[Any]) -> None:
        self.node = node
        self.connections = connections
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.fd = NO_FD  # written to past the transport, while nothing waits in the transport's buffer
        self.ws = ServerProtocol(
            origins=None,
            subprotocols=[Subprotocol(wire.SUBPROTOCOL)],
            extensions=_DEFLATE,
            max_size=wire.COMMAND_BYTES_MAX,
            logger=node.ws_log,
        )
        self.show: ShowId | None = None
        self.actor: Actor | None = None
        self.public_id = ""
        self.mask = 0  # audience bits of the class this viewer is in
        self.joined = False
        self.deflates = False  # negotiated permessage-deflate as we offer it
        self.joining = False  # hello received, not yet answered
        self.closing = False
        self.behind: int | None = None  # last seq written when events began to be skipped
        self.at = -1  # last seq sent outside the beat (healed, resynced)
        self.easy = False  # nothing waits, and it has everything: shared frames need no other look
        self.slot = 0  # in the node's timer wheel
        self.stalled_at: float | None = (
            None  # since when the buffer is above the high mark and does not shrink
        )
        self.waiting = 0  # bytes in it at the last look
        self.commands: deque[bytes] = deque()
        self.working = False
        self.partial: list[bytes] | None = None  # fragments of one text message
        self.strikes = 0
        self.made_at = self.seen_at = node.now()
        self.ping_at = 0.0  # when the next ping is due
        self.pinged_at = 0.0  # 0: no ping waits for its answer
        self.expires_at: float | None = None  # wall clock, s
        self.refresh_by: float | None = None
        self.voted: str | None = None  # the poll this viewer's ballot is in
        self.watch_from: int | None = None  # ms, wall clock: recorded until then
        self.watching_since: int | None = None
        self.rates: dict[type, tuple[float, float]] | None = None  # of commands: tokens left, when counted
        self.tokens, self.tokens_at = float(node.commands_burst), self.made_at
        self.frames, self.frames_at = float(FRAMES_AT_ONCE), self.made_at
        self.cookies = ""
        self.client = ""
        self.looks_only = False  # a preview
        self.hello_id: int | None = None
        self.paused = False

    # -- from the transport ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        peer = self.transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and self.transport.get_extra_info("sslcontext") is None:
            self.fd = sock.fileno()
        self.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.closing, self.easy = True, False
        self.fd = NO_FD  # the descriptor will be closed, then be another connection's
        self.node.left(self)
        self.commands.clear()

    def pause_writing(self) -> None:
        self.stalled_at, self.easy = self.node.now(), False
        self.node.stalled.add(self)

    def resume_writing(self) -> None:
        self.stalled_at = None
        self.node.stalled.discard(self)
        if self.behind is not None:
            self.node.heal(self)

    def eof_received(self) -> bool:
        self.ws.receive_eof()
        self._end()
        return False

    def data_received(self, data: bytes) -> None:
        self.ws.receive_data(data)
        self.seen_at = self.node.now()
        if self.closing and self.ws.state is not OPEN:
            if self._within_frames(len(self.ws.events_received())):
                self._flush_protocol()
            else:
                self.transport.abort()  # it goes on sending instead of answering the close
            return
        self.pinged_at = 0.0
        events = self.ws.events_received()
        if not self._within_frames(len(events)):
            self.close(wire.BAD_PROTOCOL, "too many frames", wait_s=0.5)
            self._flush_protocol()  # the parser may have ended it before us, in this very read
            self.transport.pause_reading()  # one read may hold 2,000 pings, and others wait while they are parsed
            return
        for event in events:
            if isinstance(event, Request):
                self._handshake(event)
            elif not isinstance(event, Frame):
                continue
            elif event.opcode is Opcode.TEXT or event.opcode is Opcode.CONT:
                self._text(bytes(event.data), event.opcode is Opcode.TEXT, event.fin)
            elif event.opcode is Opcode.BINARY:
                self.close(wire.BAD_PROTOCOL)
            elif event.opcode is Opcode.CLOSE:
                self.closing, self.easy = True, False
        if not events and isinstance(self.ws.handshake_exc, InvalidMessage):
            self.put(_NO_REQUEST)  # an upgrade with a body: the parser ends it without a word
        self._flush_protocol()

    def _within_frames(self, count: int) -> bool:
        """A token bucket over all frames: what is refused, and what is answered with a pong, costs too."""
        self.frames = (
            min(FRAMES_AT_ONCE, self.frames + (self.seen_at - self.frames_at) * FRAMES_PER_S) - count
        )
        self.frames_at = self.seen_at
        return self.frames >= 0 or (self.actor is not None and self.actor.kind == "staff")

    def _flush_protocol(self) -> None:
        """Write what the protocol itself has to say (handshake, pong, close)."""
        for data in self.ws.data_to_send():
            if data:
                self.put(data)
            else:
                self._end()

    def _end(self) -> None:
        """Close once everything is written, and cut a peer that does not take it."""
        self.closing, self.easy = True, False
        self.transport.close()
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_WAIT_S, self.transport.abort)

    # -- the door ----------------------------------------------------------------------------------

    def _handshake(self, request: Request) -> None:
        path = request.path.partition("?")[0].split("/")
        if len(path) != 5 or path[1:3] != ["v1", "shows"] or path[4] != "socket" or len(path[3]) > 64:
            self._reject(HTTPStatus.NOT_FOUND, "No socket lives here; try /v1/shows/{show}/socket.\n")
            return
        # A header may come more than once, and reading it as one would raise.
        origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
        if origins and not self.node.origin_allowed(",".join(origins), ",".join(hosts)):
            self._reject(HTTPStatus.FORBIDDEN, "This Origin may not open a socket here.\n")
            return
        wait_s = self.node.admit()
        if wait_s:
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, "Too many are joining at once.\n", wait_s)
            return
        response = self.ws.accept(request)
        self.ws.send_response(response)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._flush_protocol()
            self.transport.close()
            return
        # A client that demands a smaller window gets plain frames, which the extension allows.
        self.deflates = any(
            isinstance(found, PerMessageDeflate) and found.local_max_window_bits == 15
            for found in self.ws.extensions
        )
        self.show = ShowId(path[3])
        self.cookies = "; ".join(request.headers.get_all("Cookie"))[:4096]
        forwarded = ",".join(request.headers.get_all("X-Forwarded-For"))
        self.client = self.node.client_address(self.client, forwarded)
        self.node.opened(self)

    def _reject(self, status: HTTPStatus, text: str, retry_after_s: int | None = None) -> None:
        response = self.ws.reject(status, text)
        if retry_after_s is not None:
            response.headers["Retry-After"] = str(retry_after_s)
        self.ws.send_response(response)
        self._flush_protocol()
        self.closing = True
        self.transport.close()

    def _text(self, data: bytes, first: bool, fin: bool) -> None:
        if not fin or self.partial is not None:
            if first:
                self.partial = []
            if self.partial is None:
                return
            if len(self.partial) >= FRAGMENTS_MAX:
                self.close(wire.BAD_PROTOCOL)
                return
            self.partial.append(data)
            if not fin:
                return
            data, self.partial = b"".join(self.partial), None
        if self.closing:
            return
        if not _is_text(data):
            self.close(CloseCode.INVALID_DATA, "text is UTF-8")
            return
        self.commands.append(data)
        if not self.working:
            self.working = True
            self.node.spawn(self._work())
        elif len(self.commands) >= COMMANDS_QUEUED_MAX and not self.paused:
            self.paused = True
            self.transport.pause_reading()

    async def _work(self) -> None:
        """One viewer's commands, in order."""
        try:
            while self.commands and not self.closing:
                await self.node.received(self, self.commands.popleft())
                if self.paused and len(self.commands) < COMMANDS_QUEUED_MAX // 2:
                    self.paused = False
                    if not self.transport.is_closing():
                        self.transport.resume_reading()
        except Exception:
            log.exception("a command failed")
            self.close(wire.SERVER_ERROR)
        finally:
            self.working = False

    # -- outwards ----------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Write one whole frame: at once when nothing waits, otherwise behind what waits.

        os.write costs half of what the transport's own write does before it comes to the same write(2)
        (0.4 and 0.8 µs), and this is done once a viewer and frame. Over TLS there is no descriptor to write to.
        """
        if self.transport.get_write_buffer_size():
            self.transport.write(data)
            return
        try:
            taken = os.write(self.fd, data)
        except OSError:
            taken = 0
        if taken < len(data):
            self.spill(data, taken)

    def spill(self, data: bytes, taken: int) -> None:
        """The transport keeps what the kernel did not take. When the connection is broken it says so itself."""
        self.easy = self.easy and self.fd == NO_FD
        self.transport.write(data[taken:])

    def send(self, data: bytes, kind: Kind) -> bool:
        """Write one prepared frame; False when it was skipped because this viewer is slow.

        What is checked is the size before the write: a frame larger than the mark is still a frame.
        """
        if self.closing:
            return False
        waiting = self.transport.get_write_buffer_size()
        if waiting > SKIP_TRANSIENT:
            if waiting > DROP:
                self.close(wire.SLOW)
                return False
            if kind is Kind.TRANSIENT or (kind is Kind.EVENTS and waiting > STATE_ONLY):
                return False
        self.put(data)
        return True

    def send_shared(self, data: wire.SharedFrame, kind: Kind) -> bool:
        """Write a frame that others get too."""
        return self.send(data.deflated if self.deflates else data.plain, kind)

    def tell(self, *messages: Any) -> None:
        """Personal messages, in a frame of their own."""
        self.send(wire.message_frame(*messages), Kind.PERSONAL)

    def close(self, code: int, reason: str | None = None, wait_s: float = CLOSE_WAIT_S) -> None:
        """Say why, then close. A slow viewer's socket is cut: its close frame would never arrive."""
        if self.closing or self.ws.state is not OPEN:
            return
        self.closing, self.easy = True, False
        self.node.closed(self, code)
        self.ws.send_close(code, (reason or wire.CLOSE_CODES.get(code, ""))[:120])
        self._flush_protocol()
        loop = asyncio.get_running_loop()
        loop.call_later(0.5 if code == wire.SLOW else wait_s, self.transport.abort)

    def shutdown(self) -> None:
        """uvicorn asks every connection to end; ours were drained before."""
        if self.ws.state is OPEN and not self.closing:
            self.close(wire.DRAIN)
        else:
            self.transport.close()


def _is_text(data: bytes) -> bool:
    """RFC 6455 §8.1: text that is not UTF-8 ends the connection, whatever it would have meant."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
