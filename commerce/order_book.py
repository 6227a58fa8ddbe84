"""The order book: orders as the tables have them, for their owner, for staff, and locked for a change."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from commerce.parcels import Parcel, parcels_of
from commerce.prices import Candidate
from membership.actor import Actor, MemberId, OfferId, OrderId, PlanId, ProductId, ShowId, is_id
from membership.campaigns import Holding
from membership.moment import in_ms
from membership.page import Page, check_page
from membership.refusal import Forbidden, NotFound
from membership.transaction import Connection

State = Literal["placed", "paid", "fulfilled", "cancelled", "expired", "refunded"]

# Every move an order may make; the table `order_moves` says the same to the last guard.
MOVES: Final[Mapping[State, frozenset[State]]] = {
    "placed": frozenset({"paid", "cancelled", "expired"}),
    "expired": frozenset({"paid"}),  # late money, where the goods are still there
    "paid": frozenset({"fulfilled", "refunded"}),
    "fulfilled": frozenset({"refunded"}),
    "cancelled": frozenset(),
    "refunded": frozenset(),
}
PAID: Final[frozenset[State]] = frozenset({"paid", "fulfilled"})  # the money is ours


class NoSuchOrder(NotFound):
    """There is no such order."""


# Of a gift's line `l` of the order `o` with the product `p`: it came because of a plan that was given back
# before it was sent, and is left out of the parcel.
LEFT_OUT: Final = """(
    l.kind = 'gift' AND coalesce(p.gift_audience->>'kind', '') IN ('plan_members', 'plans') AND EXISTS (
        SELECT 1 FROM plan_refunds g JOIN plan_terms t ON t.payment_id = g.payment_id
        WHERE t.member_id = o.member_id AND o.placed_at >= t.starts_at AND o.placed_at < g.refunded_at
          AND (o.fulfilled_at IS NULL OR o.fulfilled_at > g.refunded_at)))"""


class OrderLine(Struct, frozen=True, kw_only=True):
    """One line as it was ordered. A gift line costs nothing. `refunded`: pieces whose money went back; `case`:
    what is asked about it now. `left_out`: a gift that is not sent, since the plan it came with was given back.
    """

    position: int
    kind: Literal["goods", "gift"]
    offer: OfferId | None
    product: ProductId | None
    name: str
    quantity: int
    unit_fen: int
    line_fen: int
    gift_value_fen: int
    winner: str
    candidates: tuple[Candidate, ...]
    coupon_fen: int = 0  # its share of what coupons took off
    points_fen: int = 0  # its share of the points spent
    refunded: int = 0
    case: str | None = None
    ship_by: date | None = None  # of a pre-sale, as it was promised
    left_out: bool = False


class OrderCoupon(Struct, frozen=True, kw_only=True):
    """What a coupon took off an order: of the goods, or of the freight."""

    coupon: str
    title: str
    kind: Literal["amount", "percent", "freight"]
    off_fen: int


class Order(Struct, frozen=True, kw_only=True):
    """An order as its owner and staff see it. `returning_fen` is money on its way back, `refunded_fen` what of
    the order's own money is gone or going. The days of the promise are those of the shop's zone.

    `refund_until` (ms): until then its owner may have the money back by one tap, as the plan came late and
    without its gift.
    """

    id: OrderId
    kind: Literal["goods", "plan"]
    member: MemberId
    show: ShowId | None
    state: State
    currency: str
    lines: tuple[OrderLine, ...]
    goods_fen: int
    coupons: tuple[OrderCoupon, ...] = ()
    coupon_fen: int = 0
    points: int = 0  # spent; 100 are a yuan
    points_fen: int = 0
    freight_fen: int
    total_fen: int
    returning_fen: int
    plan: PlanId | None
    plan_name: str | None
    address: dict[str, str] | None
    placed_at: int  # ms
    hold_until: int  # ms
    paid_at: int | None
    closed_at: int | None
    refund_until: int | None
    refunded_fen: int = 0
    promised_from: date | None = None
    promised_until: date | None = None
    fulfilled_at: int | None = None
    parcels: tuple[Parcel, ...] = ()
    priority: bool = False  # ordered in an early window: sent first


class LockedOrder(Struct, frozen=True, kw_only=True):
    """An order's row, locked until the transaction ends."""

    id: OrderId
    kind: Literal["goods", "plan"]
    member: MemberId
    show: ShowId | None
    state: State
    plan: PlanId | None
    currency: str
    goods_fen: int
    coupon_fen: int = 0
    points_fen: int = 0
    freight_fen: int
    total_fen: int
    points_bonus_percent: int
    points_campaigns: tuple[Holding, ...] = ()  # which held at the time of order
    hold_until: datetime
    paid_at: datetime | None
    region: str = ""  # where it is sent to


