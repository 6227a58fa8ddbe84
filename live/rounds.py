"""What happens on a clock in a serving process: one task a rhythm, none a viewer.

pings and expiries 4× a second over a slice of the sockets · counters of each show 4× a second · likes and
behaviour once a second · presence each 3 s · the log's position each 10 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from live import protocol as wire
from live.metrics import Metrics
from live.node import PING_S, PONG_WAIT_S, Node
from live.socket import STALL_S, Socket
from membership.refusal import Refusal

log = logging.getLogger("companion.rounds")

HELLO_WAIT_S: Final = 5.0
WHEEL_S: Final = 0.25
COUNTERS_S: Final = 0.25
BATCH_S: Final = 1.0
PRESENCE_S: Final = 3.0
PRESENCE_TTL_MS: Final = 15_000
POSITION_S: Final = 10.0
REFRESH_GRACE_S: Final = 30.0
EMPTY_HUB_S: Final = 60.0


class Rounds:
    """The clock work of one node."""

    def __init__(self, node: Node, metrics: Metrics) -> None:
        self._node = node
        self._metrics = metrics
        self._touch_presence = node.parts.scripts.load("live", "touch_presence")
        self._ping = wire.message_frame({"type": "ping"})
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for every_s, act in (
            (WHEEL_S, self._wheel),
            (COUNTERS_S, self._counters),
            (BATCH_S, self._node.dispatch.flush),
            (PRESENCE_S, self._presence),
            (PRESENCE_S, self._stale),
            (POSITION_S, self._positions),
        ):
            self._tasks.append(asyncio.create_task(self._repeat(every_s, act), name=act.__name__))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._node.dispatch.flush()

    async def _repeat(self, every_s: float, act: Callable[[], Awaitable[None]]) -> None:
        down = False
        due = self._node.now() + every_s
        while True:
            await asyncio.sleep(max(0.0, due - self._node.now()))
            if act == self._wheel:
                self._metrics.loop_lag.observe(max(0.0, self._node.now() - due))
            due = max(due + every_s, self._node.now())
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

    async def _wheel(self) -> None:
        """Each socket once in PING_S for its ping; the cheap checks on every turn."""
        now, wall = self._node.now(), time.time()
        turn = int(now / WHEEL_S)
        turns = int(PING_S / WHEEL_S)
        for index, socket in enumerate(list(self._node.sockets)):
            self._check(socket, now, wall)
            if socket.joined and (id(socket) >> 6) % turns == turn % turns:
                socket.pinged_at = now
                socket.transport.write(self._ping)
            if index % 1_000 == 999:
                await asyncio.sleep(0)

    def _check(self, socket: Socket, now: float, wall: float) -> None:
        if socket.closing:
            return
        if not socket.joined and not socket.joining and now - socket.made_at > HELLO_WAIT_S:
            socket.close(wire.NO_HELLO)
        elif socket.pinged_at and now - socket.pinged_at > PONG_WAIT_S:
            socket.close(wire.NO_PONG)
        elif socket.stalled_at is not None and now - socket.stalled_at > STALL_S:
            socket.close(wire.SLOW)
        elif socket.expires_at is not None and wall > socket.expires_at:
            if socket.refresh_by is None:
                socket.refresh_by = now + REFRESH_GRACE_S
                expired = Refusal("The token ended; send a new one by `refresh`.", code="token_expired")
                socket.tell(wire.refused(None, expired))
            elif now > socket.refresh_by:
                socket.close(wire.TOKEN_EXPIRED)

    async def _counters(self) -> None:
        """Tallies, likes and seats do not enter the log: their versions are asked for."""
        for hub in list(self._node.hubs.values()):
            if not hub.viewers:
                continue
            found = await self._node.show_log.position(hub.show)
            if found is not None and found[0] == hub.epoch and found[2] > hub.version:
                with contextlib.suppress(Refusal):  # a show that is being rebuilt; the others go on
                    await self._node.refresh_states(hub)

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
                    show, ["presence"], [self._node.id, hub.watching(), PRESENCE_TTL_MS]
                )
            if hub.viewers:
                hub.wanted_at = now
            elif now - hub.wanted_at > EMPTY_HUB_S:
                del self._node.hubs[show]
                await self._node.tail.unfollow(show)

    async def _positions(self) -> None:
        await self._node.check_positions()
        for hub in self._node.hubs.values():
            for group in hub.classes.values():
                for socket in group:
                    self._node.dispatch.watched_so_far(socket)
