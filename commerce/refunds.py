"""Refunds of goods: for a line, some of its pieces, the whole order, or a sum for a complaint.

Money, the points spent on the line and the points earned by it go back in one transaction, each cause once.
The coupon returns with the last piece only. Stock comes back only where staff say so: a parcel on its way
is no piece on the shelf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from commerce import refund_lines
from commerce.order_book import PAID, LockedOrder, NoSuchOrder
from commerce.orders import NotPaid, Orders
from commerce.payment_returns import Returns
from commerce.refund_lines import FREIGHT, AlreadyRefunded, RefundedLine, RefundLine
from commerce.spending import cause_of
from commerce.stock import Stock
from membership.actor import Actor, OrderId, ProductId
from membership.audit import Audit
from membership.points import Points
from membership.refusal import BadRequest, KeyReused
from membership.transaction import Transaction

CAUSE_CHARS_MAX = 80


class Refunded(Struct, frozen=True, kw_only=True):
    """What went back. `whole`: nothing is left of the order. `again`: it had gone back for this cause before."""

    order: OrderId
    lines: tuple[RefundedLine, ...]
    money_fen: int
    points: int  # restored to the buyer
    earned: int = 0  # taken back
    whole: bool = False
    again: bool = False


class Refunds:
    """Sends back parts of paid orders."""

    def __init__(
        self, returns: Returns, orders: Orders, points: Points, stock: Stock, audit: Audit | None = None
    ) -> None:
        self._returns = returns
        self._orders = orders
        self._points = points
        self._stock = stock
        self._audit = audit or Audit()

    async def lines(
        self,
        t: Transaction,
        actor: Actor,
        order: OrderId,
        wanted: Mapping[int, int] | None,
        cause: str,
        *,
        restock: bool = False,
    ) -> Refunded:
        """Send back what was paid for so many pieces of each position; None: for all that is left.

        The same cause again gives the same answer. Raises NoSuchOrder (also for who may not), NotPaid,
        AlreadyRefunded, BadRequest, KeyReused (the cause, with other pieces).
        """
        locked = await self._lock(t, actor, order, cause)
        before = await self._before(t, locked, cause, wanted)
        if before is not None:
            return before
        lines, found = await self._split(t, locked, wanted)
        return await self._send(t, actor, locked, lines, found, cause, restocked=restock)

    async def would_send(
        self, t: Transaction, actor: Actor, order: OrderId, wanted: Mapping[int, int] | None
    ) -> tuple[RefundedLine, ...]:
        """What `lines` would send back now; nothing is done. Raises as it."""
        locked = await self._lock(t, actor, order, "asked")
        return (await self._split(t, locked, wanted))[1]

    async def give(
        self,
        t: Transaction,
        actor: Actor,
        order: OrderId,
        amount_fen: int,
        cause: str,
        positions: Sequence[int] | None = None,
    ) -> Refunded:
        """Send back a sum for a complaint, or as a prize; the goods stay with the buyer.

        It counts against what a later refund of the same pieces sends. Raises as `lines`; AlreadyRefunded
        when less than the sum is left of these positions (None: of all).
        """
        locked = await self._lock(t, actor, order, cause)
        if amount_fen < 1:
            raise BadRequest("a sum to send back is at least 1 fen", field="amount_fen")
        before = await self._before(t, locked, cause, {})
        if before is not None:
            if before.money_fen != amount_fen:
                raise KeyReused("Another sum went back for this cause.")
            return before
        lines = await self._open_lines(t, locked)
        named = [line for line in lines if positions is None or line.position in positions]
        if positions is not None and len(named) != len(set(positions)):
            raise BadRequest("there is no such line of goods in this order", field="lines")
        if amount_fen > await self._returns.left_fen(t.conn, locked):
            raise AlreadyRefunded
        found = refund_lines.spread(named, amount_fen)
        return await self._send(t, actor, locked, lines, found, cause, restocked=False)

    # --- parts ---

    async def _lock(self, t: Transaction, actor: Actor, order: OrderId, cause: str) -> LockedOrder:
        if not 1 <= len(cause) <= CAUSE_CHARS_MAX:
            raise BadRequest(f"a cause has 1–{CAUSE_CHARS_MAX} characters")
        locked = await self._orders.lock(t.conn, order)
        if locked is None or not actor.may("member.write"):
            raise NoSuchOrder
        if locked.kind == "plan":
            raise BadRequest("a plan is given back as a whole, itemised")
        return locked

    async def _before(
        self, t: Transaction, locked: LockedOrder, cause: str, wanted: Mapping[int, int] | None
    ) -> Refunded | None:
        found = await refund_lines.read_cause(t.conn, locked.id, cause, wanted)
        if not found:
            return None
        if wanted is None and locked.state != "refunded":
            raise KeyReused("Not all that was left went back for this cause.")
        return _refunded(locked.id, found, again=True, whole=locked.state == "refunded")

    async def _open_lines(self, t: Transaction, locked: LockedOrder) -> tuple[RefundLine, ...]:
        if locked.state == "refunded":
            raise AlreadyRefunded
        if locked.state not in PAID:
            raise NotPaid
        return await refund_lines.read_lines(t.conn, locked.id)

    async def _split(
        self, t: Transaction, locked: LockedOrder, wanted: Mapping[int, int] | None
    ) -> tuple[tuple[RefundLine, ...], tuple[RefundedLine, ...]]:
        """The order's lines, and what goes back for the wanted pieces of them."""
        lines = await self._open_lines(t, locked)
        found = refund_lines.split(
            lines,
            locked.freight_fen,
            await refund_lines.read_freight_back(t.conn, locked.id),
            wanted,
            await self._returns.left_fen(t.conn, locked),
        )
        return lines, found

    async def _send(
        self,
        t: Transaction,
        actor: Actor,
        locked: LockedOrder,
        lines: Sequence[RefundLine],
        found: tuple[RefundedLine, ...],
        cause: str,
        *,
        restocked: bool,
    ) -> Refunded:
        whole = any(line.position == FREIGHT for line in found) or all(
            line.back + sum(each.quantity for each in found if each.position == line.position)
            == line.quantity
            for line in lines
        )
        done = _refunded(locked.id, found, whole=whole)
        if done.money_fen:
            await self._returns.return_part(t, locked.id, done.money_fen, cause)
        if done.points:
            await self._points.restore(t, cause_of(locked.id), done.points, cause)
        earned = await self._take_back(t, locked, lines, found, cause, whole=whole)
        await refund_lines.write(
            t.conn, locked.id, found, cause, actor.id, earned=earned, restocked=restocked
        )
        if whole:
            await self._orders.mark_refunded(t, locked)
        await self._returns.recall_unearned(t, locked.id)
        if restocked:
            await self._restock(t, actor, locked, lines, found, cause)
        if whole:
            await self._orders.tell_after(t, locked.id, "closed")
        else:
            await self._orders.tell_buyer_after(t, locked.id)
        await self._audit.record(
            t,
            actor,
            "order.refund_part",
            f"order:{locked.id}",
            {
                "cause": cause,
                "money_fen": done.money_fen,
                "points": done.points,
                "pieces": {str(line.position): line.quantity for line in found if line.quantity},
                "restocked": restocked,
            },
        )
        return _refunded(locked.id, found, earned=earned, whole=whole)

    async def _restock(
        self,
        t: Transaction,
        actor: Actor,
        locked: LockedOrder,
        lines: Sequence[RefundLine],
        found: Sequence[RefundedLine],
        cause: str,
    ) -> None:
        """The refunded pieces go back to the shelf. After points and coupons: products' rows are locked last."""
        of = {line.position: line.product for line in lines}
        pieces: dict[ProductId, int] = {}
        for line in found:
            if line.quantity:
                product = of[line.position]
                pieces[product] = pieces.get(product, 0) + line.quantity
        await self._stock.put_back(t, actor, locked.id, pieces, f"refund:{locked.id}:{cause}")

    async def _take_back(
        self,
        t: Transaction,
        locked: LockedOrder,
        lines: Sequence[RefundLine],
        found: Sequence[RefundedLine],
        cause: str,
        *,
        whole: bool,
    ) -> int:
        """The points the order earned, in proportion to the money for goods that has gone back by now."""
        row = await (
            await t.conn.execute(
                """
                SELECT coalesce(sum(amount) FILTER (WHERE kind = 'earn'), 0)::bigint AS earned,
                    coalesce(-sum(amount) FILTER (WHERE kind = 'reverse'), 0)::bigint AS back
                FROM points_entries WHERE cause = %s AND kind IN ('earn', 'reverse')
                """,
                [cause_of(locked.id)],
            )
        ).fetchone()
        assert row is not None
        paid_fen = sum(line.paid_fen for line in lines)
        back_fen = sum(line.back_fen for line in lines) + sum(
            line.money_fen for line in found if line.position != FREIGHT
        )
        due = row["earned"] if whole or not paid_fen else row["earned"] * back_fen // paid_fen
        more = max(0, due - row["back"])
        return await self._points.reverse(t, cause_of(locked.id), more, cause) if more else 0


def _refunded(
    order: OrderId, lines: tuple[RefundedLine, ...], *, earned: int = 0, whole: bool, again: bool = False
) -> Refunded:
    return Refunded(
        order=order,
        lines=lines,
        money_fen=sum(line.money_fen for line in lines),
        points=sum(line.points for line in lines),
        earned=earned,
        whole=whole,
        again=again,
    )
