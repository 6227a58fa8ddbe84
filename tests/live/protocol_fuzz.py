"""Seeded frames, commands and broken bytes for the socket, and what must hold whatever comes.

Real: `Door` with httptools, `Socket` with websockets' parser, `Node`, `Dispatch` with its decoding, `ShowHub`,
the wheel of `Rounds`, and tokens. Doubled: the transport (it keeps uvloop's rules; `test_protocol_fuzz.py`
holds the two against each other), the clock (it stands still until it is moved), and the stores: every
domain call is answered at once from memory. The stores themselves are fuzzed there through a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import random
import re
import time
import traceback
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
import uvicorn
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from commerce.claims import Won
from commerce.seats import Queued
from live.http import GUEST_COOKIE, STAFF_COOKIE, VIEWER_COOKIE
from live.log import Changes, Entry
from live.metrics import Metrics
from live.node import Node
from live.rounds import Rounds
from live.server import Door
from live.settings import read_settings
from live.socket import CLOSE_WAIT_S, Socket
from membership.actor import PERMISSIONS, Actor, BenefitId, Facts, MemberId, ShowId
from membership.audience import Audience
from membership.refusal import NotFound
from membership.tokens import Tokens

SHOW: Final = ShowId("fuzzed")
KEY: Final = b"dGhlIHNhbXBsZSBub25jZQ=="
SLOTS: Final = 24  # connections at a time
URI: Final = parse_uri("ws://fuzz.example/")
PLAY_S: Final = 9.0  # of the clock for what clients wait in all: none is pinged and given up meanwhile
TURN_S: Final = 0.25  # of the wheel
SILENCE_S: Final = 45.0  # a ping and its wait, and the time a close may take
PROBE: Final = 7_777_777

# -- bytes ------------------------------------------------------------------------------------------


def masked(payload: bytes, key: bytes) -> bytes:
    if key == b"\x00\x00\x00\x00" or not payload:
        return payload
    whole = key * (len(payload) // 4 + 1)
    size = len(payload)
    return (int.from_bytes(payload, "big") ^ int.from_bytes(whole[:size], "big")).to_bytes(size, "big")


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = b"\x00\x00\x00\x00",
    claimed: int | None = None,
    form: int | None = None,
) -> bytes:
    """One frame as a client sends it; `claimed` lies about the length, `form` chooses how it is written."""
    size = len(payload) if claimed is None else claimed
    form = form if form is not None else (0 if size < 126 else 2 if size < 65_536 else 8)
    bit = 0x80 if key is not None else 0
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    if form == 0:
        head += bytes((bit | size & 0x7F,))
    else:
        head += bytes((bit | (126 if form == 2 else 127),)) + (size & (1 << 8 * form) - 1).to_bytes(
            form, "big"
        )
    return head + (payload if key is None else key + masked(payload, key))


def deflated(payload: bytes, level: int = 6) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH))[:-4]


def upgrade(path: str = f"/v1/shows/{SHOW}/socket", deflate: str | None = None, more: bytes = b"") -> bytes:
    """A request that is answered 101."""
    offer = b"" if deflate is None else b"Sec-WebSocket-Extensions: " + deflate.encode() + b"\r\n"
    return (
        f"GET {path} HTTP/1.1\r\nHost: fuzz.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".encode()
        + b"Sec-WebSocket-Key: "
        + KEY
        + b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: companion.v1\r\n"
        + offer
        + more
        + b"\r\n"
    )


# -- the doubles ------------------------------------------------------------------------------------


class StandingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock moves only when told to: timers of minutes cost nothing."""

    def __init__(self) -> None:
        self.clock = time.monotonic()
        super().__init__()

    def time(self) -> float:
        return self.clock


