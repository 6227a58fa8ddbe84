"""Spending: the coupons and points of an order, taken with it and given back when it comes to nothing.

In the transaction of the order's own step: points first, then coupons, and both before any row of stock is
locked (docs/decisions/locks.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from commerce.coupons import Coupon, CouponId, Coupons
from commerce.discounts import AppliedCoupon, Discount
from membership.actor import MemberId, OrderId
from membership.points import Points
from membership.transaction import Connection, Transaction

AGAIN = "again"  # the part under which an order that had ended takes its points once more
ENDED = "ended"
REFUNDED = "refunded"
LOWERED = "lowered"


def cause_of(order: OrderId) -> str:
    """The cause of every movement of points by an order: earned, spent, restored, taken back."""
    return f"order:{order}"


class Spending:
    """Takes, uses and gives back what an order is paid with beside money."""

    def __init__(self, coupons: Coupons, points: Points) -> None:
        self._coupons = coupons
        self._points = points

    async def take(
        self,
        t: Transaction,
        member: MemberId,
        order: OrderId,
        coupons: Sequence[AppliedCoupon],
        points: int,
        part: str = "",
    ) -> None:
        """Hold the coupons and spend the points: all of it or a refusal. Raises CouponUsed, NotEnoughPoints."""
        if points:
            await self._points.spend(t, member, points, cause_of(order), part)
        await self._coupons.hold(t, member, order, [each.coupon for each in coupons])

    async def note(self, conn: Connection, order: OrderId, coupons: Sequence[AppliedCoupon]) -> None:
        """Write down what each coupon gave the order; what was written before is replaced."""
        await conn.execute("DELETE FROM order_coupons WHERE order_id = %s", [order])
        for each in coupons:
            await conn.execute(
                "INSERT INTO order_coupons (order_id, coupon_id, title, kind, off_fen)"
                " VALUES (%s, %s, %s, %s, %s)",
                [order, each.coupon, each.title, each.kind, each.off_fen],
            )

    async def named(
        self, conn: Connection, member: MemberId, coupons: Sequence[AppliedCoupon]
    ) -> tuple[Coupon, ...]:
        """The coupons themselves, with their rules."""
        return await self._coupons.named(conn, member, [each.coupon for each in coupons]) if coupons else ()

    async def noted(self, conn: Connection, order: OrderId) -> tuple[AppliedCoupon, ...]:
        """What coupons gave the order."""
        rows = await (
            await conn.execute("SELECT * FROM order_coupons WHERE order_id = %s ORDER BY coupon_id", [order])
        ).fetchall()
        return tuple(
            AppliedCoupon(CouponId(str(row["coupon_id"])), row["title"], row["kind"], row["off_fen"])
            for row in rows
        )

    async def use(self, t: Transaction, order: OrderId) -> None:
        """The order is paid: its coupons are used."""
        await self._coupons.use(t, order)

    async def free(self, t: Transaction, orders: Sequence[OrderId], part: str) -> None:
        """The orders came to nothing: coupons are free again, points come back with their own dates."""
        # Members in one order for everybody: two jobs that end many orders never wait for each other.
        rows = await (
            await t.conn.execute(
                "SELECT id FROM orders WHERE id = ANY(%s::uuid[]) AND points_fen > 0 ORDER BY member_id, id",
                [list(orders)],
            )
        ).fetchall()
        for row in rows:
            await self._points.restore(t, cause_of(OrderId(str(row["id"]))), None, part)
        await self._coupons.release(t, orders)

    async def take_again(self, t: Transaction, member: MemberId, order: OrderId, points: int) -> None:
        """Late money for an order that had ended: once more what it was placed with. Raises as `take`."""
        await self.take(t, member, order, await self.noted(t.conn, order), points, AGAIN)

    async def lower(
        self,
        t: Transaction,
        order: OrderId,
        before: Sequence[AppliedCoupon],
        points_before: int,
        discount: Discount,
    ) -> None:
        """The order was lowered before it is paid: points and coupons it no longer needs go back."""
        if discount.points_fen < points_before:
            await self._points.restore(t, cause_of(order), points_before - discount.points_fen, LOWERED)
        kept = {each.coupon for each in discount.coupons}
        await self._coupons.let_go(t, order, [each.coupon for each in before if each.coupon not in kept])
        await self.note(t.conn, order, discount.coupons)
