"""The wire as a client sees it: what a frame says, and one connection over a plain blocking socket.

`Wire` drives websockets' Sans-I/O `ClientProtocol` itself. Under gevent (locust) the socket yields while
it waits, so thousands of them share a process; elsewhere it is an ordinary blocking client.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from functools import lru_cache
from typing import Any, Final

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CLOSED, OPEN
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from live.protocol import SUBPROTOCOL

READ_BYTES: Final = 65_536
CONNECT_S: Final = 20.0


@lru_cache(maxsize=256)
def messages_of(frame: bytes) -> list[dict[str, Any]]:
    """The messages of a frame. A class's viewers share its bytes: decoded once, not to be changed."""
    found: list[dict[str, Any]] = msgspec.json.decode(frame)
    return found


class Turned(Exception):
    """The upgrade was refused; tells the HTTP status, and after how many seconds to come again."""

    def __init__(self, status: int, retry_after_s: float) -> None:
        super().__init__(f"upgrade refused with {status}")
        self.status = status
        self.retry_after_s = retry_after_s


class Gone(Exception):
    """The connection ended; `code` is the close code, 1006 when there was none."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed {code}")
        self.code = code


class Wire:
    """One connection. Raises Turned, Gone and OSError."""

    def __init__(self, url: str, *, receive_bytes: int | None = None) -> None:
        """Connect and upgrade. `receive_bytes` makes the kernel's buffer small: a slow viewer's."""
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri, subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=None)
        self._ids = itertools.count(2)
        self._parts: list[bytes] = []
        self._frames: list[bytes] = []
        self._socket = _connected(uri.host, uri.port, receive_bytes)
        try:
            if uri.secure:
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=uri.host)
            self._protocol.send_request(self._protocol.connect())
            self._flush()
            while self._protocol.state is not OPEN:
                self._read()
        except BaseException:
            self._socket.close()
            raise

    def send(self, command: str, command_id: int | None = None, **fields: Any) -> int:
        """Send one command; returns its id."""
        number = next(self._ids) if command_id is None else command_id
        if self._protocol.state is not OPEN:
            raise Gone(self.close_code)
        self._protocol.send_text(msgspec.json.encode({"type": command, "id": number, **fields}))
        self._flush()
        return number

    def receive(self, wait_s: float) -> list[dict[str, Any]]:
        """The messages of the next frame; none when the time is over first."""
        if not self._frames:
            self._socket.settimeout(max(0.001, wait_s))
            try:
                while not self._frames:
                    self._read()
            except TimeoutError:
                return []
        return messages_of(self._frames.pop(0))

    def close(self) -> None:
        """Say goodbye and go; an answer is not waited for."""
        try:
            if self._protocol.state is OPEN:
                self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
                self._flush()
        except OSError:
            pass
        finally:
            self._socket.close()

    @property
    def close_code(self) -> int:
        told = self._protocol.close_rcvd
        return CloseCode.ABNORMAL_CLOSURE if told is None else told.code

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def _read(self) -> None:
        """One read from the socket; whole text frames are kept for `receive`."""
        data = self._socket.recv(READ_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.CONT):
                self._parts.append(bytes(event.data))
                if event.fin:
                    self._frames.append(b"".join(self._parts))
                    self._parts.clear()
        failed = self._protocol.handshake_exc
        if isinstance(failed, InvalidStatus):
            after = failed.response.headers.get("Retry-After", "")
            raise Turned(failed.response.status_code, float(after) if after.isdigit() else 1.0)
        if isinstance(failed, InvalidHandshake):
            raise Turned(0, 1.0) from failed
        self._flush()
        if not self._frames and (
            not data or self._protocol.close_expected() or self._protocol.state is CLOSED
        ):
            raise Gone(self.close_code)


def _connected(host: str, port: int, receive_bytes: int | None) -> socket.socket:
    """The first of the host's addresses that answers. Raises OSError."""
    refused: OSError | None = None
    for family, kind, number, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        made = socket.socket(family, kind, number)
        try:
            if receive_bytes is not None:  # before connecting: it decides the window that is offered
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            made.settimeout(CONNECT_S)
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            refused = error
    raise refused or OSError(f"{host} has no address")
