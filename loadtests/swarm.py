"""Thousands of viewers in one process: raw protocols on uvloop, with a frame reader of their own.

Frames that many viewers get are the same bytes, so each is inflated, parsed and judged once and only
counted for the others: one core takes in some 100,000 frames a second. As a process of its own, kept on
one core and asked over stdin, it leaves the other core to the server:

    python -m loadtests.swarm --port 8000 --path /v1/shows/k7m2p3q4r5/socket --count 1000 --core 1

It prints one JSON object a line: `ready` when all are in, then the answer of every command.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import sys
import time
import uuid
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import uvloop

from live import process
from live.protocol import SUBPROTOCOL
from loadtests import talk

KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455's sample; nothing depends on chance here
ACCEPT: Final = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MARK: Final = re.compile(rb"@t=(\d+)")
TAIL: Final = b"\x00\x00\xff\xff"  # what RFC 7692 leaves out of a deflated message
STEP_NS: Final = 100_000  # latencies are kept in steps of 0.1 ms …
STEPS: Final = 300_000  # … up to 30 s; what is longer counts as 30 s
HEADERS_MAX: Final = 16_384
KEPT_CHUNKS, KEPT_FRAMES, KEPT_BYTES = 512, 512, 65_536
CONNECTS_AT_ONCE: Final = 256
CONNECT_S: Final = 20.0
ANSWER_S: Final = 10.0
POSTED_MAX: Final = 20_000  # comments whose receipt may still be timed
HERE: Final = Path(__file__).resolve().parent.parent
SPARE_FILES: Final = 128
VIEWERS_PER_ADDRESS: Final = 5_000  # of 28,000 ports an address has: the cut ones are held back a minute
SMALL_BUFFER: Final = 4_096
SMALL_SEGMENT: Final = 1_400  # as on the road: by the loopback's 64 KB the kernel would keep 2.6 MB for each
STAY_AWAY: Final = 4_500  # this close code and those above
ABNORMAL: Final = 1_006
UNLIMITED_MS: Final = 20_000
Hello = Callable[[int], str | None]


class SwarmError(Exception):
    """One line: what is wrong and what to do."""


class Times(msgspec.Struct, frozen=True):
    """Milliseconds."""

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Histogram:
    """Times in steps of 0.1 ms."""

    def __init__(self) -> None:
        self.steps = array("Q", bytes(8 * STEPS))
        self.longest_ns = 0

    def add(self, took_ns: int) -> None:
        self.steps[min(STEPS - 1, max(0, took_ns) // STEP_NS)] += 1
        if took_ns > self.longest_ns:
            self.longest_ns = took_ns

    def times(self) -> Times:
        count = sum(self.steps)
        if not count:
            return Times()
        wanted, found, seen = [0.50, 0.95, 0.99], [], 0
        for index, here in enumerate(self.steps):
            seen += here
            while wanted and seen >= wanted[0] * count:
                wanted.pop(0)
                found.append(min(self.longest_ns, (index + 1) * STEP_NS) / 1e6)
            if not wanted:
                break
        return Times(count, found[0], found[1], found[2], self.longest_ns / 1e6)


class Report(msgspec.Struct, kw_only=True):
    """What all viewers saw since the last `reset`; `viewers`, `here` and `joined` are of this moment."""

    viewers: int
    here: int  # connected and welcomed
    seconds: float
    frames: int  # data frames received
    deflated: int  # of them
    messages: int  # in them
    events: int  # numbered ones among these
    ranges: int  # heads of frames with such
    wire_bytes: int
    joins: int
    recovered: int  # joins with `since` that got every missed event
    snapshots: int  # joins with `since` that got a snapshot
    holes: int  # ranges that left numbers out
    repeats: int  # ranges that told numbers again
    disordered: int  # frames whose events are not in order within their range
    gaps: int  # `gap` messages
    turned: int  # upgrades answered 503, which came again
    unconnected: int  # connections that failed before the upgrade
    closes: dict[str, int]
    first_closed_ns: int
    last_closed_ns: int
    latency: Times  # of marked and posted messages, each viewer's receipt a sample
    posted: int  # comments sent by these viewers
    acknowledged: int  # of them
    acknowledged_sum: int  # of their numbers
    refused: dict[str, int]
    answers: Times  # from posting or claiming to the answer
    comments_least: int  # the viewer that has the fewest of the comments, and so on
    comments_most: int
    sum_least: int  # of the numbers of the comments a viewer has
    sum_most: int
    seq_least: int  # the number the viewers have come to, of those who are here
    seq_most: int
    ranks: list[int]  # of claims that were won, in the order of the answers
    claims_waiting: int
    answered_twice: int  # claims that got two different answers
    cpu_s: float
    lag_max_ms: float  # of this process's own loop: when large, the times above are the swarm's


class Said:
    """What one frame said, read once for all who get it."""

    __slots__ = (
        "checksum",
        "close",
        "comments",
        "deflated",
        "disordered",
        "events",
        "gap",
        "marks",
        "messages",
        "personal",
        "ping",
        "pong",
        "ranges",
    )  # fmt: skip

    def __init__(self) -> None:
        self.messages = 0
        self.events = 0
        self.comments = 0
        self.checksum = 0  # of the comments' numbers
        self.ranges: tuple[tuple[str, int, int], ...] = ()
        self.marks: tuple[int, ...] = ()
        self.disordered = 0
        self.deflated = 0
        self.gap = False
        self.ping = False
        self.pong: bytes | None = None  # a protocol ping's payload
        self.close: int | None = None
        self.personal: list[dict[str, Any]] = []


def client_frame(payload: bytes, opcode: int = 1) -> bytes:
    """Masked with a key of zeros, which changes nothing and costs nothing."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size, 0, 0, 0, 0)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


