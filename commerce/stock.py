"""The stock's ledger: every piece that came in or was counted away, other than by an order.

`products.stock` is the sum of these entries less what orders have taken and not given back (pieces.py): the
close holds one against the other. An import changes a stock by a difference, or sets it only where it still
is what the sender believes; one bad row refuses itself by name and leaves the others standing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from psycopg.types.json import Jsonb

from membership.actor import Actor, OrderId, ProductId, is_id, new_id
from membership.page import Page, check_page, page_of
from membership.refusal import BadRequest, Forbidden, KeyReused, NotFound
from membership.transaction import Connection, Transaction, lock

ROWS_MAX = 500  # of one import: what fits into a body of 64 KB
STOCK_MAX = 10_000_000

EntryKind = Literal["opening", "change", "import"]
RowOutcome = Literal["changed", "same", "refused"]
# not_found: no product has this SKU. bundle: it has no stock. one_of_two: a row names `change`, or `set_to` with
# `expected`. stock_changed: it is not what was expected. below_zero, above_most: it would pass a bound.
RowReason = Literal["not_found", "bundle", "one_of_two", "stock_changed", "below_zero", "above_most"]

Pieces = Annotated[int, Meta(ge=0, le=STOCK_MAX)]
Change = Annotated[int, Meta(ge=-STOCK_MAX, le=STOCK_MAX)]


class StockRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of an import: a difference, or a number with the one it replaces. Free pieces are meant: what
    orders hold is not among them."""

    sku: Annotated[str, Meta(min_length=1, max_length=64)]
    change: Change | None = None
    set_to: Pieces | None = None
    expected: Pieces | None = None


class StockOutcome(Struct, frozen=True, kw_only=True):
    """What became of a row, and the stock after it."""

    sku: str
    outcome: RowOutcome
    reason: RowReason | None = None
    stock: int | None = None


class StockEntry(Struct, frozen=True, kw_only=True):
    """One entry of the ledger, as staff see it."""

    id: str
    product: ProductId
    sku: str
    delta: int
    kind: EntryKind
    reason: str
    cause: str
    stock_after: int
    entered_by: str
    at: int  # ms


async def enter(
    conn: Connection,
    actor: Actor,
    product: ProductId,
    delta: int,
    stock_after: int,
    *,
    kind: EntryKind,
    cause: str,
    reason: str = "",
) -> None:
    """Write down a difference that is made to the stock in the same transaction."""
    if delta == 0:
        return
    await conn.execute(
        "INSERT INTO stock_entries (id, product_id, delta, kind, reason, cause, stock_after, entered_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [new_id(), product, delta, kind, reason, cause, stock_after, f"{actor.kind}:{actor.id}"],
    )


