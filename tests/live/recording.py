"""A socket whose transport records what is written, for tests of the hub without a network."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, cast

import msgspec
from websockets.protocol import OPEN

from live.socket import Socket
from membership.actor import Actor, ShowId


class RecordingTransport:
    """Keeps frames; `waiting` is what a slow peer has not read."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.protocol: asyncio.Protocol | None = None
        self.limits = (0, 0)
        self._waiting = 0
        self.aborted = self.closed = False

    @property
    def waiting(self) -> int:
        return self._waiting

    @waiting.setter
    def waiting(self, size: int) -> None:
        """Tells the protocol when a mark is crossed, as a transport does."""
        before, self._waiting = self._waiting, size
        high, low = self.limits
        if self.protocol is not None:
            if before <= high < size:
                self.protocol.pause_writing()
            elif before > high and size <= low:
                self.protocol.resume_writing()

    def write(self, data: bytes) -> None:
        self.frames.append(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self.limits = (high, low)

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class RecordingNode:
    """What a socket asks of its node."""

    commands_burst = 20
    ws_log = logging.getLogger("companion.ws")

    def __init__(self) -> None:
        self.closes: list[int] = []
        self.stalled: set[Socket] = set()
        self.received_frames: list[bytes] = []

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def closed(self, socket: Socket, code: int) -> None:
        self.closes.append(code)

    def left(self, socket: Socket) -> None: ...

    def opened(self, socket: Socket) -> None: ...

    def admit(self) -> int:
        return 0

    def origin_allowed(self, origin: str, host: str) -> bool:
        return "evil" not in origin

    def client_address(self, peer: str, forwarded: str | None) -> str:
        return peer

    def heal(self, socket: Socket) -> None: ...

    def spawn(self, work: Any) -> None:
        self.task = asyncio.get_running_loop().create_task(work)

    async def received(self, socket: Socket, data: bytes) -> None:
        self.received_frames.append(data)


def payload_of(frame: bytes) -> bytes:
    """The payload of one of our frames."""
    assert frame[0] == 0x81
    size, start = frame[1], 2
    if size == 126:
        size, start = int.from_bytes(frame[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(frame[2:10], "big"), 10
    assert len(frame) == start + size
    return frame[start:]


class Watcher:
    """A joined viewer: its socket, and what it was sent."""

    def __init__(self, show: ShowId, actor: Actor) -> None:
        self.node = RecordingNode()
        self.transport = RecordingTransport()
        self.socket = Socket(cast(Any, self.node), set())
        self.socket.connection_made(cast(Any, self.transport))
        self.transport.protocol = self.socket
        self.socket.ws.state = OPEN
        self.socket.show, self.socket.actor, self.socket.joined = show, actor, True

    @property
    def bytes(self) -> bytes:
        return b"".join(self.transport.frames)

    def messages(self) -> list[dict[str, Any]]:
        """Everything in order, flat."""
        return [message for frame in self.frames() for message in frame]

    def frames(self) -> list[list[dict[str, Any]]]:
        return [msgspec.json.decode(payload_of(frame)) for frame in self.transport.frames if frame[0] == 0x81]

    def numbered(self) -> list[dict[str, Any]]:
        return [message for message in self.messages() if "seq" in message]


class Client:
    """What a client makes of frames: states latest-wins, comments in order, ranges joined."""

    def __init__(
        self, epoch: str, seq: int, states: list[dict[str, Any]], comments: list[dict[str, Any]]
    ) -> None:
        self.epoch, self.seq = epoch, seq
        self.states = {state["key"]: (state["version"], state["data"]) for state in states}
        self.comments = {comment["seq"]: comment for comment in comments}

    def apply(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "range":
                assert message["epoch"] == self.epoch
                assert message["from"] == self.seq + 1, f"{message} after {self.seq}"
                self.seq = message["to"]
            case "state":
                version, _ = self.states.get(message["key"], (-1, None))
                if message["version"] >= version:
                    if message["data"] is None:
                        self.states.pop(message["key"], None)
                    else:
                        self.states[message["key"]] = (message["version"], message["data"])
            case "comment.posted":
                assert message["seq"] not in self.comments, "an event came twice"
                self.comments[message["seq"]] = message
            case "comment.hidden":
                self.comments.pop(message["comment"], None)
