"""Command to method: who may, which one, and its refusal as a reply.

The commands are a dict that can be clicked through. What is said once a second (likes, clicks,
watching) is gathered here and sent in one call a show.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from psycopg import Error as SqlError

from chat.comments import POSTED_MAX, Posted, Said, badge_of, shown_name
from chat.messages import CastBallot, PostComment, SendReaction
from chat.standings import TalkStanding
from chat.text import clean
from commerce.claims import BATCH_MAX, WAITING_MAX, Won
from commerce.messages import ClaimBenefit, PlaceOrder, QueueBenefit
from live import protocol as wire
from live.arrivals import Card
from live.circuit import Circuit
from live.gather import Together
from live.hub import ShowHub
from live.socket import Socket
from membership.actor import Actor, BenefitId, ShowId, is_id, new_id, public_id
from membership.behaviour import Record
from membership.moment import in_ms
from membership.plans import Term
from membership.refusal import BadRequest, Forbidden, Refusal, Unavailable

if TYPE_CHECKING:
    from live.node import Node
    from live.parts import Parts

log = logging.getLogger("companion.dispatch")

REACTIONS_PER_S_MAX: Final = 20  # of one socket; more taps in a second are not counted
RECORDS_MAX: Final = 5_000  # behaviour records waiting in this process
YOU_S: Final = 0.5  # who comes in waits so long for PostgreSQL to say what it knows of them
LINES_REST_S: Final = 0.02  # comments of a show within this time go to the store together
LINES_WAITING_MAX: Final = 2_000  # comments of a show
WATCH_MIN_MS: Final = 1_000
WATCH_PART_MS: Final = 60_000  # a longer watch is recorded in parts: a crash loses at most one

Command = (
    wire.Hello
    | wire.Resync
    | wire.Refresh
    | wire.Pong
    | wire.ViewProduct
    | PostComment
    | SendReaction
    | CastBallot
    | ClaimBenefit
    | QueueBenefit
    | PlaceOrder
)


class Dispatch:
    def __init__(self, parts: Parts, node: Node) -> None:
        self._parts = parts
        self._node = node
        self.decode = msgspec.json.Decoder(Command).decode
        self._books = Circuit(node.now, (SqlError, OSError, TimeoutError))
        # No rest: a claim waits for nothing but the call under way.
        self._claims: Together[tuple[ShowId, BenefitId], tuple[Actor, str, int | None], Won] = Together(
            self._claim_together,
            most=BATCH_MAX,
            rest_s=0,
            waiting_max=WAITING_MAX,
        )
        self._lines: Together[ShowId, Said, Posted] = Together(
            parts.comments.post_many, most=POSTED_MAX, rest_s=LINES_REST_S, waiting_max=LINES_WAITING_MAX
        )
        self._reactions: dict[ShowId, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._tapped: dict[Socket, int] = defaultdict(int)
        self._records: dict[ShowId, list[Record]] = defaultdict(list)
        self._record_count = 0
        self._acts: dict[type, Any] = {
            PostComment: self._comment,
            SendReaction: self._react,
            CastBallot: self._ballot,
            ClaimBenefit: self._claim,
            QueueBenefit: self._queue,
            PlaceOrder: self._order,
            wire.ViewProduct: self._view,
        }

    async def answer(self, socket: Socket, command: Any) -> None:
        """Do it and say `ok`, or say `refused`; every id is answered."""
        kind = type(command).__struct_config__.tag
        try:
            assert socket.actor is not None and socket.show is not None
            if socket.looks_only:
                raise Forbidden("A preview may only look.")
            reply = await self._acts[type(command)](socket, socket.actor, socket.show, command)
        except Refusal as refusal:
            self._node.metrics.commands.labels(kind, refusal.word).inc()
            socket.tell(wire.refused(command.id, refusal))
            return
        except Exception:
            log.exception("%s failed", kind)
            self._node.metrics.commands.labels(kind, "failed").inc()
            failed = Refusal(
                "Something failed here; nothing may have happened.", code="unavailable", retry_ms=1000
            )
            socket.tell(wire.refused(command.id, failed))
            return
        self._node.metrics.commands.labels(kind, "ok").inc()
        socket.tell(wire.ok(command.id, reply))

    # -- one method a command ----------------------------------------------------------------------

    async def _comment(
        self, socket: Socket, actor: Actor, show: ShowId, command: PostComment
    ) -> dict[str, Any]:
        posted = await self._lines.ask(show, Said(actor, command.text, command.key))
        return {
            "seq": posted.seq,
            "at": posted.at,
            "text": clean(command.text),  # as others read it: the writer's page draws it from here
            "name": shown_name(show, actor),
            "badge": badge_of(actor),
        }

    async def _react(
        self, socket: Socket, actor: Actor, show: ShowId, command: SendReaction
    ) -> dict[str, Any]:
        counted = min(command.count, REACTIONS_PER_S_MAX - self._tapped[socket])
        if counted > 0:
            self._tapped[socket] += counted
            self._reactions[show][command.kind] += counted
            if self._tapped[socket] == counted:
                self._record(socket, "reaction", "show", counted)
        return {"counted": max(0, counted)}

    async def _ballot(
        self, socket: Socket, actor: Actor, show: ShowId, command: CastBallot
    ) -> dict[str, Any]:
        choices = await self._parts.polls.cast(actor, show, command.poll, command.choices, _key(command))
        hub = self._node.hubs.get(show)
        if hub is not None:
            # A guest's other tabs learn of it when they resync: guests are not kept by name here.
            own = self._node.members.get(actor.member, ()) if actor.member is not None else (socket,)
            for other in [each for each in own if each.show == show and each.joined]:
                other.voted = command.poll
                hub.regroup(other)
        return {"poll": command.poll, "choices": choices}

    async def _claim(
        self, socket: Socket, actor: Actor, show: ShowId, command: ClaimBenefit
    ) -> dict[str, Any]:
        won = await self._claims.ask(
            (show, BenefitId(command.benefit)), (actor, _key(command), socket.watching_since)
        )
        reply: dict[str, Any] = {"rank": won.rank, "of": won.of, "nth": won.nth}
        if won.core:
            reply["receipt"] = self._parts.receipts.sign(won.core)
        return reply

    async def _claim_together(
        self, where: tuple[ShowId, BenefitId], asked: Sequence[tuple[Actor, str, int | None]]
    ) -> Sequence[Won | Refusal]:
        since = {
            actor.member: began for actor, _, began in asked if actor.member is not None and began is not None
        }
        claims = [(actor, key) for actor, key, _ in asked]
        return await self._parts.claims.claim_many(*where, claims, since, self._left(*where))

    def _left(self, show: ShowId, benefit: BenefitId) -> int | None:
        """What is left of a benefit by the state that the viewers here are shown."""
        hub = self._node.hubs.get(show)
        state = hub.states.get(f"benefit:{benefit}") if hub is not None else None
        if state is None or not state.parts:
            return None
        taken = state.counts.get("confirmed", 0) + state.counts.get("held", 0)
        return int(state.parts[0].d["quota"]) - taken

    async def _queue(
        self, socket: Socket, actor: Actor, show: ShowId, command: QueueBenefit
    ) -> dict[str, Any]:
        queued = await self._parts.seats.queue(show, BenefitId(command.benefit), actor)
        return msgspec.to_builtins(queued)  # type: ignore[no-any-return]

    async def _order(self, socket: Socket, actor: Actor, show: ShowId, command: PlaceOrder) -> dict[str, Any]:
        _key(command)
        async with self._parts.database.transaction() as t:
            placed = await self._parts.orders.place(t, actor, show, command)
        return msgspec.to_builtins(placed)  # type: ignore[no-any-return]

    async def _view(
        self, socket: Socket, actor: Actor, show: ShowId, command: wire.ViewProduct
    ) -> dict[str, Any]:
        if not is_id(command.product):
            raise BadRequest("There is no such product.")
        self._record(socket, "click", f"product:{command.product}", 1)
        return {}

    # -- what a hello is told ----------------------------------------------------------------------

    async def you(self, hub: ShowHub, socket: Socket) -> dict[str, Any]:
        """Who this socket speaks for, as its page draws it. Raises Unavailable when that is not all known."""
        told, whole = await self.you_for_now(hub, socket)
        if not whole:
            raise Unavailable(retry_ms=1000)
        return told

    async def you_for_now(self, hub: ShowHub, socket: Socket) -> tuple[dict[str, Any], bool]:
        """The same as far as the stores answer in a moment, and whether that is all of it.

        What cannot be read is empty: plan and seats without PostgreSQL, votes and mute without Redis.
        """
        actor = socket.actor
        assert actor is not None
        who = public_id(hub.show, actor.id)
        whole = True
        card = Card(None, {})
        if actor.member is not None:
            try:
                with self._books.asking():
                    async with asyncio.timeout(YOU_S):
                        has_seats = any(key.startswith("benefit:") for key in hub.states)
                        card = await self._node.arrivals.card(hub.show, actor.member, seats=has_seats)
            except (SqlError, OSError, TimeoutError, Unavailable):
                whole = False
        shown = hub.poll_shown()
        talk = TalkStanding()
        if actor.kind == "viewer":
            try:
                talk = await self._node.arrivals.talk(hub.show, shown, actor.id)
            except Unavailable:
                whole = False
        if talk.choices is not None and shown == hub.poll:
            socket.voted = hub.poll
        kind = "staff" if actor.kind == "staff" else "guest"
        if actor.facts.registered:
            kind = "plan" if actor.facts.plans else "registered"
        return {
            "id": who,
            "name": shown_name(hub.show, actor),
            "badge": badge_of(actor),
            "kind": kind,
            "plan": _plan_of(card.term),
            "votes": {} if talk.choices is None else {shown: talk.choices},
            "muted_until": talk.muted_until,
            "seats": card.seats,
        }, whole

    async def show_card(self, hub: ShowHub, socket: Socket) -> dict[str, Any]:
        state = hub.states.get("show")
        data = state.seen_by(socket.mask or 1) if state is not None else None
        return {"id": hub.show, **(data or {}), "status": hub.status}

    # -- gathered ----------------------------------------------------------------------------------

    def _record(self, socket: Socket, kind: Any, subject: str, value: int, at: int | None = None) -> None:
        actor = socket.actor
        if actor is None or actor.kind != "viewer" or socket.show is None:
            return
        if self._record_count >= RECORDS_MAX:
            self._node.metrics.dropped_behaviour.inc()
            return
        self._record_count += 1
        self._records[socket.show].append(
            Record(
                id=new_id(),
                kind=kind,
                viewer=actor.id,
                member=actor.member,
                subject=subject,
                value=value,
                at=at if at is not None else int(time.time() * 1000),
            )
        )

    def watched(self, socket: Socket) -> None:
        """Record what was watched since it was last recorded."""
        if socket.watch_from is None:
            return
        now = int(time.time() * 1000)
        if now - socket.watch_from >= WATCH_MIN_MS:
            self._record(socket, "watch", "show", now - socket.watch_from, socket.watch_from)
        socket.watch_from = now

    def watched_so_far(self, socket: Socket) -> None:
        if socket.watch_from is not None and time.time() * 1000 - socket.watch_from >= WATCH_PART_MS:
            self.watched(socket)

    def watched_all(self, hub: ShowHub) -> None:
        """At the show's end everyone's watching is recorded, so that tags need not wait for them to leave."""
        for group in hub.classes.values():
            for socket in group:
                self.watched(socket)

    async def close(self) -> None:
        """Wait for the claims in flight: what was decided is written and told."""
        await self._claims.close()
        await self._lines.close()

    async def flush(self) -> None:
        """Once a second: likes as one call a show, behaviour as one write a show."""
        self._tapped.clear()
        reactions, self._reactions = self._reactions, defaultdict(lambda: defaultdict(int))
        records, self._records = self._records, defaultdict(list)
        self._record_count = 0
        for show, kinds in reactions.items():
            with contextlib.suppress(Refusal):  # likes are of the moment: a show that ended counts no more
                await self._parts.reactions.add(show, dict(kinds))
        for show, found in records.items():
            try:
                await self._parts.behaviour.record(show, found)
            except Unavailable:
                kept = found[: max(0, RECORDS_MAX - self._record_count)]
                self._node.metrics.dropped_behaviour.inc(len(found) - len(kept))
                self._records[show] = kept + self._records[show]
                self._record_count += len(kept)


def _plan_of(term: Term | None) -> dict[str, Any] | None:
    if term is None:
        return None
    return {
        "id": term.plan,
        "name": term.plan_name,
        "ends_at": in_ms(term.until),
        "trial": term.trial,
        "grace": term.grace,
    }


def _key(command: Any) -> str:
    if not command.key:
        raise BadRequest("This command needs a `key`, kept until it is answered.")
    return str(command.key)
