"""The savings meter: what a plan has brought its member since it began, part by part, against the card's fee.

It never claims more than was saved: only paid goods that were kept count, only prices that the plan alone
gave (against the lowest price one would have had without it), gifts at their stated value, coupons that only
members of a plan may use.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from commerce.order_book import PAID
from commerce.prices import MemberDay
from membership.actor import MemberId, PlanId
from membership.moment import in_ms
from membership.plans import Plans, Term
from membership.transaction import Connection

PLAN_ONLY = ["plan_members", "plans"]  # kinds of audiences that a plan alone lets one into


class Savings(Struct, frozen=True, kw_only=True):
    """The parts, their sum, and the fee they are set against. `left_fen`: what is still to save until the fee
    is earned back; 0 once it is."""

    plan: PlanId
    plan_name: str
    kind: Literal["trial", "paid", "grace"]
    since: int  # ms
    until: int  # ms
    fee_fen: int
    price_fen: int
    freight_fen: int
    gift_fen: int
    coupon_fen: int
    total_fen: int
    left_fen: int


class PurchaseGift(Struct, frozen=True, kw_only=True):
    """A gift that came with a purchase because of the plan: the stated value of the pieces that were kept."""

    title: str
    value_fen: int
    sent: bool
    returned: bool


async def purchase_gifts(
    conn: Connection, member: MemberId, since: datetime, until: datetime | None = None
) -> tuple[PurchaseGift, ...]:
    """The gifts of paid orders placed in that time. A piece that was refunded takes its gift with it; a gift's
    line stands behind the line of goods it came with."""
    rows = await (
        await conn.execute(
            """
            SELECT l.name AS title, l.gift_value_fen * (l.quantity - back.pieces) AS value_fen,
                o.state = 'fulfilled' OR coalesce(parcels.sent, false) AS sent,
                coalesce(parcels.returned, false) AS returned
            FROM orders o JOIN order_lines l ON l.order_id = o.id
            JOIN products p ON p.id = l.product_id
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(r.quantity), 0)::bigint AS pieces FROM order_refunds r
                WHERE r.order_id = o.id AND r.position = l.position - 1) back
            CROSS JOIN LATERAL (
                SELECT count(*) > 0 AS sent, bool_and(s.returned_at IS NOT NULL) AS returned FROM parcels s
                WHERE s.order_id = o.id) parcels
            WHERE o.member_id = %(member)s AND o.kind = 'goods' AND o.state = ANY(%(paid)s)
              AND o.placed_at >= %(since)s
              AND (%(until)s::timestamptz IS NULL OR o.placed_at < %(until)s)
              AND l.kind = 'gift' AND l.quantity > back.pieces
              AND p.gift_audience->>'kind' = ANY(%(only)s)
            ORDER BY o.id, l.position
            """,
            {"member": member, "since": since, "until": until, "paid": list(PAID), "only": PLAN_ONLY},
        )
    ).fetchall()
    return tuple(PurchaseGift(**row) for row in rows)


class SavingsMeter:
    """Adds up what members have saved."""

    def __init__(self, plans: Plans, *, member_day: MemberDay | None = None) -> None:
        self._plans = plans
        self._plan_kinds = plan_kinds(member_day)

    async def of(self, conn: Connection, member: MemberId) -> Savings | None:
        """What the member's running plan has saved; None without a plan."""
        term = await self._plans.current(conn, member)
        if term is None:
            return None
        plan = await self._plans.get(conn, term.plan)
        price_fen = await self._prices(conn, term)
        row = await (
            await conn.execute(
                """
                WITH own AS (
                    SELECT * FROM orders WHERE member_id = %(member)s AND kind = 'goods'
                      AND placed_at >= %(since)s AND state = ANY(%(paid)s)
                ), kept AS (
                    SELECT l.order_id, l.kind, l.line_fen, l.quantity,
                        l.quantity - coalesce((SELECT sum(r.quantity) FROM order_refunds r
                            WHERE r.order_id = l.order_id AND r.position = l.position), 0) AS pieces
                    FROM order_lines l JOIN own ON own.id = l.order_id
                )
                SELECT
                    (SELECT coalesce(sum(greatest(0, o.freight_list_fen - o.freight_fen - coalesce((
                            SELECT sum(c.off_fen) FROM order_coupons c
                            WHERE c.order_id = o.id AND c.kind = 'freight'), 0))), 0)
                        FROM own o WHERE o.freight_list_fen IS NOT NULL)::bigint AS freight_fen,
                    (SELECT coalesce(sum(b.value_fen), 0)
                        FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
                        WHERE c.member_id = %(member)s AND c.state = 'confirmed' AND b.what = 'gift'
                          AND c.claimed_at >= %(since)s
                          AND (b.needs = 'join' OR b.audience->>'kind' = ANY(%(only)s)))::bigint AS gift_fen,
                    (SELECT coalesce(sum(c.off_fen * (
                            SELECT sum(k.line_fen / k.quantity * k.pieces) FROM kept k
                            WHERE k.order_id = o.id AND k.kind = 'goods')::bigint / greatest(o.goods_fen, 1)), 0)
                        FROM own o JOIN order_coupons c ON c.order_id = o.id
                        JOIN coupons held ON held.id = c.coupon_id
                        JOIN coupon_rules r ON r.id = held.rule_id
                        WHERE r.audience->>'kind' = ANY(%(only)s))::bigint AS coupon_fen
                """,
                {"member": member, "since": term.starts_at, "paid": list(PAID), "only": PLAN_ONLY},
            )
        ).fetchone()
        assert row is not None
        bought = await purchase_gifts(conn, member, term.starts_at)
        gift_fen = row["gift_fen"] + sum(gift.value_fen for gift in bought if not gift.returned)
        total_fen = price_fen + row["freight_fen"] + gift_fen + row["coupon_fen"]
        return Savings(
            plan=term.plan,
            plan_name=term.plan_name,
            kind=term.kind,
            since=in_ms(term.starts_at),
            until=in_ms(term.until),
            fee_fen=plan.fee_fen,
            price_fen=price_fen,
            freight_fen=row["freight_fen"],
            gift_fen=gift_fen,
            coupon_fen=row["coupon_fen"],
            total_fen=total_fen,
            left_fen=max(0, plan.fee_fen - total_fen),
        )

    async def _prices(self, conn: Connection, term: Term) -> int:
        rows = await (
            await conn.execute(
                """
                SELECT l.unit_fen, l.winner, l.candidates, l.quantity - coalesce((
                    SELECT sum(r.quantity) FROM order_refunds r
                    WHERE r.order_id = l.order_id AND r.position = l.position), 0)::bigint AS kept
                FROM order_lines l JOIN orders o ON o.id = l.order_id
                WHERE o.member_id = %s AND o.kind = 'goods' AND o.placed_at >= %s AND o.state = ANY(%s)
                  AND l.kind = 'goods' AND l.winner = ANY(%s)
                """,
                [term.member, term.starts_at, list(PAID), list(self._plan_kinds)],
            )
        ).fetchall()
        return sum(saved_on(row, self._plan_kinds) for row in rows)


# --- pure parts ---


def plan_kinds(member_day: MemberDay | None) -> set[str]:
    """The kinds of prices that only a plan gives."""
    kinds = {"member", "plan_percent"}
    if member_day is not None and member_day.audience.kind in PLAN_ONLY:
        kinds.add("member_day")
    return kinds


def saved_on(line: dict[str, Any], plan_kinds: set[str]) -> int:
    """What the plan's price saved on a line: against the lowest price one would have had without it."""
    if line["winner"] not in plan_kinds:
        return 0
    without = min(each["unit_fen"] for each in line["candidates"] if each["kind"] not in plan_kinds)
    return int(max(0, without - line["unit_fen"]) * line["kept"])
