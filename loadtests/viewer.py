"""One simulated viewer over a real socket: the wire as a client sees it, with asyncio.

Keeps what a page would keep (states, position, who one is), rejoins with `since` and full jitter, and
measures how long an event took from its own clock to here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

SUBPROTOCOL = Subprotocol("companion.v1")
ANSWER_S = 10.0
OnMessage = Callable[["Viewer", dict[str, Any]], Awaitable[None]]


class RefusedError(Exception):
    """The server understood and declined."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer.get("code", "refused"))
        self.code: str = answer.get("code", "refused")
        self.answer = answer


class Viewer:
    """Joins `socket_url` and stays until `stop()`; `on_message` gets every message."""

    def __init__(
        self,
        socket_url: str,
        token: str | None = None,
        *,
        on_message: OnMessage | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.url = socket_url
        self.token = token
        self.on_message = on_message
        self.chance = chance or random.Random()
        self.you: dict[str, Any] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.position: dict[str, Any] | None = None
        self.joined = asyncio.Event()
        self.joins = 0
        self.holes = 0
        self.closed_by: int | None = None
        self.latencies_ms: list[float] = []
        self._reconnect_ms = (500, 5_000)
        self._clock_ahead_ms = 0.0
        self._ids = itertools.count(2)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection | None = None
        self._stopped = False

    async def run(self) -> None:
        """Join, listen, rejoin; ends by `stop()` or when the server says to stay away."""
        failures = 0
        while not self._stopped:
            try:
                async with connect(
                    self.url,
                    subprotocols=[SUBPROTOCOL],
                    compression=None,
                    open_timeout=20,
                    ping_interval=None,
                ) as socket:
                    self._socket = socket
                    since = None if self.position is None else self.position
                    await socket.send(
                        json.dumps({"type": "hello", "id": 1, "token": self.token, "since": since})
                    )
                    failures = 0
                    async for frame in socket:
                        for message in json.loads(frame):
                            await self._take(message)
            except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError):
                failures += 1
            self.joined.clear()
            for future in self._waiting.values():
                if not future.done():
                    future.cancel()
            self._waiting.clear()
            if self._socket is not None and self._socket.close_code is not None:
                self.closed_by = self._socket.close_code
                if 4500 <= self.closed_by < 5000:
                    return
            if not self._stopped:
                least, most = self._reconnect_ms
                await asyncio.sleep(self.chance.uniform(least, min(20_000, most * 2**failures)) / 1000)

    async def stop(self) -> None:
        self._stopped = True
        if self._socket is not None:
            await self._socket.close()

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises RefusedError."""
        assert self._socket is not None
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        await self._socket.send(json.dumps({"type": command, "id": number, **fields}, ensure_ascii=False))
        try:
            answer = await asyncio.wait_for(future, ANSWER_S)
        finally:
            self._waiting.pop(number, None)
        if answer["type"] == "refused":
            raise RefusedError(answer)
        return answer

    async def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome":
                self.you = message["you"]
                self.position = {"epoch": message["epoch"], "seq": message["seq"]}
                self._reconnect_ms = tuple(message["reconnect_ms"])
                self._clock_ahead_ms = message["time"] - time.time() * 1000
                if not message["recovered"]:
                    self.states = {}
                for state in message["states"]:
                    self.states[state["key"]] = state
                self.joins += 1
                self.joined.set()
            case "range":
                assert self.position is not None
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
                assert self._socket is not None
                await self._socket.send('{"type":"pong"}')
            case "gap":
                self.position = None
                assert self._socket is not None
                await self._socket.send(json.dumps({"type": "resync", "id": 1, "since": None}))
        if "seq" in message and "at" in message:
            self.latencies_ms.append(time.time() * 1000 - message["at"])
        if self.on_message is not None:
            await self.on_message(self, message)
