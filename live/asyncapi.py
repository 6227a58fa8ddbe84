"""AsyncAPI 3 of a show's socket, from the structs of commands and events.

Commands and numbered events are defined where their rules are (chat, commerce) and in `live/protocol.py`.
What the connection itself says is written by the hub as plain objects, so its shapes stand here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from chat import messages as talk
from commerce import messages as trade
from commerce.seats import Standing
from live import protocol, shows

REF: Final = "#/components/schemas/{name}"


class Message(msgspec.Struct, tag_field="type", frozen=True, kw_only=True):
    """Base of what the connection itself says."""


class YouPlan(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    ends_at: int
    trial: bool
    grace: bool = False  # after a renewal that failed, until `ends_at`


class You(msgspec.Struct, frozen=True, kw_only=True):
    """Who this socket speaks for."""

    id: str
    name: str
    badge: str
    kind: Literal["guest", "registered", "plan", "staff"]
    plan: YouPlan | None = None
    votes: dict[str, list[int]] = {}
    muted_until: int | None = None
    seats: dict[str, Standing] = {}


class Welcome(Message, tag="welcome", frozen=True, kw_only=True):
    """Answers hello: where the log stands, who you are, the show and all its states."""

    id: int
    epoch: str
    seq: int
    recovered: bool
    you: You
    show: dict[str, Any]
    states: list[dict[str, Any]]
    comments: list[dict[str, Any]]
    ticker: list[dict[str, Any]]
    time: int
    ping_s: int
    reconnect_ms: list[int]


class Range(Message, tag="range", frozen=True, kw_only=True):
    """Heads a frame with numbered events; `from` is the last `to` + 1. Items inside may be fewer.

    The member is called `from` on the wire.
    """

    epoch: str
    from_: int = msgspec.field(name="from")
    to: int


class State(Message, tag="state", frozen=True, kw_only=True):
    """The latest of one thing: show, pinned, announcement, presence, reactions, poll:…, offer:…, benefit:…,
    incident (selling is paused: reason, since), and for staff costs (the cost meter)."""

    key: str
    version: int
    data: dict[str, Any] | None


class Ok(Message, tag="ok", frozen=True, kw_only=True):
    """A command was done; further members are its reply."""

    id: int


class Refused(Message, tag="refused", frozen=True, kw_only=True):
    """A command was understood and declined."""

    id: int | None
    code: str
    message: str
    retry_ms: int | None = None


class Gap(Message, tag="gap", frozen=True, kw_only=True):
    """Events were missed and cannot be sent any more: send `resync`, at a random moment within `within_ms`."""

    within_ms: int = 0


class Reconnect(Message, tag="reconnect", frozen=True, kw_only=True):
    """Come back after a time between the two bounds, in ms; the socket closes now."""

    reconnect_ms: list[int] | UnsetType = UNSET


class Ping(Message, tag="ping", frozen=True, kw_only=True):
    """Answer with `pong` or any other frame. With it the window of `reconnect` for when the link is lost."""

    reconnect_ms: list[int] | UnsetType = UNSET


class YouChanged(Message, tag="you", frozen=True, kw_only=True):
    """You became someone else (joined, lapsed, renamed); newly visible states follow."""

    data: You


class Muted(Message, tag="muted", frozen=True, kw_only=True):
    """You may not comment until then (ms); null: you may again. Others are not told."""

    until: int | None


class BenefitWon(Message, tag="benefit.won", frozen=True, kw_only=True):
    """The record of it is committed: it is yours, with this rank."""

    benefit: str
    rank: int
    of: int


class SeatHeld(Message, tag="seat.held", frozen=True, kw_only=True):
    """A seat is held for you until then."""

    benefit: str
    until: int


class SeatLapsed(Message, tag="seat.lapsed", frozen=True, kw_only=True):
    """Your seat's time is over; it went to the next in line."""

    benefit: str


class PointsChanged(Message, tag="points.changed", frozen=True, kw_only=True):
    """Your points have changed."""


class CouponsChanged(Message, tag="coupons.changed", frozen=True, kw_only=True):
    """Your coupons have changed."""


class Notice(Message, tag="notice", frozen=True, kw_only=True):
    """Something only you are told."""

    code: str
    text: str


OWN: Final[tuple[type[msgspec.Struct], ...]] = (
    Welcome, Range, State, Ok, Refused, Gap, Reconnect, Ping, YouChanged, Muted,
    BenefitWon, SeatHeld, SeatLapsed, PointsChanged, CouponsChanged, Notice,
)  # fmt: skip


def tagged(module: ModuleType) -> list[type[msgspec.Struct]]:
    """The structs of a module that have a word on the wire, in the order they are written."""
    found = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
        and kind.__struct_config__.tag not in (None, kind.__name__)  # a base has its own name
    ]
    return sorted(found, key=lambda kind: inspect.getsourcelines(kind)[1])


def is_command(kind: type[msgspec.Struct]) -> bool:
    """Commands carry the connection's own `id`; events carry the show's `seq`."""
    return "id" in kind.__struct_fields__ and "seq" not in kind.__struct_fields__


def commands() -> list[type[msgspec.Struct]]:
    return [kind for module in (protocol, talk, trade) for kind in tagged(module) if is_command(kind)]


def events() -> list[type[msgspec.Struct]]:
    return [kind for module in (talk, trade, shows) for kind in tagged(module) if not is_command(kind)]


def asyncapi(*, version: str, server: str | None) -> dict[str, Any]:
    """The document, as JSON-ready builtins."""
    up, down = commands(), [*OWN, *events()]
    kinds = [*up, *down]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REF)
    codes = "\n".join(f"- {code}: {text}" for code, text in sorted(protocol.CLOSE_CODES.items()))
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Live companion: the socket of a show",
            "version": version,
            "description": (
                f"Subprotocol `{protocol.SUBPROTOCOL}`. The first frame is `hello`, within 5 s. Frames up "
                "hold one JSON object; frames down a JSON array of messages. A numbered event's `seq` counts "
                f"within the show.\n\nClose codes:\n{codes}"
            ),
        },
        "defaultContentType": "application/json",
        "channels": {
            "show": {
                "address": "/v1/shows/{show}/socket",
                "description": "One viewer's connection to one show.",
                "parameters": {"show": {"description": "The show's link id"}},
                "messages": {_word(kind): {"$ref": _message_ref(kind)} for kind in kinds},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "say": _operation("receive", "What a viewer sends.", up),
            "hear": _operation("send", "What a viewer is sent.", down),
        },
        "components": {
            "messages": {_word(kind): _message(kind) for kind in kinds},
            "schemas": dict(sorted(schemas.items())),
        },
    }
    if server:
        scheme, _, host = server.partition("://")
        document["servers"] = {
            "here": {"host": host.rstrip("/"), "protocol": "wss" if scheme == "https" else "ws"}
        }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    return plain


def _word(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def _message_ref(kind: type[msgspec.Struct]) -> str:
    return f"#/components/messages/{_word(kind)}"


def _message(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "name": _word(kind),
        "summary": (kind.__doc__ or "").strip().split("\n")[0],
        "payload": {"$ref": REF.format(name=kind.__name__)},
    }


def _operation(action: str, summary: str, kinds: Iterable[type[msgspec.Struct]]) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": "#/channels/show"},
        "messages": [{"$ref": f"#/channels/show/messages/{_word(kind)}"} for kind in kinds],
    }