class Stock:
    """Imports, the ledger, and sold pieces that come back."""

    async def take_in(
        self, t: Transaction, actor: Actor, key: str, reason: str, rows: Sequence[StockRow]
    ) -> tuple[StockOutcome, ...]:
        """Change stocks, row by row in the given order; the same key again gives the same answer.

        Raises Forbidden, BadRequest, KeyReused.
        """
        if not actor.may("catalog.write"):
            raise Forbidden
        if not 1 <= len(rows) <= ROWS_MAX:
            raise BadRequest(f"between 1 and {ROWS_MAX} rows")
        sender = f"{actor.kind}:{actor.id}"
        digest = hashlib.sha256(msgspec.json.encode([reason, rows])).hexdigest()
        # Two imports of one key take turns, so that the second finds the first's answer.
        await lock(t.conn, f"stock:{sender}:{key}")
        before = await (
            await t.conn.execute(
                "SELECT body_digest, outcome FROM stock_imports WHERE entered_by = %s AND key = %s",
                [sender, key],
            )
        ).fetchone()
        if before is not None:
            if before["body_digest"] != digest:
                raise KeyReused
            return msgspec.convert(before["outcome"], tuple[StockOutcome, ...])
        outcomes = await self._take_in_rows(t, actor, key, reason, rows)
        await t.conn.execute(
            "INSERT INTO stock_imports (entered_by, key, body_digest, outcome) VALUES (%s, %s, %s, %s)",
            [sender, key, digest, Jsonb(msgspec.to_builtins(outcomes))],
        )
        return outcomes

    async def entries(
        self,
        conn: Connection,
        actor: Actor,
        *,
        product: ProductId | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[StockEntry]:
        """The ledger, newest first; with `product`, only of that one. Raises Forbidden, NotFound."""
        if actor.kind == "viewer":
            raise Forbidden
        check_page(cursor, limit)
        if product is not None and not is_id(product):
            raise NotFound
        rows = await (
            await conn.execute(
                """
                SELECT e.id::text, e.product_id::text AS product, p.sku, e.delta, e.kind, e.reason, e.cause,
                    e.stock_after, e.entered_by, (extract(epoch FROM e.at) * 1000)::bigint AS at
                FROM stock_entries e JOIN products p ON p.id = e.product_id
                WHERE (%(product)s::uuid IS NULL OR e.product_id = %(product)s)
                    AND (%(cursor)s::uuid IS NULL OR e.id < %(cursor)s)
                ORDER BY e.id DESC LIMIT %(limit)s + 1
                """,
                {"product": product, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, lambda row: msgspec.convert(row, StockEntry))

    async def put_back(
        self, t: Transaction, actor: Actor, order: OrderId, quantities: Mapping[ProductId, int], cause: str
    ) -> int:
        """Sold pieces of an order come back: into the stock, or into the pre-sale's cap. Bundles come back as
        their parts. The same cause again changes nothing. Returns the pieces that came.

        Raises Forbidden; BadRequest for more than the order has taken and not returned.
        """
        if not actor.may("member.write"):
            raise Forbidden
        rows = await (
            await t.conn.execute(
                """
                SELECT w.id::text AS product, b.part_id::text AS part, coalesce(b.quantity, 1) AS each
                FROM unnest(%s::uuid[]) AS w (id) LEFT JOIN bundle_parts b ON b.bundle_id = w.id
                """,
                [list(quantities)],
            )
        ).fetchall()
        back: dict[str, int] = {}
        for row in rows:
            product = row["part"] or row["product"]
            back[product] = back.get(product, 0) + row["each"] * quantities[ProductId(row["product"])]
        taken = await (
            await t.conn.execute(
                """
                SELECT product_id::text AS product, source, quantity - returned AS left
                FROM order_pieces WHERE order_id = %s AND state = 'taken' AND product_id = ANY(%s::uuid[])
                ORDER BY product_id, source FOR UPDATE
                """,
                [order, list(back)],
            )
        ).fetchall()
        again = await (
            await t.conn.execute(
                "SELECT 1 FROM stock_returns WHERE cause = %s AND order_id = %s LIMIT 1", [cause, order]
            )
        ).fetchone()
        if again is not None:
            return 0
        came = 0
        for row in taken:
            pieces = min(row["left"], back[row["product"]])
            if pieces <= 0:
                continue
            back[row["product"]] -= pieces
            came += pieces
            await self._put_back_one(t, actor, order, row["product"], row["source"], pieces, cause)
        if any(back.values()):
            raise BadRequest("the order has not taken so many pieces")
        return came

    # --- parts ---

    async def _put_back_one(
        self, t: Transaction, actor: Actor, order: OrderId, product: str, source: str, pieces: int, cause: str
    ) -> None:
        values = {
            "cause": cause,
            "order": order,
            "product": product,
            "source": source,
            "n": pieces,
            "by": f"{actor.kind}:{actor.id}",
        }
        await t.conn.execute(
            "INSERT INTO stock_returns (cause, order_id, product_id, source, quantity, returned_by)"
            " VALUES (%(cause)s, %(order)s, %(product)s, %(source)s, %(n)s, %(by)s)",
            values,
        )
        await t.conn.execute(
            "UPDATE order_pieces SET returned = returned + %(n)s"
            " WHERE order_id = %(order)s AND product_id = %(product)s AND source = %(source)s",
            values,
        )
        await t.conn.execute(
            """
            UPDATE products SET
                stock = stock + CASE WHEN %(source)s = 'stock' THEN %(n)s ELSE 0 END,
                presale_taken = presale_taken - CASE WHEN %(source)s = 'presale' THEN %(n)s ELSE 0 END
            WHERE id = %(product)s
            """,
            values,
        )

    async def _take_in_rows(
        self, t: Transaction, actor: Actor, key: str, reason: str, rows: Sequence[StockRow]
    ) -> tuple[StockOutcome, ...]:
        # Rows are locked in the order of their ids, as orders do: two never deadlock.
        locked = await (
            await t.conn.execute(
                """
                SELECT id::text AS id, sku, stock, bundle FROM products WHERE sku = ANY(%s)
                ORDER BY id FOR NO KEY UPDATE
                """,
                [[row.sku for row in rows]],
            )
        ).fetchall()
        known: dict[str, dict[str, Any]] = {row["sku"]: dict(row) for row in locked}
        outcomes = []
        for number, row in enumerate(rows, 1):
            product = known.get(row.sku)
            why, delta = _judged(row, product)
            if why is not None or product is None:
                stock = None if product is None or product["bundle"] else product["stock"]
                outcomes.append(StockOutcome(sku=row.sku, outcome="refused", reason=why, stock=stock))
                continue
            product["stock"] += delta
            if delta:
                await t.conn.execute(
                    "UPDATE products SET stock = stock + %s, updated_at = now() WHERE id = %s",
                    [delta, product["id"]],
                )
                cause = f"import:{actor.kind}:{actor.id}:{key}:{number}"
                await enter(
                    t.conn,
                    actor,
                    ProductId(product["id"]),
                    delta,
                    product["stock"],
                    kind="import",
                    cause=cause,
                    reason=reason,
                )
            outcomes.append(
                StockOutcome(sku=row.sku, outcome="changed" if delta else "same", stock=product["stock"])
            )
        return tuple(outcomes)


def _judged(row: StockRow, product: Mapping[str, Any] | None) -> tuple[RowReason | None, int]:
    """Why the row is refused, or None and the difference it makes."""
    if product is None:
        return "not_found", 0
    if product["bundle"]:
        return "bundle", 0
    if row.change is not None and row.set_to is None and row.expected is None:
        delta = row.change
    elif row.change is None and row.set_to is not None and row.expected is not None:
        if row.expected != product["stock"]:
            return "stock_changed", 0
        delta = row.set_to - row.expected
    else:
        return "one_of_two", 0
    after = product["stock"] + delta
    if after < 0:
        return "below_zero", 0
    if after > STOCK_MAX:
        return "above_most", 0
    return None, delta
