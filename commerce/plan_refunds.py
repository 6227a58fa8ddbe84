"""Giving a plan back: the sum item by item before anything is done, and then exactly that sum.

Within seven days, and nothing used: all of it. Within seven days otherwise: the fee less what member prices and
free freight saved, less the stated value of gifts that were sent and not returned; never below nothing. Later
the plan is cancelled for its end, or, where the shop chose so, the part of the fee for the time left goes back
less the gifts; what was saved until then is paid for by the time that has passed. Orders already placed keep
their price, so an open one counts as saved by.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct

from commerce.order_book import PAID
from commerce.orders import Orders
from commerce.payment_returns import Returns
from commerce.payments import ASK_AGAIN_MAX_S, ASK_FOR_H
from commerce.prices import MemberDay, PriceChanged
from commerce.refund_lines import AlreadyRefunded
from commerce.savings import PLAN_ONLY, plan_kinds, purchase_gifts, saved_on
from commerce.seats import Seats
from membership.actor import Actor, MemberId, OrderId, PaymentId, PlanId
from membership.audit import Audit
from membership.moment import in_ms
from membership.plans import NoSuchPlan, Plans
from membership.refusal import Refusal
from membership.transaction import Connection, Transaction

WHOLE_DAYS = 7

Later = Literal["end", "pro_rata"]
Way = Literal["whole", "itemised", "pro_rata", "end"]


class OnlyAtEnd(Refusal):
    """The time to give the plan back is over; cancel it for its end."""

    code = "not_eligible"


class PlanGift(Struct, frozen=True, kw_only=True):
    """A gift at its stated value: won by joining, the plan's own, of a period, with a purchase, or a benefit that
    was for members of a plan alone. Deducted when it was sent and not returned; the last is always."""

    cause: Literal["join", "plan", "period", "order", "benefit"]
    title: str
    value_fen: int
    sent: bool
    returned: bool

    @property
    def deducted_fen(self) -> int:
        return self.value_fen if self.sent and not self.returned else 0


class Bill(Struct, frozen=True, kw_only=True):
    """How the sum is made up. `way` is `end` when no money goes back any more."""

    order: OrderId
    plan: PlanId
    plan_name: str
    way: Way
    fee_fen: int
    price_fen: int  # saved by member prices
    freight_fen: int  # saved by free freight
    gifts: tuple[PlanGift, ...]
    gifts_fen: int  # stated value of those kept
    time_fen: int  # pro rata: the part of the fee for the time that has passed
    payable_fen: int
    whole_until: int  # ms
    ends_at: int  # ms
    cancelled: bool


class _Held(Struct, frozen=True, kw_only=True):
    """The term that would be given back: the latest paid one."""

    payment: PaymentId
    order: OrderId
    member: MemberId
    plan: PlanId
    plan_name: str
    gift_text: str
    gift_value_fen: int
    fee_fen: int
    paid_at: datetime
    starts_at: datetime
    ends_at: datetime
    cancelled: bool
    now: datetime


class PlanRefunds:
    """Says what giving a plan back would bring, and does it."""

    def __init__(
        self,
        returns: Returns,
        orders: Orders,
        plans: Plans,
        seats: Seats,
        *,
        member_day: MemberDay | None = None,
        later: Later = "end",
        audit: Audit | None = None,
    ) -> None:
        self._returns = returns
        self._orders = orders
        self._plans = plans
        self._seats = seats
        self._audit = audit or Audit()
        self.later = later
        self._plan_kinds = plan_kinds(member_day)

    async def bill(self, conn: Connection, actor: Actor) -> Bill:
        """What giving the member's latest plan back would bring now. Raises Unauthenticated, NoSuchPlan."""
        return await self._bill(conn, await self._held(conn, actor.signed_in()))

    async def refund(self, t: Transaction, actor: Actor, payable_fen: int) -> Bill:
        """Give the plan back for the sum that was shown. Afterwards the person is registered, not on trial.

        A gift that was not sent, or came back, is recalled; one that was kept is deducted. Raises
        Unauthenticated, NoSuchPlan, PriceChanged (another sum now), OnlyAtEnd, AlreadyRefunded.
        """
        member = actor.signed_in()
        first = await self._held(t.conn, member)
        locked = await self._orders.lock(t.conn, first.order)
        if locked is None or locked.state not in PAID:
            raise AlreadyRefunded
        await self._returns.lock_plan(t.conn, locked)  # what takes a gift of it waits here, or is on the bill
        await self._orders.one_at_a_time(t.conn, member)  # no order at the plan's price comes in between
        bill = await self._bill(t.conn, await self._held(t.conn, member))
        if bill.order != locked.id:
            raise PriceChanged("your plan has changed; look at the bill again")
        if bill.way == "end":
            raise OnlyAtEnd
        if bill.payable_fen != payable_fen:
            raise PriceChanged("the sum has changed; look at the bill again")
        if payable_fen:
            await self._returns.return_part(t, locked.id, payable_fen, "plan")
        await t.conn.execute(
            """
            INSERT INTO plan_refunds (payment_id, order_id, way, fee_fen, price_fen, freight_fen, gifts_fen,
                time_fen, payable_fen, refunded_by)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                first.payment,
                locked.id,
                bill.way,
                bill.fee_fen,
                bill.price_fen,
                bill.freight_fen,
                bill.gifts_fen,
                bill.time_fen,
                bill.payable_fen,
                actor.id,
            ],
        )
        await self._orders.mark_refunded(t, locked)
        await self._plans.end_refunded(t, first.payment)
        kept = any(gift.deducted_fen for gift in bill.gifts if gift.cause == "join")
        await self._seats.refund(t, first.payment, "deducted" if kept else "recalled")
        await self._orders.tell_after(t, locked.id, "closed")
        await self._audit.record(
            t, actor, "plan.refund", f"order:{locked.id}", {"way": bill.way, "payable_fen": payable_fen}
        )
        return bill

    # --- parts ---

    async def _bill(self, conn: Connection, held: _Held) -> Bill:
        whole_until = held.paid_at + timedelta(days=WHOLE_DAYS)
        orders = await self._orders_within(conn, held)
        price_fen, freight_fen = await self._saved(conn, orders)
        gifts = (
            *await self._join_gifts(conn, held),
            *await self._period_gifts(conn, held),
            *await self._order_gifts(conn, held),
            *await self._benefit_gifts(conn, held),
        )
        return bill_of(held, price_fen, freight_fen, gifts, whole_until, self.later)

    async def _held(self, conn: Connection, member: MemberId) -> _Held:
        row = await (
            await conn.execute(
                """
                SELECT t.payment_id::text AS payment, o.id::text AS order, t.member_id::text AS member,
                    p.id::text AS plan, p.name AS plan_name, p.gift_text, p.gift_value_fen, o.paid_at,
                    t.starts_at, t.ends_at, t.cancelled_at IS NOT NULL AS cancelled, clock_timestamp() AS now,
                    pay.amount_fen - coalesce((SELECT sum(r.amount_fen) FROM payment_returns r
                        WHERE r.payment_id = pay.id), 0)::bigint AS fee_fen
                FROM plan_terms t JOIN plans p ON p.id = t.plan_id
                JOIN payments pay ON pay.id = t.payment_id JOIN orders o ON o.id = pay.order_id
                WHERE t.member_id = %s AND t.kind = 'paid' AND t.ended_at IS NULL
                  AND t.ends_at > clock_timestamp() AND o.paid_at IS NOT NULL
                ORDER BY t.ends_at DESC, t.id DESC LIMIT 1
                """,
                [member],
            )
        ).fetchone()
        if row is None:
            raise NoSuchPlan("You have no paid plan.")
        return _Held(**row)

    async def _orders_within(self, conn: Connection, held: _Held) -> list[str]:
        """Orders of goods placed under the plan that are paid, or still may be.

        One that has run out still may be while its page's money may be on its way: until the provider was asked
        so long after the end that the wait between two questions is over. That is ten minutes where it answers,
        and never longer than it is asked for. A page that was left for good is not to cost the member the whole
        refund for a day, which may be the last one that there is for it; no page, no money.
        """
        rows = await (
            await conn.execute(
                """
                SELECT id::text AS id FROM orders o
                WHERE member_id = %(member)s AND kind = 'goods'
                  AND placed_at >= %(from)s AND placed_at < %(until)s
                  AND (state = ANY(%(paid)s) OR state = 'placed' OR state = 'expired' AND EXISTS (
                      SELECT 1 FROM payment_starts s
                      WHERE s.order_id = o.id AND s.ref IS NOT NULL
                        AND s.ask_at <= o.closed_at + make_interval(secs => %(wait)s)
                        AND s.started_at > clock_timestamp() - make_interval(hours => %(for)s)
                        AND NOT EXISTS (
                            SELECT 1 FROM payments p WHERE p.provider = s.provider AND p.ref = s.ref)))
                ORDER BY id
                """,
                {
                    "member": held.member,
                    "from": held.starts_at,
                    "until": held.now,
                    "paid": list(PAID),
                    "wait": ASK_AGAIN_MAX_S,
                    "for": ASK_FOR_H,
                },
            )
        ).fetchall()
        return [row["id"] for row in rows]

    async def _saved(self, conn: Connection, orders: Sequence[str]) -> tuple[int, int]:
        """What member prices and free freight have saved on what was not refunded."""
        lines = await (
            await conn.execute(
                """
                SELECT l.unit_fen, l.winner, l.candidates, l.quantity - coalesce((
                    SELECT sum(r.quantity) FROM order_refunds r
                    WHERE r.order_id = l.order_id AND r.position = l.position), 0)::bigint AS kept
                FROM order_lines l WHERE l.order_id = ANY(%s::uuid[]) AND l.kind = 'goods'
                """,
                [list(orders)],
            )
        ).fetchall()
        freight = await (
            await conn.execute(
                """
                SELECT coalesce(sum(greatest(0, o.freight_list_fen - o.freight_fen - coalesce((
                    SELECT sum(c.off_fen) FROM order_coupons c
                    WHERE c.order_id = o.id AND c.kind = 'freight'), 0))), 0)::bigint AS saved
                FROM orders o WHERE o.id = ANY(%s::uuid[]) AND o.freight_list_fen IS NOT NULL
                """,
                [list(orders)],
            )
        ).fetchone()
        assert freight is not None
        return sum(saved_on(line, self._plan_kinds) for line in lines), int(freight["saved"])

    async def _join_gifts(self, conn: Connection, held: _Held) -> list[PlanGift]:
        """The plan's own gift, and what joining with this payment won. A parcel says that they were sent."""
        row = await (
            await conn.execute(
                """
                SELECT count(*) > 0 AS sent, coalesce(bool_and(returned_at IS NOT NULL), false) AS returned
                FROM parcels WHERE order_id = %s AND gift_claim_id IS NULL
                """,
                [held.order],
            )
        ).fetchone()
        assert row is not None
        won = await (
            await conn.execute(
                """
                SELECT b.title, b.value_fen FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
                WHERE c.payment_id = %s AND c.state = 'confirmed' AND b.what = 'gift'
                """,
                [held.payment],
            )
        ).fetchall()
        sent, returned = row["sent"], row["returned"]
        gifts = [
            PlanGift(
                cause="join",
                title=each["title"],
                value_fen=each["value_fen"],
                sent=sent,
                returned=returned,
            )
            for each in won
        ]
        if held.gift_text:
            gifts.append(
                PlanGift(
                    cause="plan",
                    title=held.gift_text,
                    value_fen=held.gift_value_fen,
                    sent=sent,
                    returned=returned,
                )
            )
        return gifts

    async def _period_gifts(self, conn: Connection, held: _Held) -> list[PlanGift]:
        """Gifts of a month, a year or a birthday that were taken; what is not sent is handed over at once."""
        rows = await (
            await conn.execute(
                """
                SELECT g.title, g.value_fen, NOT g.needs_address OR s.id IS NOT NULL AS sent,
                    s.returned_at IS NOT NULL AS returned
                FROM gift_claims c JOIN plan_gifts g ON g.id = c.gift_id
                JOIN plan_terms t ON t.id = c.term_id
                LEFT JOIN parcels s ON s.gift_claim_id = c.id
                WHERE t.payment_id = %s ORDER BY c.id
                """,
                [held.payment],
            )
        ).fetchall()
        return [PlanGift(cause="period", **row) for row in rows]

    async def _order_gifts(self, conn: Connection, held: _Held) -> list[PlanGift]:
        """Gifts that came with purchases because of the plan. What is not sent yet is left out of the parcel."""
        return [
            PlanGift(
                cause="order",
                title=gift.title,
                value_fen=gift.value_fen,
                sent=gift.sent,
                returned=gift.returned,
            )
            for gift in await purchase_gifts(conn, held.member, held.starts_at, held.now)
        ]

    async def _benefit_gifts(self, conn: Connection, held: _Held) -> list[PlanGift]:
        """What was claimed as a member of the plan and is kept. What came by newly joining is recalled instead."""
        rows = await (
            await conn.execute(
                """
                SELECT b.title, greatest(b.value_fen, g.points, g.amount_fen)::bigint AS value_fen,
                    s.returned_at IS NOT NULL AS returned
                FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
                LEFT JOIN benefit_grants g ON g.claim_id = c.id LEFT JOIN parcels s ON s.claim_id = c.id
                WHERE c.member_id = %s AND c.state = 'confirmed' AND c.claimed_at >= %s
                  AND b.needs <> 'join' AND b.audience->>'kind' = ANY(%s)
                  AND c.joined_by IS DISTINCT FROM %s
                ORDER BY c.id
                """,
                [held.member, held.starts_at, PLAN_ONLY, held.payment],
            )
        ).fetchall()
        return [PlanGift(cause="benefit", **row, sent=True) for row in rows]


# --- pure parts ---


def bill_of(
    held: _Held,
    price_fen: int,
    freight_fen: int,
    gifts: Sequence[PlanGift],
    whole_until: datetime,
    later: Later,
) -> Bill:
    """The items and their sum, from what was found."""
    gifts_fen = sum(gift.deducted_fen for gift in gifts)
    time_fen = 0
    way: Way = "itemised"
    if held.now < whole_until:
        if not price_fen + freight_fen + gifts_fen:
            way = "whole"
    elif later == "end":
        way = "end"
    else:
        way = "pro_rata"
        price_fen = freight_fen = 0
        time_fen = held.fee_fen - left_of(held.fee_fen, held.starts_at, held.ends_at, held.now)
    payable_fen = max(0, held.fee_fen - price_fen - freight_fen - gifts_fen - time_fen)
    return Bill(
        order=held.order,
        plan=held.plan,
        plan_name=held.plan_name,
        way=way,
        fee_fen=held.fee_fen,
        price_fen=price_fen,
        freight_fen=freight_fen,
        gifts=tuple(gifts),
        gifts_fen=gifts_fen,
        time_fen=time_fen,
        payable_fen=0 if way == "end" else payable_fen,
        whole_until=in_ms(whole_until),
        ends_at=in_ms(held.ends_at),
        cancelled=held.cancelled,
    )


def left_of(fee_fen: int, starts_at: datetime, ends_at: datetime, now: datetime) -> int:
    """The part of a fee for the time left, floored; all of it before the time begins."""
    whole = ends_at - starts_at
    left = min(whole, max(timedelta(0), ends_at - now))
    return fee_fen * (left // timedelta(seconds=1)) // max(1, whole // timedelta(seconds=1))