PONG: Final = client_frame(b'{"type":"pong"}')
CLOSE_BACK: Final = client_frame(b"\x03\xe8", 8)


class Viewer(asyncio.Protocol):
    """One viewer over all of its connections."""

    __slots__ = (
        "asked",
        "checksum",
        "claim_again",
        "close_code",
        "comments",
        "door",
        "epoch",
        "here",
        "here_ns",
        "index",
        "leaving",
        "next_id",
        "parts",
        "public_id",
        "rest",
        "rests_ms",
        "seq",
        "since_sent",
        "swarm",
        "timed",
        "transport",
        "turned_s",
        "upgraded",
    )  # fmt: skip

    def __init__(self, swarm: Swarm, index: int) -> None:
        self.swarm = swarm
        self.index = index
        self.door = index % len(swarm.doors)
        self.transport: asyncio.Transport | None = None
        self.upgraded = False
        self.here = False
        self.here_ns = 0  # what was stamped before says nothing about the road
        self.rest = b""
        self.parts: list[bytes] = []  # of a fragmented message
        self.close_code: int | None = None
        self.turned_s: float | None = None
        self.leaving = False
        self.timed = True
        self.epoch: str | None = None
        self.seq = 0
        self.since_sent = False
        self.rests_ms = (500, 5_000)
        self.public_id = ""
        self.next_id = 2
        self.asked: dict[int, tuple[str, int]] = {}  # id -> what, when
        self.comments = 0
        self.checksum = 0
        self.claim_again: asyncio.TimerHandle | None = None

    # -- the connection ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upgraded = self.here = False
        self.rest, self.close_code, self.turned_s = b"", None, None
        self.parts.clear()
        self.transport.write(self.swarm.request(self.door))

    def connection_lost(self, exc: Exception | None) -> None:
        swarm, self.transport = self.swarm, None
        if self.here:
            self.here = False
            swarm.left()
        if not self.upgraded:
            swarm.turn_back(self)
            return
        self.upgraded = False
        if not self.leaving:
            code = ABNORMAL if self.close_code is None else self.close_code
            swarm.closed(self, code)

    def data_received(self, data: bytes) -> None:
        swarm = self.swarm
        if not self.upgraded:
            self._upgrade(data)
            return
        swarm.wire_bytes += len(data)
        if self.rest:
            data = self.rest + data
        found: Sequence[Said] | None = swarm.chunks.get(data)
        if found is None:
            found = self._read(data)
        else:
            self.rest = b""
        for said in found:
            if said.close is not None or said.pong is not None:
                self._control(said)
                continue
            swarm.frames += 1
            swarm.deflated += said.deflated
            swarm.messages += said.messages
            if said.ranges:
                swarm.events += said.events
                swarm.ranges += len(said.ranges)
                swarm.disordered += said.disordered
                self.comments += said.comments
                self.checksum += said.checksum
                for epoch, first, last in said.ranges:
                    if first == self.seq + 1 and epoch == self.epoch:
                        self.seq = last
                    else:
                        self._odd_range(epoch, first, last)
            if said.marks and self.timed:
                now, here_ns, steps = time.monotonic_ns(), self.here_ns, swarm.latency.steps
                for mark in said.marks:
                    if mark >= here_ns:
                        took = now - mark
                        steps[took // STEP_NS if took < STEP_NS * STEPS else STEPS - 1] += 1
                        if took > swarm.latency.longest_ns:
                            swarm.latency.longest_ns = took
            if said.personal or said.ping or said.gap:
                self._personal(said)

    def _upgrade(self, data: bytes) -> None:
        data = self.rest + data
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            self.rest = data
            if len(data) > HEADERS_MAX and self.transport is not None:
                self.transport.abort()
            return
        self.rest = b""
        lines = head.split(b"\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        status = lines[0].split(b" ", 2)[1] if lines[0].count(b" ") else b"0"
        assert self.transport is not None
        if status == b"503":
            after = headers.get(b"retry-after", b"1")
            self.turned_s = float(after) if after.isdigit() else 1.0
            self.transport.close()
            return
        extensions = headers.get(b"sec-websocket-extensions", b"")
        wrong = ""
        if status != b"101":
            wrong = f"the upgrade was answered {status.decode('ascii', 'replace')}"
        elif headers.get(b"sec-websocket-accept") != ACCEPT:
            wrong = "the upgrade's Sec-WebSocket-Accept is wrong"
        elif extensions and b"server_no_context_takeover" not in extensions:
            wrong = "the server wants to keep a deflate context, which a shared frame cannot have"
        if wrong:
            self.swarm.failed = self.swarm.failed or wrong
            self.transport.abort()
            return
        self.upgraded = True
        hello = self.swarm.hello_of(self)
        if hello is None:
            self._in()
        else:
            self.send(hello)
        if rest:
            self.data_received(rest)

    def _in(self) -> None:
        self.here = True
        self.here_ns = time.monotonic_ns()
        self.swarm.entered(self)

    # -- frames ------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> Sequence[Said]:
        """The whole frames of a chunk; what is left of a frame waits for more. Shared chunks are kept."""
        found: list[Said] = []
        swarm, at, size, personal = self.swarm, 0, len(data), False
        while size - at >= 2:
            first, length = data[at], data[at + 1] & 127
            begin = at + 2
            if length == 126:
                begin += 2
                length = int.from_bytes(data[at + 2 : begin], "big")
            elif length == 127:
                begin += 8
                length = int.from_bytes(data[at + 2 : begin], "big")
            if size < begin or size - begin < length:
                break
            payload, at = data[begin : begin + length], begin + length
            opcode = first & 15
            if opcode >= 8 or (opcode and first & 0x80):
                said = swarm.read(first, payload)
                personal = personal or bool(said.personal)
                found.append(said)
            else:  # fragments: of no server of ours, but of some peers
                self.parts.append(bytes((first,)) if opcode else b"")
                self.parts.append(payload)
                personal = True
                if first & 0x80:
                    whole = b"".join(self.parts)
                    self.parts.clear()
                    found.append(swarm.read(whole[0], whole[1:]))
        self.rest = data[at:]
        if not self.rest and not personal and size <= KEPT_BYTES:
            if len(swarm.chunks) >= KEPT_CHUNKS:
                swarm.chunks.clear()
            swarm.chunks[data] = tuple(found)
        return found

    def _control(self, said: Said) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if said.close is not None:
            self.close_code = said.close
            self.transport.write(CLOSE_BACK)
        elif said.pong is not None:
            self.transport.write(client_frame(said.pong, 10))

    def _odd_range(self, epoch: str, first: int, last: int) -> None:
        if self.epoch is None:  # asked for a snapshot, or joined without a hello
            self.epoch, self.seq = epoch, last
        elif epoch != self.epoch or first > self.seq + 1:
            self.swarm.holes += 1
            self.epoch, self.seq = epoch, last
        else:
            self.swarm.repeats += 1
            self.seq = max(self.seq, last)

    def _personal(self, said: Said) -> None:
        if said.ping and self.transport is not None:
            self.transport.write(PONG)
        if said.gap:
            self.swarm.gaps += 1
            since = None if self.epoch is None else {"epoch": self.epoch, "seq": self.seq}
            self.since_sent = since is not None
            self.send(json.dumps({"type": "resync", "id": 1, "since": since}))
        for message in said.personal:
            match message["type"]:
                case "welcome":
                    self._welcome(message)
                case "ok" | "refused":
                    self.swarm.answered(self, message)
                case "reconnect":
                    self._window(message.get("reconnect_ms"))

    def _window(self, window: Any) -> None:
        if isinstance(window, list) and len(window) == 2:
            self.rests_ms = (int(window[0]), int(window[1]))

    def _welcome(self, message: dict[str, Any]) -> None:
        self._window(message.get("reconnect_ms"))
        you = message.get("you")
        self.public_id = you.get("id", "") if isinstance(you, dict) else ""
        self.swarm.joins += 1
        if self.since_sent:
            if message["recovered"]:
                self.swarm.recovered += 1
                if (message["epoch"], message["seq"]) != (self.epoch, self.seq):
                    self.swarm.holes += 1
            else:
                self.swarm.snapshots += 1
        self.since_sent = False
        self.epoch, self.seq = message["epoch"], message["seq"]
        if not self.here:
            self._in()

    # -- what it says ------------------------------------------------------------------------------

    def send(self, text: str) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(client_frame(text.encode()))

    def ask(self, kind: str, what: str, **fields: Any) -> None:
        """Send a command; `what` comes back with its answer."""
        number, self.next_id = self.next_id, self.next_id + 1
        self.asked[number] = (what, time.monotonic_ns())
        self.send(json.dumps({"type": kind, "id": number, **fields}, ensure_ascii=False))


class Swarm:
    """`count` viewers of the doors (host, port); viewer i begins at door i modulo their number.

    `hello` gives the first text of viewer i, a JSON object without `since`, or None; without `hello`
    nothing is said and a viewer is in as soon as it is upgraded. `plain` counts frames and marks and looks
    at nothing else. `rejoin` brings back who was cut or sent away, by full jitter in the window the server
    said. The first `small` viewers have a receive buffer of 4 KB: those to be stalled.
    """

    def __init__(
        self,
        doors: Sequence[tuple[str, int]],
        path: str,
        count: int,
        *,
        hello: Hello | None = None,
        subprotocol: str | None = None,
        deflate: bool = False,
        plain: bool = False,
        rejoin: bool = False,
        rate: float = 1_000.0,
        small: int = 0,
        chance: random.Random | None = None,
    ) -> None:
        self.doors = list(doors)
        self.hello = hello
        self.rejoin = rejoin
        self.rate = rate
        self.small = small
        self.plain = plain
        self.chance = chance or random.Random(1)
        self.failed = ""  # why no viewer can get in
        self.chunks: dict[bytes, tuple[Said, ...]] = {}
        self._frames_read: dict[tuple[int, bytes], Said] = {}
        self._requests = [_request(host, port, path, subprotocol, deflate) for host, port in doors]
        self._decode = msgspec.json.Decoder().decode
        self.viewers = [Viewer(self, index) for index in range(count)]
        self.here = 0
        self._all_in = asyncio.Event()
        self._closing = self._opening = False
        self._connecting = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims: dict[str, _Claim] = {}  # key -> one
        self._posted_at: dict[tuple[str, str], int] = {}  # (who, text) -> when
        self._late = asyncio.create_task(self._watch_lag())
        self.reset()

    def reset(self) -> None:
        """Count anew from here."""
        self.began = time.monotonic()
        self._cpu_from = _cpu_s()
        self.frames = self.deflated = self.messages = self.events = self.ranges = self.wire_bytes = 0
        self.joins = self.recovered = self.snapshots = self.holes = self.repeats = self.disordered = 0
        self.gaps = self.turned = self.unconnected = 0
        self.closes: Counter[int] = Counter()
        self.first_closed_ns = self.last_closed_ns = 0
        self.latency, self.answers = Histogram(), Histogram()
        self.posted = self.acknowledged = self.acknowledged_sum = self.answered_twice = 0
        self.refused: Counter[str] = Counter()
        self.ranks: list[int] = []
        self.lag_max_ms = 0.0
        for viewer in self.viewers:
            viewer.comments = viewer.checksum = 0

    # -- getting in --------------------------------------------------------------------------------

    async def open(self, wait_s: float = 120.0) -> float:
        """Bring everybody in at `rate` a second; the seconds it took until all were in. Raises SwarmError."""
        allow_files(len(self.viewers))
        began, self._opening = time.monotonic(), True  # who is turned away at the door comes again
        for number, viewer in enumerate(self.viewers):
            wait = began + number / self.rate - time.monotonic()
            if wait > 0.001:
                await asyncio.sleep(wait)
            self.connect(viewer)
        await self.all_in(began + wait_s - time.monotonic())
        self._opening = False
        return time.monotonic() - began

    async def all_in(self, wait_s: float) -> None:
        """Wait until every viewer is in. Raises SwarmError."""
        until = time.monotonic() + wait_s
        while self.here < len(self.viewers):
            if self.failed:
                raise SwarmError(self.failed)
            if time.monotonic() > until:
                closes = ", ".join(f"{count:,} closed {code}" for code, count in self.closes.items())
                words = ", ".join(f"{count:,} {word}" for word, count in self.refused.items())
                raise SwarmError(
                    f"{len(self.viewers) - self.here:,} of {len(self.viewers):,} viewers are not in after "
                    f"{wait_s:.0f} s ({self.turned:,} answers 503, {self.unconnected:,} without connection; "
                    f"{closes or 'none closed'}; {words or 'none refused'})"
                )
            self._all_in.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_in.wait(), 0.25)

    def connect(self, viewer: Viewer) -> None:
        if not self._closing:
            task = asyncio.get_running_loop().create_task(self._connect(viewer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, viewer: Viewer) -> None:
        host, port = self.doors[viewer.door]
        loop = asyncio.get_running_loop()
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if viewer.index < self.small:  # before connecting: it decides the window that is offered
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
            if host.startswith("127."):
                made.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: ports per address pair
                made.bind((f"127.0.0.{1 + viewer.index // VIEWERS_PER_ADDRESS}", 0))
            async with self._connecting, asyncio.timeout(CONNECT_S):
                await loop.sock_connect(made, (host, port))
            await loop.create_connection(lambda: viewer, sock=made)
        except (OSError, TimeoutError):
            made.close()
            self.turn_back(viewer)

    def request(self, door: int) -> bytes:
        return self._requests[door]

    def hello_of(self, viewer: Viewer) -> str | None:
        text = None if self.hello is None else self.hello(viewer.index)
        if text is None or viewer.epoch is None:
            return text
        viewer.since_sent = True
        since = json.dumps({"epoch": viewer.epoch, "seq": viewer.seq})
        return f'{text[:-1]},"since":{since}}}'

    def entered(self, viewer: Viewer) -> None:
        self.here += 1
        if self.here == len(self.viewers):
            self._all_in.set()
        for claim in self._claims.values():
            if claim.viewer is viewer and claim.answer is None:
                self._claim(claim)

    def left(self) -> None:
        self.here -= 1

    def turn_back(self, viewer: Viewer) -> None:
        """It did not get in: after Retry-After and some jitter, or at the next door."""
        if self._closing or self.failed:
            return
        if viewer.turned_s is not None:
            self.turned += 1
            wait_s, viewer.turned_s = viewer.turned_s * self.chance.uniform(1, 2), None
        else:
            self.unconnected += 1
            viewer.door = (viewer.door + 1) % len(self.doors)
            wait_s = self.chance.uniform(0.2, 1.0)
        asyncio.get_running_loop().call_later(wait_s, self.connect, viewer)

    def closed(self, viewer: Viewer, code: int) -> None:
        self.closes[code] += 1
        self.last_closed_ns = time.monotonic_ns()
        self.first_closed_ns = self.first_closed_ns or self.last_closed_ns
        viewer.asked.clear()
        if (self.rejoin or self._opening) and not self._closing and code < STAY_AWAY:
            least, most = viewer.rests_ms
            wait_ms = self.chance.uniform(least, max(least, min(UNLIMITED_MS, most)))
            asyncio.get_running_loop().call_later(wait_ms / 1000, self.connect, viewer)

    # -- reading -----------------------------------------------------------------------------------

    def read(self, first: int, payload: bytes) -> Said:
        """One whole message or control frame; the same bytes are read once."""
        key = (first, payload)
        said = self._frames_read.get(key)
        if said is None:
            said = self._said(first, payload)
            if not said.personal:
                if len(self._frames_read) >= KEPT_FRAMES:
                    self._frames_read.clear()
                self._frames_read[key] = said
        return said

    def _said(self, first: int, payload: bytes) -> Said:
        said, opcode = Said(), first & 15
        if opcode == 8:
            said.close = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1_005
        elif opcode >= 9:
            said.pong = payload if opcode == 9 else None
        else:
            if first & 0x40:
                payload = zlib.decompressobj(-15).decompress(payload + TAIL)
                said.deflated = 1
            said.marks = tuple(int(found) for found in MARK.findall(payload))
            if self.plain:
                said.messages = 1
            else:
                self._read_messages(said, payload)
        return said

    def _read_messages(self, said: Said, payload: bytes) -> None:
        messages = self._decode(payload)
        if not isinstance(messages, list):
            messages = [messages]
        said.messages = len(messages)
        ranges, marks, before = [], list(said.marks), 0
        for message in messages:
            kind = message.get("type")
            if kind == "range":
                ranges.append((message["epoch"], message["from"], message["to"]))
                before = message["from"] - 1
            elif "seq" in message and "at" in message and kind != "ok":
                said.events += 1
                seq = message["seq"]
                if not ranges or not before < seq <= ranges[-1][2]:
                    said.disordered = 1
                before = seq
                if kind == "comment.posted":
                    said.comments += 1
                    said.checksum += seq
                    at = self._posted_at.get((message.get("viewer", ""), message.get("text", "")))
                    if at is not None:
                        marks.append(at)
            elif kind == "ping":
                said.ping = True
            elif kind == "gap":
                said.gap = True
            elif kind in ("welcome", "ok", "refused", "reconnect", "you"):
                said.personal.append(message)
                if kind == "welcome":
                    marks.clear()  # of comments said long ago
        said.ranges, said.marks = tuple(ranges), tuple(marks)

    # -- what they do ------------------------------------------------------------------------------

    async def post(self, rate: float, seconds: float, speakers: int | None = None, chars: int = 0) -> None:
        """Comments of the first `speakers` viewers in turn, each at its time whatever the answers do.

        Shorter ones are filled up to `chars`.
        Ends when all are answered, or 10 s after the last; a viewer that is away is passed over.
        """
        number, count, began = 0, int(rate * seconds), time.monotonic()
        among = self.viewers[: speakers or len(self.viewers)]
        for tick in range(count):
            wait = began + tick / rate - time.monotonic()
            if wait > 0.001:
                await asyncio.sleep(wait)
            for _ in among:
                viewer, number = among[number % len(among)], number + 1
                if viewer.here and viewer.public_id:
                    self._post(viewer, chars)
                    break
        await _until(lambda: not self.unanswered(), ANSWER_S)

    def _post(self, viewer: Viewer, chars: int) -> None:
        text = talk.varied(self.chance).ljust(chars, "好")
        self.posted += 1
        self._posted_at[viewer.public_id, text] = time.monotonic_ns()
        if len(self._posted_at) > POSTED_MAX:
            del self._posted_at[next(iter(self._posted_at))]
        viewer.ask("comment.post", "comment", key=uuid.uuid4().hex, text=text)

    def unanswered(self) -> int:
        return sum(len(viewer.asked) for viewer in self.viewers)

    async def claim(self, benefit: str, rate: float = 0.0) -> None:
        """Every viewer claims once, `rate` a second (0: at once); repeated by its key until answered."""
        began = time.monotonic()
        for number, viewer in enumerate(self.viewers):
            wait = began + number / rate - time.monotonic() if rate else 0.0
            if wait > 0.001:
                await asyncio.sleep(wait)
            claim = _Claim(viewer, benefit, uuid.uuid4().hex)
            self._claims[claim.key] = claim
            self._claim(claim)

    def _claim(self, claim: _Claim) -> None:
        if claim.viewer.here and claim.answer is None and not self._closing:
            claim.viewer.ask("benefit.claim", claim.key, key=claim.key, benefit=claim.benefit)

    def answered(self, viewer: Viewer, message: dict[str, Any]) -> None:
        what, asked_ns = viewer.asked.pop(message.get("id") or 0, ("", 0))
        if not what:
            if message["type"] == "refused" and not viewer.here:
                self.refused[f"hello: {message['code']}"] += 1
            return
        ok = message["type"] == "ok"
        self.answers.add(time.monotonic_ns() - asked_ns)
        if what == "comment":
            if ok:
                self.acknowledged += 1
                self.acknowledged_sum += message["seq"]
            else:
                self.refused[message["code"]] += 1
            return
        claim = self._claims[what]
        if not ok and message.get("retry_ms") is not None:  # not an answer: come again with the same key
            self.refused[f"again: {message['code']}"] += 1
            asyncio.get_running_loop().call_later(message["retry_ms"] / 1000, self._claim, claim)
            return
        answer = ("won", message["rank"]) if ok else (message["code"], 0)
        if claim.answer is None:
            claim.answer = answer
            if ok:
                self.ranks.append(message["rank"])
            else:
                self.refused[message["code"]] += 1
        elif claim.answer != answer:
            self.answered_twice += 1

    def stall(self, count: int) -> None:
        """The first `count` viewers read no more; their times are left out from here on."""
        for viewer in self.viewers[:count]:
            viewer.timed = False
            if viewer.transport is not None and not viewer.transport.is_closing():
                viewer.transport.pause_reading()

    def resume(self, count: int) -> None:
        """The first `count` of them read again."""
        for viewer in self.viewers[:count]:
            if viewer.transport is not None and not viewer.transport.is_closing():
                viewer.transport.resume_reading()

    async def cut(self, wait_s: float = 120.0) -> float:
        """Cut every connection at once; the seconds until all are back. Raises SwarmError.

        Each comes back by itself, whatever `rejoin` says of other ends.
        """
        rejoin, self.rejoin = self.rejoin, True
        began = time.monotonic()
        for viewer in self.viewers:
            if viewer.transport is not None:
                viewer.transport.abort()
        try:
            await _until(lambda: self.here == 0, 1.0)  # their ends come with the loop's next turns
            await self.all_in(wait_s)
        finally:
            self.rejoin = rejoin
        return time.monotonic() - began

    async def close(self) -> None:
        """Everybody leaves."""
        self._closing = True
        self._late.cancel()
        for task in [*self._tasks]:
            task.cancel()
        for viewer in self.viewers:
            viewer.leaving = True
            if viewer.transport is not None:
                viewer.transport.abort()
        await asyncio.gather(self._late, *self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    # -- the account -------------------------------------------------------------------------------

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + 0.05
            await asyncio.sleep(0.05)
            self.lag_max_ms = max(self.lag_max_ms, (time.monotonic() - due) * 1000)

    def report(self) -> Report:
        read = [viewer for viewer in self.viewers if viewer.timed] or self.viewers
        return Report(
            viewers=len(self.viewers),
            here=self.here,
            seconds=time.monotonic() - self.began,
            frames=self.frames,
            deflated=self.deflated,
            messages=self.messages,
            events=self.events,
            ranges=self.ranges,
            wire_bytes=self.wire_bytes,
            joins=self.joins,
            recovered=self.recovered,
            snapshots=self.snapshots,
            holes=self.holes,
            repeats=self.repeats,
            disordered=self.disordered,
            gaps=self.gaps,
            turned=self.turned,
            unconnected=self.unconnected,
            closes={str(code): count for code, count in sorted(self.closes.items())},
            first_closed_ns=self.first_closed_ns,
            last_closed_ns=self.last_closed_ns,
            latency=self.latency.times(),
            posted=self.posted,
            acknowledged=self.acknowledged,
            acknowledged_sum=self.acknowledged_sum,
            refused=dict(self.refused),
            answers=self.answers.times(),
            comments_least=min((viewer.comments for viewer in read), default=0),
            comments_most=max((viewer.comments for viewer in read), default=0),
            sum_least=min((viewer.checksum for viewer in read), default=0),
            sum_most=max((viewer.checksum for viewer in read), default=0),
            seq_least=min((viewer.seq for viewer in read if viewer.here), default=0),
            seq_most=max((viewer.seq for viewer in read if viewer.here), default=0),
            ranks=list(self.ranks),
            claims_waiting=sum(claim.answer is None for claim in self._claims.values()),
            answered_twice=self.answered_twice,
            cpu_s=_cpu_s() - self._cpu_from,
            lag_max_ms=self.lag_max_ms,
        )


class _Claim:
    """One claim, until it is answered."""

    __slots__ = ("answer", "benefit", "key", "viewer")

    def __init__(self, viewer: Viewer, benefit: str, key: str) -> None:
        self.viewer, self.benefit, self.key = viewer, benefit, key
        self.answer: tuple[str, int] | None = None


def _request(host: str, port: int, path: str, subprotocol: str | None, deflate: bool) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if deflate:
        lines.append(
            "Sec-WebSocket-Extensions: permessage-deflate; "
            "server_no_context_takeover; client_no_context_takeover"
        )
    return "\r\n".join([*lines, "", ""]).encode()


def hello_with(tokens: Sequence[str] = ()) -> Hello:
    """The hello of our wire: the first viewers with these tokens, the others as guests."""

    def hello(index: int) -> str:
        token = tokens[index] if index < len(tokens) else None
        return json.dumps({"type": "hello", "id": 1, "token": token})

    return hello


async def _until(true: Callable[[], bool], wait_s: float) -> bool:
    """Whether it comes to that within the time."""
    until = time.monotonic() + wait_s
    while not true():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.005)
    return True


def allow_files(viewers: int) -> None:
    """Raise the limit of open files as far as it goes. Raises SwarmError when that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < viewers + SPARE_FILES:
        raise SwarmError(
            f"{viewers:,} viewers need {viewers + SPARE_FILES:,} open files, the limit of a process is "
            f"{hard:,}: ulimit -Hn {viewers + SPARE_FILES}, fewer viewers, or several swarms"
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- a process of its own --------------------------------------------------------------------------


class SwarmProcess:
    """A swarm in a child process, from the side of who asks it.

    `async with SwarmProcess([...]) as swarm:` with the arguments of the command line; `ready` waits for all
    viewers. Raises SwarmError with the child's own words.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._running: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> SwarmProcess:
        paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        self._running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "loadtests.swarm"),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            limit=1 << 24,
            start_new_session=True,
            preexec_fn=process.before_exec(signal.SIGKILL),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None and self._running.stdin is not None
        if self._running.returncode is None:
            with contextlib.suppress(OSError):
                self._running.stdin.close()
            try:
                await asyncio.wait_for(self._running.wait(), 10)
            except TimeoutError:
                self._running.kill()
                await self._running.wait()

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    async def ready(self, wait_s: float = 150.0) -> float:
        """The seconds until everybody was in."""
        return float((await self._answer("ready", wait_s))["seconds"])

    async def say(self, command: str) -> None:
        """A command whose answer is fetched later by `answer`, or that has none."""
        assert self._running is not None and self._running.stdin is not None
        self._running.stdin.write(command.encode() + b"\n")
        await self._running.stdin.drain()

    async def ask(self, command: str, wait_s: float = 150.0) -> dict[str, Any]:
        """A command and its answer."""
        await self.say(command)
        return await self._answer(command.split()[0], wait_s)

    async def answer(self, command: str, wait_s: float = 150.0) -> dict[str, Any]:
        return await self._answer(command, wait_s)

    async def report(self) -> Report:
        found = await self.ask("report", 30)
        return msgspec.convert(found["report"], Report)

    async def _answer(self, wanted: str, wait_s: float) -> dict[str, Any]:
        assert self._running is not None and self._running.stdout is not None
        async with asyncio.timeout(wait_s):
            while True:
                line = await self._running.stdout.readline()
                if not line:
                    raise SwarmError("the swarm ended without an answer; its error stands above")
                found: dict[str, Any] = json.loads(line)
                if found["said"] == "error":
                    raise SwarmError(found["error"])
                if found["said"] == wanted:
                    return found


COMMANDS: Final = """commands, one a line on stdin:
  report                       what was seen since the last reset
  reset                        count anew
  post RATE SECONDS [SPEAKERS [CHARS]]  comments of the first SPEAKERS viewers (members), in turn
  claim BENEFIT [RATE]         every viewer claims once, until it is answered
  stall N / resume N           the first N read no more / read again
  level SEQ                    how many have come to this number
  cut                          all connections at once; answers when all are back
  quit                         as does the end of stdin
"""


def _say(said: str, **more: Any) -> None:
    print(msgspec.json.encode({"said": said, **more}).decode(), flush=True)


async def _obey(swarm: Swarm, line: str) -> None:
    words = line.split()
    match words:
        case ["report"]:
            _say("report", report=swarm.report())
        case ["reset"]:
            swarm.reset()
            _say("reset")
        case ["post", rate, seconds, *more]:
            await swarm.post(float(rate), float(seconds), *(int(word) for word in more[:2]))
            _say("post")
        case ["claim", benefit, *rate]:
            await swarm.claim(benefit, float(rate[0]) if rate else 0.0)
            _say("claim")
        case ["stall", count]:
            swarm.stall(int(count))
            _say("stall")
        case ["resume", count]:
            swarm.resume(int(count))
            _say("resume")
        case ["level", seq]:
            _say("level", count=sum(viewer.seq >= int(seq) for viewer in swarm.viewers if viewer.here))
        case ["cut"]:
            _say("cut", seconds=await swarm.cut())
        case _:
            _say("error", error=f"{line!r} is no command: {COMMANDS}")


async def _guarded(swarm: Swarm, line: str) -> None:
    try:
        await _obey(swarm, line)
    except (SwarmError, ValueError) as error:
        _say("error", error=str(error))


async def _run(given: argparse.Namespace, tokens: Sequence[str]) -> int:
    hello = None
    if not given.plain:
        hello = (lambda _: given.hello) if given.hello else hello_with(tokens)
    swarm = Swarm(
        [(given.host, port) for port in given.port],
        given.path,
        given.count,
        hello=hello,
        subprotocol=given.subprotocol or None,
        deflate=given.deflate,
        plain=given.plain,
        rejoin=given.rejoin,
        rate=given.rate,
        small=given.small,
    )
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer
    )
    working: set[asyncio.Task[None]] = set()
    opening = asyncio.create_task(_open(swarm))
    while line := (await lines.readline()).decode("utf-8", "replace").strip():
        if line == "quit":
            break
        task = asyncio.create_task(_guarded(swarm, line))
        working.add(task)
        task.add_done_callback(working.discard)
    for task in [opening, *working]:
        task.cancel()
    await asyncio.gather(opening, *working, return_exceptions=True)
    await swarm.close()
    return 0


