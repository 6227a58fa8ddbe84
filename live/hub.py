"""Who is connected on this node, by show and class; one frame for all of a class.

An event is encoded once, in the script that decided it. Here it gets its number and goes into one frame
per show, class and beat. The first event after silence leaves at once, then a beat that grows with the
show; what is urgent cuts the beat short. Rejoins are served from a ring in memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from live import protocol as wire
from live.log import Changes, Entry, State
from live.metrics import Metrics
from live.socket import SKIP_TRANSIENT, WRITE_LOW, Kind, Socket
from membership.actor import ShowId
from membership.audience import EVERYONE_BIT, Audience, mask_of_actor

BEAT_MIN_S, BEAT_MAX_S = 0.05, 0.25
RING_S = 60.0
RING_BYTES = 2_097_152
REPLAY_BYTES_MAX = 131_072  # a longer replay becomes a snapshot
RECENT_SHOWN = 30
COMMENTS = (b'"type":"comment.posted"',)
TICKER = tuple(
    b'"type":"%s"' % kind for kind in (b"benefit.claimed", b"plan.joined", b"order.placed", b"order.paid")
)
WRITES_PER_STEP = 500  # then the loop gets its turn: about 5 ms of writing
NOTHING = wire.SharedFrame(b"[]")  # a replay in which nothing was missed
CACHED_MAX = 64  # snapshots and replays kept till the next beat: at most 8 MB
TRANSIENT_STATES = frozenset({"presence", "reactions"})


def beat_s(viewers: int) -> float:
    """50 ms up to 500 viewers, 100 ms at 1,000, 250 ms from 2,500 on."""
    return min(BEAT_MAX_S, max(BEAT_MIN_S, viewers / 10_000))


class ShowHub:
    """One show on this node."""

    def __init__(self, show: ShowId, changes: Changes, now: Callable[[], float], metrics: Metrics) -> None:
        self.show = show
        self.now = now
        self.metrics = metrics
        self.classes: dict[int, dict[Socket, None]] = {}  # mask -> its viewers
        self.viewers = 0
        self._flushed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._due = False
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._rotation = 0
        self.wanted_at = now()  # when a viewer last asked for it or was in it
        self.load(changes)

    def load(self, changes: Changes) -> None:
        """Begin from what the store says now; also after an epoch changed."""
        self.epoch = changes.epoch
        self.generation = changes.generation
        self.seq = self.sent = changes.seq
        self.version = changes.version
        self.status = changes.status
        self.poll = changes.poll
        self.audiences = changes.audiences
        self.room_audience = changes.room_audience
        self.states: dict[str, State] = {state.key: state for state in changes.states}
        self.ring: deque[tuple[float, Entry]] = deque()
        self.ring_bytes = 0
        for entry in changes.entries:
            self._keep(entry)
        self._changed: set[str] = set()
        self._had: dict[str, int] = {}  # of states that changed since the last frame: who had them, as bits
        self._cache: dict[tuple[Any, ...], Any] = {}

    # -- what the log brings -----------------------------------------------------------------------

    def _keep(self, entry: Entry) -> None:
        self.ring.append((self.now(), entry))
        self.ring_bytes += len(entry.event)
        oldest = self.now() - RING_S
        while self.ring and (self.ring_bytes > RING_BYTES or self.ring[0][0] < oldest):
            if self.ring[0][1].seq > self.sent:
                break  # not yet told to anybody
            self.ring_bytes -= len(self.ring.popleft()[1].event)

    def receive(self, entries: Iterable[Entry]) -> bool:
        """Take entries in; False when a number is missing (the caller refetches)."""
        urgent = False
        for entry in entries:
            if entry.seq <= self.seq:
                continue
            if entry.seq != self.seq + 1:
                return False
            self.seq = entry.seq
            self._keep(entry)
            urgent = urgent or entry.urgent
            if entry.redacts is not None:
                self._redact(entry.redacts)
        self._schedule(urgent or bool(self._waiters))
        return True

    def _redact(self, seq: int) -> None:
        for _, entry in self.ring:
            if entry.seq == seq:
                self.ring_bytes -= len(entry.event)
                entry.event = b""
        self._cache.clear()

    def apply(self, changes: Changes) -> bool:
        """Newer states; True when classes may have changed (audiences or the open poll).

        Two reads of one show may be under way at once, and their answers come in any order: what was read
        before what is known has nothing new.
        """
        if changes.version < self.version:
            return False
        for state in changes.states:
            before = self.states.get(state.key)
            if before is not None:
                state.had = before.had | before.bits
                self._had[state.key] = self._had.get(state.key, 0) | before.bits
            self.states[state.key] = state
            self._changed.add(state.key)
        regroup = changes.audiences != self.audiences or changes.poll != self.poll
        self.version = changes.version
        self.status = changes.status
        self.room_audience = changes.room_audience
        self.audiences, self.poll = changes.audiences, changes.poll
        if regroup:
            for socket in [s for group in self.classes.values() for s in group]:
                self.regroup(socket)
        if changes.states:
            self._cache.clear()
            self._schedule(urgent=False)
        return regroup

    async def reached(self, seq: int, timeout_s: float) -> bool:
        """Wait until `seq` has come here and has been given to a frame."""
        if self.sent < seq:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((seq, future))
            self._schedule(urgent=True)
            try:
                await asyncio.wait_for(future, timeout_s)
            except TimeoutError:
                self._waiters = [w for w in self._waiters if w[1] is not future]
        return self.sent >= seq

    # -- who is here -------------------------------------------------------------------------------

    def mask_for(self, socket: Socket) -> int:
        if socket.actor is None:
            return 1 << EVERYONE_BIT
        voted = bool(self.poll) and socket.voted == self.poll
        return mask_of_actor(socket.actor, self.audiences, voted=voted)

    def enter(self, socket: Socket) -> None:
        """From now on `socket` gets every frame of its class; it stands at `sent`."""
        socket.mask = self.mask_for(socket)
        self.classes.setdefault(socket.mask, {})[socket] = None
        self.viewers += 1

    def leave(self, socket: Socket) -> None:
        group = self.classes.get(socket.mask)
        if group is not None and socket in group:
            del group[socket]
            self.viewers -= 1
            if not group:
                del self.classes[socket.mask]

    def regroup(self, socket: Socket) -> bool:
        """Put the viewer into the class it is in now, and tell it the states this changes."""
        before, mask = socket.mask, self.mask_for(socket)
        if mask == before or not socket.joined:
            return False
        self.leave(socket)
        socket.mask = mask
        self.classes.setdefault(mask, {})[socket] = None
        self.viewers += 1
        messages = []
        for state in self.states.values():
            was, is_now = state.seen_by(before), state.seen_by(mask)
            if was != is_now or (is_now is None and before & self._had.get(state.key, 0) & ~mask):
                messages.append(_state_message(state, is_now))
        if messages:
            socket.send(wire.frame(wire.array(messages)), Kind.PERSONAL)
        return True

    def watching(self) -> int:
        """Viewers as people count them: without staff and previews."""
        return sum(socket.watch_from is not None for group in self.classes.values() for socket in group)

    def sockets_of(self, actor_id: str) -> list[Socket]:
        return [
            socket
            for group in self.classes.values()
            for socket in group
            if socket.actor is not None and socket.actor.id == actor_id
        ]

    # -- the beat ----------------------------------------------------------------------------------

    def _schedule(self, urgent: bool) -> None:
        if self.seq == self.sent and not self._changed:
            return
        if self._flushing:
            self._due = self._due or urgent
            return
        wait_s = 0.0 if urgent else self._flushed_at + beat_s(self.viewers) - self.now()
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if wait_s > 0:
                return
            self._timer.cancel()
        self._timer = loop.call_later(max(0.0, wait_s), self._start_flush)

    def _start_flush(self) -> None:
        self._timer = None
        if not self._flushing and (self.seq > self.sent or self._changed):
            self._flushing = True
            task = asyncio.get_running_loop().create_task(self._flush())
            self.metrics.hold(task)

    def pending(self) -> list[Entry]:
        found: list[Entry] = []
        for _, entry in reversed(self.ring):
            if entry.seq <= self.sent:
                break
            found.append(entry)
        return found[::-1]

    async def _flush(self) -> None:
        """One frame per class in use, written in steps so that the loop never stalls."""
        try:
            entries, first, last = self.pending(), self.sent + 1, self.seq
            changed, self._changed = self._changed, set()
            had, self._had = self._had, {}
            kind = (
                Kind.EVENTS
                if last >= first
                else (Kind.TRANSIENT if changed <= TRANSIENT_STATES else Kind.STATE)
            )
            work = [
                (self._frame(mask, entries, first, last, changed, had), list(group))
                for mask, group in self.classes.items()
            ]
            self.sent = last  # who enters from here on has a snapshot that includes these
            self._flushed_at = self.now()
            self._cache.clear()
            for waited in [w for w in self._waiters if w[0] <= last]:
                self._waiters.remove(waited)
                if not waited[1].done():
                    waited[1].set_result(None)
            self._rotation += 1
            for data, sockets in work:
                if data is None:
                    continue
                turn = self._rotation * WRITES_PER_STEP % max(1, len(sockets))
                sockets = sockets[turn:] + sockets[:turn]
                for start in range(0, len(sockets), WRITES_PER_STEP):
                    self._write(data, sockets[start : start + WRITES_PER_STEP], kind, first, last)
                    await asyncio.sleep(0)
            self.metrics.events.inc(last - first + 1)
        finally:
            self._flushing = False
            urgent, self._due = self._due, False
            self._schedule(urgent)

    def _write(
        self, data: wire.SharedFrame, sockets: list[Socket], kind: Kind, first: int, last: int
    ) -> None:
        """One step of a flush. Who keeps up costs a look at two numbers and the write itself."""
        plain, deflated = data.plain, data.deflated if any(s.deflates for s in sockets) else b""
        written = size = 0
        for socket in sockets:
            if socket.closing or (kind is Kind.EVENTS and socket.at >= last):
                continue  # gone, or healed or resynced while this frame was on its way
            if socket.behind is not None:
                if not self.heal(socket) and kind is Kind.STATE:
                    socket.send_shared(data, kind)
                continue
            frame = deflated if socket.deflates else plain
            if socket.transport.get_write_buffer_size() <= SKIP_TRANSIENT:
                socket.transport.write(frame)
            elif not socket.send(frame, kind):
                if not socket.closing:
                    socket.behind = first - 1
                    self.metrics.skipped.labels(kind.name.lower()).inc()
                continue
            written += 1
            size += len(frame)
        self.metrics.frames.inc(written)
        self.metrics.bytes_out.inc(size)

    def _frame(
        self,
        mask: int,
        entries: list[Entry],
        first: int,
        last: int,
        changed: set[str],
        had: dict[str, int],
    ) -> wire.SharedFrame | None:
        parts: list[bytes] = []
        if last >= first:
            parts.append(wire.range_head(self.epoch, first, last))
            parts += [wire.numbered(e.seq, e.event) for e in entries if e.event and mask >> e.bit & 1]
        for key in changed:
            state = self.states[key]
            data = state.seen_by(mask)
            # A state that is gone is told to the classes that had it; one never seen is not named.
            if data is not None or mask & had.get(key, 0):
                parts.append(_state_message(state, data))
        return wire.SharedFrame(wire.array(parts)) if parts else None

    # -- joining and healing -----------------------------------------------------------------------

    def states_for(self, mask: int) -> list[msgspec.Raw]:
        """The state snapshot of a class, encoded once for all who join it at this version."""
        key = ("states", mask)
        if key not in self._cache:
            found = [(state, state.seen_by(mask)) for state in self.states.values()]
            self._cache[key] = [
                msgspec.Raw(_state_message(state, data)) for state, data in found if data is not None
            ]
        cached: list[msgspec.Raw] = self._cache[key]
        return cached

    def comments_for(self, mask: int) -> list[msgspec.Raw]:
        """The last comments a class may have, up to `sent`, oldest first."""
        return self._recent(mask, COMMENTS)

    def ticker_for(self, mask: int) -> list[msgspec.Raw]:
        """The last joins, claims and orders a class may have: what a ticker starts with."""
        return self._recent(mask, TICKER)

    def _recent(self, mask: int, kinds: tuple[bytes, ...]) -> list[msgspec.Raw]:
        key = ("recent", mask, kinds)
        if key not in self._cache:
            found = []
            for _, entry in reversed(self.ring):
                if (
                    entry.seq <= self.sent
                    and mask >> entry.bit & 1
                    and any(kind in entry.event[:80] for kind in kinds)
                ):
                    found.append(msgspec.Raw(wire.numbered(entry.seq, entry.event)))
                    if len(found) == RECENT_SHOWN:
                        break
            self._cache[key] = found[::-1]
        cached: list[msgspec.Raw] = self._cache[key]
        return cached

    def covers(self, seq: int) -> bool:
        """Whether the ring has everything after `seq` up to `sent`."""
        return seq >= self.sent or (bool(self.ring) and self.ring[0][1].seq <= seq + 1)

    def replay(self, mask: int, since: int, older: Sequence[Entry] = ()) -> wire.SharedFrame | None:
        """One frame with every event after `since` up to `sent`; an empty one when there was none.

        `older` are entries that the ring no longer has. None when one is missing or the frame would
        be too long: then a snapshot is right.
        """
        if since == self.sent:
            return NOTHING
        if since > self.sent:
            return None
        key = ("replay", mask, since)
        if not older and key in self._cache:
            cached: wire.SharedFrame | None = self._cache[key]
            return cached
        missed = {e.seq: e for e in older} | {e.seq: e for _, e in self.ring}
        numbers = range(since + 1, self.sent + 1)
        framed = None
        if all(seq in missed for seq in numbers):
            events = [missed[seq] for seq in numbers]
            parts = [wire.range_head(self.epoch, since + 1, self.sent)]
            parts += [wire.numbered(e.seq, e.event) for e in events if e.event and mask >> e.bit & 1]
            data = wire.array(parts)
            if len(data) <= REPLAY_BYTES_MAX:
                framed = wire.SharedFrame(data)
        if not older:
            if len(self._cache) >= CACHED_MAX:  # nothing else empties it while a show is quiet
                self._cache.clear()
            self._cache[key] = framed
        return framed

    def heal(self, socket: Socket) -> bool:
        """Send a viewer that was skipped what it missed, once its buffer has drained; else wait on."""
        if socket.behind is None:
            return True
        if socket.closing or socket.transport.get_write_buffer_size() > WRITE_LOW:
            return False
        since, socket.behind = socket.behind, None
        if since < self.sent:
            data = self.replay(socket.mask, since)
            if data is None:
                socket.tell({"type": "gap"})
                return True
            socket.send_shared(data, Kind.PERSONAL)
        socket.at = self.sent
        gone = [
            msgspec.Raw(_state_message(state, None))
            for state in self.states.values()
            if state.had & socket.mask and state.seen_by(socket.mask) is None
        ]
        states = [*self.states_for(socket.mask), *gone]
        if states:
            socket.send(wire.frame(msgspec.json.encode(states)), Kind.PERSONAL)
        self.metrics.healed.inc()
        return True

    def gap_for_all(self) -> None:
        """The log was reborn: everyone needs a new snapshot."""
        data = wire.message_frame({"type": "gap"})
        for group in self.classes.values():
            for socket in group:
                socket.behind = None
                socket.send(data, Kind.PERSONAL)


def _state_message(state: State, data: dict[str, Any] | None) -> bytes:
    return wire.ENCODE({"type": "state", "key": state.key, "version": state.version, "data": data})


def in_room(audience: Audience, socket: Socket) -> bool:
    """Whether the viewer may be in a room for `audience`; staff always."""
    actor = socket.actor
    return actor is not None and (actor.kind == "staff" or audience.has(actor.facts))
