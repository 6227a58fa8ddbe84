"""The audit log: every act of staff, a shop's server or a job. Only ever added to.

`detail` names what changed by ids, numbers and words; never a phone, an address or a secret, because the
log outlives the people in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from membership.actor import Actor, id_from, new_id
from membership.page import Page, check_page, page_of
from membership.transaction import Connection, Transaction

REFUSED_EVERY_S = 60.0


class Act(msgspec.Struct, frozen=True):
    id: str
    at: datetime
    actor_kind: str
    actor_id: str
    actor_name: str
    act: str  # noun.verb
    subject: str  # kind:id
    detail: dict[str, Any]


def _act(row: DictRow) -> Act:
    return Act(**{**row, "id": str(row["id"])})


class Audit:
    async def record(
        self,
        t: Transaction,
        actor: Actor,
        act: str,
        subject: str,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        """Add one act, in the transaction of what it did: the act and its record stand or fall together."""
        await t.conn.execute(
            """
            INSERT INTO audit_log (id, actor_kind, actor_id, actor_name, act, subject, detail)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            """,
            (
                new_id(),
                actor.kind,
                actor.id,
                actor.name if actor.kind != "viewer" else "",
                act,
                subject,
                Jsonb(dict(detail or {})),
            ),
        )

    async def record_refused(
        self,
        t: Transaction,
        actor: Actor,
        act: str,
        subject: str,
        code: str,
        detail: Mapping[str, object] | None = None,
    ) -> bool:
        """Add that the actor tried this act and was refused, unless it stands there with the same code since
        less than a minute. Returns whether it was added."""
        row = await (
            await t.conn.execute(
                """
                SELECT 1 FROM audit_log
                WHERE id >= %(since)s AND act = %(act)s AND subject = %(subject)s AND actor_id = %(actor)s
                  AND detail->>'code' = %(code)s LIMIT 1
                """,  # ids are by time: no index but theirs is needed
                {
                    "since": id_from(time.time() - REFUSED_EVERY_S),
                    "act": f"{act}.refused",
                    "subject": subject,
                    "actor": actor.id,
                    "code": code,
                },
            )
        ).fetchone()
        if row is None:
            await self.record(t, actor, f"{act}.refused", subject, {**(detail or {}), "code": code})
        return row is None

    async def list(
        self, conn: Connection, cursor: str | None = None, limit: int = 50, *, subject: str | None = None
    ) -> Page[Act]:
        """Newest first; of everything or of one subject."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id, at, actor_kind, actor_id, actor_name, act, subject, detail FROM audit_log
                WHERE (%(cursor)s::uuid IS NULL OR id < %(cursor)s)
                  AND (%(subject)s::text IS NULL OR subject = %(subject)s)
                ORDER BY id DESC LIMIT %(limit)s + 1
                """,
                {"cursor": cursor, "subject": subject, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, _act)
