"""Points: a ledger of signed entries. Nothing in it is changed; the balance is its sum.

Each earning is a lot of its own, so that it can be pending, or be reversed, alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec
from psycopg.rows import DictRow

from membership.actor import MemberId, OrderId, new_id
from membership.notices import Notices
from membership.page import Page, check_page
from membership.refusal import BadRequest, KeyReused
from membership.transaction import Connection, Transaction

FEN_A_POINT = 100  # 1 yuan paid = 1 point
AMOUNT_MAX = 1_000_000_000
GOODS, GOODS_PLAN, GOODS_EVENT = "goods", "goods.plan", "goods.event"


class Balance(msgspec.Struct, frozen=True):
    active: int
    pending: int  # 待生效: until the return window ends


class Entry(msgspec.Struct, frozen=True):
    id: str
    lot: str
    kind: Literal["earn", "reverse"]
    amount: int
    reason: str
    cause: str
    active_from: datetime
    at: datetime


def lots_for_goods(
    paid_fen: int, plan_bonus_percent: int = 0, event_bonus_percent: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Reason → points for money paid for goods. The one place where points are floored.

    Multipliers are on the base and add up, one lot each: 109 paid, plan +20 %, a doubling event (+100 %)
    → 109 + 21 + 109. Lots of nothing are left out.
    """
    percents = {GOODS_PLAN: plan_bonus_percent}
    for name, percent in (event_bonus_percent or {}).items():
        percents[f"{GOODS_EVENT}:{name}"] = percent
    if paid_fen < 0 or any(percent < 0 for percent in percents.values()):
        raise BadRequest("Points are earned on money paid, never on less than nothing.")
    base = paid_fen // FEN_A_POINT
    lots = {GOODS: base} | {reason: base * percent // 100 for reason, percent in percents.items()}
    return {reason: points for reason, points in lots.items() if points > 0}


def _entry(row: DictRow) -> Entry:
    return Entry(
        id=str(row["id"]),
        lot=str(row["lot_id"]),
        kind=row["kind"],
        amount=row["amount"],
        reason=row["reason"],
        cause=row["cause"],
        active_from=row["active_from"],
        at=row["at"],
    )


class Points:
    def __init__(self, notices: Notices) -> None:
        self._notices = notices

    async def earn(
        self,
        t: Transaction,
        member: MemberId,
        amount: int,
        reason: str,
        cause: str,
        pending_until: datetime | None = None,
    ) -> Entry:
        """One lot. The same reason and cause again gives the same entry; with another body, KeyReused."""
        if not 0 < amount <= AMOUNT_MAX:
            raise BadRequest(f"Points are earned by 1–{AMOUNT_MAX}.")
        if not 1 <= len(reason) <= 60 or not 1 <= len(cause) <= 120:
            raise BadRequest("A reason has 1–60 characters, a cause 1–120.")
        lot = new_id()
        made = await (
            await t.conn.execute(
                """
                INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, active_from)
                VALUES (%(id)s, %(member)s, %(id)s, 'earn', %(amount)s, %(reason)s, %(cause)s,
                        coalesce(%(pending_until)s::timestamptz, clock_timestamp()))
                ON CONFLICT (reason, cause) DO NOTHING
                RETURNING *
                """,
                {
                    "id": lot,
                    "member": member,
                    "amount": amount,
                    "reason": reason,
                    "cause": cause,
                    "pending_until": pending_until,
                },
            )
        ).fetchone()
        if made is not None:
            self._tell(t, member, amount, reason)
            return _entry(made)
        seen = await (
            await t.conn.execute(
                "SELECT * FROM points_entries WHERE reason = %s AND cause = %s", (reason, cause)
            )
        ).fetchone()
        assert seen is not None  # entries are never deleted
        if (str(seen["member_id"]), seen["kind"], seen["amount"]) != (member, "earn", amount):
            raise KeyReused("Points were booked for this cause before, and otherwise.")
        return _entry(seen)

    async def earn_for_goods(
        self,
        t: Transaction,
        member: MemberId,
        order: OrderId,
        paid_fen: int,
        plan_bonus_percent: int,
        pending_until: datetime | None = None,
        event_bonus_percent: Mapping[str, int] | None = None,
    ) -> tuple[Entry, ...]:
        """The lots of one paid order. `paid_fen` is money for goods: no fee, freight, part paid by points."""
        lots = lots_for_goods(paid_fen, plan_bonus_percent, event_bonus_percent)
        return tuple(
            [
                await self.earn(t, member, points, reason, f"order:{order}", pending_until)
                for reason, points in lots.items()
            ]
        )

    async def reverse(self, t: Transaction, cause: str) -> int:
        """Answer every lot of this cause by its opposite. Returns the points taken back; again: 0."""
        rows = await (
            await t.conn.execute(
                "SELECT * FROM points_entries WHERE cause = %s AND kind = 'earn' ORDER BY id", (cause,)
            )
        ).fetchall()
        taken = 0
        for row in rows:
            reason = f"reverse:{row['reason']}"
            answered = await t.conn.execute(
                """
                INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, active_from)
                VALUES (%s, %s, %s, 'reverse', %s, %s, %s, %s)
                ON CONFLICT (reason, cause) DO NOTHING
                """,
                (
                    new_id(),
                    row["member_id"],
                    row["id"],
                    -row["amount"],
                    reason,
                    cause,
                    row["active_from"],
                ),
            )
            if answered.rowcount == 1:
                taken += row["amount"]
                self._tell(t, MemberId(str(row["member_id"])), -row["amount"], reason)
        return taken

    async def balance(self, conn: Connection, member: MemberId, *, at: datetime | None = None) -> Balance:
        """The sum of the entries: active, and still pending."""
        row = await (
            await conn.execute(
                """
                SELECT coalesce(sum(amount) FILTER (WHERE active_from <= now.at), 0)::bigint AS active,
                       coalesce(sum(amount) FILTER (WHERE active_from > now.at), 0)::bigint AS pending
                FROM points_entries, (SELECT coalesce(%s::timestamptz, clock_timestamp()) AS at) now
                WHERE member_id = %s
                """,
                (at, member),
            )
        ).fetchone()
        assert row is not None
        return Balance(active=row["active"], pending=row["pending"])

    async def entries(
        self, conn: Connection, member: MemberId, cursor: str | None = None, limit: int = 50
    ) -> Page[Entry]:
        """The member's entries, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT * FROM points_entries
                WHERE member_id = %(member)s AND (%(cursor)s::uuid IS NULL OR id < %(cursor)s)
                ORDER BY id DESC LIMIT %(limit)s + 1
                """,
                {"member": member, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        items = tuple(_entry(row) for row in rows[:limit])
        return Page(items, items[-1].id if len(rows) > limit else None)

    def _tell(self, t: Transaction, member: MemberId, amount: int, reason: str) -> None:
        message: dict[str, object] = {"type": "points.changed", "amount": amount, "reason": reason}
        t.after_commit(lambda: self._notices.send(member, message))
