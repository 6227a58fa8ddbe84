"""The cost meter: what a show binds, has given away and has earned, at this moment.

Nothing is counted up as it happens: each number is a sum over rows, so that it cannot drift.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from commerce.budgets import Budgets
from membership.actor import ShowId
from membership.transaction import Connection

CostKind = Literal["benefit", "coupon", "price", "points", "freight"]


class CostRow(Struct, frozen=True, kw_only=True):
    """One thing that costs. `counted`: the budget of the show counts it."""

    kind: CostKind
    id: str
    title: str
    committed_fen: int
    spent_fen: int
    counted: bool


class ShowCosts(Struct, frozen=True, kw_only=True):
    """The meter. Sums are of what the budget counts; without a budget, `budget_fen` and `left_fen` are null.

    `goods_fen` is money paid for goods, `fees_fen` for plans, each less what went back. `margin_fen` is what remains of
    both after the cost of the pieces, the benefits and the points they earned; null while a sold product's cost is
    not known. `rebate_permille` is benefits, coupons and points earned, against both; 0 when nothing was sold.
    """

    budget_fen: int | None
    committed_fen: int
    spent_fen: int
    left_fen: int | None
    by: tuple[CostRow, ...]
    goods_fen: int
    fees_fen: int
    margin_fen: int | None
    rebate_permille: int


class Costs:
    """Reads the meter of a show."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    async def of_show(self, conn: Connection, show: ShowId) -> ShowCosts:
        """The meter now."""
        rows = [
            CostRow(
                kind="benefit",
                id=cost.benefit,
                title=cost.title,
                committed_fen=cost.committed_fen,
                spent_fen=cost.spent_fen,
                counted=True,
            )
            for cost in await self._budgets.benefit_costs(conn, show)
        ]
        rows += await _coupons(conn, show)
        cuts = await _one(conn, _CUTS, show)
        sold = await _one(conn, _SOLD, show)
        rows += [
            _row("price", "", cuts["price_bound"], cuts["price_spent"]),
            _row("points", "earned", sold["earned"], sold["earned"]),
            _row("points", "spent", cuts["points_bound"], cuts["points_spent"]),
            _row("freight", "", cuts["freight_bound"], cuts["freight_spent"]),
        ]
        budget = await self._budgets.get(conn, "show", show)
        counted = [row for row in rows if row.counted]
        spent_fen = sum(row.spent_fen for row in counted)
        coupons_fen = sum(row.spent_fen for row in rows if row.kind == "coupon")
        benefits_fen = sum(row.spent_fen for row in rows if row.kind == "benefit")
        came_fen: int = sold["goods_fen"] + sold["fees_fen"]
        rebate_fen = benefits_fen + coupons_fen + sold["earned"]
        return ShowCosts(
            budget_fen=budget.limit_fen,
            committed_fen=sum(row.committed_fen for row in counted),
            spent_fen=spent_fen,
            left_fen=budget.left_fen,
            by=tuple(row for row in rows if row.committed_fen or row.spent_fen or row.kind == "benefit"),
            goods_fen=sold["goods_fen"],
            fees_fen=sold["fees_fen"],
            margin_fen=None
            if sold["unknown"]
            else came_fen - sold["cost_fen"] - benefits_fen - sold["earned"],
            rebate_permille=rebate_fen * 1000 // came_fen if came_fen > 0 else 0,
        )


def _row(kind: CostKind, row_id: str, committed_fen: int, spent_fen: int) -> CostRow:
    return CostRow(
        kind=kind, id=row_id, title="", committed_fen=committed_fen, spent_fen=spent_fen, counted=False
    )


async def _one(conn: Connection, statement: Any, show: ShowId) -> dict[str, Any]:
    row = await (await conn.execute(statement, {"show": show})).fetchone()
    assert row is not None
    return row


async def _coupons(conn: Connection, show: ShowId) -> list[CostRow]:
    """What coupons took off the show's orders, by rule. What a benefit gave stands with the benefit."""
    cursor = await conn.execute(
        """
        SELECT r.id, r.title,
            coalesce(sum(c.off_fen) FILTER (WHERE o.state = 'placed' OR o.paid_at IS NOT NULL), 0)::bigint
                AS bound,
            coalesce(sum(c.off_fen) FILTER (WHERE o.paid_at IS NOT NULL), 0)::bigint AS spent
        FROM order_coupons c
        JOIN orders o ON o.id = c.order_id
        JOIN coupons k ON k.id = c.coupon_id
        JOIN coupon_rules r ON r.id = k.rule_id
        WHERE o.show_id = %s AND o.state <> 'refunded' AND NOT EXISTS (
            SELECT 1 FROM benefit_grants g WHERE g.coupon_id = k.id)
        GROUP BY r.id, r.title ORDER BY r.id
        """,
        [show],
    )
    return [
        CostRow(
            kind="coupon",
            id=str(row["id"]),
            title=row["title"],
            committed_fen=row["bound"],
            spent_fen=row["spent"],
            counted=False,
        )
        for row in await cursor.fetchall()
        if row["bound"] or row["spent"]
    ]


