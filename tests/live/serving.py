"""A whole server in this process on a free port, and clients that speak to it from outside."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from live.brand import PLAN
from live.engines import Addresses
from live.node import Node
from live.parts import Parts
from live.rooms import RoomInput
from live.server import CompanionServer, serving
from live.settings import read_settings
from live.shows import ShowInput
from membership.actor import PERMISSIONS, Actor, PaymentId, Role, ShowId, new_id
from membership.audience import EVERYONE, Audience

ANSWER_S = 8.0
WIRE = Subprotocol("companion.v1")


class Served:
    """One server process' worth of the service."""

    def __init__(self, server: CompanionServer, port: int) -> None:
        self.server = server
        self.node: Node = server.node
        self.parts: Parts = server.node.parts
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._phones = itertools.count(13800000000)
        self._seats: list[Seat] = []

    async def member(self, nickname: str | None = None, *, plan: bool = False, paid: bool = False) -> Actor:
        async with self.parts.database.transaction() as t:
            member = await self.parts.members.register(t, str(next(self._phones)), nickname)
            if plan or paid:
                plans = await self.parts.plans.all(t.conn)
                if not plans:
                    plans = (await self.parts.plans.create(t, PLAN),)
                if paid:
                    await self.parts.plans.start_paid(t, member.id, plans[0].id, PaymentId(new_id()))
                else:
                    await self.parts.plans.start_trial(t, member.id, plans[0].id, member.phone or "")
        async with self.parts.database.reading() as conn:
            return await self.parts.members.actor(conn, member.id)

    async def make_show(self, status: str = "live", audience: Audience = EVERYONE) -> ShowId:
        """A show of a room of its own, brought to `status` the way staff do."""
        owner = Actor(kind="job", id="test", role="owner", permissions=PERMISSIONS["owner"])
        shows = self.parts.shows
        async with self.parts.database.transaction() as t:
            room = await self.parts.rooms.create(
                t, owner, RoomInput(title="会员健康夜", host_name="小禾", audience=audience)
            )
            show = await shows.create(
                t, owner, ShowInput(room=room.id, title="秋收专场", starts_at=datetime.now(UTC))
            )
        for act in {"scheduled": (), "waiting": (shows.open,)}.get(status, (shows.open, shows.start)):
            async with self.parts.database.transaction() as t:
                await act(t, owner, show.id)
        if status == "ended":
            async with self.parts.database.transaction() as t:
                await shows.end(t, owner, show.id)
        return show.id

    async def staff(self, role: Role = "owner") -> Actor:
        async with self.parts.database.transaction() as t:
            return (await self.parts.staff.create(t, "小禾", role)).actor()

    def token(self, actor: Actor, ttl_s: int = 600) -> str:
        return self.parts.tokens.mint(actor, ttl_s)

    async def open(self, show: ShowId, *, patient: bool = True, **more: Any) -> ClientConnection:
        """The upgraded socket, before hello. A node that asks to come again is asked again, as clients do."""
        more.setdefault("subprotocols", [WIRE])
        more.setdefault("compression", None)
        address = f"ws://127.0.0.1:{self.port}/v1/shows/{show}/socket"
        async with asyncio.timeout(ANSWER_S):
            while True:
                try:
                    return await connect(address, ping_interval=None, **more)
                except InvalidStatus as refused:
                    if refused.response.status_code != 503 or not patient:
                        raise
                    await asyncio.sleep(float(refused.response.headers["Retry-After"]))

    async def leave_all(self) -> None:
        """Close what the tests left open."""
        seats, self._seats = self._seats, []
        # All at once: one that did not read for long waits for its own timeout.
        await asyncio.gather(*(seat.close() for seat in seats))

    async def enter(
        self, show: ShowId, actor: Actor | None = None, since: dict[str, Any] | None = None
    ) -> Seat:
        """A joined viewer."""
        seat = Seat(await self.open(show))
        self._seats.append(seat)
        token = None if actor is None else self.token(actor)
        await seat.send({"type": "hello", "id": 1, "token": token, "since": since})
        seat.welcome = await seat.until(lambda m: m["type"] in ("welcome", "refused"))
        return seat

    def http(self, actor: Actor | None = None) -> httpx2.AsyncClient:
        headers = {} if actor is None else {"authorization": f"Bearer {self.token(actor)}"}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=10)


class Seat:
    """A client's end: every message in order, every byte received."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: dict[str, Any] = {}
        self.messages: list[dict[str, Any]] = []
        self.bytes = b""
        self._ids = itertools.count(2)
        self._unread: list[dict[str, Any]] = []

    async def send(self, message: Any) -> None:
        await self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def next(self) -> dict[str, Any]:
        while not self._unread:
            frame = await asyncio.wait_for(self.socket.recv(), ANSWER_S)
            self.bytes += frame if isinstance(frame, bytes) else frame.encode()
            self._unread = json.loads(frame)
            self.messages += self._unread
        return self._unread.pop(0)

    async def until(self, wanted: Any) -> dict[str, Any]:
        while True:
            message = await self.next()
            if wanted(message):
                return message

    async def event(self, kind: str) -> dict[str, Any]:
        return await self.until(lambda m: m["type"] == kind)

    async def state(self, key: str, wanted: Any = lambda data: True) -> dict[str, Any]:
        return (await self.until(lambda m: m["type"] == "state" and m["key"] == key and wanted(m["data"])))[
            "data"
        ]

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self.send({"type": command, "id": number, **fields})
        return await self.until(lambda m: m.get("id") == number)

    async def closed(self) -> int:
        """Read to the end; the close code."""
        try:
            while True:
                await self.next()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 1006

    async def close(self) -> None:
        await self.socket.close()

    def numbered(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if "seq" in message and message["type"] != "welcome"]


@asynccontextmanager
async def serve(
    engines: Addresses, database_url: str, folder: Path, **settings: str | int
) -> AsyncIterator[Served]:
    sock = sockets.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    environment = {
        "COMPANION_REDIS_URL": engines.redis_url,
        "COMPANION_DATABASE_URL": database_url,
        "COMPANION_SECRET": "s" * 40,
        "COMPANION_DATA_DIR": str(folder),
        "COMPANION_PORT": str(port),
        "COMPANION_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "COMPANION_SANDBOX": "yes",
        "COMPANION_SMS": "sandbox",
        "COMPANION_DRAIN_S": "5",
        "COMPANION_COMMENTS_SHOWN_PER_S": "0",
        "COMPANION_MEMBER_DAY": "0",  # prices do not depend on the day of the run
        **{f"COMPANION_{name.upper()}": str(value) for name, value in settings.items()},
    }
    async with serving(read_settings(environment), sock) as server:
        ready = asyncio.Event()
        running = asyncio.create_task(server.run_until_stopped(ready.set))
        await asyncio.wait_for(ready.wait(), 10)
        made = Served(server, port)
        try:
            yield made
        finally:
            await made.leave_all()
            server.stop()
            await asyncio.wait_for(running, 30)
