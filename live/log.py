"""The show's log, read: a blocked XREAD for each partition with viewers on this node, and the states.

The log tells; a script's append is the publication. Entries are checked for `seq = last + 1`, and the
epoch and position of every show each 10 s, because a trimmed or reborn stream gives no error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from live.cluster import NodeClients
from live.ending import end
from membership import notices
from membership.actor import ShowId
from membership.audience import Audience
from membership.partition import show_key, tag
from membership.refusal import Away, Refusal
from membership.script import ScriptLoader

log = logging.getLogger("companion.log")

BLOCK_MS = 5_000  # the tail client's socket timeout is this + 2 s
ENTRIES_PER_READ = 1_000
RECENT_ENTRIES = 200  # read with a snapshot, to fill the ring and find the last comments
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0
INTERRUPTS_MAX = 50
WAKE_S = 1.0  # for one CLIENT UNBLOCK
MOVING_S = 1.0  # a back-off that long means that a partition's move is stuck
NOTICES = "notices"  # the name of their reader among the partitions


class Entry(msgspec.Struct):
    """One entry of a show's log. `event` is b"" when it carried none or was redacted."""

    seq: int
    event: bytes
    bit: int  # audience
    version: int  # of the show's states, when it was appended
    urgent: bool
    redacts: int | None
    rank: int = 0  # in sampling: 1 is shown before 4; 0 always
    sampled: bool = False  # left out on this node


class Part(msgspec.Struct, frozen=True):
    """What one audience may have of a state."""

    a: int
    d: dict[str, Any] = {}
    counts: tuple[str, ...] = ()


class State(msgspec.Struct):
    """One state: latest version wins. No parts: gone."""

    key: str
    version: int
    parts: tuple[Part, ...]
    counts: dict[str, int]
    had: int = 0  # who had it before, as bits: they are told when it is gone

    @property
    def bits(self) -> int:
        """The audiences that get any of it."""
        found = 0
        for part in self.parts:
            found |= 1 << part.a
        return found

    def seen_by(self, mask: int) -> dict[str, Any] | None:
        """The data a class gets: the parts of its audiences merged; None when it gets nothing."""
        data: dict[str, Any] | None = None
        shown: dict[str, int] = {}
        for part in self.parts:
            if mask >> part.a & 1:
                data = {**(data or {}), **part.d}
                for name in part.counts:
                    if name == "*":
                        shown.update(self.counts)
                    else:
                        shown[name] = self.counts.get(name, 0)
        if data is not None and shown:
            data["counts"] = shown
        return data


class Changes(msgspec.Struct):
    """What read_states.lua answers."""

    version: int
    seq: int
    epoch: str
    generation: str
    status: str
    poll: str
    audiences: list[Audience]
    room_audience: Audience
    states: list[State]
    entries: list[Entry]  # oldest first


_PARTS = msgspec.json.Decoder(tuple[Part, ...])
_AUDIENCE = msgspec.json.Decoder(Audience)
_AUDIENCES = msgspec.json.Decoder(list[str])


def entry_from(raw_id: bytes, fields: Any) -> Entry:
    """An entry as redis-py gives it: fields as a dict, or flat from a script."""
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    redacts = fields.get(b"r")
    return Entry(
        seq=int(raw_id.split(b"-")[0]),
        event=fields[b"e"],
        bit=int(fields[b"a"]),
        version=int(fields[b"v"]),
        urgent=fields.get(b"u") == b"1",
        redacts=int(redacts) if redacts else None,
        rank=int(fields.get(b"s", 0)),
    )


def redacted(entries: list[Entry]) -> list[Entry]:
    """Hidden entries lose their event; a hide always follows what it hides."""
    by_seq = {entry.seq: entry for entry in entries}
    for entry in entries:
        if entry.redacts is not None and entry.redacts in by_seq:
            by_seq[entry.redacts].event = b""
    return entries