# `bound`: also of orders that may still be paid, and of flash pieces nobody has taken yet.
_CUTS = """
    WITH lines AS (
        SELECT o.paid_at IS NOT NULL AS paid,
            greatest(coalesce(l.list_fen, l.unit_fen) - l.unit_fen, 0) * l.quantity AS cut_fen
        FROM orders o JOIN order_lines l ON l.order_id = o.id AND l.kind = 'goods'
        WHERE o.show_id = %(show)s AND (o.state = 'placed' OR o.paid_at IS NOT NULL) AND o.state <> 'refunded'
    ), whole AS (
        SELECT o.paid_at IS NOT NULL AS paid, o.points_fen,
            greatest(coalesce(o.freight_list_fen, o.freight_fen) - o.freight_fen, 0) AS freight_cut
        FROM orders o
        WHERE o.show_id = %(show)s AND o.kind = 'goods' AND (o.state = 'placed' OR o.paid_at IS NOT NULL)
          AND o.state <> 'refunded'
    ), flash AS (
        SELECT coalesce(sum((p.list_fen - f.flash_fen) * (f.quota - f.taken)), 0)::bigint AS left_fen
        FROM offers f JOIN products p ON p.id = f.product_id
        WHERE f.show_id = %(show)s AND f.kind = 'flash' AND f.status = 'open' AND p.list_fen > f.flash_fen
    )
    SELECT (coalesce((SELECT sum(cut_fen) FROM lines), 0) + flash.left_fen)::bigint AS price_bound,
        coalesce((SELECT sum(cut_fen) FROM lines WHERE paid), 0)::bigint AS price_spent,
        coalesce((SELECT sum(points_fen) FROM whole), 0)::bigint AS points_bound,
        coalesce((SELECT sum(points_fen) FROM whole WHERE paid), 0)::bigint AS points_spent,
        coalesce((SELECT sum(freight_cut) FROM whole), 0)::bigint AS freight_bound,
        coalesce((SELECT sum(freight_cut) FROM whole WHERE paid), 0)::bigint AS freight_spent
    FROM flash
"""

# A point is worth a fen. Of an order refunded in part, what went back is taken off; its pieces were given. A gift to
# who joins is paid by the fee, so the fee counts too; of a plan given back, what was kept for more than the gifts.
_SOLD = """
    WITH paid AS (
        SELECT o.id, o.goods_fen - o.coupon_fen - o.points_fen
            - coalesce((SELECT sum(r.money_fen) FROM order_refunds r
                        WHERE r.order_id = o.id AND r.position > 0), 0) AS net_fen
        FROM orders o
        WHERE o.show_id = %(show)s AND o.kind = 'goods' AND o.paid_at IS NOT NULL AND o.state <> 'refunded'
    ), pieces AS (
        SELECT l.quantity * piece_cost(p) AS cost_fen
        FROM paid JOIN order_lines l ON l.order_id = paid.id AND l.kind = 'goods'
        JOIN products p ON p.id = l.product_id
    ), fees AS (
        SELECT o.total_fen - coalesce((
            SELECT sum(r.amount_fen) FROM payments p JOIN payment_returns r ON r.payment_id = p.id
            WHERE p.order_id = o.id AND p.outcome = 'accepted'), 0) - coalesce(b.gifts_fen, 0) AS net_fen
        FROM orders o LEFT JOIN plan_refunds b ON b.order_id = o.id
        WHERE o.show_id = %(show)s AND o.kind = 'plan' AND o.paid_at IS NOT NULL
    )
    SELECT coalesce((SELECT sum(net_fen) FROM paid), 0)::bigint AS goods_fen,
        coalesce((SELECT sum(net_fen) FROM fees), 0)::bigint AS fees_fen,
        coalesce((SELECT sum(cost_fen) FROM pieces), 0)::bigint AS cost_fen,
        EXISTS (SELECT 1 FROM pieces WHERE cost_fen IS NULL) AS unknown,
        coalesce((SELECT sum(e.amount) FROM points_entries e JOIN paid ON e.cause = 'order:' || paid.id
                  WHERE e.kind IN ('earn', 'reverse')), 0)::bigint AS earned
"""
