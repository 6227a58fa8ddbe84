"""Points: a ledger of signed entries. Nothing in it is changed; the balance is its sum.

Each earning is a lot of its own, so that it can be pending, run out, or be reversed, alone. Spending takes from
the lots that end first, and what comes back comes back with its lot's own end. A lot whose earning was taken
back after it was spent is a debt: it does not run out, and what is earned next pays it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec
from psycopg.rows import DictRow

from membership.actor import MemberId, OrderId, new_id
from membership.notices import Notices
from membership.page import Page, check_page, page_of
from membership.refusal import BadRequest, KeyReused, Refusal
from membership.transaction import Connection, Transaction, lock

FEN_A_POINT = 100  # 1 yuan paid = 1 point
SPENT_BY = 100  # points are spent by hundreds; 100 points = 1 yuan, so a point spent is a fen
AMOUNT_MAX = 1_000_000_000
MONTHS = 12  # a lot ends with the 12th month after the one in which it became active
RESTORED_DAYS = 30  # what comes back after its end lasts so long again
GOODS, GOODS_PLAN, GOODS_EVENT = "goods", "goods.plan", "goods.event"


class NotEnoughPoints(Refusal):
    """You have not so many points to spend."""

    code = "not_enough_points"


class Balance(msgspec.Struct, frozen=True):
    active: int
    pending: int  # 待生效: until the return window ends


class Ending(msgspec.Struct, frozen=True):
    """Points that end together."""

    points: int
    at: datetime


class Entry(msgspec.Struct, frozen=True):
    id: str
    lot: str
    kind: Literal["earn", "reverse", "spend", "restore"]
    amount: int
    reason: str
    cause: str
    active_from: datetime
    at: datetime
    expires_at: datetime | None = None  # None: it never ends


class _Lot(msgspec.Struct, frozen=True):
    """What entries of one lot add up to."""

    id: str
    points: int
    active_from: datetime
    expires_at: datetime | None
    over: bool


def lots_for_goods(
    paid_fen: int,
    plan_bonus_percent: int = 0,
    event_bonus_percent: Mapping[str, int] | None = None,
    event_paid_fen: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Reason → points for money paid for goods. The one place where points are floored.

    Multipliers are on the base and add up, one lot each: 109 paid, plan +20 %, a doubling event (+100 %)
    → 109 + 21 + 109. An event for some goods only has the money paid for those as its base
    (`event_paid_fen`). Lots of nothing are left out.
    """
    bases = {GOODS_PLAN: (paid_fen, plan_bonus_percent)}
    for name, percent in (event_bonus_percent or {}).items():
        bases[event_reason(name)] = ((event_paid_fen or {}).get(name, paid_fen), percent)
    if paid_fen < 0 or any(percent < 0 or not 0 <= fen <= paid_fen for fen, percent in bases.values()):
        raise BadRequest("Points are earned on money paid, never on less than nothing.")
    lots = {GOODS: paid_fen // FEN_A_POINT} | {
        reason: fen // FEN_A_POINT * percent // 100 for reason, (fen, percent) in bases.items()
    }
    return {reason: points for reason, points in lots.items() if points > 0}


def event_reason(name: str) -> str:
    return f"{GOODS_EVENT}:{name}"


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
        expires_at=row["expires_at"],
    )


