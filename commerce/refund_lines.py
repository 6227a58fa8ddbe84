"""What goes back of an order's lines: the shares by one rule, and the rows that remember them.

A line's money is what was paid for it: its sum less its share of coupon and points. After k of its n pieces
went back, k/n of that money and of its points have gone back, floored; with the last piece all of it. So any
split of refunds adds up to the whole, to the fen. The freight goes back with the last piece of the order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from membership.actor import OrderId, ProductId, new_id
from membership.refusal import BadRequest, KeyReused, Refusal
from membership.transaction import Connection

FREIGHT = 0  # the position of the freight among an order's lines


class AlreadyRefunded(Refusal):
    """The money of this order was sent back before."""

    code = "already_refunded"


class RefundLine(Struct, frozen=True, kw_only=True):
    """A line of goods with what was paid for it, and what of it went back before."""

    position: int
    product: ProductId
    quantity: int
    paid_fen: int
    points: int
    back: int = 0  # pieces
    back_fen: int = 0
    back_points: int = 0


class RefundedLine(Struct, frozen=True, kw_only=True):
    """What went back of one line by one cause. Position 0 is the freight."""

    position: int
    quantity: int
    money_fen: int
    points: int = 0


def share(amount: int, pieces: int, quantity: int) -> int:
    """What of an amount belongs to so many of its pieces; all of it belongs to all of them."""
    return amount * pieces // quantity


def split(
    lines: Sequence[RefundLine],
    freight_fen: int,
    freight_back_fen: int,
    wanted: Mapping[int, int] | None,
    left_fen: int,
) -> tuple[RefundedLine, ...]:
    """What goes back for so many pieces of each position (None: for all that is left), never more than
    `left_fen`. Pure. Raises BadRequest (no such line), AlreadyRefunded (fewer pieces are left)."""
    of = {line.position: line for line in lines}
    asked = {line.position: line.quantity - line.back for line in lines} if wanted is None else dict(wanted)
    if wanted is None:
        asked = {position: pieces for position, pieces in asked.items() if pieces}
    for position, pieces in asked.items():
        line = of.get(position)
        if line is None or pieces < 1:
            raise BadRequest("there is no such line of goods in this order", field=f"lines.{position}")
        if pieces > line.quantity - line.back:
            raise AlreadyRefunded(
                f"Of line {position} {line.quantity - line.back} pieces are left to refund.",
                position=position,
                left=line.quantity - line.back,
            )
    found: list[RefundedLine] = []
    for position in sorted(asked):
        line = of[position]
        pieces = line.back + asked[position]
        due_fen = max(0, share(line.paid_fen, pieces, line.quantity) - line.back_fen)
        money_fen = min(due_fen, left_fen)
        left_fen -= money_fen
        points = max(0, share(line.points, pieces, line.quantity) - line.back_points)
        found.append(
            RefundedLine(position=position, quantity=asked[position], money_fen=money_fen, points=points)
        )
    if all(line.back + asked.get(line.position, 0) == line.quantity for line in lines):
        freight = min(max(0, freight_fen - freight_back_fen), left_fen)
        if freight or not found:
            found.append(RefundedLine(position=FREIGHT, quantity=0, money_fen=freight))
    return tuple(found)


def spread(lines: Sequence[RefundLine], amount_fen: int) -> tuple[RefundedLine, ...]:
    """A sum of money over lines whose goods stay with the buyer, in their order, each up to what is left of
    it. Pure. Raises AlreadyRefunded when less is left."""
    left = amount_fen
    found: list[RefundedLine] = []
    for line in sorted(lines, key=lambda each: each.position):
        money_fen = min(left, line.paid_fen - line.back_fen)
        if money_fen > 0:
            found.append(RefundedLine(position=line.position, quantity=0, money_fen=money_fen))
            left -= money_fen
    if left or not found:
        raise AlreadyRefunded(f"Of these lines {amount_fen - left} are left to send back.")
    return tuple(found)


async def read_lines(conn: Connection, order: OrderId) -> tuple[RefundLine, ...]:
    """The order's lines of goods, with what went back of each."""
    rows = await (
        await conn.execute(
            """
            SELECT l.position, l.product_id::text AS product, l.quantity,
                l.line_fen - l.coupon_fen - l.points_fen AS paid_fen, l.points_fen AS points,
                coalesce(sum(r.quantity), 0)::bigint AS back,
                coalesce(sum(r.money_fen), 0)::bigint AS back_fen,
                coalesce(sum(r.points), 0)::bigint AS back_points
            FROM order_lines l LEFT JOIN order_refunds r
                ON r.order_id = l.order_id AND r.position = l.position
            WHERE l.order_id = %s AND l.kind = 'goods'
            GROUP BY l.order_id, l.position ORDER BY l.position
            """,
            [order],
        )
    ).fetchall()
    return tuple(RefundLine(**row) for row in rows)


async def read_freight_back(conn: Connection, order: OrderId) -> int:
    row = await (
        await conn.execute(
            "SELECT coalesce(sum(money_fen), 0)::bigint AS fen FROM order_refunds"
            " WHERE order_id = %s AND position = %s",
            [order, FREIGHT],
        )
    ).fetchone()
    assert row is not None
    return int(row["fen"])


async def read_cause(
    conn: Connection, order: OrderId, cause: str, wanted: Mapping[int, int] | None
) -> tuple[RefundedLine, ...]:
    """What went back for this cause before; nothing when it is new. Raises KeyReused when other pieces did."""
    rows = await (
        await conn.execute(
            "SELECT position, quantity, money_fen, points FROM order_refunds"
            " WHERE order_id = %s AND cause = %s ORDER BY position",
            [order, cause],
        )
    ).fetchall()
    found = tuple(RefundedLine(**row) for row in rows)
    pieces = {line.position: line.quantity for line in found if line.quantity}
    if found and wanted is not None and pieces != dict(wanted):
        raise KeyReused("Other pieces went back for this cause.")
    return found


async def write(
    conn: Connection,
    order: OrderId,
    lines: Sequence[RefundedLine],
    cause: str,
    by: str,
    *,
    earned: int = 0,
    restocked: bool = False,
) -> None:
    """Remember what goes back. `earned`: points taken back by it, kept with the first row."""
    async with conn.cursor() as cursor:
        await cursor.executemany(
            """
            INSERT INTO order_refunds (id, order_id, position, quantity, money_fen, points, earned, restocked,
                cause, refunded_by)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                (
                    new_id(),
                    order,
                    line.position,
                    line.quantity,
                    line.money_fen,
                    line.points,
                    0 if number else earned,
                    restocked,
                    cause,
                    by,
                )
                for number, line in enumerate(lines)
            ],
        )