class TransportDouble(asyncio.Transport):
    """A connection without a network, with uvloop's rules.

    What is written leaves at once while the peer takes it, else the protocol is told within the write; after
    `pause_reading` nothing more is delivered; `close` waits for what is written; once lost, writing raises.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, faults: list[str]) -> None:
        self.loop = loop
        self.faults = faults
        self.protocol: asyncio.Protocol | None = None
        self.sent = bytearray()
        self.waiting: list[bytes] = []
        self.size = 0
        self.stalled = False  # the peer takes nothing
        self.reading = True
        self.closing = False
        self.losing = False
        self.closed = False
        self.held = False  # the protocol was told to pause writing
        self.inbox: deque[bytes | None] = deque()  # None: the peer's end
        self.high = 65_536

    def made(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)

    # what a protocol may call

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("203.0.113.9", 50_000), "sockname": ("203.0.113.1", 80)}.get(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self.protocol)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._alive()
        self.high = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._alive()
        if not data or self.losing:
            return
        if not self.stalled and not self.waiting:
            self.sent += data
            return
        self.waiting.append(bytes(data))
        self.size += len(data)
        if self.size > self.high and not self.held:
            self.held = True
            self._tell("pause_writing")

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def pause_reading(self) -> None:
        if not self.closing:
            self.reading = False

    def resume_reading(self) -> None:
        if not self.closing and not self.reading:
            self.reading = True
            self.loop.call_soon(self._deliver)

    def close(self) -> None:
        if self.closing:
            return
        self.closing = True
        if not self.size:
            self._lose()

    def abort(self) -> None:
        if self.losing or self.closed:
            return
        self.closing = True
        self._lose()

    # what the peer does

    def feed(self, data: bytes) -> None:
        self.inbox.append(data)
        self._deliver()

    def end(self) -> None:
        self.inbox.append(None)
        self._deliver()

    def stall(self) -> None:
        self.stalled = True

    def drain(self) -> None:
        self.stalled = False
        self.loop.call_soon(self._leave)

    # how it runs

    def _alive(self) -> None:
        if self.closed:
            raise RuntimeError("the handler is closed")

    def _deliver(self) -> None:
        while self.inbox and self.reading and not self.closing and self.protocol is not None:
            data = self.inbox.popleft()
            try:
                if data is not None:
                    self.protocol.data_received(data)
                elif not self.protocol.eof_received():
                    self.close()
            except Exception:
                self.faults.append(f"raised into the transport: {traceback.format_exc(limit=-4)}")
                self.abort()

    def _leave(self) -> None:
        if self.closed or self.losing or self.stalled:
            return
        self.sent += b"".join(self.waiting)
        self.waiting.clear()
        self.size = 0
        if self.held:
            self.held = False
            self._tell("resume_writing")
        if self.closing and not self.size:
            self._lose()

    def _tell(self, what: str) -> None:
        try:
            getattr(self.protocol, what)()
        except Exception:
            self.faults.append(f"{what} raised: {traceback.format_exc(limit=-4)}")

    def _lose(self) -> None:
        if not self.losing:
            self.losing = True
            self.loop.call_soon(self._lost)

    def _lost(self) -> None:
        try:
            if self.protocol is not None:
                self.protocol.connection_lost(None)
        except Exception:
            self.faults.append(f"connection_lost raised: {traceback.format_exc(limit=-4)}")
        self.closed = True
        self.protocol = None
        self.waiting.clear()
        self.inbox.clear()


STATES: Final = Changes(
    version=1,
    seq=0,
    epoch="e1",
    generation="g1",
    status="live",
    poll="",
    audiences=[],
    room_audience=Audience(),
    states=[],
    entries=[],
)


class Quick:
    """The stores: each call is answered at once, in the shape of the real answer."""

    async def changes(self, show: ShowId, version: int, count: int = 0) -> Changes:
        if show != SHOW:
            raise NotFound("There is no such show.")
        return STATES

    async def between(self, show: ShowId, first: int, last: int) -> list[Entry]:
        return []

    async def position(self, show: ShowId) -> tuple[str, int, int]:
        return "e1", 0, 1

    async def agree(self, show: ShowId) -> None:
        raise NotFound("There is no such show.")

    async def in_room(self, show: ShowId, room: str) -> bool:
        return False

    async def post_many(self, show: ShowId, said: Sequence[Any]) -> list[Any]:
        return [SimpleNamespace(seq=1, at=1) for _ in said]

    async def cast(self, actor: Actor, show: ShowId, poll: str, choices: list[int], key: str) -> list[int]:
        return choices

    async def claim_many(self, show: ShowId, benefit: str, claims: list[Any], *_: object) -> list[Any]:
        return [Won(rank=1, of=10) for _ in claims]

    async def queue(self, show: ShowId, benefit: str, actor: Actor) -> Queued:
        return Queued(benefit=BenefitId(benefit), status="queued")

    async def standing(self, show: ShowId, poll: str | None, people: Sequence[str]) -> dict[str, Any]:
        return {}

    async def standing_of(self, conn: Any, show: ShowId, members: Sequence[str]) -> dict[str, Any]:
        return {}

    async def current_of(self, conn: Any, members: Sequence[str]) -> dict[str, Any]:
        return {}

    async def actors(self, conn: Any, members: Sequence[str]) -> dict[str, Actor]:
        return {
            who: Actor(kind="viewer", id=who, name="王", facts=Facts(member=MemberId(who), registered=True))
            for who in members
        }

    async def place(self, t: Any, actor: Actor, show: ShowId, command: Any) -> dict[str, str]:
        return {"order": "o"}

    async def all(self, conn: Any) -> tuple[Any, ...]:
        return ()

    async def actor(self, conn: Any, who: str) -> Actor:
        if who == "staff":
            return Actor(
                kind="staff", id="staff", name="小禾", role="owner", permissions=PERMISSIONS["owner"]
            )
        return Actor(kind="viewer", id=who, name="王", facts=Facts(member=MemberId(who), registered=True))

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked has nothing to tell."""
        if name.startswith("_"):
            raise AttributeError(name)

        async def answered(*args: Any, **more: Any) -> None:
            return None

        return answered

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        yield self

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        yield self

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        yield self

    def load(self, package: str, name: str) -> Any:
        async def run(*args: Any) -> Any:
            return None

        return run


class StandingNode(Node):
    """A node on the loop's clock."""

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()


