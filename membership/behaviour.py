"""Behaviour: one dated fact of what a viewer did. Appended to the show's stream, copied to PostgreSQL.

What a script decides, the same script records (`behave` of the prelude). What no script decides (watching,
looking at a product) is recorded here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from membership.actor import Actor, MemberId, ShowId, is_id, new_id
from membership.partition import show_key
from membership.refusal import BadRequest, Unavailable
from membership.transaction import Transaction

Kind = Literal["watch", "comment", "ballot", "click", "claim", "order", "paid", "join", "reaction"]

STREAM_MAX = 200_000  # as in the prelude; at 250 B each about 50 MB a show
BATCH = 1_000  # entries read and inserted together
WATCH_MS_MAX = 12 * 3_600_000
TEXT_MAX = 500


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str  # UUIDv7 by the writer: the same record twice is one
    kind: Kind
    viewer: str
    member: MemberId | None
    subject: str  # "show", "product:<id>", "poll:<id>:<choice>", "benefit:<id>", "order:<id>"
    value: int = 0  # watch: milliseconds
    at: int  # ms; watch: its start
    text: str | None = None


def record_of(
    actor: Actor, kind: Kind, subject: str, *, value: int = 0, at: int | None = None, text: str | None = None
) -> Record | None:
    """The record of what a viewer did; None for staff, a shop's server and jobs, who are not observed."""
    if actor.kind != "viewer":
        return None
    return Record(
        id=new_id(),
        kind=kind,
        viewer=actor.id,
        member=actor.member,
        subject=subject,
        value=value,
        at=time.time_ns() // 1_000_000 if at is None else at,
        text=None if text is None else text[:TEXT_MAX],
    )


def encode(record: Record | None) -> bytes:
    """The record as a script's argument; empty for none, which `behave` passes over."""
    return b"" if record is None else msgspec.json.encode(record)


class Behaviour:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._decoder = msgspec.json.Decoder(Record)
        self._log = logging.getLogger(__name__)

    async def record(self, show: ShowId, records: Sequence[Record]) -> None:
        """Append records that no script made. Raises Unavailable."""
        stream = show_key(show, "behaviour")
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for record in records:
                    pipe.xadd(stream, {"b": encode(record)}, maxlen=STREAM_MAX, approximate=True)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"behaviour: {error}", retry_ms=1000) from error

    async def drain(self, t: Transaction, show: ShowId) -> int:
        """Copy what is new in the show's stream, once. Returns the number of records.

        The position moves in the same transaction as the rows: a crash in between repeats or loses nothing.
        """
        stream = show_key(show, "behaviour")
        await t.conn.execute(
            "INSERT INTO log_positions (stream, last_id) VALUES (%s, '0-0') ON CONFLICT DO NOTHING", (stream,)
        )
        row = await (
            await t.conn.execute("SELECT last_id FROM log_positions WHERE stream = %s FOR UPDATE", (stream,))
        ).fetchone()
        assert row is not None
        start = position = await self._begin(stream, row["last_id"])
        copied = 0
        while True:
            entries = await self._read(stream, position)
            if not entries:
                break
            copied += await self._insert(t, show, [fields.get(b"b", b"") for _, fields in entries])
            position = entries[-1][0].decode()
        if position != row["last_id"] or start != row["last_id"]:
            await t.conn.execute(
                "UPDATE log_positions SET last_id = %s WHERE stream = %s", (position, stream)
            )
        return copied

    async def _begin(self, stream: str, last_id: str) -> str:
        """Where to read on; a stream that was lost and born again is read from its start."""
        try:
            info = await self._redis.xinfo_stream(stream)
        except ResponseError:  # no such stream yet
            return last_id
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"behaviour: {error}", retry_ms=1000) from error
        newest = info["last-generated-id"]
        if _order(newest.decode() if isinstance(newest, bytes) else str(newest)) < _order(last_id):
            return "0-0"
        return last_id

    async def _read(self, stream: str, position: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        try:
            entries: Any = await self._redis.xrange(stream, min=f"({position}", max="+", count=BATCH)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"behaviour: {error}", retry_ms=1000) from error
        return list(entries)

    async def _insert(self, t: Transaction, show: ShowId, bodies: Sequence[bytes]) -> int:
        records: list[Record] = []
        for body in bodies:
            try:
                records.append(_checked(self._decoder.decode(body)))
            except (msgspec.DecodeError, BadRequest) as error:
                # never of our making; one bad entry must not hold up the rest
                self._log.warning("behaviour record of show %s left out: %s", show, error)
        inserted = await t.conn.execute(
            """
            INSERT INTO behaviour_records (id, show_id, kind, viewer, member_id, subject, value, at, text)
            SELECT r.id, %(show)s, r.kind, CASE WHEN m.erased_at IS NULL THEN r.viewer END,
                   CASE WHEN m.erased_at IS NULL THEN r.member_id END, r.subject, r.value, r.at,
                   CASE WHEN m.erased_at IS NULL THEN r.text END
            FROM unnest(%(ids)s::uuid[], %(kinds)s::text[], %(viewers)s::text[], %(members)s::uuid[],
                        %(subjects)s::text[], %(values)s::bigint[], %(ats)s::timestamptz[], %(texts)s::text[])
                 AS r (id, kind, viewer, member_id, subject, value, at, text)
            LEFT JOIN members m ON m.id = r.member_id
            ON CONFLICT (id) DO NOTHING
            """,
            {
                "show": show,
                "ids": [record.id for record in records],
                "kinds": [record.kind for record in records],
                "viewers": [record.viewer for record in records],
                "members": [record.member for record in records],
                "subjects": [record.subject for record in records],
                "values": [record.value for record in records],
                "ats": [datetime.fromtimestamp(record.at / 1000, UTC) for record in records],
                "texts": [record.text for record in records],
            },
        )
        return inserted.rowcount


def _checked(record: Record) -> Record:
    """What PostgreSQL would choke on is refused here; what is merely too long is cut."""
    if not is_id(record.id) or (record.member is not None and not is_id(record.member)):
        raise BadRequest("an id that is none")
    if not 0 <= record.value <= WATCH_MS_MAX or not 0 <= record.at < 4_102_444_800_000:  # the year 2100
        raise BadRequest("a value or time out of bounds")
    if any("\0" in part for part in (record.viewer, record.subject)) or len(record.subject) > 200:
        raise BadRequest("a viewer or subject that cannot be stored")
    if record.text is not None:
        text = record.text.replace("\0", "").encode("utf-8", "replace").decode()[:TEXT_MAX]
        record = msgspec.structs.replace(record, text=text)
    return record


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)