async def _open(swarm: Swarm) -> None:
    try:
        _say("ready", seconds=await swarm.open())
    except SwarmError as error:
        _say("error", error=str(error))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m loadtests.swarm",
        description="Thousands of viewers in one process.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--host", default="127.0.0.1", help="an IPv4 address (default 127.0.0.1)")
    made.add_argument("--port", type=int, action="append", required=True, help="repeat for several doors")
    made.add_argument("--path", default="/", help="of the socket, as /v1/shows/k7m2p3q4r5/socket")
    made.add_argument("--count", type=int, default=100, help="viewers (default 100)")
    made.add_argument("--rate", type=float, default=1_000.0, help="who come each second (default 1,000)")
    made.add_argument("--subprotocol", default=SUBPROTOCOL, help=f"default {SUBPROTOCOL}; '' for none")
    made.add_argument("--hello", help="the first text of each; default our hello, with a token of --tokens")
    made.add_argument("--tokens", metavar="FILE", help="a member's token on each line")
    made.add_argument("--deflate", action="store_true", help="offer permessage-deflate")
    made.add_argument("--plain", action="store_true", help="no hello; count frames and marks only")
    made.add_argument("--rejoin", action="store_true", help="come back after an end that allows it")
    made.add_argument("--small", type=int, default=0, help="the first N have a small receive buffer")
    made.add_argument("--core", type=int, help="stay on this core")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    try:
        tokens = Path(given.tokens).read_text("ascii").split() if given.tokens else []
        return uvloop.run(_run(given, tokens))
    except (SwarmError, OSError) as error:
        _say("error", error=str(error))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
