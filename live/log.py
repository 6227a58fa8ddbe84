"""The show's log, read: one blocked XREAD over every show with viewers on this node, and the states.

The log tells; a script's append is the publication. Entries are checked for `seq = last + 1`, and the
epoch and position of every show each 10 s, because a trimmed or reborn stream gives no error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from membership import notices
from membership.actor import ShowId
from membership.audience import Audience
from membership.partition import show_key
from membership.refusal import Refusal, Unavailable
from membership.script import ScriptLoader

log = logging.getLogger("companion.log")

BLOCK_MS = 5_000  # the tail client's socket timeout is this + 2 s
ENTRIES_PER_READ = 1_000
RECENT_ENTRIES = 200  # read with a snapshot, to fill the ring and find the last comments
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0
INTERRUPTS_MAX = 50


class Entry(msgspec.Struct):
    """One entry of a show's log. `event` is b"" when it carried none or was redacted."""

    seq: int
    event: bytes
    bit: int  # audience
    version: int  # of the show's states, when it was appended
    urgent: bool
    redacts: int | None


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
            raise Unavailable(str(error), retry_ms=1000) from error
        if found[0] is None:
            return None
        return found[0].decode(), int(found[1]), int(found[2])

    async def between(self, show: ShowId, first: int, last: int) -> list[Entry]:
        """Entries first–last that the stream still has, oldest first, hidden ones redacted.

        Read to the stream's end, so that what hides one of them is seen too; cut to `last`.
        """
        try:
            raw: Any = await self._redis.xrange(show_key(show, "log"), min=f"{first}-0", count=20_000)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(str(error), retry_ms=1000) from error
        found = redacted([entry_from(raw_id, fields) for raw_id, fields in raw])
        return [entry for entry in found if entry.seq <= last]


class Tail:
    """One blocked read over the logs of all shows here, and the personal notices.

    `on_entries(show, entries)` and `on_notice(member, message | None)` are called in the stream's
    order. A node that lost Redis goes on where it stopped; `on_lost()` tells that some notices may
    have been trimmed meanwhile.
    """

    def __init__(
        self,
        tail_redis: Redis,
        redis: Redis,
        on_entries: Callable[[ShowId, list[Entry]], Awaitable[None]],
        on_notices: Callable[[list[tuple[str, bytes | None]]], None],
        on_health: Callable[[bool], None],
    ) -> None:
        self._tail_redis = tail_redis
        self._redis = redis
        self._on_entries = on_entries
        self._on_notices = on_notices
        self._on_health = on_health
        self._positions: dict[str, str] = {}  # stream -> last id
        self._shows: dict[str, ShowId] = {}
        self._client_id: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._reads = 0
        self._blocked = False

    async def start(self) -> None:
        """From the newest notice on."""
        newest: Any = await self._redis.xrevrange(notices.STREAM, count=1)
        self._positions[notices.STREAM] = newest[0][0].decode() if newest else "0-0"
        self._task = asyncio.create_task(self._run(), name="log tail")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def follow(self, show: ShowId, seq: int) -> None:
        """Also read `show`, from behind `seq`."""
        key = show_key(show, "log")
        self._positions[key] = f"{seq}-0"
        self._shows[key] = show
        await self._interrupt()

    async def unfollow(self, show: ShowId) -> None:
        key = show_key(show, "log")
        self._positions.pop(key, None)
        self._shows.pop(key, None)

    async def _interrupt(self) -> None:
        """Wake the blocked read so that it starts again with the new list."""
        started = self._reads
        for _ in range(INTERRUPTS_MAX):
            # Between the copy of the list and the block at the server an UNBLOCK finds nothing to wake,
            # so it is repeated until a read with the new list has begun.
            if not self._blocked or self._reads != started or self._client_id is None:
                return
            try:
                await self._redis.client_unblock(self._client_id)
            except (RedisError, OSError, TimeoutError):
                return  # the read ends by itself within BLOCK_MS
            await asyncio.sleep(0.002)

    async def _run(self) -> None:
        wait_s = RETRY_MIN_S
        while True:
            try:
                async with self._tail_redis.client() as client:
                    self._client_id = int(await client.client_id())
                    while True:
                        await self._read_once(client)
                        wait_s = RETRY_MIN_S
                        self._on_health(True)
            except asyncio.CancelledError:
                raise
            except (RedisError, OSError, TimeoutError, Refusal) as error:
                self._on_health(False)
                log.warning("the log cannot be read: %s; again in %.1f s", error, wait_s)
            except Exception:
                log.exception("the log tail failed; starting again")
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MAX_S)

    async def _read_once(self, client: Redis) -> None:
        self._reads += 1
        positions: dict[Any, Any] = dict(self._positions)
        self._blocked = True
        try:
            answer: Any = await client.xread(positions, count=ENTRIES_PER_READ, block=BLOCK_MS)
        finally:
            self._blocked = False
        if not answer:
            return
        streams = answer.items() if isinstance(answer, dict) else answer
        for raw_key, raw_entries in streams:
            key = raw_key.decode()
            if key == notices.STREAM:
                told = [(fields[b"member"].decode(), fields.get(b"message")) for _, fields in raw_entries]
                self._on_notices(told)
                self._positions[key] = raw_entries[-1][0].decode()
            elif key in self._shows:
                entries = [entry_from(raw_id, fields) for raw_id, fields in raw_entries]
                # The position moves when they were taken: what failed is read again, twice is harmless.
                await self._on_entries(self._shows[key], entries)
                # Where the show was begun anew meanwhile (`follow`), that position stands.
                if self._positions.get(key) == positions[key]:
                    self._positions[key] = raw_entries[-1][0].decode()
