"""The wire, version 1: close codes, the connection's own commands, and how frames are made.

A frame down is always a JSON array of messages. What everyone shares is encoded once and framed once;
`seq` is spliced into an event that was stored without it. What chat and commerce say is defined there;
`live/dispatch.py` joins all commands into one union.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from membership.refusal import Away, Refusal

SUBPROTOCOL: Final = "companion.v1"

# 4000–4099: come back now, with jitter.
DRAIN: Final = 4001
# 4100–4499: come back with back-off.
SERVER_ERROR: Final = 4101
SLOW: Final = 4102
NO_PONG: Final = 4103
STATE_LOST: Final = 4104
TOKEN_EXPIRED: Final = 4106
# 4500–4999: stay away.
BAD_TOKEN: Final = 4501
BANNED: Final = 4502
REPLACED: Final = 4503
BAD_PROTOCOL: Final = 4504
SHOW_ENDED: Final = 4506
NO_HELLO: Final = 4507
MEMBERS_ONLY: Final = 4508

CLOSE_CODES: Final[dict[int, str]] = {
    DRAIN: "this process is being replaced; come back now",
    SERVER_ERROR: "something failed here; come back with back-off",
    SLOW: "your connection could not keep up; come back with back-off",
    NO_PONG: "no sign of life; come back with back-off",
    STATE_LOST: "the show's state was lost and is being rebuilt; come back with back-off",
    TOKEN_EXPIRED: "the token expired; get a new one, then come back",
    BAD_TOKEN: "the token is not ours or not valid here",
    BANNED: "you may not enter this show",
    REPLACED: "a newer connection took this one's place",
    BAD_PROTOCOL: "what was sent is not the protocol",
    SHOW_ENDED: "the show has ended",
    NO_HELLO: "no hello within five seconds",
    MEMBERS_ONLY: "this room is for members",
}

COMMAND_BYTES_MAX: Final = 4_096
STAFF_COMMAND_BYTES_MAX: Final = 32_768
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Position(msgspec.Struct, frozen=True):
    """Where a viewer stands in a show's log."""

    epoch: Annotated[str, msgspec.Meta(max_length=32)]
    seq: Annotated[int, msgspec.Meta(ge=0)]


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="type", kw_only=True):
    """First frame, within 5 s. Without a token a same-origin cookie identifies; without both, a guest."""

    id: int
    token: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    since: Position | None = None


class Resync(msgspec.Struct, frozen=True, tag="resync", tag_field="type", kw_only=True):
    """The client saw a hole or a `gap`: answered like hello, on the same socket."""

    id: int
    since: Position | None = None


class Refresh(msgspec.Struct, frozen=True, tag="refresh", tag_field="type", kw_only=True):
    """A new token, before or within 30 s after the old one's end; also signs a guest in on the spot."""

    id: int
    token: Annotated[str, msgspec.Meta(max_length=2048)]


class Pong(msgspec.Struct, frozen=True, tag="pong", tag_field="type", kw_only=True):
    """Answers `ping`; any other frame does too."""

    id: int | None = None


class ViewProduct(msgspec.Struct, frozen=True, tag="product.view", tag_field="type", kw_only=True):
    """The viewer opened a product: a click in the behaviour record."""

    id: int
    product: Annotated[str, msgspec.Meta(max_length=64)]


AWAY: Final = "The store does not answer; try again."  # which one, and how it failed, is for the log

ENCODE: Final = msgspec.json.Encoder().encode


def frame(payload: bytes) -> bytes:
    """One unmasked, final text frame (RFC 6455 §5.2): made once, written to many."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


DEFLATE_MIN: Final = 256  # bytes of payload; shorter frames do not shrink enough to pay for it
DEFLATE_LEVEL: Final = 1  # 6 saves 3 % more bytes of Chinese comments at twice the time


class SharedFrame:
    """One frame for many: plain, and deflated once for all who negotiated it (RFC 7692).

    Without context takeover a compressed message stands alone, so the same bytes suit every such viewer.
    """

    __slots__ = ("_deflated", "_payload", "plain")

    def __init__(self, payload: bytes) -> None:
        self.plain = frame(payload)
        self._payload = payload
        self._deflated: bytes | None = None

    def __len__(self) -> int:
        return len(self.plain)

    @property
    def deflated(self) -> bytes:
        """Made on first use; the plain frame where deflating does not pay."""
        if self._deflated is None:
            self._deflated = self.plain
            if len(self._payload) >= DEFLATE_MIN:
                made = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -15)
                data = made.compress(self._payload) + made.flush(zlib.Z_SYNC_FLUSH)
                framed = frame(data[:-4])  # without 00 00 FF FF (RFC 7692 §7.2.1)
                if len(framed) < len(self.plain):
                    self._deflated = b"\xc1" + framed[1:]  # FIN, RSV1, text
        return self._deflated


def array(parts: Iterable[bytes]) -> bytes:
    """Already encoded messages as one JSON array."""
    return b"[" + b",".join(parts) + b"]"


def message_frame(*messages: Any) -> bytes:
    """A frame of personal messages."""
    return frame(array(ENCODE(message) for message in messages))


def numbered(seq: int, event: bytes) -> bytes:
    """The event's JSON with its `seq` spliced in at the front."""
    return b'{"seq":%d,' % seq + event[1:]


def range_head(epoch: str, first: int, last: int) -> bytes:
    return b'{"type":"range","epoch":%s,"from":%d,"to":%d}' % (ENCODE(epoch), first, last)


def ok(command_id: int | None, reply: dict[str, Any]) -> dict[str, Any]:
    return {"type": "ok", "id": command_id, **reply}


def refused(command_id: int | None, refusal: Refusal) -> dict[str, Any]:
    return {
        "type": "refused",
        "id": command_id,
        "code": refusal.word,
        "message": AWAY if isinstance(refusal, Away) else str(refusal),
        "retry_ms": refusal.retry_ms,
        **refusal.details,
    }