class ShowLog:
    """Reads one show at a time: states, snapshot, missed entries."""

    def __init__(self, redis: Redis, scripts: ScriptLoader) -> None:
        self._redis = redis
        self._read = scripts.load("live", "read_states")

    async def changes(self, show: ShowId, since_version: int, entries: int = 0) -> Changes:
        """States changed since a version, and the newest `entries`. Raises Unavailable."""
        meta, flat, raw = await self._read(show, [], [since_version, entries])
        states = [
            State(
                key=flat[i].decode(),
                version=int(flat[i + 1]),
                parts=_PARTS.decode(flat[i + 2]) if flat[i + 2] else (),
                counts={
                    flat[i + 3][j].decode(): int(flat[i + 3][j + 1]) for j in range(0, len(flat[i + 3]), 2)
                },
            )
            for i in range(0, len(flat), 4)
        ]
        return Changes(
            version=int(meta[0]),
            seq=int(meta[1]),
            epoch=meta[2].decode(),
            generation=meta[3].decode(),
            status=meta[4].decode(),
            poll=meta[5].decode(),
            audiences=[_AUDIENCE.decode(text) for text in _AUDIENCES.decode(meta[6] or b"[]")],
            room_audience=_AUDIENCE.decode(meta[7]) if meta[7] else Audience(),
            states=states,
            entries=redacted([entry_from(raw_id, fields) for raw_id, fields in reversed(raw)]),
        )

    async def position(self, show: ShowId) -> tuple[str, int, int] | None:
        """(epoch, seq, version) now; None when the show's keys are gone."""
        try:
            found: Any = await self._redis.hmget(show_key(show, "meta"), ["epoch", "seq", "version"])
        except (RedisError, OSError, TimeoutError) as error:
            raise Away(str(error), retry_ms=1000) from error
        if found[0] is None:
            return None
        return found[0].decode(), int(found[1]), int(found[2])

    async def renewed(self, show: ShowId) -> tuple[str, int]:
        """The epoch before this one, and its last number that is still in the log; ("", 0) for the first."""
        try:
            found: Any = await self._redis.hmget(show_key(show, "meta"), ["epoch_before", "epoch_from"])
        except (RedisError, OSError, TimeoutError) as error:
            raise Away(str(error), retry_ms=1000) from error
        return (found[0].decode(), int(found[1])) if found[0] is not None else ("", 0)

    async def between(self, show: ShowId, first: int, last: int) -> list[Entry]:
        """Entries first–last that the stream still has, oldest first, hidden ones redacted.

        Read beyond `last`, 20,000 entries at most, so that what hides one of them is seen too; cut to `last`.
        """
        try:
            raw: Any = await self._redis.xrange(show_key(show, "log"), min=f"{first}-0", count=20_000)
        except (RedisError, OSError, TimeoutError) as error:
            raise Away(str(error), retry_ms=1000) from error
        found = redacted([entry_from(raw_id, fields) for raw_id, fields in raw])
        return [entry for entry in found if entry.seq <= last]


class Tail:
    """The logs of all shows here, and the personal notices, as they grow.

    One reader a partition with shows here, and one for the notices: 65 connections at most. Each has its own
    back-off, so that a node of a Cluster that is away holds up its own shows alone, and shows of one partition
    do not wait for what another's entries make this process read.

    `on_entries(show, entries)` and `on_notices([(member, message | None), …])` are called in each stream's
    order; a position moves only when its entries were taken, and a reader that lost Redis goes on where it
    stopped. `on_health(up)` is told when the first reader fails and when all read again.
    """

    def __init__(
        self,
        nodes: NodeClients,
        redis: Redis,
        on_entries: Callable[[ShowId, list[Entry]], Awaitable[None]],
        on_notices: Callable[[list[tuple[str, bytes | None]]], None],
        on_health: Callable[[bool], None],
    ) -> None:
        self._nodes = nodes
        self._redis = redis
        self._on_entries = on_entries
        self._on_notices = on_notices
        self._on_health = on_health
        self._shows: dict[str, ShowId] = {}  # by stream
        self._readers: dict[str, _Reader] = {}  # by partition
        self._failing: set[_Reader] = set()

    async def start(self) -> None:
        """From the newest notice on."""
        newest: Any = await self._redis.xrevrange(notices.STREAM, count=1)
        reader = self._reader(NOTICES, self._take_notices)
        await reader.follow(notices.STREAM, newest[0][0].decode() if newest else "0-0")
        self._on_health(True)

    async def stop(self) -> None:
        readers = list(self._readers.values())
        self._readers.clear()
        await asyncio.gather(*(reader.stop() for reader in readers))

    async def follow(self, show: ShowId, seq: int) -> None:
        """Also read `show`, from behind `seq`."""
        key, name = show_key(show, "log"), tag(show)
        self._shows[key] = show
        reader = self._readers.get(name) or self._reader(name, self._take_entries)
        await reader.follow(key, f"{seq}-0")

    async def unfollow(self, show: ShowId) -> None:
        key, name = show_key(show, "log"), tag(show)
        self._shows.pop(key, None)
        reader = self._readers.get(name)
        if reader is not None and not reader.leave(key):
            del self._readers[name]
            self._heard(reader, True)
            await reader.stop()

    def lag(self) -> dict[str, float]:
        """Seconds since each partition's last completed read: up to BLOCK_MS when nothing happens there."""
        now = time.monotonic()
        return {name: now - reader.read_at for name, reader in self._readers.items()}

    def _reader(self, name: str, take: Callable[[str, Any], Awaitable[None]]) -> _Reader:
        made = self._readers[name] = _Reader(name, self._nodes, take, self._heard)
        return made

    def _heard(self, reader: _Reader, up: bool) -> None:
        """A reader fails, or reads again (or is no longer needed)."""
        before = bool(self._failing)
        if up:
            self._failing.discard(reader)
        else:
            self._failing.add(reader)
        if bool(self._failing) != before:
            self._on_health(before)

    async def _take_entries(self, key: str, raw: Any) -> None:
        show = self._shows.get(key)
        if show is not None:
            await self._on_entries(show, [entry_from(raw_id, fields) for raw_id, fields in raw])

    async def _take_notices(self, key: str, raw: Any) -> None:
        self._on_notices([(fields[b"member"].decode(), fields.get(b"message")) for _, fields in raw])


