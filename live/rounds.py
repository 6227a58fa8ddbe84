"""What happens on a clock in a serving process: one task a rhythm, none a viewer.

the wheel (pings, expiries) and the loop's lateness 4× a second · counters of each show 4× a second · likes,
behaviour and buffers once a second · presence and sampling each 3 s · the log's position each 10 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from live import protocol as wire
from live.ending import end
from live.hub import TRANSIENT_STATES, ShowHub
from live.joining import PING_S
from live.metrics import Metrics
from live.node import HELLO_WAIT_S, Node
from live.socket import STALL_S, Socket
from live.wheel import SLOT_S
from membership.refusal import Refusal

log = logging.getLogger("companion.rounds")

COUNTERS_S: Final = 0.25
BATCH_S: Final = 1.0
PRESENCE_S: Final = 3.0
PRESENCE_TTL_MS: Final = 15_000
POSITION_S: Final = 10.0
PONG_WAIT_S: Final = 10.0
REFRESH_GRACE_S: Final = 30.0
EMPTY_HUB_S: Final = 60.0
BUFFERS_RELIEF: Final = 0.9  # of the bound: down to here the slowest are let go


class Rounds:
    """The clock work of one node."""

    def __init__(self, node: Node, metrics: Metrics) -> None:
        self._node = node
        self._metrics = metrics
        self._touch_presence = node.parts.scripts.load("live", "touch_presence")
        self._tasks: list[asyncio.Task[None]] = []
        self._late_s = 0.0
        self._ping = b""
        self._buffers_max = node.parts.settings.buffers_max_mb * 1_048_576

    def start(self) -> None:
        for every_s, act in (
            (SLOT_S, self._turn),
            (COUNTERS_S, self._counters),
            (BATCH_S, self._node.dispatch.flush),
            (BATCH_S, self._buffers),
            (PRESENCE_S, self._samples),
            (PRESENCE_S, self._presence),
            (PRESENCE_S, self._stale),
            (POSITION_S, self._positions),
        ):
            self._tasks.append(asyncio.create_task(self._repeat(every_s, act), name=act.__name__))

    async def stop(self) -> None:
        await end(self._tasks)
        await self._node.dispatch.flush()

    async def _repeat(self, every_s: float, act: Callable[[], Awaitable[None]]) -> None:
        down = False
        due = self._node.now() + every_s
        while True:
            await asyncio.sleep(max(0.0, due - self._node.now()))
            if act == self._turn:
                self._late_s = max(0.0, self._node.now() - due)
            now = self._node.now()
            # Never at once after a late turn: it would find the loop punctual without having looked.
            due = due + every_s if due + every_s > now else now + every_s
            try:
                await act()
                down = False
            except asyncio.CancelledError:
                raise
            except Refusal as refusal:
                if not down:
                    log.warning("%s: %s", act.__name__, refusal)
                down = True
            except Exception:
                log.exception("%s failed; it goes on at its next turn", act.__name__)

    async def _turn(self) -> None:
        """The wheel: who is due for a ping, a pong, a hello or a new token; and how late the loop is."""
        now, wall = self._node.now(), time.time()
        self._metrics.loop_lag.observe(self._late_s)
        self._metrics.loop_late.set(self._late_s)
        pressure = self._node.pressure
        if pressure.observe(self._late_s, self._node.buffered / self._buffers_max, now):
            log.warning("pressure: %s", pressure.step or "over")
            self._metrics.degraded.set(pressure.level)
            for hub in self._node.hubs.values():
                hub.tell_again(TRANSIENT_STATES)
        if (
            now - pressure.last_pause_at > STALL_S
        ):  # else who seems stalled may have had no chance to be written to
            for socket in list(self._node.stalled):
                waiting = socket.transport.get_write_buffer_size()
                if socket.stalled_at is None or waiting < socket.waiting:
                    socket.stalled_at = now  # slow, but it reads
                elif now - socket.stalled_at > STALL_S:
                    socket.close(wire.SLOW)
                socket.waiting = waiting
        # With the window anew: who came early was told one for fewer viewers.
        self._ping = wire.message_frame({"type": "ping", "reconnect_ms": self._node.reconnect_ms()})
        for index, socket in enumerate(self._node.wheel.turn()):
            self._look(socket, now, wall)
            if index % 1_000 == 999:
                await asyncio.sleep(0)

    def _look(self, socket: Socket, now: float, wall: float) -> None:
        """What is due for one socket, and when to look again."""
        if socket.closing:
            return
        if not socket.joined:
            if not socket.joining and now - socket.made_at > HELLO_WAIT_S:
                socket.close(wire.NO_HELLO)
            else:
                self._node.wheel.put(socket, now + 1.0)
            return
        if socket.pinged_at and now - socket.pinged_at >= PONG_WAIT_S:
            if now - self._node.pressure.last_pause_at > PONG_WAIT_S:
                socket.close(wire.NO_PONG)
                return
            socket.ping_at, socket.pinged_at = now, 0.0  # this process stood still: asked again
        if now >= socket.ping_at:
            socket.pinged_at = now
            socket.ping_at = now + PING_S
            socket.put(self._ping)
        if socket.expires_at is not None and wall > socket.expires_at:
            if socket.refresh_by is None:
                socket.refresh_by = now + REFRESH_GRACE_S
                expired = Refusal("The token ended; send a new one by `refresh`.", code="token_expired")
                socket.tell(wire.refused(None, expired))
            elif now > socket.refresh_by:
                socket.close(wire.TOKEN_EXPIRED)
                return
        due = socket.ping_at
        if socket.pinged_at:
            due = min(due, socket.pinged_at + PONG_WAIT_S)
        if socket.refresh_by is not None:
            due = min(due, socket.refresh_by)
        elif socket.expires_at is not None:
            due = min(due, now + max(0.0, socket.expires_at - wall))
        self._node.wheel.put(socket, due)

    async def _buffers(self) -> None:
        """What viewers have yet to read, all together; over the bound the slowest are let go."""
        sizes = [
            (socket.transport.get_write_buffer_size(), socket)
            for socket in self._node.sockets
            if not socket.closing
        ]
        total = sum(size for size, _ in sizes)
        if total > self._buffers_max:
            for size, socket in sorted(sizes, key=lambda found: found[0], reverse=True):
                socket.close(wire.SLOW)
                total -= size
                if total <= self._buffers_max * BUFFERS_RELIEF:
                    break
        self._node.buffered = total
        self._metrics.buffered_bytes.set(total)
        self._metrics.stalled.set(len(self._node.stalled))
        self._metrics.log_lag.clear()  # partitions that are no longer followed
        for partition, lag_s in self._node.tail.lag().items():
            self._metrics.log_lag.labels(partition).set(lag_s)

    async def _samples(self) -> None:
        """Tell each show whether its comments are sampled."""
        now = self._node.now()
        for hub in self._node.hubs.values():
            sampler = hub.sampler
            if sampler.active(now):
                shown = self._node.pressure.comments_per_s(sampler.per_s)
                hub.tell_local("sampling", {"shown_per_s": shown, "posted_per_s": sampler.posted_per_s})
            else:
                hub.tell_local("sampling", None)

    async def _counters(self) -> None:
        """Tallies, likes and seats do not enter the log: their versions are asked for, of all shows at once."""
        await asyncio.gather(*(self._count(hub) for hub in list(self._node.hubs.values()) if hub.viewers))

    async def _count(self, hub: ShowHub) -> None:
        with contextlib.suppress(Refusal):  # a show that is being rebuilt, or away; the others go on
            found = await self._node.show_log.position(hub.show)
            if found is not None and found[0] == hub.epoch and found[2] > hub.version:
                await self._node.following.refresh_states(hub)

    async def _stale(self) -> None:
        """Facts that could not be read when they changed are read again."""
        for member in list(self._node.stale_members):
            await self._node.reload_member(member)
            if member not in self._node.members:
                self._node.stale_members.discard(member)

    async def _presence(self) -> None:
        now = self._node.now()
        for show, hub in list(self._node.hubs.items()):
            with contextlib.suppress(Refusal):  # a show whose keys are gone; the others go on
                await self._touch_presence(
                    show,
                    ["presence"],
                    [self._node.id, hub.watching(), PRESENCE_TTL_MS, self._node.pressure.level],
                )
            if hub.viewers:
                hub.wanted_at = now
            elif now - hub.wanted_at > EMPTY_HUB_S:
                del self._node.hubs[show]
                await self._node.tail.unfollow(show)

    async def _positions(self) -> None:
        await self._node.following.check_positions()
        for hub in self._node.hubs.values():
            for group in hub.classes.values():
                for socket in group:
                    self._node.dispatch.watched_so_far(socket)
