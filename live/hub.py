"""Who is connected on this node, by show and class; one frame for all of a class.

An event is encoded once, in the script that decided it. Here it gets its number and goes into one frame
per show, class and beat. The first event after silence leaves at once, then a beat that grows with the
show; what is urgent cuts the beat short. Rejoins are served from a ring in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from os import write
from typing import Any

import msgspec

from live import protocol as wire
from live.log import Changes, Entry, Part, State, redacted
from live.metrics import Metrics
from live.pressure import Pressure
from live.ring import Ring
from live.sampling import Sampler
from live.socket import WRITE_LOW, Kind, Socket
from membership.actor import PollId, ShowId
from membership.audience import EVERYONE_BIT, STAFF_BIT, Audience, mask_of_actor

BEAT_MIN_S, BEAT_MAX_S = 0.05, 0.25
BUSY_PER_S = 100  # events of a show
REPLAY_BYTES_MAX = 131_072  # a longer replay becomes a snapshot
RECENT_SHOWN = 30
COMMENTS = (b'"type":"comment.posted"',)
TICKER = tuple(
    b'"type":"%s"' % kind for kind in (b"benefit.claimed", b"plan.joined", b"order.placed", b"order.paid")
)
WRITES_PER_STEP, WRITES_PER_STEP_MIN = 500, 100  # then the loop gets its turn: about 5 ms of writing
STEP_S = 0.01  # a step that took longer makes the next ones smaller
FRAME_BYTES_MAX = 65_536  # of events in one frame; a beat that brings more is told in several
MUTES = (b'"type":"viewer.muted"', b'"type":"viewer.unmuted"')
NOTHING = wire.SharedFrame(b"[]")  # a replay in which nothing was missed
CACHED_MAX = 64  # snapshots and replays kept till the next beat: at most 8 MB
TRANSIENT_STATES = frozenset({"presence", "reactions"})
LOCAL_STATES = frozenset({"log", "sampling"})  # of this node, not of the store


def beat_s(viewers: int, took_s: float = 0.0, per_s: float = 0.0) -> float:
    """50 ms up to 500 viewers, 100 ms at 1,000, 250 ms from 2,500 on; twice what writing the last took.

    Half as long again while more than `BUSY_PER_S` events a second come: nobody reads them one by one.
    """
    by_size = viewers / 10_000 * (1.5 if per_s > BUSY_PER_S else 1.0)
    return min(BEAT_MAX_S, max(BEAT_MIN_S, by_size, 2 * took_s))


class ShowHub:
    """One show on this node.

    `turn` and `pressure` are the process's: one show writes a step at a time, and what is given up under
    pressure is given up by all. `comments_per_s` go on screens; 0 for all.
    """

    def __init__(
        self,
        show: ShowId,
        changes: Changes,
        now: Callable[[], float],
        metrics: Metrics,
        *,
        turn: asyncio.Lock | None = None,
        pressure: Pressure | None = None,
        comments_per_s: int = 0,
    ) -> None:
        self.show = show
        self.now = now
        self.metrics = metrics
        self.pressure = pressure or Pressure(now())
        self.sampler = Sampler(comments_per_s, now())
        self.classes: dict[int, dict[Socket, None]] = {}  # mask -> its viewers
        self.states: dict[str, State] = {}
        self._turn = turn or asyncio.Lock()
        self._step = WRITES_PER_STEP
        self._took_s = self._per_s = 0.0
        self._unsorted: list[Socket] = []  # whose class may no longer be the right one
        self._gapped, self._gap = False, b""  # and who are told that their log is another one now
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
        kept = [state for key, state in self.states.items() if key in LOCAL_STATES]
        self.states = {state.key: state for state in (*changes.states, *kept)}
        self.ring = Ring()
        for entry in changes.entries:
            self.ring.keep(entry, self.now(), self.sent)
        self._changed: set[str] = set()
        self._had: dict[str, int] = {}  # of states that changed since the last frame: who had them, as bits
        self._cache: dict[tuple[Any, ...], Any] = {}

    # -- what the log brings -----------------------------------------------------------------------

    def receive(self, entries: Iterable[Entry]) -> bool:
        """Take entries in; False when a number is missing (the caller refetches)."""
        urgent = False
        for entry in entries:
            if entry.seq <= self.seq:
                continue
            if entry.seq != self.seq + 1:
                return False
            self.seq = entry.seq
            self.ring.keep(entry, self.now(), self.sent)
            urgent = urgent or entry.urgent
            if entry.redacts is not None:
                self.ring.redact(entry.redacts)
                self._cache.clear()
            if entry.bit == STAFF_BIT and any(kind in entry.event[:60] for kind in MUTES):
                self._tell_muted(entry.event)
        self._schedule(urgent or any(seq <= self.seq for seq, _ in self._waiters))
        return True

    def _tell_muted(self, event: bytes) -> None:
        """Whoever was muted, or may speak again, on each page they have open here: the event is staff's."""
        said = msgspec.json.decode(event)
        for group in self.classes.values():
            for socket in group:
                if socket.public_id == said["viewer"]:
                    socket.tell({"type": "muted", "until": said.get("until")})

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
        everyone = changes.audiences != self.audiences or changes.room_audience != self.room_audience
        voters = changes.poll != self.poll  # nobody has voted in the new one yet
        self.version = changes.version
        self.status = changes.status
        self.room_audience = changes.room_audience
        self.audiences, self.poll = changes.audiences, changes.poll
        if everyone or voters:
            found = [s for group in self.classes.values() for s in group if everyone or s.voted]
            self._unsorted = list(dict.fromkeys([*self._unsorted, *found]))
        if changes.states:
            self._cache.clear()
        self._schedule(urgent=False)
        return everyone or voters

    def tell_again(self, keys: Iterable[str]) -> None:
        """States that were withheld are told as they are now."""
        self._changed |= self.states.keys() & set(keys)
        self._schedule(urgent=False)

    def tell_local(self, key: str, data: dict[str, Any] | None) -> None:
        """A state of this node alone: its log, its sampling. None takes it away."""
        state = State(key, int(time.time() * 1000), () if data is None else (Part(a=0, d=data),), {})
        before = self.states.get(key)
        if data is None and (before is None or not before.parts):
            return
        if before is not None:
            self._had[key] = self._had.get(key, 0) | before.bits
            state.had = before.had | before.bits
            state.version = max(state.version, before.version + 1)
        self.states[key] = state
        self._changed.add(key)
        self._cache.clear()
        self._schedule(urgent=True)

    def poll_shown(self) -> PollId | None:
        """The open poll, else the one closed last."""
        if self.poll:
            return PollId(self.poll)
        shown = [key for key, state in self.states.items() if key.startswith("poll:") and state.parts]
        return PollId(shown[-1].removeprefix("poll:")) if shown else None

    async def reached(self, seq: int, timeout_s: float) -> bool:
        """Wait until `seq` has come here and has been given to a frame."""
        if self.sent < seq:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((seq, future))
            self._schedule(urgent=seq <= self.seq)  # one that is not here yet hurries nothing
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
        socket.easy = False  # a frame for the class it left may be on its way
        moved = self._moved(before, mask)
        if moved:
            socket.send(moved, Kind.PERSONAL)
        return True

    def _moved(self, before: int, mask: int) -> bytes:
        """What changes for who moves from one class to another; made once for all who move."""
        key = ("moved", before, mask)
        if key not in self._cache:
            messages = []
            for state in self.states.values():
                was, is_now = state.seen_by(before), state.seen_by(mask)
                if was != is_now or (is_now is None and before & self._had.get(state.key, 0) & ~mask):
                    messages.append(_state_message(state, is_now))
            self._cache[key] = wire.frame(wire.array(messages)) if messages else b""
        found: bytes = self._cache[key]
        return found

    def watching(self) -> int:
        """Viewers as people count them: without staff and previews."""
        return sum(socket.watch_from is not None for group in self.classes.values() for socket in group)

    # -- the beat ----------------------------------------------------------------------------------

    def _schedule(self, urgent: bool) -> None:
        if self.seq == self.sent and not self._changed and not self._unsorted:
            return
        if self._flushing:
            self._due = self._due or urgent
            return
        wait_s = 0.0 if urgent else self._flushed_at + self._beat_s() - self.now()
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if wait_s > 0:
                return
            self._timer.cancel()
        self._timer = loop.call_later(max(0.0, wait_s), self._start_flush)

    def _beat_s(self) -> float:
        return beat_s(self.viewers, self._took_s, self._per_s)

    def _start_flush(self) -> None:
        self._timer = None
        if not self._flushing and (self.seq > self.sent or self._changed or self._unsorted):
            self._flushing = True
            task = asyncio.get_running_loop().create_task(self._flush())
            self.metrics.hold(task)

    async def _flush(self) -> None:
        """One frame per class in use, written in steps so that the loop never stalls."""
        try:
            await self._sort()
            started = self.now()
            entries, first, last = self.ring.after(self.sent), self.sent + 1, self.seq
            self._sample(entries, started)
            changed, self._changed = self._changed, set()
            had, self._had = self._had, {}
            changed = {key for key in changed if not self._withheld(key)}
            kind = (
                Kind.EVENTS
                if last >= first
                else (Kind.TRANSIENT if changed <= TRANSIENT_STATES else Kind.STATE)
            )
            work = [
                (
                    self._frame(mask, part, start, end, changed if end == last else set(), had),
                    mask,
                    group,
                    start,
                    end,
                )
                for part, start, end in _frames_of(entries, first, last)
                for mask, group in [(mask, list(group)) for mask, group in self.classes.items()]
            ]
            self.sent = last  # who enters from here on has a snapshot that includes these
            self._per_s = (last - first + 1) / max(BEAT_MIN_S, started - self._flushed_at)
            self._flushed_at = started
            self._cache.clear()
            for waited in [w for w in self._waiters if w[0] <= last]:
                self._waiters.remove(waited)
                if not waited[1].done():
                    waited[1].set_result(None)
            self._rotation += 1
            for data, mask, sockets, start, end in work:
                if data is not None:
                    await self._write_all(data, mask, sockets, kind, start, end)
            self._took_s = self.now() - started
            self.metrics.events.inc(last - first + 1)
            self.metrics.flush.observe(self._took_s)
            self.metrics.beat_length.set(self._beat_s())
        finally:
            self._flushing = False
            urgent, self._due = self._due, False
            self._schedule(urgent)

    async def _sort(self) -> None:
        """Put viewers into their classes after audiences, the poll, the room's audience or the log changed."""
        while self._unsorted:
            unsorted, self._unsorted = self._unsorted[:WRITES_PER_STEP], self._unsorted[WRITES_PER_STEP:]
            for socket in unsorted:
                if not socket.joined:
                    continue
                if not in_room(self.room_audience, socket):
                    socket.close(wire.MEMBERS_ONLY)
                    continue
                self.regroup(socket)
                if self._gapped:
                    socket.behind, socket.easy = None, False
                    socket.send(self._gap, Kind.PERSONAL)
            await asyncio.sleep(0)
        self._gapped = False

    def _sample(self, entries: Sequence[Entry], now: float) -> None:
        budget = self.pressure.comments_per_s(self.sampler.per_s)
        self.metrics.sampled.inc(self.sampler.choose(entries, now, budget))

    def _withheld(self, key: str) -> bool:
        """What is not told under pressure; the latest value follows when it is over."""
        return key in TRANSIENT_STATES and self.pressure.gives_up(key)

    async def _write_all(
        self, data: wire.SharedFrame, mask: int, sockets: list[Socket], kind: Kind, first: int, last: int
    ) -> None:
        """A frame to a class, in steps; who is first is another one at each beat."""
        turn = self._rotation * WRITES_PER_STEP % max(1, len(sockets))
        sockets = sockets[turn:] + sockets[:turn]
        start = 0
        while start < len(sockets):
            step = self._step
            async with self._turn:
                began = self.now()
                self._write(data, mask, sockets[start : start + step], kind, first, last)
                await asyncio.sleep(0)  # what was written leaves in this pass of the loop
                took_s = self.now() - began
            start += step
            if took_s > STEP_S:
                self._step = max(WRITES_PER_STEP_MIN, step // 2)
            elif self._step < WRITES_PER_STEP:
                self._step = min(WRITES_PER_STEP, step + WRITES_PER_STEP_MIN)

    def _write(
        self, data: wire.SharedFrame, mask: int, sockets: list[Socket], kind: Kind, first: int, last: int
    ) -> None:
        """One step of a flush. Who keeps up costs a look at one flag and the write itself."""
        plain, deflated = data.plain, b""
        written = shrunk = 0
        for socket in sockets:
            if socket.easy:
                if socket.deflates:
                    framed = deflated or (deflated := data.deflated)
                    shrunk += 1
                else:
                    framed = plain
                    written += 1
                # As Socket.put does, without its look at what waits, and without a call of our own.
                try:
                    taken = write(socket.fd, framed)
                except OSError:
                    taken = 0
                if taken != len(framed):
                    socket.spill(framed, taken)
            elif self._write_with_care(data, mask, socket, kind, first, last):
                if socket.deflates:
                    shrunk += 1
                else:
                    written += 1
        self.metrics.frames.inc(written + shrunk)
        self.metrics.bytes_out.inc(written * len(plain) + shrunk * len(deflated or plain))

    def _write_with_care(
        self, data: wire.SharedFrame, mask: int, socket: Socket, kind: Kind, first: int, last: int
    ) -> bool:
        """To one who is slow, or has just come, healed, resynced or moved; whether the frame was written."""
        if socket.closing or (kind is Kind.EVENTS and socket.at >= last):
            return False  # gone, or has these already: healed or resynced while the frame was on its way
        if socket.mask != mask:  # moved to another class meanwhile: this frame is no longer theirs
            if socket.behind is None:
                socket.behind = first - 1
            self.heal(socket)
            return False
        if socket.behind is not None:
            if not self.heal(socket) and kind is Kind.STATE:
                socket.send_shared(data, kind)
            return False
        if not socket.send_shared(data, kind):
            if not socket.closing:
                socket.behind = first - 1
                self.metrics.skipped.labels(kind.name.lower()).inc()
            return False
        socket.easy = not socket.transport.get_write_buffer_size()
        return True

    def _frame(
        self,
        mask: int,
        entries: Sequence[Entry],
        first: int,
        last: int,
        changed: set[str],
        had: dict[str, int],
    ) -> wire.SharedFrame | None:
        parts: list[bytes] = []
        if last >= first:
            parts.append(wire.range_head(self.epoch, first, last))
            parts += _shown(entries, mask)
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
            self._cache[key] = [
                msgspec.Raw(wire.numbered(entry.seq, entry.event))
                for entry in self.ring.latest(kinds, mask, self.sent, RECENT_SHOWN)
            ]
        cached: list[msgspec.Raw] = self._cache[key]
        return cached

    def covers(self, seq: int) -> bool:
        """Whether the ring has everything after `seq` up to `sent`."""
        return seq >= self.sent or self.ring.covers(seq)

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
            events = redacted([missed[seq] for seq in numbers])  # also what was hidden since `older` was read
            parts = [wire.range_head(self.epoch, since + 1, self.sent)]
            parts += _shown(events, mask)
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
                socket.tell({"type": "gap", "within_ms": 0})
                return True
            socket.send_shared(data, Kind.PERSONAL)
        socket.at, socket.easy = self.sent, False
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

    def begin_anew(self, changes: Changes, within_ms: int) -> None:
        """The log was reborn: everyone is put into their class again and asks for a snapshot, over `within_ms`."""
        self.load(changes)
        self._unsorted = [socket for group in self.classes.values() for socket in group]
        self._gapped = True
        self._gap = wire.message_frame({"type": "gap", "within_ms": within_ms})
        self._schedule(urgent=True)


def _shown(entries: Iterable[Entry], mask: int) -> list[bytes]:
    return [wire.numbered(e.seq, e.event) for e in entries if e.event and mask >> e.bit & 1 and not e.sampled]


def _frames_of(entries: Sequence[Entry], first: int, last: int) -> list[tuple[Sequence[Entry], int, int]]:
    """The entries of a beat and their range, cut where a frame would be too long."""
    cuts, size = [0], 0
    for index, entry in enumerate(entries):
        size += len(entry.event)
        if size > FRAME_BYTES_MAX and index > cuts[-1]:
            cuts.append(index)
            size = len(entry.event)
    if len(cuts) == 1:
        return [(entries, first, last)]
    parts = [entries[start:end] for start, end in zip(cuts, [*cuts[1:], len(entries)], strict=True)]
    return [(part, part[0].seq, part[-1].seq) for part in parts]


def _state_message(state: State, data: dict[str, Any] | None) -> bytes:
    return wire.ENCODE({"type": "state", "key": state.key, "version": state.version, "data": data})


def in_room(audience: Audience, socket: Socket) -> bool:
    """Whether the viewer may be in a room for `audience`; staff always."""
    actor = socket.actor
    return actor is not None and (actor.kind == "staff" or audience.has(actor.facts))