class _Reader:
    """One blocked XREAD over streams of one slot, on a connection of its own."""

    def __init__(
        self,
        name: str,
        nodes: NodeClients,
        take: Callable[[str, Any], Awaitable[None]],
        heard: Callable[[_Reader, bool], None],
    ) -> None:
        self.name = name
        self.read_at = time.monotonic()
        self._nodes = nodes
        self._take = take
        self._heard = heard
        self._positions: dict[str, str] = {}  # stream -> last id
        self._task: asyncio.Task[None] | None = None
        self._home: Redis | None = None  # the client of the node it reads from, and its connection there
        self._client_id: int | None = None
        self._reads = 0
        self._blocked = False

    async def follow(self, key: str, position: str) -> None:
        """Read `key` from behind `position`: at once, also in a read that is under way."""
        self._positions[key] = position
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"log tail {self.name}")
        else:
            await self._interrupt()

    def leave(self, key: str) -> int:
        """Read `key` no more. Returns how many streams are left."""
        self._positions.pop(key, None)
        return len(self._positions)

    async def stop(self) -> None:
        self._positions.clear()
        if self._task is not None:
            await end([self._task])

    async def _interrupt(self) -> None:
        """Wake the blocked read so that it starts again with the new list."""
        started = self._reads
        for _ in range(INTERRUPTS_MAX):
            # Between the copy of the list and the block at the server an UNBLOCK finds nothing to wake,
            # so it is repeated until a read with the new list has begun.
            home, client_id = self._home, self._client_id
            if not self._blocked or self._reads != started or home is None or client_id is None:
                return
            try:
                async with asyncio.timeout(WAKE_S):
                    await home.client_unblock(client_id)
            except (RedisError, OSError, TimeoutError):
                return  # the read ends by itself within BLOCK_MS
            await asyncio.sleep(0.002)

    async def _run(self) -> None:
        """Until nothing is left to read. A stream that moved to another node is followed there."""
        wait_s = RETRY_MIN_S
        moved: MovedError | None = None
        while self._positions:
            try:
                client = (await self._find(moved)).client()
                try:
                    self._client_id = int(await client.client_id())
                    # The first read does not wait: that it works again is known, and told, at once.
                    await self._read_once(client, block_ms=None)
                    while self._positions:
                        wait_s, moved = RETRY_MIN_S, None
                        self._heard(self, True)
                        await self._read_once(client, block_ms=BLOCK_MS)
                    return
                finally:
                    # Not `async with`: cancelled again in its __aexit__, which `end` may do, it keeps the connection.
                    await asyncio.shield(client.aclose())
            except asyncio.CancelledError:
                raise
            except (AskError, TryAgainError) as error:  # AskError is MovedError too: the slot is on its way
                moved = error if isinstance(error, MovedError) else None
                log.info("partition %s is moving: %s", self.name, error)
                if wait_s >= MOVING_S:
                    self._heard(self, False)
            except (RedisError, OSError, TimeoutError, Refusal) as error:
                self._heard(self, False)
                moved = None
                log.warning("the log of %s cannot be read: %s; again in %.1f s", self.name, error, wait_s)
                await self._nodes.look_again()
            except Exception:
                log.exception("the log tail of %s failed; starting again", self.name)
            self._client_id = None
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MAX_S)

    async def _find(self, moved: MovedError | None) -> Redis:
        """The client of the node that has our streams: the one that was named, else by the map."""
        if moved is not None and moved.host:
            self._home = self._nodes.at(moved.host, moved.port)
        else:
            self._home = await self._nodes.having(next(iter(self._positions)))
        return self._home

    async def _read_once(self, client: Redis, block_ms: int | None) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # it was lost, see `stop`
            raise asyncio.CancelledError
        self._reads += 1
        positions: dict[Any, Any] = dict(self._positions)
        self._blocked = block_ms is not None
        try:
            answer: Any = await client.xread(positions, count=ENTRIES_PER_READ, block=block_ms)
        finally:
            self._blocked = False
        self.read_at = time.monotonic()
        if not answer:
            return
        streams = answer.items() if isinstance(answer, dict) else answer
        for raw_key, raw_entries in streams:
            key = raw_key.decode()
            if key in self._positions:
                # The position moves when they were taken: what failed is read again, twice is harmless.
                await self._take(key, raw_entries)
                # Where the stream was begun anew meanwhile (`follow`), that position stands.
                if self._positions.get(key) == positions[key]:
                    self._positions[key] = raw_entries[-1][0].decode()
