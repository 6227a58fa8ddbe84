"""The record: each show's log and behaviour, copied from Redis to PostgreSQL, every entry once."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from psycopg.types.json import Jsonb
from redis.exceptions import RedisError

from live.log import entry_from
from membership.actor import ShowId
from membership.partition import show_key
from membership.refusal import Unavailable
from membership.transaction import Transaction

if TYPE_CHECKING:
    from live.parts import Parts

log = logging.getLogger("companion.recorder")

BATCH: Final = 1_000
JUST_ENDED_S: Final = 30  # the last lines of a show are copied as soon as those before
ENDED_FOR_S: Final = 3_600  # an ended show may still get late records (orders paid afterwards)


class Recorder:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def moving(self) -> list[ShowId]:
        """Shows that are on, or ended a moment ago: their logs grow."""
        async with self._parts.database.reading() as conn:
            found = await conn.execute(
                """
                SELECT id FROM shows
                WHERE state IN ('waiting', 'live', 'paused', 'ending')
                   OR (state = 'ended' AND ended_at > now() - make_interval(secs => %s))
                """,
                [JUST_ENDED_S],
            )
            return [ShowId(row["id"]) for row in await found.fetchall()]

    async def ended_lately(self) -> list[ShowId]:
        """Shows whose logs may still grow: not ended for an hour. The last one first."""
        async with self._parts.database.reading() as conn:
            found = await conn.execute(
                """
                SELECT id FROM shows WHERE state = 'ended' AND ended_at > now() - make_interval(secs => %s)
                ORDER BY ended_at DESC
                """,
                [ENDED_FOR_S],
            )
            return [ShowId(row["id"]) for row in await found.fetchall()]

    async def record(self, show: ShowId) -> int:
        """Copy what is new of one show. Returns how many log entries and behaviour records it was."""
        async with self._parts.database.transaction() as t:
            copied = await self._record_log(t, show)
        async with self._parts.database.transaction() as t:
            return copied + await self._parts.behaviour.drain(t, show)

    async def _record_log(self, t: Transaction, show: ShowId) -> int:
        """The position is `<epoch>:<seq>` and moves in the same transaction as the rows."""
        stream = show_key(show, "log")
        await t.conn.execute(
            "INSERT INTO log_positions (stream, last_id) VALUES (%s, '') ON CONFLICT DO NOTHING", (stream,)
        )
        row = await (
            await t.conn.execute("SELECT last_id FROM log_positions WHERE stream = %s FOR UPDATE", (stream,))
        ).fetchone()
        assert row is not None
        found = await self._parts.show_log.position(show)
        if found is None:
            return 0
        epoch = found[0]
        known, _, seq_text = str(row["last_id"]).rpartition(":")
        seq = int(seq_text) if known == epoch and seq_text else 0
        if known and known != epoch:
            # A renewed log begins with entries of the epoch before, which are recorded, or lost with it.
            before, agreed = await self._parts.show_log.renewed(show)
            seq = min(int(seq_text), agreed) if before == known else 0
        copied = 0
        while True:
            try:
                raw: Any = await self._parts.redis.xrange(stream, min=f"{seq + 1}-0", max="+", count=BATCH)
            except (RedisError, OSError, TimeoutError) as error:
                raise Unavailable(f"log: {error}", retry_ms=1000) from error
            if not raw:
                break
            rows: list[tuple[Any, ...]] = []
            for raw_id, fields in raw:
                entry = entry_from(raw_id, fields)
                seq = entry.seq
                if entry.event:
                    event = msgspec.json.decode(entry.event)
                    at = datetime.fromtimestamp(event.get("at", 0) / 1000, UTC)
                    rows.append((show, epoch, entry.seq, at, entry.bit, Jsonb(event)))
            async with t.conn.cursor() as cursor:
                await cursor.executemany(
                    """
                    INSERT INTO show_log (show_id, epoch, seq, at, audience, event)
                    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
                    """,
                    rows,
                )
            copied += len(raw)
        if copied:
            await t.conn.execute(
                "UPDATE log_positions SET last_id = %s WHERE stream = %s", (f"{epoch}:{seq}", stream)
            )
        return copied
