"""The logs this node follows: entries to their hub, and whether each log is still the one we knew.

A log may be trimmed, reborn, or set back to an older copy without an error: so it is compared after every outage
and each 10 s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

import msgspec
from psycopg import Error as SqlError

from live.hub import ShowHub
from live.log import RECENT_ENTRIES, Entry
from live.shows import Seen
from membership.actor import ShowId
from membership.refusal import Away, Refusal

if TYPE_CHECKING:
    from live.node import Node

log = logging.getLogger("companion.following")

REJOIN_AT_ONCE: Final = 500  # viewers who may ask for a snapshot at once; of more, each waits its random turn
RECHECK_S: Final = 0.5  # between looks at a log that is being built anew


class Position(msgspec.Struct, frozen=True):
    """How far this node has followed a log: its number, and the last entry that can be compared."""

    epoch: str
    seq: int
    last: int
    event: bytes  # b"" when there is none

    @classmethod
    def of(cls, hub: ShowHub) -> Position:
        last = next((entry for _, entry in reversed(hub.ring) if entry.event), None)
        return cls(hub.epoch, hub.seq, last.seq if last else 0, last.event if last else b"")


class Following:
    """What the log brings to this node's hubs."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.up = True  # the log can be read
        self.down_since = 0  # ms, wall clock
        # Where each log stood when it was lost from sight, until that was compared: the first and the latest.
        self._followed: dict[ShowId, tuple[Position, ...]] = {}
        self._rechecked: set[ShowId] = set()  # shows whose log could not be checked, and is looked at again
        self._reloading: dict[ShowId, asyncio.Task[None]] = {}

    def on_health(self, up: bool) -> None:
        if up != self.up:
            self.down_since = int(time.time() * 1000)
            for hub in self._node.hubs.values():
                hub.tell_local("log", None if up else {"up": False, "since": self.down_since})
        if not up and self.up:
            self._followed = {
                show: (*self._followed.get(show, ())[:1], Position.of(hub))
                for show, hub in self._node.hubs.items()
            }
        if up and not self.up:
            self._node.parts.scripts.forget_failures()  # it answers: nobody has to go and look
            self._node.spawn(self.check_positions())
            # Read one after the other by the round: all at once would take the pool from everybody else.
            self._node.stale_members.update(self._node.members)
        self.up = up
        self._node.metrics.log_up.set(1 if up else 0)

    async def on_entries(self, show: ShowId, entries: list[Entry]) -> None:
        hub = self._node.hubs.get(show)
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
        self._node.metrics.log_reads.labels("missed").inc()
        found = await self._node.show_log.between(hub.show, hub.seq + 1, 1 << 62)
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
        self._node.metrics.log_reads.labels("show").inc()
        changes = await self._node.show_log.changes(hub.show, -1, RECENT_ENTRIES)
        hub.begin_anew(
            changes, self._node.reconnect_ms()[1] if len(self._node.sockets) > REJOIN_AT_ONCE else 0
        )
        await self._node.tail.follow(hub.show, hub.seq)

    async def refresh_states(self, hub: ShowHub) -> None:
        self._node.metrics.log_reads.labels("states").inc()
        changes = await self._node.show_log.changes(hub.show, hub.version)
        if changes.epoch != hub.epoch:
            await self.reload(hub)
            return
        ended = changes.status == "ended" != hub.status
        hub.apply(changes)
        if ended:
            self._node.dispatch.watched_all(hub)

    async def check_positions(self) -> None:
        """Every 10 s and after an outage: is each log still the one we follow?"""
        for hub in list(self._node.hubs.values()):
            await self._checked(hub)

    async def _checked(self, hub: ShowHub) -> bool:
        try:
            await self._check(hub)
        except (Refusal, SqlError) as refusal:
            log.warning("show %s: position not checked: %s", hub.show, refusal)
            # A store that is away is looked at when it is back; what is being built anew is ready any moment.
            if not isinstance(refusal, Away) and hub.show not in self._rechecked:
                self._rechecked.add(hub.show)
                self._node.spawn(self._recheck(hub))
            return False
        return True

    async def _recheck(self, hub: ShowHub) -> None:
        try:
            while self._node.hubs.get(hub.show) is hub and not self._node.draining:
                await asyncio.sleep(RECHECK_S)
                if await self._checked(hub):
                    break
        finally:
            self._rechecked.discard(hub.show)

    async def _check(self, hub: ShowHub) -> None:
        now = Position.of(hub)  # before asking: the tail goes on while the answer is on its way
        epoch = now.epoch
        found = await self._node.show_log.position(hub.show)
        if found is None:
            await self._node.parts.shows.agree(hub.show)
            await self._start_anew(hub)
            return
        if hub.epoch != epoch:
            return  # read anew meanwhile
        if found[0] != epoch:
            await self._start_anew(hub)
            return
        followed = self._followed.get(hub.show, ())
        for known in [position for position in followed if position.epoch == epoch] or [now]:
            seen = await self._compared(hub, known, found[1])
            if seen.agreed < seen.compared:
                break
        if found[1] < now.seq or seen.agreed < seen.compared:
            await self._node.parts.shows.renew(hub.show, epoch, seen)
            await self._start_anew(hub)
            return
        if self._followed.get(hub.show) == followed:  # not lost from sight again meanwhile
            self._followed.pop(hub.show, None)
        if hub.epoch != epoch:
            return
        if found[2] > hub.version:
            await self.refresh_states(hub)
        if found[1] > hub.seq:  # on its way, or a read that stalled without an error
            await self._refetch(hub)

    async def _start_anew(self, hub: ShowHub) -> None:
        await self.reload(hub)
        self._followed.pop(hub.show, None)

    async def _compared(self, hub: ShowHub, known: Position, stored: int) -> Seen:
        """What this node saw beside what the store has at the same numbers.

        A store that lost its last writes may have grown past them again, with other entries: the number
        alone would not tell. So the last entry before the log was lost from sight is compared.
        """
        seen = Seen(known.seq, known.last, known.event, known.last)
        if not known.event:
            return seen
        if stored >= known.seq:
            theirs = await self._node.show_log.between(hub.show, known.last, known.last)
            if not theirs or theirs[0].event in (b"", known.event):
                return seen  # the same; or trimmed or hidden, which tells nothing
        ours = {entry.seq: entry.event for _, entry in hub.ring if entry.event and entry.seq <= known.seq}
        first = min(ours, default=known.last)
        kept = {
            entry.seq: entry.event for entry in await self._node.show_log.between(hub.show, first, known.last)
        }
        agreed = max((seq for seq in ours if kept.get(seq) == ours[seq]), default=first - 1)
        return msgspec.structs.replace(seen, agreed=agreed)
