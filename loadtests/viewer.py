"""One simulated viewer over a real socket: the wire as a client sees it, with asyncio.

Keeps what a page would keep (states, position, who one is), rejoins with `since` and full jitter, and
measures how long an event took from its own clock to here.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from live.protocol import SUBPROTOCOL, TOKEN_EXPIRED
from loadtests.wire import messages_of

ANSWER_S = 10.0
RECONNECT_MAX_MS = 20_000
LATENCIES_KEPT = 200
OnMessage = Callable[["Viewer", dict[str, Any]], Awaitable[None]]
Renew = Callable[["Viewer"], Awaitable[str]]


class RefusedError(Exception):
    """The server understood and declined."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer.get("code", "refused"))
        self.code: str = answer.get("code", "refused")
        self.answer = answer


class LostError(Exception):
    """The connection went away before the answer came."""


class Viewer:
    """Joins `socket_url` and stays until `stop()`; `on_message` gets every message.

    `renew` gives a new token when the old one has expired. With `back_ms` it comes back within these times,
    whatever the server asks for.
    """

    def __init__(
        self,
        socket_url: str,
        token: str | None = None,
        *,
        on_message: OnMessage | None = None,
        renew: Renew | None = None,
        chance: random.Random | None = None,
        back_ms: tuple[int, int] | None = None,
    ) -> None:
        self.url = socket_url
        self.token = token
        self.on_message = on_message
        self.renew = renew
        self.chance = chance or random.Random()
        self._back_ms = back_ms
        self.you: dict[str, Any] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.position: dict[str, Any] | None = None
        self.joined = asyncio.Event()
        self.joins = 0
        self.events = 0
        self.holes = 0  # ranges that did not join the one before
        self.closed_by: int | None = None
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._here_since_ms = 0.0
        self._reconnect_ms = (500, 5_000)
        self._ids = itertools.count(2)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Join, listen, rejoin; ends by `stop()` or when the server says to stay away."""
        failures = 0
        while not self._stopping.is_set():
            joins, self.closed_by = self.joins, None
            try:
                async with connect(
                    self.url,
                    subprotocols=[Subprotocol(SUBPROTOCOL)],
                    compression=None,
                    open_timeout=20,
                    close_timeout=3,
                    ping_interval=None,
                    max_size=None,
                    proxy=None,
                ) as socket:
                    self._socket = socket
                    await self._send({"type": "hello", "id": 1, "token": self.token, "since": self.position})
                    while True:
                        for message in messages_of(await socket.recv(decode=False)):
                            await self._take(message)
            except ConnectionClosed:
                self.closed_by = None if self._socket is None else self._socket.close_code
            except (InvalidHandshake, OSError, TimeoutError):
                pass
            self._socket = None
            self._lose_answers()
            if self._stopping.is_set() or (self.closed_by is not None and 4500 <= self.closed_by < 5000):
                return
            failures = 0 if self.joins > joins else failures + 1
            least, most = self._reconnect_ms
            most = max(least, min(RECONNECT_MAX_MS, most * 2 ** min(failures, 6)))
            if self._back_ms is not None:
                least, most = self._back_ms
            await asyncio.sleep(self.chance.uniform(least, most) / 1000)
            if self.closed_by == TOKEN_EXPIRED and self.renew is not None:
                self.token = await self.renew(self)

    async def stop(self) -> None:
        self._stopping.set()
        if self._socket is not None:
            await self._socket.close()

    async def drop(self) -> None:
        """Lose the connection; `run` comes back, to where `url` leads by then."""
        if self._socket is not None:
            await self._socket.close()

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises RefusedError, LostError."""
        if self._socket is None or not self.joined.is_set():
            raise LostError
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # the send may fail first
        self._waiting[number] = future
        try:
            await self._send({"type": command, "id": number, **fields})
            answer = await asyncio.wait_for(future, ANSWER_S)
        except (ConnectionClosed, TimeoutError) as error:
            raise LostError from error
        finally:
            self._waiting.pop(number, None)
        if answer["type"] == "refused":
            raise RefusedError(answer)
        return answer

    async def _send(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            await self._socket.send(msgspec.json.encode(message), text=True)

    def _lose_answers(self) -> None:
        self.joined.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LostError())
        self._waiting.clear()

    async def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome":
                self.you = message["you"]
                self.position = {"epoch": message["epoch"], "seq": message["seq"]}
                least, most = message["reconnect_ms"]
                self._reconnect_ms = (least, most)
                self._here_since_ms = message["time"]
                if not message["recovered"]:
                    self.states = {}
                for state in message["states"]:
                    self.states[state["key"]] = state
                self.joins += 1
                self.joined.set()
            case "range":
                if self.position is not None:  # else a snapshot was asked for
                    if message["from"] != self.position["seq"] + 1:
                        self.holes += 1
                    self.position = {"epoch": message["epoch"], "seq": message["to"]}
            case "state":
                known = self.states.get(message["key"])
                if known is None or message["version"] >= known["version"]:
                    self.states[message["key"]] = message
            case "you":
                self.you = message["data"]
            case "ok" | "refused":
                future = self._waiting.get(message.get("id") or 0)
                if future is not None and not future.done():
                    future.set_result(message)
            case "ping":
                await self._send({"type": "pong"})
            case "gap":
                self.position = None
                await self._send({"type": "resync", "id": 1, "since": None})
        if "seq" in message and "at" in message:
            self.events += 1
            if message["at"] >= self._here_since_ms:  # what was replayed says nothing about the road
                self.latencies_ms.append(time.time() * 1000 - message["at"])
        if self.on_message is not None:
            await self.on_message(self, message)
