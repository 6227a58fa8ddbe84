"""Budgets: what benefits may cost, for one benefit, a show and a calendar month.

What is open binds its whole quota; what is closed, only what was given and what may still be paid for. Two
openings at once wait for each other here, so that both together stay within the limit.
"""

from __future__ import annotations

import re
from typing import Any, Literal, LiteralString

from msgspec import Struct

from commerce.approvals import Broken
from membership.actor import Actor, BenefitId, ShowId, is_id
from membership.refusal import BadRequest, Forbidden
from membership.transaction import Connection, Transaction, lock

LIMIT_MAX_FEN = 100_000_000_000
Scope = Literal["benefit", "show", "month"]
_SHAPES = {"month": re.compile(r"20\d\d-(0[1-9]|1[0-2])"), "show": re.compile(r"[a-z0-9]{4,40}")}


# Each by an index of its own: a month has many benefits, all months many more.
_SUMS: dict[Scope, LiteralString] = {
    "benefit": "SELECT coalesce(sum(committed_fen), 0)::bigint AS committed,"
    " coalesce(sum(spent_fen), 0)::bigint AS spent FROM benefit_spending WHERE benefit = %s::uuid",
    "show": "SELECT coalesce(sum(committed_fen), 0)::bigint AS committed,"
    " coalesce(sum(spent_fen), 0)::bigint AS spent FROM benefit_spending WHERE show_id = %s",
    "month": "SELECT coalesce(sum(committed_fen), 0)::bigint AS committed,"
    " coalesce(sum(spent_fen), 0)::bigint AS spent FROM benefit_spending WHERE month = %s",
}


class Budget(Struct, frozen=True, kw_only=True):
    """A limit and what stands against it. Without a limit, `limit_fen` and `left_fen` are null."""

    scope: Scope
    subject: str
    limit_fen: int | None
    committed_fen: int
    spent_fen: int
    left_fen: int | None


class BenefitCost(Struct, frozen=True, kw_only=True):
    """What one benefit binds and has cost."""

    benefit: BenefitId
    title: str
    piece_fen: int
    committed_fen: int
    spent_fen: int


