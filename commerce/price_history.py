"""What was paid before: the price that may be struck through beside a time-limited cut.

Only a cut that ends is set against an earlier price, and that is the lowest one really paid in the seven days
before it began; without any in those days, the last one paid. A price that only stands beside another (the
member price beside the list price) is no cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from commerce.prices import MemberDay, OfferRow, Priced
from commerce.products import PriceEntry
from membership.actor import ProductId
from membership.transaction import Connection

BEFORE = timedelta(days=7)
KNOWN_MAX = 2_000  # cuts remembered; beyond that all are forgotten and read again


def cut_since(
    row: OfferRow,
    price: Priced,
    entries: Sequence[PriceEntry],
    member_day: MemberDay | None,
    now: datetime,
) -> datetime | None:
    """Since when the price that won has been a cut for a limited time; None when it is none."""
    if price.winner == "flash":
        return row.opened_at
    if price.winner == "member_day" and member_day is not None:
        return member_day.began(now)
    begun = [
        entry.from_at
        for entry in entries
        if entry.unit_fen == price.unit_fen
        and entry.min_quantity == 1  # a price for many at once is no cut
        and entry.until_at is not None
        and entry.from_at <= now < entry.until_at
    ]
    return min(begun) if begun and price.winner in ("price_list", "member", "tier") else None


class PriceHistory:
    """Reads what was paid before a cut. A cut's beginning lies in the past, and what was paid before it stays
    as it is: each is read once and remembered, so that a storm of quotes does not read a week of orders each.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[ProductId, datetime], int | None] = {}

    async def paid_before(self, conn: Connection, cuts: Mapping[ProductId, datetime]) -> dict[ProductId, int]:
        """Product → the lowest price of one unit paid in the week before its cut, else the last one paid.

        What a coupon took off counts: the price is what was really paid. Products never sold are left out.
        """
        unknown = {cut for cut in cuts.items() if cut not in self._known}
        if unknown:
            if len(self._known) + len(unknown) > KNOWN_MAX:
                self._known.clear()
            self._known |= await _read(conn, sorted(unknown))
        found = {product: self._known.get((product, since)) for product, since in cuts.items()}
        return {product: fen for product, fen in found.items() if fen is not None}


async def _read(
    conn: Connection, cuts: Sequence[tuple[ProductId, datetime]]
) -> dict[tuple[ProductId, datetime], int | None]:
    rows = await (
        await conn.execute(
            """
            SELECT c.product::text AS product, c.since, coalesce(week.unit_fen, last.unit_fen) AS unit_fen
            FROM unnest(%(products)s::uuid[], %(since)s::timestamptz[]) AS c (product, since)
            LEFT JOIN LATERAL (
                SELECT min((l.line_fen - l.coupon_fen) / l.quantity) AS unit_fen
                FROM order_lines l JOIN orders o ON o.id = l.order_id
                WHERE l.product_id = c.product AND l.kind = 'goods'
                  AND o.paid_at >= c.since - %(before)s AND o.paid_at < c.since
            ) AS week ON true
            LEFT JOIN LATERAL (
                SELECT (l.line_fen - l.coupon_fen) / l.quantity AS unit_fen
                FROM order_lines l JOIN orders o ON o.id = l.order_id
                WHERE l.product_id = c.product AND l.kind = 'goods' AND o.paid_at < c.since
                ORDER BY o.paid_at DESC LIMIT 1
            ) AS last ON true
            """,
            {
                "products": [product for product, _ in cuts],
                "since": [since for _, since in cuts],
                "before": BEFORE,
            },
        )
    ).fetchall()
    return {(ProductId(row["product"]), row["since"]): row["unit_fen"] for row in rows}
