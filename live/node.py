"""This process among the others: who may join, what a hello gets, and what the log brings to whom.

The road of one command: socket → `received` → `live/dispatch.py` → a domain method → its Lua script →
the show's log → `_on_entries` → hub → one frame per class.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from psycopg import Error as SqlError

from chat.messages import CastBallot, PostComment, SendReaction
from commerce.messages import ClaimBenefit, PlaceOrder, QueueBenefit
from live import protocol as wire
from live.arrivals import Arrivals
from live.circuit import Circuit
from live.dispatch import Dispatch
from live.http import GUEST_COOKIE, STAFF_COOKIE, VIEWER_COOKIE
from live.hub import BEAT_MAX_S, NOTHING, ShowHub, in_room
from live.identity import GUEST_PREFIX, actor_of_token
from live.log import RECENT_ENTRIES, Entry, Tail
from live.metrics import Metrics
from live.pressure import STEPS, Pressure
from live.shows import Seen
from live.socket import STRIKES_MAX, Kind, Socket
from live.wheel import Wheel
from membership.actor import Actor, GuestId, MemberId, ShowId, new_link_id
from membership.members import guest, is_guest_id, new_guest_id
from membership.refusal import Away, BadRequest, Refusal, Unauthenticated, Unavailable
from membership.tokens import Claims

if TYPE_CHECKING:
    from live.parts import Parts

log = logging.getLogger("companion.node")

T = TypeVar("T")

PING_S: Final = 25
PONG_WAIT_S: Final = 10.0
HELLO_WAIT_S: Final = 5.0
RECONNECT_MIN_MS: Final = 500
RECONNECT_MAX_MS: Final = 20_000
REJOIN_AT_ONCE: Final = 500  # viewers who may ask for a snapshot at once; of more, each waits its random turn
JOINS_AT_ONCE: Final = 200  # hellos being answered at the same time
OLDER_MAX: Final = 2_000  # missed entries that are read from the store; who missed more gets a snapshot
JOIN_S: Final = 10.0  # no hello takes longer to answer
BOOKS_S: Final = 2.0  # a hello waits so long for PostgreSQL to say who it is
RETELL_S: Final = 1.0  # between looks whether what a hello was not told can be read again
RECHECK_S: Final = 0.5  # between looks at a log that is being built anew
CATCH_UP_S: Final = 1.0  # a viewer that was ahead of this node waits so long for the log
CLAIMED_ORIGIN_MAX: Final = 256
COMMANDS_PER_S: Final = 5.0  # of a viewer, all kinds together
RATES: Final[dict[type, tuple[float, float]]] = {  # of a viewer and kind: at once, then each second
    PostComment: (5.0, 2.0),  # the pace people are told of is decided with the comment
    SendReaction: (10.0, 5.0),
    CastBallot: (5.0, 1.0),
    ClaimBenefit: (5.0, 1.0),
    QueueBenefit: (5.0, 1.0),
    PlaceOrder: (5.0, 1.0),
    wire.Resync: (5.0, 0.5),
}
TOO_MANY_OF_A_KIND: Final = Refusal("Too many commands of this kind.", code="rate_limited", retry_ms=1000)


class Hello(msgspec.Struct, frozen=True):
    """Who a hello turned out to be."""

    actor: Actor
    expires_at: float | None
    looks_only: bool = False  # staff who see the page as a guest or plan member would


class Followed(msgspec.Struct, frozen=True):
    """How far this node has followed a log: its number, and the last entry that can be compared."""

    epoch: str
    seq: int
    last: int
    event: bytes  # b"" when there is none

    @classmethod
    def of(cls, hub: ShowHub) -> Followed:
        last = next((entry for _, entry in reversed(hub.ring) if entry.event), None)
        return cls(hub.epoch, hub.seq, last.seq if last else 0, last.event if last else b"")


class Node:
    """All sockets and show hubs of this process."""

    def __init__(self, parts: Parts, metrics: Metrics, tail_redis: Any) -> None:
        self.parts = parts
        self.metrics = metrics
        self.id = new_link_id()
        self.ws_log = logging.getLogger("companion.ws")
        self.ws_log.setLevel(logging.WARNING)
        self.commands_burst = 20  # commands a viewer may send at once; 5/s afterwards
        self.hubs: dict[ShowId, ShowHub] = {}
        self.sockets: set[Socket] = set()
        self.members: dict[str, set[Socket]] = {}
        self.stalled: set[Socket] = set()  # above the high mark of their buffer
        self.buffered = 0  # bytes that all viewers have yet to read, at the last count
        self.wheel = Wheel(self.now)
        self.pressure = Pressure(self.now())
        self._turn = asyncio.Lock()  # one show writes a step at a time
        self.half_told: set[Socket] = set()  # let in while a store was away: the rest is told later
        self._retelling = False
        self._followed: dict[ShowId, Followed] = {}  # where each log stood when it was lost from sight
        self._rechecked: set[ShowId] = set()  # shows whose log could not be checked, and is looked at again
        self._books = Circuit(self.now, (SqlError, OSError, TimeoutError))
        self.stale_members: set[str] = set()  # whose facts changed and could not be read yet
        self._changed_at: dict[
            str, float
        ] = {}  # member -> when a notice said their facts changed; the last 10 s
        self._reading = 0
        self._readings: dict[str, int] = {}  # member -> the reading of their facts that was begun last
        self.draining = False
        self._all_gone = asyncio.Event()  # no socket is left while draining
        self.log_up = True
        self._log_down_since = 0  # ms, wall clock
        self._loading: dict[ShowId, asyncio.Task[ShowHub]] = {}
        self._reloading: dict[ShowId, asyncio.Task[None]] = {}
        self._missing: dict[tuple[ShowId, int], asyncio.Task[list[Entry]]] = {}
        self._joining = asyncio.Semaphore(JOINS_AT_ONCE)
        self._join_tokens, self._join_tokens_at = float(parts.settings.join_rate), self.now()
        self._trusted = [ipaddress.ip_network(net) for net in parts.settings.trusted_proxies]
        self.show_log = parts.show_log
        self.tail = Tail(tail_redis, parts.redis, self._on_entries, self._on_notices, self._on_health)
        self.arrivals = Arrivals(parts)
        self.dispatch = Dispatch(parts, self)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        self.metrics.hold(asyncio.get_running_loop().create_task(work))

    async def start(self) -> None:
        await self.tail.start()

    async def stop(self) -> None:
        await self.dispatch.close()
        await self.arrivals.close()
        await self.tail.stop()

    # -- the door ----------------------------------------------------------------------------------

    def origin_allowed(self, origin: str, host: str) -> bool:
        """A page of ours (same host, or the public address), or an origin the settings allow."""
        if len(origin) > CLAIMED_ORIGIN_MAX:
            return False
        allowed = {self.parts.settings.public_url.rstrip("/"), *self.parts.settings.allowed_origins}
        try:
            named = urlsplit(origin).netloc
        except ValueError:  # no address at all, as `http://[`
            return False
        return origin in allowed or (named != "" and named == host)

    def client_address(self, peer: str, forwarded: str | None) -> str:
        """The viewer's address: X-Forwarded-For only when a trusted proxy says it."""
        if not forwarded or not self._trusted or not peer:
            return peer
        hops = [hop.strip() for hop in forwarded.split(",")][-8:]
        address = peer
        for hop in [*reversed(hops)]:
            if not any(ipaddress.ip_address(address) in net for net in self._trusted):
                break
            try:
                ipaddress.ip_address(hop)
            except ValueError:
                break
            address = hop
        return address

    def admit(self) -> int:
        """0 to let a socket in, else the seconds after which to come again."""
        now, rate = self.now(), float(self.parts.settings.join_rate)
        self._join_tokens = min(rate, self._join_tokens + (now - self._join_tokens_at) * rate)
        self._join_tokens_at = now
        if self.draining or self._join_tokens < 1 or self.pressure.paused_at is not None:
            self.metrics.refused_upgrades.inc()
            return 2
        self._join_tokens -= 1
        return 0

    def degraded(self) -> list[str]:
        """What this process gives up now: the steps taken under pressure, and `log` while none can be read."""
        steps = list(STEPS[: self.pressure.level])
        return steps if self.log_up else [*steps, "log"]

    def opened(self, socket: Socket) -> None:
        self.sockets.add(socket)
        self.wheel.put(socket, socket.made_at + HELLO_WAIT_S)

    def closed(self, socket: Socket, code: int) -> None:
        self.metrics.closes.labels(str(code)).inc()

    def left(self, socket: Socket) -> None:
        """The connection is gone: out of its class, and what it watched is recorded."""
        self.sockets.discard(socket)
        self.stalled.discard(socket)
        self.half_told.discard(socket)
        self.wheel.drop(socket)
        if not self.sockets:
            self._all_gone.set()
        if socket.joined and socket.show is not None:
            socket.joined = False
            self.metrics.viewers.dec()
            hub = self.hubs.get(socket.show)
            if hub is not None:
                hub.leave(socket)
            self.dispatch.watched(socket)
        self._forget_member(socket)

    def heal(self, socket: Socket) -> None:
        """The socket's buffer has drained: send what it was spared."""
        hub = self.hubs.get(socket.show) if socket.show else None
        if hub is not None:
            hub.heal(socket)

    def _remember_member(self, socket: Socket) -> None:
        if socket.actor is not None and socket.actor.member is not None:
            self.members.setdefault(socket.actor.member, set()).add(socket)

    def _forget_member(self, socket: Socket) -> None:
        if socket.actor is not None and socket.actor.member is not None:
            known = self.members.get(socket.actor.member)
            if known is not None:
                known.discard(socket)
                if not known:
                    del self.members[socket.actor.member]

    # -- what a viewer sends -----------------------------------------------------------------------

    async def received(self, socket: Socket, data: bytes) -> None:
        """One frame: decode, and answer it. A malformed one is refused; five of them end it."""
        if not self._within_rate(socket):
            socket.tell(
                wire.refused(
                    _claimed_id(data), Refusal("Too many commands.", code="rate_limited", retry_ms=1000)
                )
            )
            return
        try:
            command = self.dispatch.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:  # nested a thousand deep
            socket.strikes += 1
            socket.tell(wire.refused(_claimed_id(data), BadRequest(str(error)[:200])))
            if socket.strikes >= STRIKES_MAX or not socket.joined:
                socket.close(wire.NO_HELLO if not socket.joined else wire.BAD_PROTOCOL)
            return
        if isinstance(command, wire.Hello):
            if socket.joined or socket.joining:
                socket.tell(wire.refused(command.id, BadRequest("hello was said already.")))
                return
            await self._join(socket, command)
        elif isinstance(command, wire.Pong):
            return
        elif not socket.joined:
            socket.tell(wire.refused(command.id, Unauthenticated("Say hello first.")))
            socket.close(wire.NO_HELLO)
        elif not self._within_rate_of(socket, type(command)):
            socket.tell(wire.refused(command.id, TOO_MANY_OF_A_KIND))
        elif isinstance(command, wire.Resync):
            hub = self.hubs.get(socket.show) if socket.show else None
            if hub is None:
                socket.close(wire.STATE_LOST)
                return
            await self._welcome(socket, hub, command.id, command.since, joins=False)
        elif isinstance(command, wire.Refresh):
            await self._refresh(socket, command)
        else:
            await self.dispatch.answer(socket, command)

    def _within_rate(self, socket: Socket) -> bool:
        """A token bucket a socket: 20 at once, then 5/s. Staff have none."""
        now = self.now()
        socket.tokens = min(self.commands_burst, socket.tokens + (now - socket.tokens_at) * COMMANDS_PER_S)
        socket.tokens_at = now
        if socket.actor is not None and socket.actor.kind == "staff":
            return True
        if socket.tokens < 1:
            return False
        socket.tokens -= 1
        return True

    def _within_rate_of(self, socket: Socket, kind: type) -> bool:
        """A second, smaller bucket for commands of a kind that costs."""
        if kind not in RATES or (socket.actor is not None and socket.actor.kind == "staff"):
            return True
        at_once, per_s = RATES[kind]
        if socket.rates is None:
            socket.rates = {}
        now = self.now()
        tokens, counted_at = socket.rates.get(kind, (at_once, now))
        tokens = min(at_once, tokens + (now - counted_at) * per_s)
        within = tokens >= 1
        socket.rates[kind] = (tokens - within, now)
        return within

    # -- joining -----------------------------------------------------------------------------------

    async def _join(self, socket: Socket, hello: wire.Hello) -> None:
        socket.joining = True
        try:
            async with self._joining:
                await self._enter(socket, hello)
            self.metrics.joins.labels("welcome").inc()
        except Refusal as refusal:
            self.metrics.joins.labels(refusal.word).inc()
            socket.tell(wire.refused(hello.id, refusal))
            said = None if isinstance(refusal, Away) else str(refusal)
            socket.close(_CLOSE_FOR.get(refusal.word, wire.SERVER_ERROR), said)
        finally:
            socket.joining = False

    async def _enter(self, socket: Socket, hello: wire.Hello) -> None:
        assert socket.show is not None
        began = self.now()
        found = await self._who(socket, hello.token)
        try:
            async with asyncio.timeout(BOOKS_S):  # loading goes on for whoever comes next
                hub = await self.hub(socket.show)
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
        await self._welcome(socket, hub, hello.id, hello.since, joins=True)
        member = found.actor.member
        if member is not None and self._changed_at.get(member, -1.0) >= began:
            self.spawn(self.reload_member(member))  # their facts changed between the reading and the welcome

    async def _who(self, socket: Socket, token: str | None) -> Hello:
        """Token, else the page's cookie, else a guest."""
        if token is not None:
            claims = self.parts.tokens.verify(token)
            actor = await self._named(token, claims)
            return Hello(actor, float(claims.exp), looks_only=claims.preview is not None)
        try:
            cookies = SimpleCookie(socket.cookies)
        except CookieError:
            cookies = SimpleCookie()
        for name in (VIEWER_COOKIE, STAFF_COOKIE):
            if name in cookies:
                try:
                    claims = self.parts.tokens.verify(cookies[name].value)
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
            actor = await self._from_books(lambda: self.arrivals.member(MemberId(claims.sub)))
            if actor is None:
                raise Unauthenticated("This member is not known here.")
            return actor
        return await self._from_books(lambda: self._named_staff(token))

    async def _named_staff(self, token: str) -> Actor:
        async with self.parts.pool.connection() as conn:
            return await actor_of_token(self.parts, conn, token)

    async def _from_books(self, ask: Callable[[], Awaitable[T]]) -> T:
        """PostgreSQL for who waits at the door: an answer within BOOKS_S, or Away."""
        try:
            with self._books.asking():
                async with asyncio.timeout(BOOKS_S):
                    return await ask()
        except (SqlError, OSError, TimeoutError) as error:
            raise Away(f"books: {error}", retry_ms=2000) from error

    async def hub(self, show: ShowId) -> ShowHub:
        """The hub of a show, loaded once however many wait. Raises NotFound, Unavailable."""
        hub = self.hubs.get(show)
        if hub is not None:
            hub.wanted_at = self.now()  # who is on the way in keeps it from being dropped as empty
            return hub
        task = self._loading.get(show)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(show))
            self._loading[show] = task
            task.add_done_callback(lambda _: self._loading.pop(show, None))
        return await asyncio.shield(task)

    async def _load(self, show: ShowId) -> ShowHub:
        try:
            changes = await self.show_log.changes(show, -1, RECENT_ENTRIES)
        except Away:
            raise  # it is in the store, in no memory here: whoever wants it comes back
        except Unavailable:
            try:
                await self.parts.shows.agree(show)  # NotFound when there is no such show
            except (SqlError, OSError, TimeoutError) as error:
                raise Away(f"books: {error}", retry_ms=2000) from error
            changes = await self.show_log.changes(show, -1, RECENT_ENTRIES)
        self.metrics.log_reads.labels("show").inc()
        hub = ShowHub(
            show,
            changes,
            self.now,
            self.metrics,
            turn=self._turn,
            pressure=self.pressure,
            comments_per_s=self.parts.settings.comments_shown_per_s,
        )
        if not self.log_up:
            hub.tell_local("log", {"up": False, "since": self._log_down_since})
        self.hubs[show] = hub
        await self.tail.follow(show, hub.seq)
        return hub

    async def _welcome(
        self, socket: Socket, hub: ShowHub, command_id: int, since: wire.Position | None, *, joins: bool
    ) -> None:
        """Answer hello or resync: every missed event in order, or a snapshot; never a part.

        From the answer to the entry into the class nothing awaits, so that no frame falls between.
        """
        try:
            older = await self._older(hub, since) if since is not None else None
        except Unavailable:
            older = None  # the ring is too short and the rest is out of reach: a snapshot of what is here
        you, whole = await self.dispatch.you_for_now(hub, socket)
        show = await self.dispatch.show_card(hub, socket)
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
                socket.watch_from = int(time.time() * 1000)
            self.metrics.viewers.inc()
            self._remember_member(socket)
            # Spread over the ping's period, so that who came at once is not pinged at once.
            socket.ping_at = self.now() + PING_S * (0.2 + 0.8 * random.random())
            self.wheel.put(socket, self.now())
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
                "reconnect_ms": self.reconnect_ms(),
            }
        )
        if replay is not None and replay is not NOTHING:
            socket.send_shared(replay, Kind.PERSONAL)
        (self.metrics.replays if recovered else self.metrics.snapshots).inc()
        if not joins:
            hub.regroup(socket)  # a ballot cast elsewhere may have moved this viewer
        if not whole:
            self._tell_later(socket)

    def _tell_later(self, socket: Socket) -> None:
        """A store was away when `you` was made: `you` follows once it answers. One task for all."""
        self.half_told.add(socket)
        if not self._retelling:
            self._retelling = True
            self.spawn(self._retell())

    async def _retell(self) -> None:
        try:
            while self.half_told and not self.draining:
                await asyncio.sleep(RETELL_S)
                for socket in list(self.half_told):
                    if not await self._told_rest(socket):
                        break  # nor will the others be
        finally:
            self._retelling = False

    async def _told_rest(self, socket: Socket) -> bool:
        hub = self.hubs.get(socket.show) if socket.show else None
        if hub is not None and socket.joined and not socket.closing:
            you, whole = await self.dispatch.you_for_now(hub, socket)
            if not whole:
                return False
            socket.tell({"type": "you", "data": you})
            hub.regroup(socket)
        self.half_told.discard(socket)
        return True

    def reconnect_ms(self) -> list[int]:
        """Full jitter over this window; as long as all of this process's viewers need to rejoin."""
        most = int(len(self.sockets) / self.parts.settings.join_rate * 1000)
        return [RECONNECT_MIN_MS, min(RECONNECT_MAX_MS, max(2_000, most))]

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
            self.metrics.log_reads.labels("missed").inc()
            task = asyncio.get_running_loop().create_task(
                self.show_log.between(hub.show, since.seq + 1, hub.seq)
            )
            self._missing[hub.show, since.seq] = task
            task.add_done_callback(lambda _: self._missing.pop((hub.show, since.seq), None))
        return await asyncio.shield(task)

    async def _same_room(self, socket: Socket, actor: Actor) -> None:
        """A token for one room opens no other. Raises a Refusal."""
        if actor.room is None:
            return
        room, shows = actor.room, self.parts.shows
        if not await self._from_books(lambda: shows.in_room(ShowId(str(socket.show)), room)):
            raise Refusal("This token is for another room.", code="forbidden")

    async def _refresh(self, socket: Socket, command: wire.Refresh) -> None:
        """A new token on the same socket: the same person again, or a guest who signed in."""
        hub = self.hubs.get(socket.show) if socket.show else None
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
        self._forget_member(socket)
        socket.actor, socket.expires_at, socket.refresh_by = found.actor, found.expires_at, None
        socket.looks_only = found.looks_only
        self.wheel.put(socket, self.now())
        self._remember_member(socket)
        if hub is not None:
            you, whole = await self.dispatch.you_for_now(hub, socket)
            socket.public_id = you["id"]
            socket.tell(wire.ok(command.id, {}), {"type": "you", "data": you})
            hub.regroup(socket)
            if not whole:
                self._tell_later(socket)

    # -- what the log brings -----------------------------------------------------------------------

    def _on_health(self, up: bool) -> None:
        if up != self.log_up:
            self._log_down_since = int(time.time() * 1000)
            for hub in self.hubs.values():
                hub.tell_local("log", None if up else {"up": False, "since": self._log_down_since})
        if not up and self.log_up:
            self._followed = {show: Followed.of(hub) for show, hub in self.hubs.items()}
        if up and not self.log_up:
            self.spawn(self.check_positions())
            # Read one after the other by the round: all at once would take the pool from everybody else.
            self.stale_members.update(self.members)
        self.log_up = up
        self.metrics.log_up.set(1 if up else 0)

    async def _on_entries(self, show: ShowId, entries: list[Entry]) -> None:
        hub = self.hubs.get(show)
        if hub is None:
            return
        epoch = hub.epoch
        if max(entry.version for entry in entries) > hub.version:
            await self.refresh_states(hub)
        if hub.epoch != epoch:
            return  # read anew, from another log than these are of
        if not hub.receive(entries):
            await self._refetch(hub)

    async def _refetch(self, hub: ShowHub) -> None:
        """A number is missing: read it from the stream; when it is gone there, start anew."""
        self.metrics.log_reads.labels("missed").inc()
        found = await self.show_log.between(hub.show, hub.seq + 1, 1 << 62)
        if not found or not hub.receive(found):
            await self.reload(hub)

    async def reload(self, hub: ShowHub) -> None:
        """The log is not the one we knew: a new snapshot for everyone, once however many noticed."""
        task = self._reloading.get(hub.show)
        if task is None:
            task = self._reloading[hub.show] = asyncio.get_running_loop().create_task(self._reload(hub))
            task.add_done_callback(lambda _: self._reloading.pop(hub.show, None))
        await asyncio.shield(task)

    async def _reload(self, hub: ShowHub) -> None:
        log.warning("show %s: log reborn or trimmed; everyone gets a snapshot", hub.show)
        self.metrics.log_reads.labels("show").inc()
        changes = await self.show_log.changes(hub.show, -1, RECENT_ENTRIES)
        hub.begin_anew(changes, self.reconnect_ms()[1] if len(self.sockets) > REJOIN_AT_ONCE else 0)
        await self.tail.follow(hub.show, hub.seq)

    async def refresh_states(self, hub: ShowHub) -> None:
        self.metrics.log_reads.labels("states").inc()
        changes = await self.show_log.changes(hub.show, hub.version)
        if changes.epoch != hub.epoch:
            await self.reload(hub)
            return
        ended = changes.status == "ended" != hub.status
        hub.apply(changes)
        if ended:
            self.dispatch.watched_all(hub)

    async def check_positions(self) -> None:
        """Every 10 s and after an outage: is each log still the one we follow?"""
        for hub in list(self.hubs.values()):
            await self._checked(hub)

    async def _checked(self, hub: ShowHub) -> bool:
        try:
            await self._check(hub)
        except (Refusal, SqlError) as refusal:
            log.warning("show %s: position not checked: %s", hub.show, refusal)
            # A store that is away is looked at when it is back; what is being built anew is ready any moment.
            if not isinstance(refusal, Away) and hub.show not in self._rechecked:
                self._rechecked.add(hub.show)
                self.spawn(self._recheck(hub))
            return False
        return True

    async def _recheck(self, hub: ShowHub) -> None:
        try:
            while self.hubs.get(hub.show) is hub and not self.draining:
                await asyncio.sleep(RECHECK_S)
                if await self._checked(hub):
                    break
        finally:
            self._rechecked.discard(hub.show)

    async def _check(self, hub: ShowHub) -> None:
        now = Followed.of(hub)  # before asking: the tail goes on while the answer is on its way
        epoch = now.epoch
        found = await self.show_log.position(hub.show)
        if found is None:
            await self.parts.shows.agree(hub.show)
            await self.reload(hub)
            return
        if hub.epoch != epoch:
            return  # read anew meanwhile
        if found[0] == epoch:
            before = self._followed.get(hub.show)
            seen = await self._compared(hub, before if before and before.epoch == epoch else now, found[1])
            self._followed.pop(hub.show, None)
            if found[1] < now.seq or seen.agreed < seen.compared:
                await self.parts.shows.renew(hub.show, epoch, seen)
                await self.reload(hub)
                return
        else:
            await self.reload(hub)
            return
        if hub.epoch != epoch:
            return
        if found[2] > hub.version:
            await self.refresh_states(hub)
        if found[1] > hub.seq:  # on its way, or a read that stalled without an error
            await self._refetch(hub)

    async def _compared(self, hub: ShowHub, known: Followed, stored: int) -> Seen:
        """What this node saw beside what the store has at the same numbers.

        A store that lost its last writes may have grown past them again, with other entries: the number
        alone would not tell. So the last entry before the log was lost from sight is compared.
        """
        seen = Seen(known.seq, known.last, known.event, known.last)
        if not known.event:
            return seen
        if stored >= known.seq:
            theirs = await self.show_log.between(hub.show, known.last, known.last)
            if not theirs or theirs[0].event in (b"", known.event):
                return seen  # the same; or trimmed or hidden, which tells nothing
        ours = {entry.seq: entry.event for _, entry in hub.ring if entry.event and entry.seq <= known.seq}
        first = min(ours, default=known.last)
        kept = {entry.seq: entry.event for entry in await self.show_log.between(hub.show, first, known.last)}
        agreed = max((seq for seq in ours if kept.get(seq) == ours[seq]), default=first - 1)
        return msgspec.structs.replace(seen, agreed=agreed)

    def _on_notices(self, told: list[tuple[str, bytes | None]]) -> None:
        for member, message in told:
            if message is None:
                self._note_change(member)
            sockets = self.members.get(member)
            if not sockets:
                continue
            if message is None:
                self.spawn(self.reload_member(member))
            else:
                for socket in list(sockets):
                    socket.tell(msgspec.Raw(message))

    def _note_change(self, member: str) -> None:
        """For who is being let in right now. In the order of the notices: the oldest are let go."""
        now = self.now()
        self._changed_at.pop(member, None)
        self._changed_at[member] = now
        while next(iter(self._changed_at.values())) < now - JOIN_S:
            del self._changed_at[next(iter(self._changed_at))]

    async def reload_member(self, member: str) -> None:
        """Facts changed: new class on every socket of theirs, and `you` anew."""
        sockets = [s for s in self.members.get(member, ()) if s.joined and s.show in self.hubs]
        if not sockets:
            return
        self.stale_members.add(member)
        self._reading += 1
        reading = self._readings[member] = self._reading
        try:
            actor = await self.arrivals.member(MemberId(member))
            if self._readings.get(member) != reading:
                return  # one begun later reads later facts, or has done so
        finally:
            if self._readings.get(member) == reading:
                del self._readings[member]
        told = True
        for socket in list(self.members.get(member, ())):  # also who came while their facts were read
            hub = self.hubs.get(socket.show) if socket.show else None
            if hub is None or not socket.joined:
                continue
            if actor is None:  # erased
                socket.close(wire.BAD_TOKEN)
                continue
            socket.actor = actor
            if not in_room(hub.room_audience, socket):
                socket.close(wire.MEMBERS_ONLY)
                continue
            told = await self._tell_you(hub, socket) and told
            hub.regroup(socket)  # told or not: nothing more of a class that is no longer theirs
        if told:
            self.stale_members.discard(member)

    async def _tell_you(self, hub: ShowHub, socket: Socket) -> bool:
        """Who the socket speaks for now; False when that cannot be read within a beat."""
        try:
            async with asyncio.timeout(BEAT_MAX_S):
                you = await self.dispatch.you(hub, socket)
        except Exception as error:
            log.warning("a changed member is not told yet: %r", error)
            return False
        socket.tell({"type": "you", "data": you})
        return True

    # -- the end -----------------------------------------------------------------------------------

    async def drain(self, within_s: float) -> None:
        """Not ready, a hint, then batches closed 4001: everyone is elsewhere before the process ends."""
        self.draining = True
        sockets = list(self.sockets)
        if not sockets:
            return
        self._all_gone.clear()
        batch = max(128, int(len(sockets) / max(1.0, within_s * 0.6 * 10)))
        hint = wire.message_frame({"type": "reconnect", "reconnect_ms": self.reconnect_ms()})
        for start in range(0, len(sockets), batch):
            for socket in sockets[start : start + batch]:
                if socket.joined and not socket.closing:
                    socket.transport.write(hint)
                socket.close(wire.DRAIN)
            await asyncio.sleep(0.1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), within_s * 0.3)


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


class _ClaimedId(msgspec.Struct):
    id: int | None = None


_ID = msgspec.json.Decoder(_ClaimedId)


def _claimed_id(data: bytes) -> int | None:
    """The id a malformed command carries, so that its refusal can be matched."""
    try:
        return _ID.decode(data).id
    except (msgspec.MsgspecError, RecursionError):
        return None