class Faults(logging.Handler):
    """Whatever is logged as an error is a fault: nothing a viewer sends may be one here."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        told = "".join(traceback.format_exception(*record.exc_info, limit=-6)) if record.exc_info else ""
        self._faults.append(f"logged by {record.name}: {record.getMessage()}\n{told}")


async def _not_here(scope: Any, receive: Any, send: Any) -> None:
    """What answers requests that are no upgrade."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class House:
    """A node with its door, on the running loop."""

    def __init__(self) -> None:
        self.loop = cast(StandingLoop, asyncio.get_running_loop())
        self.faults: list[str] = []
        self.loop.set_exception_handler(
            lambda _, context: self.faults.append(
                f"reached the loop: {context.get('message')} {context.get('exception')!r}"
            )
        )
        self.metrics = Metrics()
        quick = Quick()
        settings = read_settings(
            {
                "COMPANION_SECRET": "s" * 40,
                "COMPANION_DATA_DIR": str(Path.cwd()),
                "COMPANION_PUBLIC_URL": "http://fuzz.example",
                "COMPANION_JOIN_RATE": "5000",
                "COMPANION_TRUSTED_PROXIES": "203.0.113.0/24",
            }
        )
        parts = dict.fromkeys(
            [
                "redis",
                "pool",
                "database",
                "scripts",
                "members",
                "plans",
                "behaviour",
                "staff",
                "comments",
                "standings",
                "polls",
                "reactions",
                "seats",
                "orders",
                "claims",
                "shows",
                "show_log",
            ],
            quick,
        )
        self.tokens = Tokens("s" * 40)
        self.node = StandingNode(
            cast(Any, SimpleNamespace(**parts, settings=settings, metrics=self.metrics, tokens=self.tokens)),
            self.metrics,
            quick,
        )
        self.node.tail = cast(Any, quick)
        arrivals = self.node.arrivals  # nobody rests between two calls while the clock stands still
        for gathered in (arrivals._members, arrivals._cards, arrivals._talks, self.node.dispatch._lines):
            gathered._rest_s = 0.0  # type: ignore[attr-defined]
        self.rounds = Rounds(self.node, self.metrics)
        self.state = ServerState()
        self.config = uvicorn.Config(
            _not_here,
            http=Door,
            ws=lambda config, server_state, app_state: Socket(self.node, server_state.connections),  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self.config.load()

    @property
    def held_tasks(self) -> set[asyncio.Task[Any]]:
        return self.metrics._tasks

    def connect(self) -> TransportDouble:
        transport = TransportDouble(self.loop, self.faults)
        transport.made(Door(self.config, self.state, {}, self.loop))
        return transport

    async def settle(self) -> None:
        """Until nothing is left to do but what waits for the clock."""
        for _ in range(2_000):
            await asyncio.sleep(0)
            if not self.loop._ready:  # type: ignore[attr-defined]
                return
        names = [str(task.get_coro()) for task in (*self.held_tasks, *self.state.tasks)]
        self.faults.append(f"still at work: {names or 'the loop'}")

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, turn by turn of the wheel."""
        for _ in range(max(1, round(seconds / TURN_S))):
            self.loop.clock += TURN_S
            await self.rounds._turn()
            await asyncio.sleep(0)
        await self.settle()

    def say(self, size: int) -> None:
        """An event for everybody in the show, from the log."""
        hub = self.node.hubs.get(SHOW)
        if hub is not None:
            event = b'{"type":"comment.posted","text":"' + b"x" * size + b'"}'
            hub.receive([Entry(hub.seq + 1, event, 0, 1, False, None)])

    def leftovers(self) -> list[str]:
        """What still knows of a connection when all of them are gone."""
        node = self.node
        found = {
            "sockets": len(node.sockets),
            "members": len(node.members),
            "server connections": len(self.state.connections),
            "tasks": len(self.held_tasks),
            "wheel": len(node.wheel),
            "viewers": int(self.metrics.viewers._value.get()),
            **{f"hub {show}": hub.viewers + len(hub.classes) for show, hub in node.hubs.items()},
        }
        for name, value in vars(node).items():  # whatever else the node keeps sockets in
            if isinstance(value, set | list | dict | deque) and any(isinstance(v, Socket) for v in value):
                found[f"node.{name}"] = len(value)
        return [f"{name}: {count}" for name, count in found.items() if count]


# -- what is sent -----------------------------------------------------------------------------------

ANY: Final = None  # an answer whose id is not known beforehand


@dataclass
class Step:
    """One thing a client does: bytes with the frames they complete, or an act on the connection."""

    act: str  # feed, stall, drain, wait, say, end, lose
    data: bytes = b""
    frames: int = 0
    seconds: float = 0.0


@dataclass
class Session:
    """One connection's life, as a seed made it."""

    name: str
    opens: bool  # the request is one that is answered 101
    deflates: bool = False
    steps: list[Step] = field(default_factory=list)
    opening: int = 0  # of the steps: up to the hello, for which a client has not for ever
    asked: list[int | None] = field(default_factory=list)  # ids in order; what is sent here is answered once
    pongs: set[int] = field(default_factory=set)  # ids that are answered only when they are too many
    sound: bool = True  # it ends between two frames, and between two messages
    hello: bool = False  # it said a hello that is good
    harmless: bool = True  # nothing in it ends the connection


LONG: Final = "五常大米" * 40
TEXTS: Final = (
    "五常的吗?",
    "x",
    "",
    " ",
    LONG,
    "\u202e\u200b",
    "<b>&amp;",
    "🍚" * 50,
    "\x00",
    "a\nb",
    "x" * 201,
)
IDS: Final = (
    "0190a5f2-7c3e-7abc-8def-0123456789ab",
    "b",
    "x" * 64,
    "../../etc",
    "\x00",
    "'; DROP TABLE shows; --",
    "{p00}:x",
    "五",
)
NUMBERS: Final = (
    "0",
    "-1",
    "1e3",
    "1e400",
    "1.5",
    "NaN",
    "Infinity",
    "9" * 40,
    "9" * 600,
    '"5"',
    "null",
    "true",
    "[]",
)
BAD_UTF8: Final = (
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xfe\xfe\xff\xff",
    b'{"type":"pong"}\xc3',
    "五".encode()[:2],
)
NOT_COMMANDS: Final = (
    b"",
    b" ",
    b"{",
    b"[]",
    b"[[]]",
    b"null",
    b"5",
    b'"hello"',
    b"not json",
    b"{}",
    b'{"type":null,"id":5}',
    b'{"type":5,"id":5}',
    b'{"type":"no.such","id":5}',
    b'{"type":"comment.post"}',
    b'{"type":"comment.post","id":5}',
    b'{"type":"comment.post","id":5,"text":"x","price":1}',
    b'{"type":"reaction.send","id":5,"kind":"like","count":1000000}',
    b'{"type":"ballot.cast","id":5,"poll":"p","choices":[]}',
    b'{"type":"ballot.cast","id":5,"poll":"p","choices":[1e99]}',
    b'{"type":"order.place","id":5,"key":"k","quote":"q","address":"a","lines":[{"offer":"o","quantity":-1}]}',
    b'{"type":"order.place","id":5,"key":"k","quote":"q","address":"a","lines":{"0":1}}',
    b'{"type":"hello"}',
    b'{"type":"resync","id":5,"since":{"epoch":"e1","seq":-1}}',
    b'{"type":"resync","id":5,"since":[1,2]}',
    b'{"type":"refresh","id":5}',
    b'{"type":"comment.post","id":5,"text":"\\ud800"}',
    b'{"type":"comment.post","id":5,"text":"\\udc00\\ud800"}',
    b'{"type":"comment.post","id":5,"text":"\x01"}',
    b'{"type":"comment.post","id":5,"text":"x"}x',
    b'{"type":"comment.post","type":"pong","id":5,"id":6}',
    b"[" * 2_000,
    b'{"a":' * 700,
    b'{"type":"comment.post","id":5,"text":' + b"[" * 1_500,
    b'{"id":5,"q":' + b"[" * 1_900 + b"]" * 1_900 + b',"type":"pong"}',
    b"\xef\xbb\xbf{}",
    b"\x00" * 40,
)
CLOSE_PAYLOADS: Final = (
    b"",
    b"\x03",
    *(
        code.to_bytes(2, "big")
        for code in (0, 999, 1000, 1001, 1002, 1004, 1005, 1006, 1007, 1011, 1015, 1016)
    ),
    *(code.to_bytes(2, "big") + b"bye" for code in (1100, 2999, 3000, 3999, 4001, 4504, 4999, 5000, 65_535)),
    b"\x03\xe8\xff\xfe",
    b"\x03\xe8" + b"r" * 123,
    b"\x03\xe8" + b"r" * 124,
)
OFFERS: Final = (
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9",
    "permessage-deflate; client_max_window_bits=8",
    "permessage-deflate; server_max_window_bits=8",
    "permessage-deflate; server_max_window_bits=99, permessage-deflate",
    "x-webkit-deflate-frame, permessage-deflate",
)
WHOLE: Final = upgrade()
BROKEN_REQUESTS: Final = (
    WHOLE.replace(b"GET", b"POST"),
    WHOLE.replace(b"GET", b"BREW"),
    WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    WHOLE.replace(b"HTTP/1.1", b"HTTP/9.9"),
    WHOLE.replace(b"/v1/shows", b"/v2/shows"),
    WHOLE.replace(b"/socket", b"/socket/more"),
    WHOLE.replace(b"/fuzzed/", b"/" + b"x" * 65 + b"/"),
    WHOLE.replace(b"/fuzzed/", b"/" + b"x" * 30_000 + b"/"),
    WHOLE.replace(b"/v1", b"v1"),
    WHOLE.replace(KEY, b"c2hvcnQ="),
    WHOLE.replace(KEY, b"not base64!"),
    WHOLE.replace(KEY, b""),
    WHOLE.replace(KEY, KEY + b"\r\nSec-WebSocket-Key: " + KEY),
    WHOLE.replace(b"Version: 13", b"Version: 8"),
    WHOLE.replace(b"Version: 13", b"Version: 13\r\nSec-WebSocket-Version: 13"),
    WHOLE.replace(b"Sec-WebSocket-Version: 13\r\n", b""),
    WHOLE.replace(b"Sec-WebSocket-Protocol: companion.v1\r\n", b""),
    WHOLE.replace(b"companion.v1", b"companion.v2"),
    WHOLE.replace(b"companion.v1", b"a, , ;=\x80"),
    WHOLE.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    WHOLE.replace(b"Upgrade: websocket", b"Upgrade: websocket, websocket"),
    WHOLE.replace(b"Upgrade: websocket\r\n", b""),
    WHOLE.replace(b"Connection: Upgrade", b"Connection: close"),
    WHOLE.replace(b"Connection: Upgrade", b"Connection: keep-alive, Upgrade, \x7f"),
    WHOLE.replace(b"Host: fuzz.example", b"Host: fuzz.example\r\n folded: yes"),
    WHOLE.replace(b"Host: fuzz.example", b"Host: a\r\nHost: b\r\nOrigin: http://b"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nOrigin: http://[\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nOrigin: https://evil.example\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nOrigin: http://fuzz.example\r\nOrigin: null\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nX-Long: " + b"a" * 17_000 + b"\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\n" + b"X-Many: 1\r\n" * 300 + b"\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Length: -1\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: ;;=\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nNo colon at all\r\n\r\n"),
    WHOLE.replace(b"\r\n\r\n", b"\r\nX-Nul: \x00\r\n\r\n"),
    WHOLE.replace(b"\r\n", b"\n"),
    WHOLE[:-2],
    WHOLE[:40],
    b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    b"\x81\x85\x00\x00\x00\x00hello",
    b"\r\n" * 200,
    b"GET / HTTP/1.1\r\nHost: fuzz.example\r\n\r\n" * 3,
    b"",
)
HARMLESS_HEADERS: Final = (
    b"",
    b"Origin: http://fuzz.example\r\n",
    b"Cookie: a=b\r\nCookie: companion_viewer=nonsense\r\n",
    b"Cookie: " + b"\xe4\xba\x94=;;\"'" + b"\r\n",
    b"Cookie: companion_guest=../../etc; companion_staff=a.b.c\r\n",
    b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: not an address\r\n",
    b"X-Anything: \xff\xfe\r\n",
)


COOKIE_OCTETS: Final = b'ab=;,"\\ $%\t\x80\xff[]{}()<>@:/?0123'


class Generator:
    """Sessions of a seed: the same number is the same session, whatever came before it."""

    def __init__(self, seed: int, tokens: Tokens) -> None:
        self.seed = seed
        member = Actor(kind="viewer", id=IDS[0], facts=Facts(member=MemberId(IDS[0]), registered=True))
        staff = Actor(kind="staff", id="staff", role="owner", permissions=PERMISSIONS["owner"])
        self.good = [tokens.mint(member, 86_400), tokens.mint(member, 86_400), tokens.mint(staff, 86_400)]
        self.good.append(tokens.mint(staff, 86_400, preview="plan"))
        cut = self.good[0]
        self.bad = ["", "nonsense", "a.b.c", "x" * 2_048, cut[:-3], cut + "x", "..", "\x00", "五"]

    def session(self, index: int) -> Session:
        r = random.Random(self.seed << 32 | index)
        if r.random() < 0.12:
            return self._broken(r, index)
        offer = r.choice(OFFERS) if r.random() < 0.5 else None
        made = Session(f"{self.seed}/{index}", opens=True, deflates=offer is not None)
        request = upgrade(deflate=offer, more=self._headers(r))
        self._ids = r.choice((1, 2, 1_000, 1 << 62, 1 << 70))
        self._pending: list[tuple[bytes, int]] = [(request, 0)]
        self._ahead = False
        wild = r.random() < 0.25
        self._strikes = 0
        if r.random() < 0.9:
            self._hello(r, made)
        self._chop(r, made)
        made.opening = len(made.steps)
        flood = r.random() < 0.015
        for _ in range(r.choice((1, 4, 12, 40, 60, 90, 120)) if not flood else 450):
            turn = r.random()
            if flood:
                self._put(client_frame(9, b"flood"))
            elif turn < 0.40:
                self._command(r, made)
            elif turn < 0.50:
                self._put(
                    client_frame(r.choice((9, 9, 10)), r.randbytes(r.choice((0, 1, 4, 125))), key=_key(r))
                )
            elif turn < 0.60:
                number = 900_000_000 + len(made.pongs)
                made.pongs.add(number)
                self._put(client_frame(1, b'{"type":"pong","id":%d}' % number, key=_key(r)))
            elif turn < 0.70:
                self._pieces(r, made)
            elif turn < 0.72 and self._strikes < 4:
                self._strikes += 1
                self._message(r, made, r.choice(NOT_COMMANDS), ANY)
            elif turn < 0.76:
                self._act(r, made)
            elif wild and turn > 0.93:
                made.harmless = False
                if self._harm(r, made):
                    break
            else:
                self._command(r, made)
        if flood:
            made.harmless = False
            if r.random() < 0.5:
                self._put(
                    r.choice((client_frame(8, b"\x03\xe8"), client_frame(3), client_frame(1, b"x", rsv=7)))
                )
            self._flush(made)
        elif r.random() < 0.15:
            self._leave(r, made)
        else:
            if r.random() < 0.3:
                made.harmless = False
                self._harm(r, made)
            self._chop(r, made)
        return made

    # what a session is made of

    def _headers(self, r: random.Random) -> bytes:
        """Further headers of a good request: cookies of ours, of others and of nobody, and who passed it on."""
        kind = r.randrange(6)
        if kind == 0:
            name = r.choice((VIEWER_COOKIE, STAFF_COOKIE, GUEST_COOKIE))
            return f"Cookie: {name}={r.choice((*self.good, *self.bad[1:4]))}\r\n".encode()
        if kind == 1:
            return b"Cookie: " + bytes(r.choices(COOKIE_OCTETS, k=r.randint(1, 60))) + b"=1\r\n"
        if kind == 2:
            hops = r.choices(("192.0.2.1", "203.0.113.7", "::1", "x", "", "1.2.3.4:80", "999.1.1.1"), k=3)
            return f"X-Forwarded-For: {', '.join(hops)}\r\n".encode()
        return r.choice(HARMLESS_HEADERS)

    def _put(self, data: bytes) -> None:
        self._pending.append((data, 1))

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _message(self, r: random.Random, made: Session, payload: bytes, asked: int | None) -> None:
        """A whole text message that is answered once."""
        if made.deflates and r.random() < 0.5:
            self._put(client_frame(1, deflated(payload, r.choice((0, 1, 9))), rsv=4, key=_key(r)))
        else:
            self._put(client_frame(1, payload, key=_key(r)))
        made.asked.append(asked)

    def _hello(self, r: random.Random, made: Session) -> None:
        number = self._next_id()
        good = r.random() < 0.93
        token = r.choice((None, None, *self.good)) if good else r.choice(self.bad)
        since = r.choice((None, None, None, {"epoch": "e1", "seq": 0}, {"epoch": "x", "seq": 10**30}))
        said = {"type": "hello", "id": number, "token": token, "since": since}
        self._message(r, made, json.dumps(said).encode(), number)
        made.hello = good
        made.harmless = made.harmless and good

    def _payload(self, r: random.Random) -> tuple[bytes, int]:
        number = self._next_id()
        kind = r.randrange(11 if self._strikes < 4 and r.random() < 0.3 else 10)
        said: dict[str, Any]
        if kind == 0:
            said = {"type": "comment.post", "key": r.choice(("k", None, "x" * 64)), "text": r.choice(TEXTS)}
        elif kind == 1:
            said = {
                "type": "reaction.send",
                "kind": r.choice(("like", "clap", "rice")),
                "count": r.randint(1, 50),
            }
        elif kind == 2:
            said = {
                "type": "ballot.cast",
                "key": "k",
                "poll": r.choice(IDS),
                "choices": [r.randint(-5, 1 << 40)],
            }
        elif kind == 3:
            said = {"type": "benefit.claim", "key": r.choice(("k", "x" * 64)), "benefit": r.choice(IDS)}
        elif kind == 4:
            said = {"type": "benefit.queue", "benefit": r.choice(IDS)}
        elif kind == 5:
            said = {
                "type": "order.place",
                "key": "k",
                "quote": "q" * r.choice((1, 3_000)),
                "address": r.choice(IDS),
            }
        elif kind == 6:
            said = {"type": "product.view", "product": r.choice(IDS)}
        elif kind == 7:
            ahead = not self._ahead and r.random() < 0.2  # it is waited for: once a session
            self._ahead = self._ahead or ahead
            epoch = "e1" if ahead else r.choice(("e1", "", "x" * 32))
            said = {"type": "resync", "since": {"epoch": epoch, "seq": 1 << 63 if ahead else 0}}
        elif kind == 8:
            said = {"type": "refresh", "token": r.choice((*self.good[:2], *self.bad))}
        elif kind == 9:
            said = {"type": "hello", "token": r.choice((None, *self.bad))}
        else:  # one field of a wrong kind
            self._strikes += 1
            text = json.dumps({"type": "reaction.send", "id": number, "kind": "like"})
            return f'{text[:-1]},"count":{r.choice(NUMBERS)}}}'.encode(), number
        said["id"] = number
        return json.dumps(said).encode() if r.random() < 0.2 else msgspec.json.encode(said), number

    def _command(self, r: random.Random, made: Session) -> None:
        payload, number = self._payload(r)
        self._message(r, made, payload, number if b'"count":' not in payload else ANY)

    def _pieces(self, r: random.Random, made: Session) -> None:
        """One command in fragments, with control frames between them, whole or deflated."""
        payload, number = self._payload(r)
        squeezed = made.deflates and r.random() < 0.5
        data = deflated(payload) if squeezed else payload
        count = r.choice((1, 2, 3, 7, 40))
        cuts = sorted(r.randint(0, len(data)) for _ in range(count - 1))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        for place, part in enumerate(parts):
            rsv = 4 if squeezed and place == 0 else 0
            self._put(client_frame(0 if place else 1, part, fin=place == count - 1, rsv=rsv, key=_key(r)))
            if place < count - 1 and r.random() < 0.2:
                self._put(client_frame(9, b"between"))
        made.asked.append(number if b'"count":' not in payload else ANY)

    def _act(self, r: random.Random, made: Session) -> None:
        self._chop(r, made)
        act = r.choice(("wait", "wait", "say", "say", "stall", "drain"))
        made.steps.append(
            Step(
                act,
                seconds=r.choice((0.25, 1.0, 4.0)),
                frames=r.choice((10, 10, 10, 300, 300, 300, 3_000, 40_000)),
            )
        )

    def _harm(self, r: random.Random, made: Session) -> bool:
        """What ends a connection, or may; True when nothing sensible can follow it."""
        kind = r.randrange(17)
        made.asked.append(ANY)
        if kind == 0:
            self._put(
                client_frame(r.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), b"reserved"[: r.randint(0, 8)])
            )
        elif kind == 1:
            self._put(client_frame(r.choice((0, 1, 2, 8, 9, 10)), b"x", rsv=r.randint(1, 7)))
        elif kind == 2:
            self._put(client_frame(r.choice((1, 8, 9)), b"unmasked", key=None))
        elif kind == 3:
            self._put(client_frame(8, r.choice(CLOSE_PAYLOADS), key=_key(r)))
        elif kind == 4:
            self._put(client_frame(2, r.randbytes(r.choice((0, 1, 126, 5_000))), fin=r.random() < 0.7))
        elif kind == 5:
            bad = r.choice(BAD_UTF8)
            if r.random() < 0.5:
                bad = b'{"type":"comment.post","id":3,"text":"' + bad + b'"}'
            self._put(client_frame(1, bad))
        elif kind == 6:
            self._put(client_frame(1, b"x" * r.choice((4_097, 33_000, 70_000))))
        elif kind == 7:
            self._put(client_frame(9, b"p" * 126))
        elif kind == 8:
            self._put(client_frame(r.choice((8, 9, 10)), b"", fin=False))
        elif kind == 9:
            self._put(client_frame(0, b"nothing to continue", fin=r.random() < 0.5))
        elif kind == 10:
            self._put(client_frame(1, b"begun", fin=False) + client_frame(1, b"again"))
        elif kind == 11:
            self._put(b"".join(client_frame(0 if n else 1, b"", fin=False) for n in range(70)))
        elif kind == 12:
            for _ in range(5):
                self._message(r, made, r.choice(NOT_COMMANDS), ANY)
            return False
        elif kind == 13:
            bomb = deflated(b"\x00" * r.choice((4_097, 100_000, 2_000_000)), 9)
            self._put(client_frame(1, bomb[: r.choice((len(bomb), 4_000))], rsv=4))
        elif kind == 14:
            self._put(client_frame(1, r.randbytes(r.randint(0, 300)), rsv=4, fin=r.random() < 0.8))
        elif kind == 15:
            self._leave(r, made)
            return True
        else:
            made.sound = False
            tail = r.randrange(5)
            if tail == 0:
                self._put(client_frame(1, b'{"type":"pong"}')[: r.randint(1, 20)])
            elif tail == 1:
                self._put(
                    client_frame(1, b"short", claimed=r.choice((100, 4_096, 1 << 31, 1 << 62, (1 << 64) - 1)))
                )
            elif tail == 2:
                self._put(r.randbytes(r.randint(1, 400)))
            elif tail == 3:
                self._put(client_frame(1, b"never ended", fin=False))
            else:
                self._put(client_frame(1, b"long form", form=r.choice((2, 8))))
            return True
        made.sound = False  # some leave a fragment open; the wheel ends what is left
        return r.random() < 0.5

    def _leave(self, r: random.Random, made: Session) -> None:
        """Go without a word, or say goodbye, also with something written that is not read."""
        self._chop(r, made)
        if r.random() < 0.6:
            made.steps += [Step("stall"), Step("say", frames=r.choice((10, 40_000)))]
            made.steps.append(Step("feed", client_frame(9, b"unread"), 1))
        act = r.choice(("end", "end", "lose", "feed"))
        made.steps.append(Step(act, client_frame(8, r.choice(CLOSE_PAYLOADS)) if act == "feed" else b""))
        made.sound = made.harmless = False

    def _flush(self, made: Session) -> None:
        data = b"".join(part for part, _ in self._pending)
        if data:
            made.steps.append(Step("feed", data, sum(count for _, count in self._pending)))
        self._pending = []

    def _chop(self, r: random.Random, made: Session) -> None:
        """What waits, as reads: one a frame, all in one, or cut anywhere."""
        way = r.random()
        if way < 0.45:
            made.steps += [Step("feed", part, count) for part, count in self._pending]
        elif way < 0.75:
            while self._pending:
                some = r.randint(1, 8)
                head, rest = self._pending[:some], self._pending[some:]
                made.steps.append(Step("feed", b"".join(p for p, _ in head), sum(c for _, c in head)))
                self._pending = rest
        else:
            data = b"".join(part for part, _ in self._pending)
            total = sum(count for _, count in self._pending)
            size = 1 if len(data) < 600 and r.random() < 0.3 else max(1, len(data) // r.choice((2, 5, 11)))
            cuts = [data[start : start + size] for start in range(0, len(data), size)]
            made.steps += [Step("feed", part) for part in cuts]
            if cuts:
                made.steps[-1].frames = total
        self._pending = []

    def _broken(self, r: random.Random, index: int) -> Session:
        made = Session(f"{self.seed}/{index}", opens=False, sound=False, harmless=False)
        request = r.choice(BROKEN_REQUESTS)
        if r.random() < 0.3 and request:
            place = r.randrange(len(request))
            request = request[:place] + r.randbytes(r.randint(0, 3)) + request[place + r.randint(0, 3) :]
        self._pending = [(request, 0), (client_frame(1, b'{"type":"hello","id":1,"token":null}'), 1)]
        self._chop(r, made)
        made.opening = len(made.steps)
        return made


def _key(r: random.Random) -> bytes:
    return b"\x00\x00\x00\x00" if r.random() < 0.7 else r.randbytes(4)


# -- what must hold ---------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a client read."""

    status: int = 0
    answers: list[int | None] = field(default_factory=list)
    code: int | None = None  # of the close frame
    frames: int = 0


class Message(msgspec.Struct):
    """What is looked at of a message; the rest is only read."""

    type: str
    id: int | None = None
    code: str | None = None


_MESSAGES: Final = msgspec.json.Decoder(list[Message], strict=False)
CLAIMED: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def heard(output: bytes) -> Heard:
    """Read everything the server wrote as a strict client does. Raises ValueError at what it may not write."""
    found = Heard()
    head, _, rest = output.partition(b"\r\n\r\n")
    if not output:
        return found
    status = CLAIMED.match(head)
    if status is None:
        raise ValueError(f"no answer in HTTP: {output[:80]!r}")
    found.status = int(status[1])
    if found.status != 101:
        return found
    client = ClientProtocol(URI, state=OPEN, max_size=None)
    if b"Sec-WebSocket-Extensions: permessage-deflate" in head:
        client.extensions = [PerMessageDeflate(True, True, 15, 15)]
    client.receive_data(rest)
    if client.parser_exc is not None:
        raise ValueError(f"no frame of a server: {client.parser_exc!r}")
    for event in client.events_received():
        assert isinstance(event, Frame)
        found.frames += 1
        if event.opcode is Opcode.CLOSE:
            found.code = int.from_bytes(event.data[:2], "big") if event.data else 1005
        elif event.opcode is Opcode.TEXT:
            for message in _MESSAGES.decode(event.data):
                if message.type in ("ok", "refused", "welcome") and message.code != "token_expired":
                    found.answers.append(message.id)
        elif event.opcode is not Opcode.PONG:
            raise ValueError(f"a server of ours sends no {event.opcode.name}")
    if found.code is not None and _data_after_close(rest):
        raise ValueError("data after the close frame")
    return found


def _data_after_close(data: bytes) -> bool:
    at, closed = 0, False
    while at + 2 <= len(data):
        opcode, size = data[at] & 0x0F, data[at + 1] & 0x7F
        at += 2
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        if closed and opcode < 8:
            return True
        closed = closed or opcode == 8
        at += size
    return False


@dataclass
class Outcome:
    """What a run came to."""

    frames: int = 0
    connections: int = 0
    answers: int = 0
    written: int = 0  # frames the server wrote
    closes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes after each round
    objects: list[int] = field(default_factory=list)  # that the collector knows, after each round
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """The last round's memory over the second's: the first one warms up."""
        return self.memory[-1] / self.memory[1] if len(self.memory) > 2 else 1.0

    @property
    def more_objects(self) -> float:
        """The same of objects: it has no noise, so a short run shows a leak too."""
        return self.objects[-1] / self.objects[1] if len(self.objects) > 2 else 1.0


async def run_sessions(house: House, sessions: list[Session], outcome: Outcome) -> None:
    """Play the sessions at once, turn by turn, then judge each and look for what is left of them."""
    wires = [house.connect() for _ in sessions]
    spare_s = PLAY_S
    for phase in (True, False):
        left = [
            deque(session.steps[: session.opening] if phase else session.steps[session.opening :])
            for session in sessions
        ]
        while any(left):
            for wire, steps in zip(wires, left, strict=True):
                if not steps:
                    continue
                step = steps.popleft()
                if step.act == "feed":
                    if not wire.closing:
                        wire.feed(step.data)
                        outcome.frames += step.frames
                elif step.act == "wait" and step.seconds <= spare_s:
                    spare_s -= step.seconds
                    await house.pass_time(step.seconds)
                elif step.act == "say":
                    house.say(step.frames)
                elif step.act == "stall":
                    wire.stall()
                elif step.act == "drain":
                    wire.drain()
                elif step.act == "end":
                    wire.end()
                elif step.act == "lose":
                    wire.abort()
            await asyncio.sleep(0)
        await house.settle()
    await _probe(house, wires, sessions)
    # Silence: what is half said is not waited for beyond a ping and the time a close takes.
    await house.pass_time(SILENCE_S)
    for wire, session in zip(wires, sessions, strict=True):
        try:
            _judge(wire, session, outcome)
        except Exception as error:
            house.faults.append(f"session {session.name}: {error!r}")
        outcome.connections += 1
    if not all(wire.closed for wire in wires):
        for wire in wires:
            wire.abort()
        await house.settle()
    await house.node.dispatch.flush()
    house.faults += [f"left over: {what}" for what in house.leftovers()]


async def _probe(house: House, wires: list[TransportDouble], sessions: list[Session]) -> None:
    """Who is still open answers a command; then it leaves in one of the ways people do."""
    for wire, session in zip(wires, sessions, strict=True):
        if session.sound:
            wire.drain()
    await house.pass_time(2.0)  # tokens for one more command, and the wait of a resync that is ahead
    asked = []
    for wire, session in zip(wires, sessions, strict=True):
        if (
            session.opens
            and session.sound
            and isinstance(wire.protocol, Socket)
            and not wire.protocol.closing
        ):
            said = {"type": "product.view", "id": PROBE, "product": IDS[0]}
            if not session.hello:
                said = {"type": "hello", "id": PROBE, "token": None}
            wire.feed(client_frame(1, json.dumps(said).encode()))
            session.asked.append(PROBE)
            asked.append((wire, session))
    await house.settle()
    for place, (wire, session) in enumerate(asked):
        if b"%d" % PROBE not in wire.sent[-4_000:]:
            house.faults.append(f"session {session.name}: open, and answers nothing")
        way = place % 4
        if way == 0:
            wire.feed(client_frame(8, b"\x03\xe8"))
        elif way == 1:
            wire.end()
        elif way == 2:
            wire.abort()
    await house.settle()


def _judge(wire: TransportDouble, session: Session, outcome: Outcome) -> None:
    found = heard(bytes(wire.sent))
    found.answers = [answer for answer in found.answers if answer not in session.pongs]
    outcome.answers += len(found.answers)
    outcome.written += found.frames
    outcome.closes[str(found.code) if found.status == 101 else f"HTTP {found.status}"] += 1
    if not wire.closed:
        raise ValueError(f"neither closed nor answering: stuck ({wire.protocol!r})")
    if session.opens and found.status != 101:
        raise ValueError(f"a good request is answered {found.status}")
    if not session.opens:
        return
    if len(found.answers) > len(session.asked):
        raise ValueError(f"{len(found.answers)} answers to {len(session.asked)} commands")
    exactly = session.harmless and PROBE in session.asked
    if exactly and len(found.answers) != len(session.asked):
        raise ValueError(f"{len(session.asked)} commands, {len(found.answers)} answers")
    asked = iter(session.asked)
    for place, answered in enumerate(found.answers):
        for expected in asked:
            if expected is ANY or expected == answered:
                break
            if exactly:
                raise ValueError(f"answer {place} is to {answered} where {expected} was asked")
        else:
            raise ValueError(f"answer {place} is to {answered}, which is out of turn")


def resident() -> int:
    """Bytes of this process in memory, without what is free and only not yet given back."""
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096


@contextlib.contextmanager
def errors_are_faults(faults: list[str]) -> Iterator[None]:
    found = Faults(faults)
    loggers = [logging.getLogger(name) for name in ("companion", "asyncio", "uvicorn")]
    quiet = logging.getLogger("uvicorn.error")
    before, quiet.disabled = quiet.disabled, False
    for logger in loggers:
        logger.addHandler(found)
    try:
        yield
    finally:
        quiet.disabled = before
        for logger in loggers:
            logger.removeHandler(found)


async def _fuzz(frames: int, seed: int, rounds: int, first: int, told: Callable[[Outcome], None]) -> Outcome:
    house = House()
    outcome = Outcome(faults=house.faults)
    generator = Generator(seed, house.tokens)
    index = first
    began = time.monotonic()
    with errors_are_faults(house.faults):
        for number in range(1, rounds + 1):
            while outcome.frames < frames * number / rounds and not house.faults:
                sessions = [generator.session(index + place) for place in range(SLOTS)]
                index += SLOTS
                await run_sessions(house, sessions, outcome)
                told(outcome)
            await house.pass_time(CLOSE_WAIT_S)
            gc.collect()
            known = gc.get_objects()
            kept = sum(isinstance(held, Socket | Door) for held in known)
            outcome.objects.append(len(known))
            del known
            if kept:
                house.faults.append(f"{kept} connections are gone and still in memory, up to session {index}")
            outcome.memory.append(resident())
            if house.faults:
                break
    outcome.seconds = time.monotonic() - began
    return outcome


def fuzz(
    frames: int,
    seed: int,
    *,
    rounds: int = 4,
    first: int = 0,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Play `frames` frames of `seed`, beginning with session `first`; stops at the first batch with a fault."""
    with asyncio.Runner(loop_factory=StandingLoop) as runner:
        return runner.run(_fuzz(frames, seed, rounds, first, told))
