"""Comments: post, hide, pin, announce, mute; and their pace."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import UNSET

from chat.messages import AnnouncementSet, Badge, CommentPosted, encoded
from chat.text import bounded, clean
from membership.actor import Actor, Permission, ShowId, public_id
from membership.audience import ShowAudiences
from membership.behaviour import encode, record_of
from membership.refusal import (
    BadRequest,
    Forbidden,
    NotFound,
    RateLimited,
    Refusal,
    Unauthenticated,
    Unavailable,
)
from membership.script import Arg, Script, ScriptLoader, json_arg, refusal_from

POSTED_MAX = 100  # lines in one call
TEXT_MAX = 200  # code points of a comment and of an announcement
NAME_MAX = 24
PACE_BURST, PACE_WINDOW_MS, PACE_PAUSE_MS = 3, 2_000, 10_000
MUTE_MIN_S, MUTE_MAX_S = 10, 7 * 86_400
_RANKS: dict[Badge, str] = {"host": "", "plan": "2", "": "3", "guest": "4"}  # see post_comments.lua
_PUBLIC_ID = re.compile(r"^[a-z2-7]{12}$")


class NotLive(Refusal):
    """The show is not open for this now."""

    code = "not_live"


class Muted(Refusal):
    """You may not comment for now."""

    code = "muted"


class Posted(msgspec.Struct, frozen=True):
    """What the author is told: the comment's number and time."""

    seq: int
    at: int


class Said(NamedTuple):
    """One line, as somebody said it."""

    actor: Actor
    text: str
    key: str | None = None
    reply_to: int | None = None


_POSTED = msgspec.json.Decoder(Posted)
_UNANSWERED = Unavailable(retry_ms=1000)


class Pace(msgspec.Struct, frozen=True):
    """How many comments the last minute and the whole show have had."""

    minute: int
    total: int


def shown_name(show: ShowId, actor: Actor) -> str:
    """The name others see: the actor's own, cut to 24 characters, else one made for a guest."""
    name = clean(actor.name)[:NAME_MAX].strip()
    if name:
        return name
    if actor.kind == "staff":
        return "主播"
    number = int.from_bytes(hashlib.blake2b(f"{show}\n{actor.id}".encode(), digest_size=4).digest(), "big")
    return f"{'观众' if actor.facts.registered else '访客'}{number % 10_000:04d}"


def badge_of(actor: Actor) -> Badge:
    if actor.kind == "staff":
        return "host"
    if actor.facts.plans:
        return "plan"
    return "" if actor.facts.registered else "guest"


def need(actor: Actor, *permissions: Permission) -> None:
    """Refuse an actor who has none of the permissions. Raises Forbidden."""
    if not any(actor.may(permission) for permission in permissions):
        raise Forbidden


def digest_of(*parts: object) -> str:
    """What a key stands for: the same key with another digest is refused."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def answer_of(answer: Any) -> bytes:
    """The recorded reply: a script's second answer to one key comes marked as such."""
    return cast(bytes, answer[0] if isinstance(answer, list) else answer)


