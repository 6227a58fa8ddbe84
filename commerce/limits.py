"""Limits of a product: so many pieces a person, and so many a household, over the last days.

A household is an address, however it is written: a digest of its plain form stands with the order, so that
neither a second phone number nor other signs and spaces make a second one. Counted is what orders hold and have
bought, also as parts of a bundle; what ended unpaid or came back does not count.

An offer's pieces a person are counted in the show by `hold_offer.lua`, and here by the rows.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Sequence

from msgspec import Struct

from membership.actor import MemberId, OrderId, ProductId
from membership.refusal import Refusal
from membership.transaction import Connection, lock


class LimitReached(Refusal):
    """Pay or cancel one of your open orders first."""

    code = "limit_reached"


class Limit(Struct, frozen=True):
    """What one order wants of a product that has a limit."""

    product: ProductId
    bundle: bool
    quantity: int
    per_member: int | None
    per_household: int | None
    days: int


# Signs, spaces, and the words that stand behind the name of a place, the number of a house, a staircase, a flat.
_BETWEEN = re.compile(
    r"(?:[^\w]|_|号|室|栋|幢|座|楼|层|单元|弄"
    r"|特别行政区|(?:壮族|回族|维吾尔)?自治区|自治州|省|市|区|县)+"
)
_TWICE = re.compile(r"^(北京|天津|上海|重庆)\1+")  # as a province and as its own city
_GAP = re.compile(r"(?<![0-9a-z]) | (?![0-9a-z])")  # a space that does not part two numbers


def household_of(region: str, detail: str, key: bytes) -> str:
    """The digest of an address. Keyed, so that it cannot be looked up by trying addresses."""
    plain = unicodedata.normalize("NFKC", f"{region} {detail}").casefold()
    plain = _TWICE.sub(r"\1", _GAP.sub("", _BETWEEN.sub(" ", plain).strip()))
    return hmac.digest(key, plain.encode(), hashlib.sha256).hex()


async def check_limits(
    conn: Connection, member: MemberId, household: str | None, limits: Sequence[Limit]
) -> None:
    """Whether the member, and the household, may have so many more. Raises LimitReached.

    The caller holds the member's lock; the household's is taken here, so that of two orders to one address the
    second counts the first.
    """
    if household is not None and any(limit.per_household is not None for limit in limits):
        await lock(conn, f"household:{household}")
    for limit in limits:
        own, home = await _had(conn, member, household, limit)
        for scope, most, had in (
            ("member", limit.per_member, own),
            ("household", limit.per_household, home),
        ):
            if most is not None and had + limit.quantity > most:
                of_whom = "person" if scope == "member" else "household"
                raise LimitReached(
                    f"at most {most} a {of_whom} in {limit.days} days; you have had {had}",
                    product=limit.product,
                    scope=scope,
                    most=most,
                    left=max(0, most - had),
                )


async def check_offers(conn: Connection, member: MemberId, order: OrderId) -> None:
    """Whether the member may have this order's pieces of offers beside those held and bought. Raises LimitReached.

    Counted as the show counts: what was refunded stays sold. The caller holds the member's lock.
    """
    row = await (
        await conn.execute(
            """
            SELECT f.per_person FROM (
                SELECT offer_id, sum(quantity) AS quantity FROM order_lines
                WHERE order_id = %(order)s AND piece GROUP BY offer_id
            ) w JOIN offers f ON f.id = w.offer_id
            WHERE f.per_person < w.quantity + coalesce((
                SELECT sum(l.quantity) FROM orders o JOIN order_lines l ON l.order_id = o.id
                WHERE o.member_id = %(member)s AND o.id <> %(order)s AND l.offer_id = f.id AND l.piece
                  AND (o.state = 'placed' OR o.paid_at IS NOT NULL)), 0)
            ORDER BY f.id LIMIT 1
            """,
            {"order": order, "member": member},
        )
    ).fetchone()
    if row is not None:
        raise LimitReached(f"at most {row['per_person']} a person")


async def check_again(conn: Connection, member: MemberId, order: OrderId) -> None:
    """Both for an order that ended unpaid and is to be paid after all. Raises LimitReached."""
    await check_offers(conn, member, order)
    rows = await (
        await conn.execute(
            """
            SELECT p.id::text AS id, p.bundle, w.quantity::int, p.max_per_member, p.max_per_household,
                p.limit_days, o.household
            FROM (
                SELECT product_id, sum(quantity) AS quantity FROM order_pieces WHERE order_id = %(order)s
                GROUP BY product_id
                UNION ALL
                SELECT l.product_id, sum(l.quantity) FROM order_lines l JOIN products b ON b.id = l.product_id
                WHERE l.order_id = %(order)s AND l.kind = 'goods' AND b.bundle GROUP BY l.product_id
            ) w JOIN products p ON p.id = w.product_id JOIN orders o ON o.id = %(order)s
            WHERE p.max_per_member IS NOT NULL OR p.max_per_household IS NOT NULL ORDER BY p.id
            """,
            {"order": order},
        )
    ).fetchall()
    limits = [
        Limit(
            ProductId(row["id"]),
            row["bundle"],
            row["quantity"],
            row["max_per_member"],
            row["max_per_household"],
            row["limit_days"],
        )
        for row in rows
    ]
    if limits:
        await check_limits(conn, member, rows[0]["household"], limits)


async def _had(conn: Connection, member: MemberId, household: str | None, limit: Limit) -> tuple[int, int]:
    """Pieces the member, and the household, hold and have bought."""
    values = {"product": limit.product, "member": member, "household": household, "days": limit.days}
    if limit.bundle:
        found = await conn.execute(
            """
            SELECT coalesce(sum(l.quantity) FILTER (WHERE o.member_id = %(member)s), 0)::int AS own,
                coalesce(sum(l.quantity) FILTER (WHERE o.household = %(household)s), 0)::int AS home
            FROM orders o JOIN order_lines l ON l.order_id = o.id
            WHERE l.product_id = %(product)s AND l.kind = 'goods'
              AND (o.member_id = %(member)s OR o.household = %(household)s)
              AND o.state NOT IN ('cancelled', 'expired', 'refunded')
              AND o.placed_at > clock_timestamp() - make_interval(days => %(days)s)
            """,
            values,
        )
    else:
        found = await conn.execute(
            """
            SELECT coalesce(sum(w.quantity - w.returned) FILTER (WHERE o.member_id = %(member)s), 0)::int
                    AS own,
                coalesce(sum(w.quantity - w.returned) FILTER (WHERE o.household = %(household)s), 0)::int
                    AS home
            FROM orders o JOIN order_pieces w ON w.order_id = o.id
            WHERE w.product_id = %(product)s
              AND (o.member_id = %(member)s OR o.household = %(household)s)
              AND o.state NOT IN ('cancelled', 'expired', 'refunded')
              AND o.placed_at > clock_timestamp() - make_interval(days => %(days)s)
            """,
            values,
        )
    row = await found.fetchone()
    assert row is not None
    return row["own"], row["home"]