class Budgets:
    """Reads what is bound and given, and says which limits are passed. `…_fen` are defaults; 0 is no limit."""

    def __init__(
        self,
        *,
        timezone: str = "Asia/Shanghai",
        benefit_fen: int = 0,
        show_fen: int = 0,
        month_fen: int = 0,
    ) -> None:
        self._timezone = timezone
        self._defaults: dict[Scope, int] = {"benefit": benefit_fen, "show": show_fen, "month": month_fen}

    async def lock(self, conn: Connection) -> None:
        """One at a time until the transaction ends. Behind it only what a benefit brings is waited for."""
        await lock(conn, "budgets")

    async def month_now(self, conn: Connection) -> str:
        """The calendar month in the shop's zone."""
        row = await (
            await conn.execute(
                "SELECT to_char(clock_timestamp() AT TIME ZONE %s, 'YYYY-MM') AS month", [self._timezone]
            )
        ).fetchone()
        assert row is not None
        return str(row["month"])

    async def note(self, conn: Connection, benefit: BenefitId, piece_fen: int) -> None:
        """What one piece of a benefit that opens may cost, in the month that it is now."""
        await conn.execute(
            "INSERT INTO benefit_costs (benefit_id, piece_fen, month) VALUES (%s, %s, %s)"
            " ON CONFLICT (benefit_id) DO NOTHING",
            [benefit, piece_fen, await self.month_now(conn)],
        )

    async def broken_by(self, conn: Connection, benefit: BenefitId) -> list[Broken]:
        """The limits that are passed with this benefit's terms as they are written. Call it under `lock`."""
        row = await (
            await conn.execute("SELECT show_id, month FROM benefit_spending WHERE benefit = %s", [benefit])
        ).fetchone()
        assert row is not None
        broken = []
        scopes: tuple[tuple[Scope, str, str], ...] = (
            ("benefit", benefit, "this benefit"),
            ("show", row["show_id"], "this show"),
            ("month", row["month"] or "", f"the month {row['month']}"),
        )
        for scope, subject, named in scopes:
            found = await self.get(conn, scope, subject)
            if found.limit_fen is None or found.committed_fen <= found.limit_fen:
                continue
            over_fen = found.committed_fen - found.limit_fen
            # Of a benefit that opens the id is new with each try; of the rest it is what the limit is set for.
            broken.append(
                Broken(
                    rule="over_budget",
                    subject=scope if scope == "benefit" else f"{scope}:{subject}",
                    fen=over_fen,
                    limit_fen=found.limit_fen,
                    text=f"This passes the budget of {named}: {yuan(found.committed_fen)}"
                    f" of {yuan(found.limit_fen)}.",
                )
            )
        return broken

    async def get(self, conn: Connection, scope: Scope, subject: str) -> Budget:
        """One limit with what stands against it."""
        sums = await (await conn.execute(_SUMS[scope], [subject])).fetchone()
        assert sums is not None
        limit_fen = await self._limit(conn, scope, subject)
        return Budget(
            scope=scope,
            subject=subject,
            limit_fen=limit_fen,
            committed_fen=sums["committed"],
            spent_fen=sums["spent"],
            left_fen=None if limit_fen is None else limit_fen - sums["committed"],
        )

    async def of_show(self, conn: Connection, show: ShowId) -> list[Budget]:
        """The limits that bear on a show: this month's, its own, and those of its benefits."""
        found = [
            await self.get(conn, "month", await self.month_now(conn)),
            await self.get(conn, "show", show),
        ]
        for cost in await self.benefit_costs(conn, show):
            limit_fen = await self._limit(conn, "benefit", cost.benefit)
            if limit_fen is not None:
                found.append(
                    Budget(
                        scope="benefit",
                        subject=cost.benefit,
                        limit_fen=limit_fen,
                        committed_fen=cost.committed_fen,
                        spent_fen=cost.spent_fen,
                        left_fen=limit_fen - cost.committed_fen,
                    )
                )
        return found

    async def benefit_costs(self, conn: Connection, show: ShowId) -> list[BenefitCost]:
        """Each benefit of a show with what it binds and has cost, in the order they were opened."""
        cursor = await conn.execute(
            "SELECT * FROM benefit_spending WHERE show_id = %s ORDER BY benefit", [show]
        )
        return [
            BenefitCost(
                benefit=BenefitId(str(row["benefit"])),
                title=row["title"],
                piece_fen=row["piece_fen"],
                committed_fen=row["committed_fen"],
                spent_fen=row["spent_fen"],
            )
            for row in await cursor.fetchall()
        ]

    async def set(
        self, t: Transaction, actor: Actor, scope: Scope, subject: str, limit_fen: int | None
    ) -> Budget:
        """Set a limit; None takes it off, and the default holds again. What is bound already stays.

        Raises Forbidden, BadRequest.
        """
        if not actor.may("approve"):
            raise Forbidden
        shown = is_id(subject) if scope == "benefit" else bool(_SHAPES[scope].fullmatch(subject))
        if not shown:
            raise BadRequest(f"This is no {scope}.")
        if limit_fen is not None and not 0 <= limit_fen <= LIMIT_MAX_FEN:
            raise BadRequest(f"A budget is 0–{LIMIT_MAX_FEN}.")
        await self.lock(t.conn)
        if limit_fen is None:
            await t.conn.execute("DELETE FROM budgets WHERE scope = %s AND subject = %s", [scope, subject])
        else:
            await t.conn.execute(
                """
                INSERT INTO budgets (scope, subject, limit_fen, set_by) VALUES (%s, %s, %s, %s)
                ON CONFLICT (scope, subject) DO UPDATE SET limit_fen = excluded.limit_fen,
                    set_by = excluded.set_by, set_at = clock_timestamp()
                """,
                [scope, subject, limit_fen, f"{actor.kind}:{actor.id}"],
            )
        return await self.get(t.conn, scope, subject)

    async def _limit(self, conn: Connection, scope: Scope, subject: str) -> int | None:
        row = await (
            await conn.execute(
                "SELECT limit_fen FROM budgets WHERE scope = %s AND subject = %s", [scope, subject]
            )
        ).fetchone()
        return int(row["limit_fen"]) if row is not None else self._defaults[scope] or None


def yuan(fen: int) -> str:
    """An amount as people read it."""
    return f"{fen // 100}.{fen % 100:02d}"


def piece_of(row: dict[str, Any], coupon_fen: int) -> int:
    """What one piece of a benefit may cost at most, whatever value it states: nobody gets round a budget by
    stating nothing."""
    brought = {
        "points": int(row["points"]),  # a point is worth a fen
        "coupon": coupon_fen,
        "free_order": int(row["cap_fen"]),
    }
    return max(int(row["value_fen"]), brought.get(row["what"], 0))
