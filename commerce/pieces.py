"""Pieces: what an order takes of a show's quotas and of the shop's stock, and what comes back of it.

`hold_offer.lua` decides the pieces of the show; quota and stock are taken by conditional updates in the order's
own transaction, so that PostgreSQL is the last guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commerce.offers import ORDER_KEYS, order_lock
from membership.actor import MemberId, OfferId, OrderId, ShowId
from membership.refusal import Refusal
from membership.script import Arg, ScriptLoader
from membership.transaction import Connection, Transaction

UNSETTLED_MS = 60_000  # a hold whose order was not told by then is looked at


class SoldOut(Refusal):
    """No piece is left, and none can come back."""

    code = "sold_out"


class ReservedOut(Refusal):
    """The last pieces are held by unpaid orders; some may come back."""

    code = "reserved_out"


class LimitReached(Refusal):
    """Pay or cancel one of your open orders first."""

    code = "limit_reached"


class Pieces:
    """Holds, takes and gives back."""

    def __init__(self, scripts: ScriptLoader) -> None:
        self._hold = scripts.load("commerce", "hold_offer")
        self._release = scripts.load("commerce", "release_hold")

    async def hold(
        self,
        t: Transaction,
        show: ShowId,
        order: OrderId,
        member: MemberId,
        key: str,
        pieces: Mapping[OfferId, int],
    ) -> None:
        """Let Redis decide the pieces; they go back when the transaction does not commit.

        Raises SoldOut, ReservedOut, LimitReached, Unavailable.
        """
        if not pieces:
            return

        async def give_back() -> None:
            await self.release(show, order)

        t.on_rollback(give_back)  # before the call: one that timed out may have run
        asked: list[Arg] = [part for line in pieces.items() for part in line]
        await self._hold(show, ORDER_KEYS[:4], [order, member, order_lock(member, key), UNSETTLED_MS, *asked])

    async def release(self, show: ShowId, order: OrderId) -> bool:
        """Give back a hold whose order never became durable; what was told of is left alone."""
        return bool(int(await self._release(show, ORDER_KEYS, [order])))

    async def take(
        self, conn: Connection, order: OrderId, pieces: Mapping[OfferId, int], wanted: Mapping[str, int]
    ) -> None:
        """Quota and stock by conditional updates, in one order of ids for everybody: two never deadlock."""
        for offer, quantity in sorted(pieces.items()):
            taken = await conn.execute(
                "UPDATE offers SET taken = taken + %(n)s WHERE id = %(id)s AND taken + %(n)s <= quota",
                {"n": quantity, "id": offer},
            )
            if not taken.rowcount:
                raise ReservedOut(retry_ms=5000)
        for product, quantity in sorted(wanted.items()):
            taken = await conn.execute(
                "UPDATE products SET stock = stock - %(n)s WHERE id = %(id)s AND stock >= %(n)s",
                {"n": quantity, "id": product},
            )
            if not taken.rowcount:
                raise await self._none_left(conn, order, product, quantity)

    async def give_back(self, conn: Connection, orders: Sequence[OrderId]) -> None:
        """Quota and stock of orders that ended unpaid, in the transaction that ends them."""
        # Rows are locked in the order of their ids, as in `take`: two never deadlock.
        await conn.execute(
            """
            WITH back AS (
                SELECT offer_id, sum(quantity) AS pieces FROM order_lines
                WHERE order_id = ANY(%s::uuid[]) AND piece GROUP BY offer_id
            ), locked AS MATERIALIZED (
                SELECT id FROM offers WHERE id IN (SELECT offer_id FROM back) AND quota IS NOT NULL
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE offers SET taken = taken - back.pieces FROM back, locked
            WHERE offers.id = back.offer_id AND offers.id = locked.id
            """,
            [list(orders)],
        )
        await conn.execute(
            """
            WITH back AS (
                SELECT product_id, sum(quantity) AS pieces FROM order_lines
                WHERE order_id = ANY(%s::uuid[]) AND kind = 'goods' GROUP BY product_id
            ), locked AS MATERIALIZED (
                SELECT id FROM products WHERE id IN (SELECT product_id FROM back)
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE products SET stock = stock + back.pieces FROM back, locked
            WHERE products.id = back.product_id AND products.id = locked.id
            """,
            [list(orders)],
        )

    async def _none_left(self, conn: Connection, order: OrderId, product: str, quantity: int) -> Refusal:
        """Which word fits: pieces held by other unpaid orders may come back."""
        row = await (
            await conn.execute(
                """
                SELECT p.stock, coalesce((
                    SELECT sum(l.quantity) FROM order_lines l JOIN orders o ON o.id = l.order_id
                    WHERE l.product_id = p.id AND l.kind = 'goods'
                      AND o.state = 'placed' AND o.id <> %s), 0) AS held
                FROM products p WHERE p.id = %s
                """,
                [order, product],
            )
        ).fetchone()
        assert row is not None
        if row["stock"] + row["held"] >= quantity and row["held"] > 0:
            return ReservedOut(retry_ms=5000)
        if row["stock"] > 0:
            return LimitReached("fewer pieces are left than you ask for")
        return SoldOut()
