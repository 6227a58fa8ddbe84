"""Letting viewers in: who a hello is, what a joining or returning viewer is told, and a new token on the way.

Whatever a store does not answer in time is told later; who needs nothing of it is not kept waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from psycopg import Error as SqlError

from live import protocol as wire
from live.circuit import Circuit
from live.http import GUEST_COOKIE, STAFF_COOKIE, VIEWER_COOKIE
from live.hub import NOTHING, ShowHub, in_room
from live.identity import GUEST_PREFIX, actor_of_token
from live.log import Entry
from live.socket import Kind, Socket
from membership.actor import Actor, GuestId, MemberId, ShowId
from membership.members import guest, is_guest_id, new_guest_id
from membership.refusal import Away, Refusal, Unauthenticated, Unavailable
from membership.tokens import Claims

if TYPE_CHECKING:
    from live.node import Node

T = TypeVar("T")

PING_S: Final = 25
JOINS_AT_ONCE: Final = 200  # hellos being answered at the same time
OLDER_MAX: Final = 2_000  # missed entries that are read from the store; who missed more gets a snapshot
BOOKS_S: Final = 2.0  # a hello waits so long for PostgreSQL to say who it is
RETELL_S: Final = 1.0  # between looks whether what a hello was not told can be read again
CATCH_UP_S: Final = 1.0  # a viewer that was ahead of this node waits so long for the log


class Hello(msgspec.Struct, frozen=True):
    """Who a hello turned out to be."""

    actor: Actor
    expires_at: float | None
    looks_only: bool = False  # staff who see the page as a guest or plan member would


class MembersOnly(Refusal):
    """This room is for members. Start a trial or join to come in."""

    code = "members_only"


_CLOSE_FOR: Final = {
    "unauthenticated": wire.BAD_TOKEN,
    "token_expired": wire.TOKEN_EXPIRED,
    "forbidden": wire.BAD_TOKEN,
    "members_only": wire.MEMBERS_ONLY,
    "not_found": wire.BAD_PROTOCOL,
    "show_ended": wire.SHOW_ENDED,
    "banned": wire.BANNED,
    "unavailable": wire.STATE_LOST,
}


class Joining:
    """The hellos of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.half_told: set[Socket] = set()  # let in while a store was away: the rest is told later
        self._retelling = False
        self._books = Circuit(node.now, (SqlError, OSError, TimeoutError))
        self._missing: dict[tuple[ShowId, int], asyncio.Task[list[Entry]]] = {}
        self._at_once = asyncio.Semaphore(JOINS_AT_ONCE)

    async def join(self, socket: Socket, hello: wire.Hello) -> None:
        socket.joining = True
        try:
            async with self._at_once:
                await self._enter(socket, hello)
            self._node.metrics.joins.labels("welcome").inc()
        except Refusal as refusal:
            self._node.metrics.joins.labels(refusal.word).inc()
            socket.tell(wire.refused(hello.id, refusal))
            said = None if isinstance(refusal, Away) else str(refusal)
            socket.close(_CLOSE_FOR.get(refusal.word, wire.SERVER_ERROR), said)
        finally:
            socket.joining = False

    async def _enter(self, socket: Socket, hello: wire.Hello) -> None:
        assert socket.show is not None
        began = self._node.now()
        found = await self._who(socket, hello.token)
        try:
            async with asyncio.timeout(BOOKS_S):  # loading goes on for whoever comes next
                hub = await self._node.hub(socket.show)
        except TimeoutError as error:
            raise Away("the show is being loaded", retry_ms=2000) from error
        socket.actor, socket.expires_at = found.actor, found.expires_at
        socket.looks_only = found.looks_only
        if not in_room(hub.room_audience, socket):
            raise MembersOnly(join=f"/s/{socket.show}")
        await self._same_room(socket, found.actor)
        if hub.status == "ended" and found.actor.kind != "staff":
            raise Refusal("The show has ended.", code="show_ended")
        if found.actor.kind == "staff":
            socket.ws.max_message_size = wire.STAFF_COMMAND_BYTES_MAX
        await self.welcome(socket, hub, hello.id, hello.since, joins=True)
        member = found.actor.member
        if member is not None and self._node.changed_at.get(member, -1.0) >= began:
            self._node.spawn(
                self._node.reload_member(member)
            )  # their facts changed between the reading and the welcome

    async def _who(self, socket: Socket, token: str | None) -> Hello:
        """Token, else the page's cookie, else a guest."""
        if token is not None:
            claims = self._node.parts.tokens.verify(token)
            actor = await self._named(token, claims)
            return Hello(actor, float(claims.exp), looks_only=claims.preview is not None)
        try:
            cookies = SimpleCookie(socket.cookies)
        except CookieError:
            cookies = SimpleCookie()
        for name in (VIEWER_COOKIE, STAFF_COOKIE):
            if name in cookies:
                try:
                    claims = self._node.parts.tokens.verify(cookies[name].value)
                    if name == STAFF_COOKIE and claims.kind != "staff":
                        continue
                    actor = await self._named(cookies[name].value, claims)
                    return Hello(actor, float(claims.exp))
                except Unauthenticated:
                    continue
        known = cookies[GUEST_COOKIE].value if GUEST_COOKIE in cookies else ""
        return Hello(guest(GuestId(known) if is_guest_id(known) else new_guest_id()), None)

    async def _named(self, token: str, claims: Claims) -> Actor:
        """Whom a checked token names; a guest's says it all, so guests need no PostgreSQL. Raises Away."""
        if claims.kind == "viewer":
            if is_guest_id(claims.sub):
                return guest(GuestId(claims.sub))
            actor = await self._from_books(lambda: self._node.arrivals.member(MemberId(claims.sub)))
            if actor is None:
                raise Unauthenticated("This member is not known here.")
            return actor
        return await self._from_books(lambda: self._named_staff(token))

    async def _named_staff(self, token: str) -> Actor:
        async with self._node.parts.pool.connection() as conn:
            return await actor_of_token(self._node.parts, conn, token)

    async def _from_books(self, ask: Callable[[], Awaitable[T]]) -> T:
        """PostgreSQL for who waits at the door: an answer within BOOKS_S, or Away."""
        try:
            with self._books.asking():
                async with asyncio.timeout(BOOKS_S):
                    return await ask()
        except (SqlError, OSError, TimeoutError) as error:
            raise Away(f"books: {error}", retry_ms=2000) from error

    async def welcome(
        self, socket: Socket, hub: ShowHub, command_id: int, since: wire.Position | None, *, joins: bool
    ) -> None:
        """Answer hello or resync: every missed event in order, or a snapshot; never a part.

        From the answer to the entry into the class nothing awaits, so that no frame falls between.
        """
        try:
            older = await self._older(hub, since) if since is not None else None
        except Unavailable:
            older = None  # the ring is too short and the rest is out of reach: a snapshot of what is here
        you, whole = await self._node.dispatch.you_for_now(hub, socket)
        show = await self._node.dispatch.show_card(hub, socket)
        if socket.closing or socket.actor is None:
            return
        mask = hub.mask_for(socket)
        replay = None
        if since is not None and older is not None and since.epoch == hub.epoch:
            replay = hub.replay(mask, since.seq, older)
        recovered = replay is not None
        socket.public_id = you["id"]
        if joins:
            hub.enter(socket)
            socket.joined = True
            if socket.actor.kind == "viewer" and not socket.looks_only:
                socket.watch_from = socket.watching_since = int(time.time() * 1000)
            self._node.metrics.viewers.inc()
            self._node.remember_member(socket)
            # Spread over the ping's period, so that who came at once is not pinged at once.
            socket.ping_at = self._node.now() + PING_S * (0.2 + 0.8 * random.random())
            self._node.wheel.put(socket, self._node.now())
        socket.at, socket.behind, socket.easy = hub.sent, None, False
        socket.tell(
            {
                "type": "welcome",
                "id": command_id,
                "epoch": hub.epoch,
                "seq": since.seq if recovered and since is not None else hub.sent,
                "recovered": recovered,
                "you": you,
                "show": show,
                "states": hub.states_for(mask),
                "comments": [] if recovered else hub.comments_for(mask),
                "ticker": [] if recovered else hub.ticker_for(mask),
                "time": int(time.time() * 1000),
                "ping_s": PING_S,
                "reconnect_ms": self._node.reconnect_ms(),
            }
        )
        if replay is not None and replay is not NOTHING:
            socket.send_shared(replay, Kind.PERSONAL)
        (self._node.metrics.replays if recovered else self._node.metrics.snapshots).inc()
        if not joins:
            hub.regroup(socket)  # a ballot cast elsewhere may have moved this viewer
        if not whole:
            self._tell_later(socket)

    def _tell_later(self, socket: Socket) -> None:
        """A store was away when `you` was made: `you` follows once it answers. One task for all."""
        self.half_told.add(socket)
        if not self._retelling:
            self._retelling = True
            self._node.spawn(self._retell())

    async def _retell(self) -> None:
        try:
            while self.half_told and not self._node.draining:
                await asyncio.sleep(RETELL_S)
                for socket in list(self.half_told):
                    if not await self._told_rest(socket):
                        break  # nor will the others be
        finally:
            self._retelling = False

    async def _told_rest(self, socket: Socket) -> bool:
        hub = self._node.hubs.get(socket.show) if socket.show else None
        if hub is not None and socket.joined and not socket.closing:
            you, whole = await self._node.dispatch.you_for_now(hub, socket)
            if not whole:
                return False
            socket.tell({"type": "you", "data": you})
            hub.regroup(socket)
        self.half_told.discard(socket)
        return True

    async def _older(self, hub: ShowHub, since: wire.Position) -> list[Entry] | None:
        """What the ring no longer has after `since`, [] when it has everything; None: start anew.

        A viewer that comes from a node ahead of this one waits until the log here is as far.
        """
        if since.epoch != hub.epoch:
            return None
        if since.seq > hub.sent and not await hub.reached(since.seq, CATCH_UP_S):
            return None
        if hub.covers(since.seq):
            return []
        if hub.sent - since.seq > OLDER_MAX:
            return None
        task = self._missing.get((hub.show, since.seq))
        if task is None:
            self._node.metrics.log_reads.labels("missed").inc()
            task = asyncio.get_running_loop().create_task(
                self._node.show_log.between(hub.show, since.seq + 1, hub.seq)
            )
            self._missing[hub.show, since.seq] = task
            task.add_done_callback(lambda _: self._missing.pop((hub.show, since.seq), None))
        return await asyncio.shield(task)

    async def _same_room(self, socket: Socket, actor: Actor) -> None:
        """A token for one room opens no other. Raises a Refusal."""
        if actor.room is None:
            return
        room, shows = actor.room, self._node.parts.shows
        if not await self._from_books(lambda: shows.in_room(ShowId(str(socket.show)), room)):
            raise Refusal("This token is for another room.", code="forbidden")

    async def refresh(self, socket: Socket, command: wire.Refresh) -> None:
        """A new token on the same socket: the same person again, or a guest who signed in."""
        hub = self._node.hubs.get(socket.show) if socket.show else None
        try:
            found = await self._who(socket, command.token)
            before = socket.actor
            if before is not None and not before.id.startswith(GUEST_PREFIX) and before.id != found.actor.id:
                raise Refusal("This token is another person's.", code="forbidden")
            if found.actor.kind != "viewer" and (before is None or before.kind != found.actor.kind):
                raise Refusal("A viewer's socket stays a viewer's.", code="forbidden")
            await self._same_room(socket, found.actor)
        except Refusal as refusal:
            socket.tell(wire.refused(command.id, refusal))
            return
        if socket.closing:
            return  # left meanwhile: remembering it now would be for ever
        self._node.forget_member(socket)
        socket.actor, socket.expires_at, socket.refresh_by = found.actor, found.expires_at, None
        socket.looks_only = found.looks_only
        self._node.wheel.put(socket, self._node.now())
        self._node.remember_member(socket)
        if hub is not None:
            you, whole = await self._node.dispatch.you_for_now(hub, socket)
            socket.public_id = you["id"]
            socket.tell(wire.ok(command.id, {}), {"type": "you", "data": you})
            hub.regroup(socket)
            if not whole:
                self._tell_later(socket)
