"""The lines of an order: written with it, lowered to today's prices before it is paid, and what was paid for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from commerce.basket import Basket, lowest_without_flash
from commerce.discounts import Discount, GoodsLine
from commerce.prices import Candidate
from commerce.quotes import PricedLines
from membership.actor import OfferId, OrderId, ProductId
from membership.transaction import Connection


class OrderedLine(Struct, frozen=True, kw_only=True):
    """A goods line of an order that is placed, and the lower price it may have by now."""

    position: int
    offer: OfferId
    product: ProductId
    quantity: int
    unit_fen: int
    coupon_fen: int
    points_fen: int
    no_promo: bool = False
    lowered_to: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def now_fen(self) -> int:
        return self.unit_fen if self.lowered_to is None else self.lowered_to.unit_fen

    @property
    def goods(self) -> GoodsLine:
        return GoodsLine(self.product, self.now_fen * self.quantity, self.no_promo)

    def stays(self, coupon_fen: int, points_fen: int) -> bool:
        """Whether nothing of the line is lower, and its shares of what is taken off are these already."""
        return self.lowered_to is None and (self.coupon_fen, self.points_fen) == (coupon_fen, points_fen)

    def beside(self, priced: PricedLines) -> OrderedLine:
        """The line beside today's prices. A flash price is not taken up: its pieces were decided when the order
        was placed."""
        candidates = priced.prices[self.offer].candidates
        lowest = lowest_without_flash(candidates)
        return msgspec.structs.replace(
            self,
            no_promo=priced.offers[self.offer].product.no_promo,
            lowered_to=lowest if lowest.unit_fen < self.unit_fen else None,
            candidates=candidates,
        )


async def read_goods(conn: Connection, order: OrderId) -> list[OrderedLine]:
    """The goods lines of an order, in their places."""
    rows = await (
        await conn.execute(
            """
            SELECT position, offer_id::text AS offer, product_id::text AS product, quantity, unit_fen,
                coupon_fen, points_fen
            FROM order_lines WHERE order_id = %s AND kind = 'goods' ORDER BY position
            """,
            [order],
        )
    ).fetchall()
    return [OrderedLine(**row) for row in rows]


async def write_lines(conn: Connection, order: OrderId, basket: Basket) -> None:
    """The lines as they are ordered, each with its share of what is taken off; a gift is a line of its own."""
    rows: list[dict[str, Any]] = []
    for each in basket.lines:
        product = each.row.product
        rows.append(
            {
                "order": order,
                "position": len(rows) + 1,
                "kind": "goods",
                "offer": each.row.id,
                "product": product.id,
                "name": product.name,
                "quantity": each.quantity,
                "unit_fen": each.unit_fen,
                "line_fen": each.line_fen,
                "coupon_fen": each.coupon_fen,
                "points_fen": each.points_fen,
                "list_fen": product.list_fen,
                "gift_value_fen": 0,
                "winner": each.winner,
                "candidates": Jsonb(msgspec.to_builtins(each.candidates)),
                "piece": each.piece,
                "ship_by": product.ship_by if product.stock_mode == "presale" else None,
            }
        )
        if each.gift:
            rows.append(
                {
                    **rows[-1],
                    "position": len(rows) + 1,
                    "kind": "gift",
                    "name": product.gift_text,
                    "unit_fen": 0,
                    "line_fen": 0,
                    "coupon_fen": 0,
                    "points_fen": 0,
                    "list_fen": None,
                    "gift_value_fen": product.gift_value_fen,
                    "winner": "gift",
                    "candidates": Jsonb([]),
                    "piece": False,
                }
            )
    async with conn.cursor() as cursor:
        await cursor.executemany(
            """
            INSERT INTO order_lines (order_id, position, kind, offer_id, product_id, name, quantity,
                unit_fen, line_fen, coupon_fen, points_fen, list_fen, gift_value_fen, winner, candidates,
                piece, ship_by)
            VALUES (%(order)s, %(position)s, %(kind)s, %(offer)s, %(product)s, %(name)s, %(quantity)s,
                %(unit_fen)s, %(line_fen)s, %(coupon_fen)s, %(points_fen)s, %(list_fen)s,
                %(gift_value_fen)s, %(winner)s, %(candidates)s, %(piece)s, %(ship_by)s)
            """,
            rows,
        )


async def lower_lines(
    conn: Connection, order: OrderId, lines: Sequence[OrderedLine], discount: Discount
) -> None:
    """Write today's lower prices and the shares that follow from them; a line that stays as it is is not written."""
    shares = zip(lines, discount.line_coupon_fen, discount.line_points_fen, strict=True)
    for line, coupon_fen, points_fen in shares:
        if line.stays(coupon_fen, points_fen):
            continue
        await conn.execute(
            """
            UPDATE order_lines SET unit_fen = %(unit)s, line_fen = %(unit)s * quantity,
                coupon_fen = %(coupon)s, points_fen = %(points)s,
                winner = coalesce(%(winner)s, winner), candidates = coalesce(%(candidates)s, candidates)
            WHERE order_id = %(order)s AND position = %(position)s
            """,
            {
                "unit": line.now_fen,
                "coupon": coupon_fen,
                "points": points_fen,
                "winner": None if line.lowered_to is None else line.lowered_to.kind,
                "candidates": None
                if line.lowered_to is None
                else Jsonb(msgspec.to_builtins(line.candidates)),
                "order": order,
                "position": line.position,
            },
        )
    await conn.execute(
        """
        UPDATE orders SET goods_fen = %(goods)s, coupon_fen = %(coupon)s, points_fen = %(points)s,
            freight_fen = %(freight)s, total_fen = %(total)s
        WHERE id = %(id)s
        """,
        {
            "goods": discount.goods_fen,
            "coupon": discount.coupon_fen,
            "points": discount.points_fen,
            "freight": discount.freight_fen,
            "total": discount.total_fen,
            "id": order,
        },
    )


async def paid_by_product(conn: Connection, order: OrderId) -> dict[ProductId, int]:
    """What is paid in money for each product's goods: without coupons and points, the base of points."""
    rows = await (
        await conn.execute(
            """
            SELECT product_id::text AS product, sum(line_fen - coupon_fen - points_fen)::bigint AS fen
            FROM order_lines WHERE order_id = %s AND kind = 'goods' GROUP BY product_id
            """,
            [order],
        )
    ).fetchall()
    return {ProductId(row["product"]): row["fen"] for row in rows}