class Comments:
    """What viewers say in a show, and what staff do about it."""

    def __init__(
        self,
        scripts: ScriptLoader,
        audiences: ShowAudiences,
        *,
        pace_burst: int = PACE_BURST,
        pace_window_ms: int = PACE_WINDOW_MS,
        pace_pause_ms: int = PACE_PAUSE_MS,
    ) -> None:
        self._audiences = audiences
        self._pace: tuple[int, int, int] = (pace_burst, pace_window_ms, pace_pause_ms)
        self._post = scripts.load("chat", "post_comments")
        self._hide = scripts.load("chat", "hide_comment")
        self._pin = scripts.load("chat", "pin_comment")
        self._unpin = scripts.load("chat", "unpin_comment")
        self._announce = scripts.load("chat", "set_announcement")
        self._mute = scripts.load("chat", "mute_viewer")
        self._read_mute = scripts.load("chat", "read_mute")
        self._read_pace = scripts.load("chat", "read_pace")
        self._rebuild = scripts.load("chat", "rebuild_talk")

    async def post(
        self, actor: Actor, show: ShowId, text: str, key: str | None = None, reply_to: int | None = None
    ) -> Posted:
        """Say one line. A repeat of `key` is answered from its record and posts nothing.

        Raises BadRequest, Unauthenticated (a guest where guests do not speak), NotLive, Muted and
        RateLimited (both with retry_ms), NotFound (the comment answered), Forbidden, KeyReused.
        """
        (answer,) = await self.post_many(show, [Said(actor, text, key, reply_to)])
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def post_many(self, show: ShowId, said: Sequence[Said]) -> list[Posted | Refusal]:
        """The same for what several people say at once, in order, in one call; `POSTED_MAX` at most.

        Raises Unavailable; every other refusal is the answer to its own line.
        """
        answers: list[Posted | Refusal] = []
        keys, args, asked = ["mutes", "hidden", "pace", "buyers"], list[Arg](self._pace), list[int]()
        for number, line in enumerate(said):
            try:
                args += self._line_args(show, line)
            except Refusal as refusal:
                answers.append(refusal)
                continue
            keys += [f"recent:{line.actor.id}", f"paused:{line.actor.id}"]
            asked.append(number)
            answers.append(_UNANSWERED)
        found = await self._post(show, keys, args) if asked else []
        for number, answer in zip(asked, found, strict=True):
            if isinstance(answer, list):
                answers[number] = self._refusal(refusal_from(answer))
            else:
                answers[number] = _POSTED.decode(answer)
        return answers

    def _line_args(self, show: ShowId, said: Said) -> list[Arg]:
        """What the script is told of one line. Raises Forbidden, BadRequest, NotFound."""
        actor, reply_to = said.actor, said.reply_to
        if actor.kind not in ("viewer", "staff"):
            raise Forbidden
        if actor.kind == "staff":
            need(actor, "show.run", "chat.moderate")
        elif reply_to is not None:
            raise Forbidden("Only staff reply to a comment.")
        line = bounded(said.text, TEXT_MAX, "A comment")
        if reply_to is not None and reply_to < 1:
            raise NotFound
        who, badge = public_id(show, actor.id), badge_of(actor)
        event = CommentPosted(
            text=line,
            name=shown_name(show, actor),
            viewer=who,
            badge=badge,
            reply_to=UNSET if reply_to is None else reply_to,
        )
        return [
            actor.id,
            said.key or "",
            digest_of("comment.post", line, reply_to),
            who,
            "staff" if actor.kind == "staff" else "member" if actor.facts.registered else "guest",
            encoded(event),
            "" if reply_to is None else str(reply_to),
            encode(record_of(actor, "comment", "show", value=1, text=line)),
            _RANKS[badge],
        ]

    def _refusal(self, refusal: Refusal) -> Refusal:
        if not isinstance(refusal, RateLimited):
            return _named(refusal)
        seconds = -(-(refusal.retry_ms or 0) // 1000)
        return RateLimited(
            f"Too fast: at most {self._pace[0]} comments in {self._pace[1] / 1000:g} s. "
            f"You can comment again in {seconds} s.",
            retry_ms=refusal.retry_ms,
        )

    async def hide(self, actor: Actor, show: ShowId, seq: int) -> bool:
        """Take a comment from view, for everyone and for good. False when it was hidden before."""
        need(actor, "chat.moderate")
        return await self._on_comment(self._hide, show, seq)

    async def pin(self, actor: Actor, show: ShowId, seq: int) -> bool:
        """Hold a comment in view, in place of the one before. False when it is pinned already."""
        need(actor, "chat.moderate")
        return await self._on_comment(self._pin, show, seq)

    async def unpin(self, actor: Actor, show: ShowId) -> bool:
        """Let the pinned comment go. False when none was pinned."""
        need(actor, "chat.moderate")
        return bool(await self._unpin(show, ["pinned"], []))

    async def announce(self, actor: Actor, show: ShowId, text: str | None) -> None:
        """Set the announcement bar; None clears it. Raises BadRequest, NotLive (the show has ended)."""
        need(actor, "show.run")
        line = None if text is None else bounded(text, TEXT_MAX, "An announcement")
        data = {} if line is None else {"text": line}
        try:
            await self._announce(show, [], [json_arg(data), encoded(AnnouncementSet(text=line))])
        except Refusal as refusal:
            raise _named(refusal) from None

    async def mute(self, actor: Actor, show: ShowId, viewer: str, seconds: int) -> int:
        """Keep a viewer (by public id) from commenting. Returns until when, in ms."""
        need(actor, "chat.moderate")
        if not MUTE_MIN_S <= seconds <= MUTE_MAX_S:
            raise BadRequest(f"A mute lasts {MUTE_MIN_S} to {MUTE_MAX_S} seconds.")
        return await self._set_mute(actor, show, viewer, seconds * 1000)

    async def unmute(self, actor: Actor, show: ShowId, viewer: str) -> None:
        """Let a muted viewer comment again; nothing happens when they may."""
        need(actor, "chat.moderate")
        await self._set_mute(actor, show, viewer, 0)

    async def muted_until(self, show: ShowId, viewer: str) -> int | None:
        """Until when a viewer (by public id) is muted, in ms; None when they may comment."""
        until = int(await self._read_mute(show, ["mutes"], [viewer]))
        return until or None

    async def pace(self, show: ShowId) -> Pace:
        """How many comments the last minute and the whole show have had."""
        minute, total = await self._read_pace(show, ["pace"], [])
        return Pace(minute=int(minute), total=int(total))

    async def rebuild(self, show: ShowId, events: Iterable[Mapping[str, Any]]) -> None:
        """Fill a reborn show with what the recorded `events`, in order, left pinned, announced and muted."""
        pinned: dict[str, object] = {}
        announced: dict[str, object] = {}
        mutes: dict[str, int] = {}
        pinned_seq: int | None = None
        for event in events:
            match event.get("type"):
                case "comment.pinned":
                    pinned_seq = event["comment"]
                    words = {part: event[part] for part in ("text", "name", "badge")}
                    pinned = {"comment": {"seq": 0, **words}}
                case "comment.unpinned":
                    pinned, pinned_seq = {}, None
                case "comment.hidden" if event["comment"] == pinned_seq:
                    pinned, pinned_seq = {}, None
                case "announcement.set":
                    announced = {"text": event["text"]} if event["text"] else {}
                case "viewer.muted":
                    mutes[event["viewer"]] = event["until"]
                case "viewer.unmuted":
                    mutes.pop(event["viewer"], None)
        pairs = [part for viewer, until in mutes.items() for part in (viewer, until)]
        await self._rebuild(
            show, ["mutes", "pinned", "hidden"], [json_arg(pinned), json_arg(announced), *pairs]
        )

    async def _on_comment(self, script: Script, show: ShowId, seq: int) -> bool:
        if seq < 1:
            raise NotFound
        try:
            return bool(await script(show, ["hidden", "pinned"], [str(seq)]))
        except Refusal as refusal:
            raise _named(refusal) from None

    async def _set_mute(self, actor: Actor, show: ShowId, viewer: str, length_ms: int) -> int:
        if not _PUBLIC_ID.match(viewer):
            raise NotFound("There is no such viewer here.")
        by = json_arg(shown_name(show, actor))
        return int(await self._mute(show, ["mutes"], [viewer, length_ms, by]))


def _named(refusal: Refusal) -> Refusal:
    """The refusal of the script's word, in its own class and words."""
    kind = {"not_live": NotLive, "muted": Muted, "not_found": NotFound, "unauthenticated": Unauthenticated}
    if refusal.word in kind:
        return kind[refusal.word](retry_ms=refusal.retry_ms)
    return refusal
