"""The switch for everything that takes money: on by one act, off by one act, and then all is as it was.

One row says whether it is on. Shows follow it: their keys carry a mark over the offers and benefits, which
themselves do not change; so what somebody had paused before stays paused after. While it is on nothing is given,
held or started, the windows of what is open stand still, and each unpaid hold was prolonged once in its life.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from commerce.benefit_counters import benefit_keys, lock_show
from commerce.benefit_terms import TENDED
from commerce.messages import IncidentBegan, IncidentEnded, OrderChanged, encoded
from membership.actor import Actor, BenefitId, MemberId, OrderId, ShowId, new_id
from membership.audience import EVERYONE_BIT
from membership.moment import in_ms
from membership.notices import Notices
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.script import ScriptLoader, json_arg
from membership.transaction import Connection, Transaction, lock, lock_shared

EXTEND_MAX_S = 900
REASON_MAX = 200

Settle = Callable[[Transaction, ShowId], Awaitable[object]]


class MoneyPaused(Refusal):
    """Selling is paused for the moment."""

    code = "paused"


class NoIncident(NotFound):
    """The switch is not on."""


class Incident(Struct, frozen=True, kw_only=True):
    """The switch, from when to when. `extended` orders had their hold prolonged. Times are ms."""

    id: str
    reason: str
    extend_s: int
    extended: int
    began_at: int
    began_by: str
    ended_at: int | None
    ended_by: str | None
    version: int


class Incidents:
    """The switch, and bringing each show in line with it."""

    def __init__(self, scripts: ScriptLoader, notices: Notices) -> None:
        self._notices = notices
        self._put = scripts.load("commerce", "put_incident")
        self._extend = scripts.load("commerce", "extend_seats")

    async def begin(self, t: Transaction, actor: Actor, reason: str, extend_s: int) -> Incident:
        """Switch it on; while it is on, again changes nothing. Raises Forbidden, BadRequest."""
        if not actor.may("incident.run"):
            raise Forbidden
        reason = reason.strip()
        if not 1 <= len(reason) <= REASON_MAX:
            raise BadRequest(f"A reason has 1–{REASON_MAX} characters; viewers see it.")
        if not 0 <= extend_s <= EXTEND_MAX_S:
            raise BadRequest(f"Holds are prolonged by 0–{EXTEND_MAX_S} seconds.")
        # Whoever has begun to sell something ends first; from the commit on nobody begins.
        await lock(t.conn, "incident")
        before = await self.now(t.conn)
        if before is not None:
            return before
        incident = new_id()
        await t.conn.execute(
            "INSERT INTO incidents (id, reason, extend_s, began_by, began_name) VALUES (%s, %s, %s, %s, %s)",
            [incident, reason, extend_s, f"{actor.kind}:{actor.id}", actor.name],
        )
        extended = await self._prolong(t, incident, extend_s) if extend_s else 0
        await t.conn.execute("UPDATE incidents SET extended = %s WHERE id = %s", [extended, incident])
        begun = await self.now(t.conn)
        assert begun is not None
        await self._put_after(t, begun)
        return begun

    async def end(self, t: Transaction, actor: Actor, settle_benefits: Settle | None = None) -> Incident:
        """Switch it off: everything goes on as it was, with the time it had left.

        `settle_benefits` puts their new ends in force before the shows go on. Raises Forbidden, NoIncident.
        """
        if not actor.may("incident.run"):
            raise Forbidden
        await lock(t.conn, "incident")
        found = await t.conn.execute(
            """
            UPDATE incidents SET ended_at = greatest(began_at, clock_timestamp()), ended_by = %s, ended_name = %s
            WHERE ended_at IS NULL RETURNING *
            """,
            [f"{actor.kind}:{actor.id}", actor.name],
        )
        row = await found.fetchone()
        if row is None:
            raise NoIncident
        ended = _incident(row)
        stood = {"for": row["ended_at"] - row["began_at"], "since": row["began_at"]}
        found = await t.conn.execute(
            "SELECT DISTINCT show_id FROM benefits WHERE status <> 'closed' AND closes_at > %(since)s"
            " ORDER BY show_id",
            stood,
        )
        shows = [ShowId(each["show_id"]) for each in await found.fetchall()]
        for show in shows:
            await lock_show(t.conn, show)
        await t.conn.execute(
            """
            WITH locked AS MATERIALIZED (
                SELECT id FROM offers WHERE status = 'open' AND closes_at > %(since)s
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE offers o SET closes_at = o.closes_at + %(for)s FROM locked WHERE o.id = locked.id
            """,
            stood,
        )
        # Not a change that is told: the last one stays the last.
        await t.conn.execute(
            """
            WITH locked AS MATERIALIZED (
                SELECT id FROM benefits WHERE status <> 'closed' AND closes_at > %(since)s
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE benefits b SET closes_at = b.closes_at + %(for)s, version = b.version + 1,
                told_version = CASE WHEN b.told_version >= b.version THEN b.version + 1 ELSE b.told_version END,
                changed_at = clock_timestamp()
            FROM locked WHERE b.id = locked.id
            """,
            stood,
        )
        if settle_benefits is not None:
            for show in shows:
                await settle_benefits(t, show)
        await self._put_after(t, ended)
        return ended

    async def now(self, conn: Connection) -> Incident | None:
        """The incident that is on; None when the switch is off."""
        row = await (await conn.execute("SELECT * FROM incidents WHERE ended_at IS NULL")).fetchone()
        return None if row is None else _incident(row)

    async def check(self, conn: Connection) -> None:
        """Refuse while it is on. Who was let through has the time until its transaction ends: the switch waits
        for it. Take it before any row of an order, an offer or a benefit is locked. Raises MoneyPaused."""
        await lock_shared(conn, "incident")
        on = await self.now(conn)
        if on is not None:
            raise MoneyPaused(f"Selling is paused for the moment: {on.reason}", reason=on.reason)

    async def agree(self, conn: Connection, show: ShowId | None = None) -> int:
        """Bring every show that is not over, or this one, in line with the last act; returns how many followed.

        Idempotent: each second or so by the job, and when the keys of a show were made anew."""
        row = await (await conn.execute("SELECT * FROM incidents ORDER BY ordinal DESC LIMIT 1")).fetchone()
        if row is None:
            return 0
        shows = await self._shows(conn) if show is None else [show]
        return await self._put_all(_incident(row), shows, await self._held_for(conn, show))

    # --- parts ---

    async def _prolong(self, t: Transaction, incident: str, extend_s: int) -> int:
        """Every unpaid hold that was not prolonged before; its buyer is told."""
        found = await t.conn.execute(
            """
            WITH locked AS MATERIALIZED (
                SELECT id FROM orders
                WHERE state = 'placed' AND extended_by IS NULL AND hold_until > clock_timestamp()
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE orders o SET hold_until = o.hold_until + make_interval(secs => %s), extended_by = %s
            FROM locked WHERE o.id = locked.id
            RETURNING o.id, o.kind, o.member_id, o.hold_until
            """,
            [extend_s, incident],
        )
        rows = await found.fetchall()
        news: list[tuple[MemberId, dict[str, object]]] = [
            (
                MemberId(str(row["member_id"])),
                msgspec.to_builtins(
                    OrderChanged(
                        order=OrderId(str(row["id"])),
                        kind=row["kind"],
                        state="placed",
                        hold_until=in_ms(row["hold_until"]),
                    )
                ),
            )
            for row in rows
        ]
        if news:
            t.after_commit(lambda: self._tell(news))
        return len(rows)

    async def _tell(self, news: Sequence[tuple[MemberId, dict[str, object]]]) -> None:
        """The order's page says the same, should this be lost."""
        with contextlib.suppress(Unavailable):
            await self._notices.send_many(news)

    async def _put_after(self, t: Transaction, incident: Incident) -> None:
        shows = await self._shows(t.conn)
        held = await self._held_for(t.conn)
        t.after_commit(lambda: self._put_all(incident, shows, held))

    async def _put_all(
        self, incident: Incident, shows: Sequence[ShowId], benefits: Sequence[tuple[ShowId, BenefitId]]
    ) -> int:
        """What fails here is done by the job: one show without its keys does not hold up the others."""
        on = incident.ended_at is None
        shown = [{"a": EVERYONE_BIT, "d": {"reason": incident.reason, "since": incident.began_at}}]
        event = IncidentBegan(reason=incident.reason) if on else IncidentEnded()
        put = 0
        for show in shows:
            with contextlib.suppress(Unavailable):
                put += int(
                    await self._put(
                        show,
                        [],
                        [
                            incident.version,
                            json_arg(shown) if on else b"",
                            encoded(event),
                            incident.reason if on else "",
                        ],
                    )
                )
        if on and incident.extend_s:
            for show, benefit in benefits:
                with contextlib.suppress(Unavailable):
                    await self._extend(
                        show, benefit_keys(benefit), [benefit, incident.id, incident.extend_s * 1000]
                    )
        return put

    async def _shows(self, conn: Connection) -> list[ShowId]:
        cursor = await conn.execute(
            "SELECT id FROM shows WHERE state NOT IN ('scheduled', 'ended') ORDER BY id"
        )
        return [ShowId(row["id"]) for row in await cursor.fetchall()]

    async def _held_for(self, conn: Connection, show: ShowId | None = None) -> list[tuple[ShowId, BenefitId]]:
        """The benefits for joining in which a seat may be held: also closed ones, and where the show is over."""
        cursor = await conn.execute(
            f"""
            SELECT id, show_id FROM benefits
            WHERE needs = 'join' AND {TENDED} AND (%(show)s::text IS NULL OR show_id = %(show)s)
            """,  # noqa: S608 - a constant; what comes from outside is a parameter
            {"show": show},
        )
        return [(ShowId(row["show_id"]), BenefitId(str(row["id"]))) for row in await cursor.fetchall()]


def _incident(row: dict[str, Any]) -> Incident:
    return Incident(
        id=str(row["id"]),
        reason=row["reason"],
        extend_s=row["extend_s"],
        extended=row["extended"],
        began_at=in_ms(row["began_at"]),
        began_by=row["began_name"],
        ended_at=None if row["ended_at"] is None else in_ms(row["ended_at"]),
        ended_by=row["ended_name"],
        version=row["ordinal"] * 2 + (row["ended_at"] is not None),
    )
