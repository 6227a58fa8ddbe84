"""This process among the others: its sockets, its shows, who may come to the door, and how it ends.

The road of one command: socket → `received` → `live/dispatch.py` → a domain method → its Lua script →
the show's log → `live/following.py` → hub → one frame per class.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from psycopg import Error as SqlError

from chat.messages import CastBallot, PostComment, SendReaction
from commerce.messages import ClaimBenefit, PlaceOrder, QueueBenefit
from live import protocol as wire
from live.arrivals import Arrivals
from live.dispatch import Dispatch
from live.following import Following
from live.hub import BEAT_MAX_S, ShowHub, in_room
from live.joining import Joining
from live.log import RECENT_ENTRIES, Tail
from live.metrics import Metrics
from live.pressure import STEPS, Pressure
from live.socket import STRIKES_MAX, Socket
from live.wheel import Wheel
from membership.actor import MemberId, ShowId, new_link_id
from membership.refusal import Away, BadRequest, Refusal, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from live.parts import Parts

log = logging.getLogger("companion.node")

HELLO_WAIT_S: Final = 5.0
RECONNECT_MIN_MS: Final = 500
RECONNECT_MAX_MS: Final = 20_000
JOIN_S: Final = 10.0  # no hello takes longer to answer
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
        self.stale_members: set[str] = set()  # whose facts changed and could not be read yet
        self.changed_at: dict[str, float] = {}  # member -> when their facts changed; the last 10 s
        self._reading = 0
        self._readings: dict[str, int] = {}  # member -> the reading of their facts that was begun last
        self.draining = False
        self._all_gone = asyncio.Event()  # no socket is left while draining
        self._loading: dict[ShowId, asyncio.Task[ShowHub]] = {}
        self._join_tokens, self._join_tokens_at = float(parts.settings.join_rate), self.now()
        self._trusted = [ipaddress.ip_network(net) for net in parts.settings.trusted_proxies]
        self.show_log = parts.show_log
        self.following = Following(self)
        self.joining = Joining(self)
        self.tail = Tail(
            tail_redis, parts.redis, self.following.on_entries, self._on_notices, self.following.on_health
        )
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
        return steps if self.following.up else [*steps, "log"]

    def opened(self, socket: Socket) -> None:
        self.sockets.add(socket)
        self.wheel.put(socket, socket.made_at + HELLO_WAIT_S)

    def closed(self, socket: Socket, code: int) -> None:
        self.metrics.closes.labels(str(code)).inc()

    def left(self, socket: Socket) -> None:
        """The connection is gone: out of its class, and what it watched is recorded."""
        self.sockets.discard(socket)
        self.stalled.discard(socket)
        self.joining.half_told.discard(socket)
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
        self.forget_member(socket)

    def heal(self, socket: Socket) -> None:
        """The socket's buffer has drained: send what it was spared."""
        hub = self.hubs.get(socket.show) if socket.show else None
        if hub is not None:
            hub.heal(socket)

    def remember_member(self, socket: Socket) -> None:
        if socket.actor is not None and socket.actor.member is not None:
            self.members.setdefault(socket.actor.member, set()).add(socket)

    def forget_member(self, socket: Socket) -> None:
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
            await self.joining.join(socket, command)
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
            await self.joining.welcome(socket, hub, command.id, command.since, joins=False)
        elif isinstance(command, wire.Refresh):
            await self.joining.refresh(socket, command)
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

    # -- the shows here ----------------------------------------------------------------------------

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
        if not self.following.up:
            hub.tell_local("log", {"up": False, "since": self.following.down_since})
        self.hubs[show] = hub
        await self.tail.follow(show, hub.seq)
        return hub

    def reconnect_ms(self) -> list[int]:
        """Full jitter over this window; as long as all of this process's viewers need to rejoin."""
        most = int(len(self.sockets) / self.parts.settings.join_rate * 1000)
        return [RECONNECT_MIN_MS, min(RECONNECT_MAX_MS, max(2_000, most))]

    # -- what members are told ---------------------------------------------------------------------

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
        self.changed_at.pop(member, None)
        self.changed_at[member] = now
        while next(iter(self.changed_at.values())) < now - JOIN_S:
            del self.changed_at[next(iter(self.changed_at))]

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
                    socket.put(hint)
                socket.close(wire.DRAIN)
            await asyncio.sleep(0.1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), within_s * 0.3)


class _ClaimedId(msgspec.Struct):
    id: int | None = None


_ID = msgspec.json.Decoder(_ClaimedId)


def _claimed_id(data: bytes) -> int | None:
    """The id a malformed command carries, so that its refusal can be matched."""
    try:
        return _ID.decode(data).id
    except (msgspec.MsgspecError, RecursionError):
        return None
