"""What a claim brings: a coupon, points, early access, an order's money. Given in the transaction that writes the
claim, taken back in the one that recalls it.

A gift is only owed: it goes with a parcel, and nothing is booked here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from commerce.benefit_terms import Benefit, BenefitInput
from commerce.conditions import GOODS_LEFT
from commerce.coupons import Coupons, CouponsGone
from commerce.refund_lines import AlreadyRefunded, read_lines
from membership.actor import Actor, MemberId, OrderId, PaymentId, ProductId, is_id
from membership.points import Points
from membership.refusal import BadRequest, NotFound, Refusal
from membership.transaction import Connection, Transaction

REASON = "benefit"  # of the points

# Refunds.give: so much of a paid order's money goes back, once a cause.
SendBack = Callable[[Transaction, Actor, OrderId, int, str], Awaitable[object]]

GIVER = Actor(kind="job", id="benefits", name="benefits")


class CannotGive(Refusal):
    """What this benefit brings cannot be given any more."""

    code = "closed"


class Grants:
    def __init__(self, points: Points, coupons: Coupons) -> None:
        self._points = points
        self._coupons = coupons

    async def check(self, conn: Connection, terms: BenefitInput) -> None:
        """What the terms name must be there. Raises NotFound, BadRequest."""
        if terms.what == "coupon":
            rule = await self._coupons.rule(conn, terms.coupon_rule or "")
            if rule.status != "on":
                raise NotFound("This rule of coupons is switched off.")
            if rule.quota is not None or rule.per_person is not None:
                raise BadRequest("The benefit counts its coupons: its rule has no quota of its own.")
        if terms.what == "early_access":
            found = await conn.execute(
                "SELECT count(*) AS known FROM products WHERE id = ANY(%s::uuid[]) AND status = 'on'",
                [[product for product in set(terms.products) if is_id(product)]],
            )
            row = await found.fetchone()
            if row is None or row["known"] != len(set(terms.products)):
                raise NotFound("There is no such product.")

    async def give(
        self, t: Transaction, terms: Benefit, claims: Sequence[Any], send_back: SendBack | None = None
    ) -> None:
        """Give what these claims bring; this transaction has written them. Their ids are given.

        Raises CannotGive: then the claims must not be written either.
        """
        if not terms.is_booked or not claims:
            return
        found = await t.conn.execute(
            """
            SELECT id::text AS id, member_id::text AS member, order_id::text AS order
            FROM benefit_claims WHERE id = ANY(%s::uuid[]) ORDER BY member_id, nth
            """,  # of two benefits' beats none waits for the other's members
            [list(claims)],
        )
        for row in await found.fetchall():
            claim, member = row["id"], MemberId(row["member"])
            coupon, amount_fen = None, 0
            match terms.what:
                case "points":
                    await self._points.earn(t, member, terms.points, REASON, cause_of(claim))
                case "coupon":
                    try:
                        given = await self._coupons.grant(t, member, terms.coupon_rule or "", cause_of(claim))
                    except CouponsGone as error:
                        raise CannotGive from error
                    coupon = given.id
                case "free_order":
                    assert send_back is not None
                    order = OrderId(row["order"])
                    amount_fen = min(terms.cap_fen, await _money_left(t.conn, order))
                    try:
                        await send_back(t, GIVER, order, amount_fen, cause_of(claim))
                    except (AlreadyRefunded, BadRequest):  # nothing is left to send
                        amount_fen = 0
            await t.conn.execute(
                """
                INSERT INTO benefit_grants (claim_id, member_id, what, points, coupon_id, order_id, amount_fen,
                    products, until_at)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s::uuid[], to_timestamp(%s / 1000.0))
                """,
                [
                    claim,
                    member,
                    terms.what,
                    terms.points,
                    coupon,
                    row["order"] if terms.what == "free_order" else None,
                    amount_fen,
                    list(terms.products),
                    terms.until,
                ],
            )

    async def settle(
        self, t: Transaction, claims: Sequence[Any], state: Literal["recalled", "deducted"]
    ) -> int:
        """Recall claims, with all that they brought, or note that their stated value was deducted. Ranks stay.

        Returns how many; again: 0. What a free order sent back stays with who has it: the order's own refund
        sends only what is left.
        """
        found = await t.conn.execute(
            """
            UPDATE benefit_claims SET state = %s, settled_at = clock_timestamp()
            WHERE id = ANY(%s::uuid[]) AND state = 'confirmed' RETURNING id::text AS id
            """,
            [state, list(claims)],
        )
        settled = [row["id"] for row in await found.fetchall()]
        if state == "recalled":
            found = await t.conn.execute(
                """
                UPDATE benefit_grants SET undone_at = clock_timestamp()
                WHERE claim_id = ANY(%s::uuid[]) AND undone_at IS NULL AND what <> 'free_order'
                RETURNING claim_id::text AS claim, what
                """,
                [settled],
            )
            undone = await found.fetchall()
            for row in undone:  # points before coupons, as everywhere
                if row["what"] == "points":
                    await self._points.reverse(t, cause_of(row["claim"]))
            coupons = [cause_of(row["claim"]) for row in undone if row["what"] == "coupon"]
            await self._coupons.void_all(t, coupons)
        return len(settled)

    async def settle_payment(
        self, t: Transaction, payment: PaymentId, state: Literal["recalled", "deducted"]
    ) -> int:
        """The payment of a plan went back: so goes what was had for joining, or for having newly joined."""
        found = await t.conn.execute(
            "SELECT id FROM benefit_claims WHERE (payment_id = %(p)s OR joined_by = %(p)s) ORDER BY id FOR UPDATE",
            {"p": payment},
        )
        return await self.settle(t, [row["id"] for row in await found.fetchall()], state)

    async def recall_unearned(self, t: Transaction, order: OrderId) -> int:
        """Money of this order goes back: recall the claims that what is left of it does not earn.

        Call it after the return is marked. Returns how many were recalled.
        """
        found = await t.conn.execute(
            f"""
            SELECT c.id FROM benefit_claims c
            JOIN benefits b ON b.id = c.benefit_id JOIN orders o ON o.id = c.order_id
            WHERE c.order_id = %s AND c.state = 'confirmed'
              AND (o.closed_at IS NOT NULL OR {GOODS_LEFT} < greatest(b.min_fen, 1))
            ORDER BY c.id FOR UPDATE OF c
            """,  # noqa: S608 - a constant; what comes from outside is a parameter
            [order],
        )
        return await self.settle(t, [row["id"] for row in await found.fetchall()], "recalled")


async def early_products(conn: Connection, member: MemberId | None) -> frozenset[ProductId]:
    """What this member may order before it is on sale, by a benefit they have."""
    if member is None:
        return frozenset()
    found = await conn.execute(
        """
        SELECT DISTINCT unnest(products)::text AS product FROM benefit_grants
        WHERE member_id = %s AND what = 'early_access' AND undone_at IS NULL
          AND (until_at IS NULL OR until_at > clock_timestamp())
        """,
        [member],
    )
    return frozenset(ProductId(row["product"]) for row in await found.fetchall())


def cause_of(claim: str) -> str:
    """Under which cause the books know what a claim brought."""
    return f"claim:{claim}"


async def _money_left(conn: Connection, order: OrderId) -> int:
    """Money for the goods of this order that has not gone back: by a refund, another free order, or at the
    provider's own desk, where nobody says for which goods."""
    found = await conn.execute(
        """
        SELECT p.amount_fen - coalesce((
            SELECT sum(r.amount_fen) FROM payment_returns r WHERE r.payment_id = p.id), 0)::bigint AS left_fen
        FROM payments p WHERE p.order_id = %s AND p.outcome = 'accepted'
        """,
        [order],
    )
    row = await found.fetchone()
    goods_fen = sum(line.paid_fen - line.back_fen for line in await read_lines(conn, order))
    return 0 if row is None else min(goods_fen, row["left_fen"])