class OrderBook:
    """Reads orders. Changing them is for `Orders`."""

    async def get(self, conn: Connection, actor: Actor, order: OrderId) -> Order:
        """One order. Raises NoSuchOrder, also for somebody else's."""
        found = await self._one(conn, order)
        if not owns(actor, found.member, "member.read"):
            raise NoSuchOrder
        return found

    async def of_member(
        self, conn: Connection, member: MemberId, cursor: str | None = None, limit: int = 50
    ) -> Page[Order]:
        """The member's orders, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id FROM orders
                WHERE member_id = %(member)s AND (%(cursor)s::uuid IS NULL OR id < %(cursor)s)
                ORDER BY id DESC LIMIT %(limit)s + 1
                """,
                {"member": member, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        items = await self._read(conn, [row["id"] for row in rows[:limit]])
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def all(
        self,
        conn: Connection,
        actor: Actor,
        cursor: str | None = None,
        limit: int = 50,
        *,
        show: ShowId | None = None,
    ) -> Page[Order]:
        """Every order in the order of placing, for staff and the shop's server. Raises Forbidden."""
        if not actor.may("member.read"):
            raise Forbidden
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id FROM orders WHERE (%(cursor)s::uuid IS NULL OR id > %(cursor)s)
                    AND (%(show)s::text IS NULL OR show_id = %(show)s)
                ORDER BY id LIMIT %(limit)s + 1
                """,
                {"cursor": cursor, "limit": limit, "show": show},
            )
        ).fetchall()
        items = await self._read(conn, [row["id"] for row in rows[:limit]])
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def lock(self, conn: Connection, order: str) -> LockedOrder | None:
        """The order's row, locked; None when there is none."""
        if not is_id(order):
            return None
        row = await (await conn.execute("SELECT * FROM orders WHERE id = %s FOR UPDATE", [order])).fetchone()
        if row is None:
            return None
        return LockedOrder(
            id=OrderId(str(row["id"])),
            kind=row["kind"],
            member=MemberId(str(row["member_id"])),
            show=row["show_id"],
            state=row["state"],
            plan=None if row["plan_id"] is None else PlanId(str(row["plan_id"])),
            currency=row["currency"],
            goods_fen=row["goods_fen"],
            coupon_fen=row["coupon_fen"],
            points_fen=row["points_fen"],
            freight_fen=row["freight_fen"],
            total_fen=row["total_fen"],
            points_bonus_percent=row["points_bonus_percent"],
            points_campaigns=msgspec.convert(row["points_campaigns"], tuple[Holding, ...]),
            hold_until=row["hold_until"],
            paid_at=row["paid_at"],
            region=(row["address"] or {}).get("region", ""),
        )

    async def _one(self, conn: Connection, order: OrderId) -> Order:
        found = await self._read(conn, [uuid.UUID(order)]) if is_id(order) else ()
        if not found:
            raise NoSuchOrder
        return found[0]

    async def _read(self, conn: Connection, orders: Sequence[uuid.UUID]) -> tuple[Order, ...]:
        rows = await (
            await conn.execute(
                """
                SELECT o.*, p.name AS plan_name, coalesce((
                        SELECT sum(r.amount_fen) FROM payments pay
                        JOIN payment_returns r ON r.payment_id = pay.id
                        LEFT JOIN payment_returns_done done ON done.return_id = r.id
                        WHERE pay.order_id = o.id AND done.return_id IS NULL), 0)::bigint AS returning_fen,
                    (SELECT m.refund_until FROM payments pay
                        JOIN benefit_misses m ON m.payment_id = pay.id
                        WHERE pay.order_id = o.id AND pay.outcome = 'accepted') AS refund_until,
                    (SELECT coalesce(json_agg(json_build_object('coupon', c.coupon_id, 'title', c.title,
                            'kind', c.kind, 'off_fen', c.off_fen) ORDER BY c.coupon_id), '[]')
                        FROM order_coupons c WHERE c.order_id = o.id) AS coupons,
                    coalesce((SELECT sum(r.amount_fen) FROM payments pay
                        JOIN payment_returns r ON r.payment_id = pay.id
                        WHERE pay.order_id = o.id AND pay.outcome = 'accepted'), 0)::bigint AS refunded_fen
                FROM orders o LEFT JOIN plans p ON p.id = o.plan_id WHERE o.id = ANY(%s)
                """,
                [list(orders)],
            )
        ).fetchall()
        lines = await (
            await conn.execute(
                f"""
                SELECT l.*, {LEFT_OUT} AS left_out, coalesce((SELECT sum(r.quantity) FROM order_refunds r
                        WHERE r.order_id = l.order_id AND r.position = l.position), 0)::bigint AS refunded,
                    (SELECT w.case_id FROM after_sales_lines w WHERE w.order_id = l.order_id
                        AND w.position = l.position AND w.is_open) AS case_id
                FROM order_lines l JOIN orders o ON o.id = l.order_id LEFT JOIN products p ON p.id = l.product_id
                WHERE l.order_id = ANY(%s) ORDER BY l.order_id, l.position
                """,  # noqa: S608 - a constant; what comes from outside is a parameter
                [list(orders)],
            )
        ).fetchall()
        of_order: dict[uuid.UUID, list[OrderLine]] = {row["id"]: [] for row in rows}
        for line in lines:
            of_order[line["order_id"]].append(_order_line(line))
        parcels = await parcels_of(conn, [OrderId(str(row["id"])) for row in rows])
        found = {
            row["id"]: _order(row, of_order[row["id"]], parcels.get(OrderId(str(row["id"])), ()))
            for row in rows
        }
        return tuple(found[order] for order in orders if order in found)


def owns(actor: Actor, member: MemberId, permission: Literal["member.read", "member.write"]) -> bool:
    """Whether an order of this member is the actor's own, or staff's to see or change."""
    return (actor.kind == "viewer" and actor.member == member) or actor.may(permission)


def _order_line(row: dict[str, Any]) -> OrderLine:
    return OrderLine(
        position=row["position"],
        refunded=row["refunded"],
        case=None if row["case_id"] is None else str(row["case_id"]),
        kind=row["kind"],
        offer=None if row["offer_id"] is None else OfferId(str(row["offer_id"])),
        product=None if row["product_id"] is None else ProductId(str(row["product_id"])),
        name=row["name"],
        quantity=row["quantity"],
        unit_fen=row["unit_fen"],
        line_fen=row["line_fen"],
        gift_value_fen=row["gift_value_fen"],
        winner=row["winner"],
        candidates=msgspec.convert(row["candidates"], tuple[Candidate, ...]),
        coupon_fen=row["coupon_fen"],
        points_fen=row["points_fen"],
        ship_by=row["ship_by"],
        left_out=row["left_out"],
    )


def _order(row: dict[str, Any], lines: Sequence[OrderLine], parcels: tuple[Parcel, ...]) -> Order:
    return Order(
        id=OrderId(str(row["id"])),
        kind=row["kind"],
        member=MemberId(str(row["member_id"])),
        show=row["show_id"],
        state=row["state"],
        currency=row["currency"],
        lines=tuple(lines),
        goods_fen=row["goods_fen"],
        coupons=msgspec.convert(row["coupons"], tuple[OrderCoupon, ...]),
        coupon_fen=row["coupon_fen"],
        points=row["points_fen"],
        points_fen=row["points_fen"],
        freight_fen=row["freight_fen"],
        total_fen=row["total_fen"],
        returning_fen=row["returning_fen"],
        plan=None if row["plan_id"] is None else PlanId(str(row["plan_id"])),
        plan_name=row["plan_name"],
        address=row["address"] or None,
        placed_at=in_ms(row["placed_at"]),
        hold_until=in_ms(row["hold_until"]),
        paid_at=None if row["paid_at"] is None else in_ms(row["paid_at"]),
        closed_at=None if row["closed_at"] is None else in_ms(row["closed_at"]),
        refund_until=None if row["refund_until"] is None else in_ms(row["refund_until"]),
        refunded_fen=row["refunded_fen"],
        promised_from=row["promised_from"],
        promised_until=row["promised_until"],
        fulfilled_at=None if row["fulfilled_at"] is None else in_ms(row["fulfilled_at"]),
        parcels=parcels,
        priority=row["priority"],
    )
