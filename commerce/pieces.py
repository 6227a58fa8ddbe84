"""Pieces: what an order takes of a show's quotas and of the shop's stock, and what comes back of it.

`hold_offer.lua` decides the pieces of the show; quota and stock are taken by conditional updates in the order's
own transaction, so that PostgreSQL is the last guard. What an order takes is decided once, when it is placed,
and kept in `order_pieces`: bundles as their parts, a product paid first as due. A quota stands apart from the
stock: its piece is held from the order on in every mode, and does not make the stock any larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from commerce.limits import Limit, LimitReached
from commerce.offers import ORDER_KEYS, order_lock
from commerce.products import Product
from membership.actor import MemberId, OfferId, OrderId, ProductId, ShowId
from membership.refusal import Refusal
from membership.script import Arg, ScriptLoader
from membership.transaction import Connection, Transaction

__all__ = ["LimitReached", "Need", "Needs", "Pieces", "ReservedOut", "SoldOut"]

Source = Literal["stock", "presale"]  # at hand, or still to come

UNSETTLED_MS = 60_000  # a hold whose order was not told by then is looked at


class SoldOut(Refusal):
    """No piece is left, and none can come back."""

    code = "sold_out"


class ReservedOut(Refusal):
    """The last pieces are held by unpaid orders; some may come back."""

    code = "reserved_out"


class Need(Struct, frozen=True):
    """Pieces of one product that an order takes; `due`: with its payment."""

    product: ProductId
    source: Source
    quantity: int
    due: bool


class Needs(Struct, frozen=True):
    """What an order takes, and the limits it meets."""

    takes: tuple[Need, ...]
    limits: tuple[Limit, ...]


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

    async def needs(self, conn: Connection, wanted: Sequence[tuple[Product, int]]) -> Needs:
        """What so many pieces of these products take, and the limits they meet, in the order of ids."""
        takes: dict[tuple[ProductId, Source], Need] = {}
        limits: dict[ProductId, Limit] = {}

        def take(product: ProductId, source: Source, quantity: int, due: bool) -> None:
            before = takes.get((product, source))
            if before is not None:  # one that is taken at once takes the other with it
                quantity, due = before.quantity + quantity, before.due and due
            takes[product, source] = Need(product, source, quantity, due)

        def limit(product: ProductId, bundle: bool, quantity: int, *terms: Any) -> None:
            per_member, per_household, days = terms
            if per_member is None and per_household is None:
                return
            before = limits.get(product)
            more = 0 if before is None else before.quantity
            limits[product] = Limit(product, bundle, quantity + more, per_member, per_household, days)

        bundles: dict[str, int] = {}
        for product, quantity in wanted:
            terms = (product.max_per_member, product.max_per_household, product.limit_days)
            limit(product.id, product.bundle, quantity, *terms)
            if product.bundle:
                bundles[product.id] = bundles.get(product.id, 0) + quantity
            elif product.stock_mode == "presale":
                take(product.id, "presale", quantity, False)
            else:
                take(product.id, "stock", quantity, product.stock_mode == "on_payment")
        if bundles:
            rows = await (
                await conn.execute(
                    """
                    SELECT b.bundle_id::text AS bundle, b.part_id::text AS part, b.quantity,
                        p.max_per_member, p.max_per_household, p.limit_days
                    FROM bundle_parts b JOIN products p ON p.id = b.part_id
                    WHERE b.bundle_id = ANY(%s::uuid[])
                    """,
                    [list(bundles)],
                )
            ).fetchall()
            for row in rows:
                part, pieces = ProductId(row["part"]), row["quantity"] * bundles[row["bundle"]]
                terms = (row["max_per_member"], row["max_per_household"], row["limit_days"])
                take(part, "stock", pieces, False)  # all or none, and always on order
                limit(part, False, pieces, *terms)
        ordered = tuple(takes[key] for key in sorted(takes))
        return Needs(ordered, tuple(limits[product] for product in sorted(limits)))

    async def take(
        self, conn: Connection, order: OrderId, pieces: Mapping[OfferId, int], needs: Sequence[Need]
    ) -> None:
        """Quota and stock by conditional updates, in one order of ids for everybody: two never deadlock.

        What is due is only looked at. Raises SoldOut, ReservedOut, LimitReached (fewer are left).
        """
        await self._take_quota(conn, pieces)
        for need in needs:
            if need.due:
                enough = await conn.execute(
                    "SELECT 1 FROM products WHERE id = %s AND stock >= %s", [need.product, need.quantity]
                )
                found = await enough.fetchone() is not None
            else:
                found = await self._take_one(conn, need.product, need.source, need.quantity)
            if not found:
                raise await self._none_left(conn, order, need)
        await conn.execute(
            """
            INSERT INTO order_pieces (order_id, product_id, source, quantity, state)
            SELECT %s, w.product, w.source, w.quantity, w.state
            FROM unnest(%s::uuid[], %s::text[], %s::int[], %s::text[]) AS w (product, source, quantity, state)
            """,
            [
                order,
                [need.product for need in needs],
                [need.source for need in needs],
                [need.quantity for need in needs],
                ["due" if need.due else "taken" for need in needs],
            ],
        )

    async def take_due(self, conn: Connection, order: OrderId, pieces: Mapping[OfferId, int]) -> None:
        """For money that came: what the order has not taken, or gave back when it ended; the caller's savepoint
        makes it all or nothing. `pieces`: of quotas that it gave back. Raises SoldOut, ReservedOut."""
        await self._take_quota(conn, pieces)
        rows = await (
            await conn.execute(
                "SELECT product_id::text AS product, source, quantity FROM order_pieces"
                " WHERE order_id = %s AND state <> 'taken' ORDER BY product_id, source",
                [order],
            )
        ).fetchall()
        for row in rows:
            if not await self._take_one(conn, row["product"], row["source"], row["quantity"]):
                raise SoldOut
        if rows:
            await conn.execute("UPDATE order_pieces SET state = 'taken' WHERE order_id = %s", [order])

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
            WITH given AS (
                UPDATE order_pieces SET state = 'back' WHERE order_id = ANY(%s::uuid[]) AND state = 'taken'
                RETURNING product_id, source, quantity
            ), back AS (
                SELECT product_id, coalesce(sum(quantity) FILTER (WHERE source = 'stock'), 0) AS at_hand,
                    coalesce(sum(quantity) FILTER (WHERE source = 'presale'), 0) AS to_come
                FROM given GROUP BY product_id
            ), locked AS MATERIALIZED (
                SELECT id FROM products WHERE id IN (SELECT product_id FROM back)
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE products SET stock = stock + back.at_hand, presale_taken = presale_taken - back.to_come
            FROM back, locked WHERE products.id = back.product_id AND products.id = locked.id
            """,
            [list(orders)],
        )

    # --- parts ---

    async def _take_quota(self, conn: Connection, pieces: Mapping[OfferId, int]) -> None:
        for offer, quantity in sorted(pieces.items()):
            taken = await conn.execute(
                "UPDATE offers SET taken = taken + %(n)s WHERE id = %(id)s AND taken + %(n)s <= quota",
                {"n": quantity, "id": offer},
            )
            if not taken.rowcount:
                raise ReservedOut(retry_ms=5000)

    async def _take_one(self, conn: Connection, product: str, source: Source, quantity: int) -> bool:
        if source == "presale":
            taken = await conn.execute(
                "UPDATE products SET presale_taken = presale_taken + %(n)s"
                " WHERE id = %(id)s AND presale_taken + %(n)s <= presale_cap",
                {"n": quantity, "id": product},
            )
        else:
            taken = await conn.execute(
                "UPDATE products SET stock = stock - %(n)s WHERE id = %(id)s AND stock >= %(n)s",
                {"n": quantity, "id": product},
            )
        return taken.rowcount == 1

    async def _none_left(self, conn: Connection, order: OrderId, need: Need) -> Refusal:
        """Which word fits: pieces held by other unpaid orders may come back."""
        row = await (
            await conn.execute(
                """
                SELECT CASE WHEN %(source)s = 'presale' THEN coalesce(p.presale_cap, 0) - p.presale_taken
                        ELSE p.stock END AS free,
                    coalesce((
                        SELECT sum(held.quantity) FROM (
                            SELECT w.quantity FROM orders o JOIN order_pieces w ON w.order_id = o.id
                            WHERE w.product_id = p.id AND w.source = %(source)s AND w.state = 'taken'
                              AND o.state = 'placed' AND o.id <> %(order)s
                            LIMIT %(wanted)s) held), 0) AS held
                FROM products p WHERE p.id = %(product)s
                """,  # so many holds have at least as many pieces as are wanted: more need not be read
                {"source": need.source, "order": order, "product": need.product, "wanted": need.quantity},
            )
        ).fetchone()
        assert row is not None
        if row["free"] + row["held"] >= need.quantity and row["held"] > 0:
            return ReservedOut(retry_ms=5000)
        if row["free"] > 0:
            return LimitReached("fewer pieces are left than you ask for")
        return SoldOut()