class Points:
    """`months`: a lot ends with that many months after the one in which it became active, counted in the
    shop's zone; 0: never."""

    def __init__(self, notices: Notices, *, timezone: str = "Asia/Shanghai", months: int = MONTHS) -> None:
        self._notices = notices
        self._timezone = timezone
        self._months = months

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
                INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, active_from,
                                            expires_at)
                SELECT %(id)s, %(member)s, %(id)s, 'earn', %(amount)s, %(reason)s, %(cause)s, f.active,
                       CASE WHEN %(months)s > 0 THEN
                           (date_trunc('month', f.active AT TIME ZONE %(zone)s)
                            + make_interval(months => %(months)s + 1)) AT TIME ZONE %(zone)s END
                FROM (SELECT coalesce(%(pending_until)s::timestamptz, clock_timestamp()) AS active) AS f
                ON CONFLICT (reason, cause) WHERE kind = 'earn' DO NOTHING
                RETURNING *
                """,
                {
                    "id": lot,
                    "member": member,
                    "amount": amount,
                    "reason": reason,
                    "cause": cause,
                    "pending_until": pending_until,
                    "months": self._months,
                    "zone": self._timezone,
                },
            )
        ).fetchone()
        if made is not None:
            self._tell(t, member, amount, reason)
            return _entry(made)
        seen = await (
            await t.conn.execute(
                "SELECT * FROM points_entries WHERE reason = %s AND cause = %s AND kind = 'earn'",
                (reason, cause),
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
        event_paid_fen: Mapping[str, int] | None = None,
    ) -> tuple[Entry, ...]:
        """The lots of one paid order. `paid_fen` is money for goods: no fee, freight, part paid by points."""
        lots = lots_for_goods(paid_fen, plan_bonus_percent, event_bonus_percent, event_paid_fen)
        return tuple(
            [
                await self.earn(t, member, points, reason, f"order:{order}", pending_until)
                for reason, points in lots.items()
            ]
        )

    async def spend(
        self, t: Transaction, member: MemberId, points: int, cause: str, part: str = ""
    ) -> tuple[Entry, ...]:
        """Take points from the lots that end first; those that never end come last, then the oldest first.

        The same cause and part again gives the same entries. Raises BadRequest (not by hundreds),
        NotEnoughPoints: then nothing is taken. A debt counts against what there is.
        """
        if not SPENT_BY <= points <= AMOUNT_MAX or points % SPENT_BY:
            raise BadRequest(f"Points are spent by {SPENT_BY}s.")
        await self.lock(t, member)
        before = await self._of(t.conn, cause, "spend", part)
        if before:
            if sum(each.amount for each in before) != -points:
                raise KeyReused("Points were spent for this cause before, and otherwise.")
            return before
        lots = [lot for lot in await self._lots(t.conn, member) if not lot.over or lot.points < 0]
        if sum(lot.points for lot in lots) < points:
            raise NotEnoughPoints
        made: list[Entry] = []
        left = points
        for lot in lots:
            taken = min(left, max(0, lot.points))
            if taken:
                made.append(await self._move(t, member, lot, "spend", -taken, "spend", cause, part))
                left -= taken
        self._tell(t, member, -points, "spend")
        return tuple(made)

    async def restore(self, t: Transaction, cause: str, points: int | None, part: str) -> int:
        """Give back what was spent for this cause, or so many points of it: what was taken last comes first.

        Each comes back with its lot's own end; where that has passed, for 30 days from now. Returns how many
        came back; the same part again: as many as then, and nothing happens. Raises BadRequest for more than
        is spent still.
        """
        member = await self._whose(t.conn, cause, "spend")
        if member is None:
            return 0
        await self.lock(t, member)
        before = await self._of(t.conn, cause, "restore", part)
        if before:
            return sum(each.amount for each in before)
        spent = await self._spent(t.conn, cause)
        most = sum(lot.points for lot in spent)
        wanted = most if points is None else points
        if not 0 <= wanted <= most:
            raise BadRequest(f"Of these points {most} are spent still.")
        left = wanted
        for lot in spent:
            back = min(left, lot.points)
            if back:
                await self._move(t, member, lot, "restore", back, "restore", cause, part)
                left -= back
        if wanted:
            self._tell(t, member, wanted, "restore")
        return wanted

    async def reverse(self, t: Transaction, cause: str, amount: int | None = None, part: str = "") -> int:
        """Take back what this cause gave: all that is left of it, or `amount` points, from its lots in
        proportion. Returns the points taken back; the same part again: 0.

        What was spent meanwhile is a debt. Raises BadRequest for more than is left.
        """
        lots = await self._earned(t, cause)
        most = sum(lots.values())
        if amount is None:
            return await self.settle(t, cause, {}, part)
        if not 0 <= amount <= most:
            raise BadRequest(f"Of these points {most} are left to take back.")
        keep = most - amount
        kept: dict[str, int] = {}
        taken = before = 0
        for reason, points in lots.items():  # cumulative floors: the parts add up to the whole
            before += points
            kept[reason] = before * keep // most - taken if most else 0
            taken += kept[reason]
        return await self.settle(t, cause, kept, part)

    async def settle(self, t: Transaction, cause: str, kept: Mapping[str, int], part: str = "") -> int:
        """Lower each lot of this cause to what it is to be (reason → points; one not named to nothing).

        Returns the points taken back. The same part again changes nothing; a lot is never raised.
        """
        lots = await self._earned(t, cause)
        if not lots or await self._of(t.conn, cause, "reverse", part):
            return 0
        rows = await (
            await t.conn.execute(
                "SELECT * FROM points_entries WHERE cause = %s AND kind = 'earn' ORDER BY id", (cause,)
            )
        ).fetchall()
        total = 0
        for row in rows:
            taken = lots[row["reason"]] - kept.get(row["reason"], 0)
            if taken <= 0:
                continue
            member = MemberId(str(row["member_id"]))
            lot = _Lot(str(row["id"]), taken, row["active_from"], row["expires_at"], False)
            reason = f"reverse:{row['reason']}"
            await self._move(t, member, lot, "reverse", -taken, reason, cause, part)
            self._tell(t, member, -taken, reason)
            total += taken
        return total

    async def balance(self, conn: Connection, member: MemberId, *, at: datetime | None = None) -> Balance:
        """The sum of the entries of lots that have not run out, and of debts: active, and still pending."""
        row = await (
            await conn.execute(
                """
                WITH now AS MATERIALIZED (SELECT coalesce(%s::timestamptz, clock_timestamp()) AS at)
                SELECT coalesce(sum(counted) FILTER (WHERE active_from <= at), 0)::bigint AS active,
                       coalesce(sum(counted) FILTER (WHERE active_from > at), 0)::bigint AS pending
                FROM (
                    SELECT now.at, min(active_from) AS active_from,
                           CASE WHEN max(expires_at) <= now.at THEN least(sum(amount), 0) ELSE sum(amount) END
                           AS counted
                    FROM points_entries, now WHERE member_id = %s GROUP BY lot_id, now.at
                ) AS lots
                """,
                (at, member),
            )
        ).fetchone()
        assert row is not None
        return Balance(active=row["active"], pending=row["pending"])

    async def ending(self, conn: Connection, member: MemberId, limit: int = 60) -> tuple[Ending, ...]:
        """What ends when, soonest first: every date, not only the next one."""
        rows = await (
            await conn.execute(
                """
                SELECT expires_at, sum(points)::bigint AS points FROM (
                    SELECT max(expires_at) AS expires_at, sum(amount) AS points FROM points_entries
                    WHERE member_id = %s GROUP BY lot_id
                ) AS lots
                WHERE points > 0 AND expires_at > clock_timestamp()
                GROUP BY expires_at ORDER BY expires_at LIMIT %s
                """,
                (member, limit),
            )
        ).fetchall()
        return tuple(Ending(row["points"], row["expires_at"]) for row in rows)

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
        return page_of(rows, limit, _entry)

    async def lock(self, t: Transaction, member: MemberId) -> None:
        """One movement of a member's points at a time. Who also locks rows of stock takes this first, so that
        two acts of one member never wait for each other."""
        await lock(t.conn, f"points:{member}")

    async def _whose(self, conn: Connection, cause: str, kind: str) -> MemberId | None:
        row = await (
            await conn.execute(
                "SELECT member_id FROM points_entries WHERE cause = %s AND kind = %s LIMIT 1", (cause, kind)
            )
        ).fetchone()
        return None if row is None else MemberId(str(row["member_id"]))

    async def _of(self, conn: Connection, cause: str, kind: str, part: str) -> tuple[Entry, ...]:
        rows = await (
            await conn.execute(
                "SELECT * FROM points_entries WHERE cause = %s AND kind = %s AND part = %s ORDER BY id",
                (cause, kind, part),
            )
        ).fetchall()
        return tuple(_entry(row) for row in rows)

    async def _lots(self, conn: Connection, member: MemberId) -> tuple[_Lot, ...]:
        """The member's lots that are active, in the order in which they are spent."""
        rows = await (
            await conn.execute(
                """
                SELECT lot_id::text AS id, sum(amount)::bigint AS points, min(active_from) AS active_from,
                       max(expires_at) AS expires_at,
                       coalesce(max(expires_at) <= clock_timestamp(), false) AS over
                FROM points_entries WHERE member_id = %s GROUP BY lot_id
                HAVING sum(amount) <> 0 AND min(active_from) <= clock_timestamp()
                ORDER BY max(expires_at) NULLS LAST, min(active_from), lot_id
                """,
                (member,),
            )
        ).fetchall()
        return tuple(_Lot(**row) for row in rows)

    async def _spent(self, conn: Connection, cause: str) -> tuple[_Lot, ...]:
        """What is spent still for a cause, by lot; what was taken last stands first."""
        rows = await (
            await conn.execute(
                """
                SELECT lot.id::text AS id, -sum(e.amount)::bigint AS points, lot.active_from, lot.expires_at,
                       coalesce(lot.expires_at <= clock_timestamp(), false) AS over
                FROM points_entries e
                JOIN points_entries lot ON lot.id = coalesce(e.back_to, e.lot_id)
                WHERE e.cause = %s AND e.kind IN ('spend', 'restore')
                GROUP BY lot.id HAVING sum(e.amount) < 0
                ORDER BY max(e.id::text) FILTER (WHERE e.kind = 'spend') DESC
                """,
                (cause,),
            )
        ).fetchall()
        return tuple(_Lot(**row) for row in rows)

    async def _earned(self, t: Transaction, cause: str) -> dict[str, int]:
        """Reason → what is left of the lots that this cause earned, once nobody else is changing them."""
        member = await self._whose(t.conn, cause, "earn")
        if member is None:
            return {}
        await self.lock(t, member)
        rows = await (
            await t.conn.execute(
                """
                SELECT lot.reason, sum(e.amount)::bigint AS points
                FROM points_entries lot JOIN points_entries e ON e.lot_id = lot.id
                WHERE lot.cause = %s AND lot.kind = 'earn' AND e.kind IN ('earn', 'reverse')
                GROUP BY lot.id ORDER BY lot.id
                """,
                (cause,),
            )
        ).fetchall()
        return {row["reason"]: row["points"] for row in rows}

    async def _move(
        self,
        t: Transaction,
        member: MemberId,
        lot: _Lot,
        kind: Literal["reverse", "spend", "restore"],
        amount: int,
        reason: str,
        cause: str,
        part: str,
    ) -> Entry:
        """One entry of a lot. What is restored to a lot that has run out is a lot of its own, for 30 days."""
        number = new_id()
        row = await (
            await t.conn.execute(
                """
                INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, part,
                                            active_from, expires_at, back_to)
                SELECT %(id)s, %(member)s, CASE WHEN f.anew THEN %(id)s::uuid ELSE %(lot)s::uuid END, %(kind)s,
                       %(amount)s, %(reason)s, %(cause)s, %(part)s,
                       CASE WHEN f.anew THEN f.at ELSE %(active_from)s::timestamptz END,
                       CASE WHEN f.anew THEN f.at + make_interval(days => %(days)s)
                            ELSE %(expires_at)s::timestamptz END,
                       CASE WHEN f.anew THEN %(lot)s::uuid END
                FROM (SELECT clock_timestamp() AS at, %(anew)s::boolean AS anew) AS f
                RETURNING *
                """,
                {
                    "id": number,
                    "member": member,
                    "lot": lot.id,
                    "kind": kind,
                    "amount": amount,
                    "reason": reason,
                    "cause": cause,
                    "part": part,
                    "active_from": lot.active_from,
                    "expires_at": lot.expires_at,
                    "anew": kind == "restore" and lot.over,
                    "days": RESTORED_DAYS,
                },
            )
        ).fetchone()
        assert row is not None
        return _entry(row)

    def _tell(self, t: Transaction, member: MemberId, amount: int, reason: str) -> None:
        message: dict[str, object] = {"type": "points.changed", "amount": amount, "reason": reason}
        t.after_commit(lambda: self._notices.send(member, message))
