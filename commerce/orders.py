"""Orders: pieces held for ten minutes, then paid, cancelled or expired.

placed → paid → refunded, or placed → cancelled | expired. The road of a purchase: the signed quote gives the
price (quotes.py), the row is written here and its lines beside it (order_lines.py), coupons and points are taken
(spending.py), the pieces are held and the stock is taken (pieces.py), and after the commit the show is told
(order_announcer.py). Reading orders is in order_book.py.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from commerce.basket import basket_of
from commerce.coupons import Coupons, CouponUsed
from commerce.discounts import work_out
from commerce.freight import NotCovered
from commerce.guards import Guards
from commerce.limits import check_again, check_limits, check_offers, household_of
from commerce.messages import PlaceOrder
from commerce.offers import buyer_lock, order_lock
from commerce.order_announcer import CLOSED_WITHIN_S, UNTOLD_S, OrderAnnouncer, Step, Transactions
from commerce.order_book import PAID, LockedOrder, NoSuchOrder, Order, OrderBook, State, owns
from commerce.order_lines import lower_lines, paid_by_product, read_goods, write_lines
from commerce.pieces import LimitReached, Pieces, ReservedOut, SoldOut
from commerce.prices import OfferEnded, PriceChanged
from commerce.products import Product
from commerce.quotes import Promise, Quotes, checked_lines
from commerce.seats import Seats, SeatStatus
from commerce.spending import ENDED, REFUNDED, Spending, cause_of
from membership.actor import (
    Actor,
    AddressId,
    MemberId,
    OfferId,
    OrderId,
    PlanId,
    ShowId,
    new_id,
)
from membership.addresses import Addresses
from membership.campaigns import bases
from membership.members import mask_name
from membership.moment import in_ms
from membership.notices import Notices
from membership.personal import Personal
from membership.plans import FailedRenewal, NoSuchPlan, Plans
from membership.points import NotEnoughPoints, Points
from membership.refusal import (
    BadRequest,
    KeyReused,
    Refusal,
)
from membership.script import ScriptLoader
from membership.transaction import Connection, Transaction, lock

__all__ = [
    "PERSONAL_OF_ORDERS",
    "LockedOrder",
    "Lost",
    "NoSuchOrder",
    "NotPaid",
    "Order",
    "OrderClosed",
    "Orders",
    "Placed",
]

HOLD_S = 600  # set once, never renewed
Lost = Literal["no_stock", "limit_reached", "discount_gone"]  # why money came for nothing
RETURN_WINDOW = timedelta(days=7)  # points are pending until it ends
PLACED_MAX = 20  # unpaid orders of one member at a time

PERSONAL_OF_ORDERS = (
    Personal(
        "orders",
        ("address", "shown_name", "household"),
        "UPDATE orders SET shown_name = '', household = NULL,"
        " address = CASE WHEN address IS NOT NULL THEN '{}'::jsonb END WHERE member_id = %(member)s",
    ),
)


class OrderClosed(Refusal):
    """The order is no longer open."""

    code = "closed"


class NotPaid(Refusal):
    """The order is not paid, so there is nothing to refund."""

    code = "not_paid"


class Placed(Struct, frozen=True, kw_only=True):
    """The reply to placing an order; the same key gives it again."""

    order: OrderId
    kind: Literal["goods", "plan"]
    state: State
    total_fen: int
    currency: str
    hold_until: int  # ms
    seat: SeatStatus | None = None


class Orders(OrderBook):
    """Places orders and takes them through their states."""

    def __init__(
        self,
        scripts: ScriptLoader,
        quotes: Quotes,
        plans: Plans,
        points: Points,
        coupons: Coupons,
        notices: Notices,
        addresses: Addresses,
        seats: Seats,
        *,
        hold_s: int = HOLD_S,
        secret: str = "",
        guards: Guards | None = None,
    ) -> None:
        self._guards = guards
        self._household_key = hmac.digest(secret.encode(), b"companion household", hashlib.sha256)
        self._quotes = quotes
        self._plans = plans
        self._points = points
        self._spending = Spending(coupons, points)
        self._addresses = addresses
        self._seats = seats
        self._hold_s = hold_s
        self._pieces = Pieces(scripts)
        self._announcer = OrderAnnouncer(scripts, notices, self._pieces)

    # --- a member buys ---

    async def place(self, t: Transaction, actor: Actor, show: ShowId, command: PlaceOrder) -> Placed:
        """Order the quoted lines: all of them or none, at the lower of the quote and now.

        Raises Unauthenticated, BadRequest (also: a forged quote, somebody else's), PriceChanged (expired, or
        other lines than quoted), KeyReused, NoSuchAddress, CouponUsed, NotEnoughPoints, SoldOut, ReservedOut,
        LimitReached, Unavailable. With nothing to pay it is paid at once.
        """
        member = actor.signed_in()
        key = _key(command.key)
        lines = None if command.lines is None else [[line.offer, line.quantity] for line in command.lines]
        body = _digest("goods", show, command.quote, command.address, lines)
        again = await self._again(t.conn, member, key, body)
        if again is not None:
            return again
        if self._guards is not None:
            await self._guards.check_selling(t.conn)
        promise = self._quotes.verify(command.quote)
        _check_promise(promise, member, show, command)
        address = await self._addresses.get(t.conn, member, AddressId(command.address))
        priced = await self._quotes.price(
            t.conn, actor.facts, show, {line.offer: line.quantity for line in promise.lines}, quoted=True
        )
        if any(row.product.status != "on" for row in priced.offers.values()):
            raise OfferEnded("the product was taken off the shelf")
        free_plan = priced.plan is not None and priced.plan.free_freight
        sending = await self._quotes.freight.row(t.conn, address.region)
        if not sending.covered:
            raise NotCovered
        dates = promise.dates
        if sending.region != promise.sent_to:  # quoted without this address
            dates = self._quotes.freight.promised(sending, priced.now)
            goods_fen = sum(line.unit_fen * line.quantity for line in promise.lines)
            if sending.of(goods_fen, free_plan or promise.free_freight) > promise.freight_list_fen:
                raise PriceChanged("sending there costs more; ask for a new quote with this address")
        coupons = await self._spending.named(t.conn, member, promise.coupons)
        basket = basket_of(priced, promise, actor, coupons, sending, free_plan=free_plan)
        await self.one_at_a_time(t.conn, member)
        if await self._plans.given_back_since(t.conn, member, promise.made_at):
            raise PriceChanged("the plan was given back since; ask for a new quote")
        await self._check_placed(t.conn, member)
        needs = await self._pieces.needs(t.conn, [(each.row.product, each.quantity) for each in basket.lines])
        household = household_of(address.region, address.detail, self._household_key)
        await check_limits(t.conn, member, household, needs.limits)

        order = OrderId(new_id())
        judged = await self._quotes.campaigns.judged(
            t.conn, actor.facts, list(basket.money_by_product()), priced.now
        )
        await self._pieces.hold(t, show, order, member, key, basket.pieces())
        row = await (
            await t.conn.execute(
                """
                INSERT INTO orders (id, kind, member_id, show_id, key, body_digest, shown_name, currency,
                    goods_fen, coupon_fen, points_fen, freight_fen, freight_list_fen, total_fen,
                    points_bonus_percent, points_campaigns, address, promised_from, promised_until,
                    household, priority, placed_at, hold_until)
                SELECT %(id)s, 'goods', %(member)s, %(show)s, %(key)s, %(body)s, %(name)s, %(currency)s,
                    %(goods_fen)s, %(coupon_fen)s, %(points_fen)s, %(freight_fen)s, %(freight_list_fen)s,
                    %(total_fen)s, %(bonus)s, %(campaigns)s, %(address)s, %(from)s, %(until)s,
                    %(household)s, %(priority)s, now.at, now.at + make_interval(secs => %(hold_s)s)
                FROM (SELECT clock_timestamp() AS at) now
                RETURNING hold_until
                """,
                {
                    "id": order,
                    "member": member,
                    "show": show,
                    "key": key,
                    "body": body,
                    "name": mask_name(actor.name),
                    "currency": self._quotes.currency,
                    "goods_fen": basket.goods_fen,
                    "coupon_fen": basket.coupon_fen,
                    "points_fen": basket.points,
                    "freight_fen": basket.freight_fen,
                    "freight_list_fen": sending.of(basket.goods_fen, free_plan=False),
                    "total_fen": basket.total_fen,
                    "bonus": await self._plans.points_bonus_percent(t.conn, member),
                    "campaigns": Jsonb(msgspec.to_builtins([each.holding for each in judged if each.counts])),
                    "address": Jsonb(msgspec.to_builtins(address)),
                    "from": None if dates is None else dates[0],
                    "until": None if dates is None else dates[1],
                    "household": household,
                    "priority": any(_early(each.row.product, priced.now) for each in basket.lines),
                    "hold_s": self._hold_s,
                },
            )
        ).fetchone()
        assert row is not None
        await write_lines(t.conn, order, basket)
        if any(row.per_person is not None for row in priced.offers.values()):
            # Late money may be recorded and not yet told: the show's counter does not know it.
            await check_offers(t.conn, member, order)
        await self._spending.take(t, member, order, basket.coupons, basket.points)
        await self._spending.note(t.conn, order, basket.coupons)
        # Last before the commit: these rows are what buyers of one product queue for.
        quotas = {row.id for row in priced.offers.values() if row.quota is not None}
        pieces = {offer: count for offer, count in basket.pieces().items() if offer in quotas}
        await self._pieces.take(t.conn, order, pieces, needs.takes)
        await self._announcer.tell_after(t, [order], "placed")
        paid = basket.total_fen == 0 and await self.pay_nothing(t, order)
        return Placed(
            order=order,
            kind="goods",
            state="paid" if paid else "placed",
            total_fen=basket.total_fen,
            currency=self._quotes.currency,
            hold_until=in_ms(row["hold_until"]),
        )

    async def place_plan(
        self, t: Transaction, actor: Actor, plan: PlanId, show: ShowId | None, key: str | None
    ) -> Placed:
        """Order a plan, and take a seat of the benefit for joining if one is to be had.

        Pressed again while such an order is open, it is the same order: nobody pays a plan twice by two taps.
        Raises Unauthenticated, BadRequest, NoSuchPlan, KeyReused, LimitReached, Unavailable.
        """
        member = actor.signed_in()
        checked = _key(key)
        body = _digest("plan", show, plan, "", None)
        again = await self._again(t.conn, member, checked, body)
        if again is not None:
            seat = await self._seat(t, actor, show) if again.state == "placed" else None
            return msgspec.structs.replace(again, seat=seat)
        if self._guards is not None and show is not None:
            await self._guards.check_selling(t.conn)  # who joined now would miss the seat
        found = await self._plans.get(t.conn, plan)
        if not found.on_sale:
            raise NoSuchPlan
        await self.one_at_a_time(t.conn, member)
        open_row = await (
            await t.conn.execute(
                """
                SELECT id, kind, state, total_fen, currency, hold_until FROM orders
                WHERE member_id = %s AND plan_id = %s AND show_id IS NOT DISTINCT FROM %s AND state = 'placed'
                  AND hold_until > clock_timestamp()
                ORDER BY id DESC LIMIT 1
                """,
                [member, found.id, show],
            )
        ).fetchone()
        if open_row is not None:
            await t.conn.execute(
                "INSERT INTO order_aliases (member_id, key, body_digest, order_id) VALUES (%s, %s, %s, %s)",
                [member, checked, body, open_row["id"]],
            )
            return _placed(open_row, await self._seat(t, actor, show))
        await self._check_placed(t.conn, member)
        order = OrderId(new_id())
        row = await (
            await t.conn.execute(
                """
                INSERT INTO orders (id, kind, member_id, show_id, key, body_digest, plan_id, shown_name,
                    currency, goods_fen, total_fen, placed_at, hold_until)
                SELECT %(id)s, 'plan', %(member)s, %(show)s, %(key)s, %(body)s, %(plan)s, %(name)s,
                    %(currency)s, %(fee_fen)s, %(fee_fen)s, now.at, now.at + make_interval(secs => %(hold_s)s)
                FROM (SELECT clock_timestamp() AS at) now
                RETURNING id, kind, state, total_fen, currency, hold_until
                """,
                {
                    "id": order,
                    "member": member,
                    "show": show,
                    "key": checked,
                    "body": body,
                    "plan": found.id,
                    "name": mask_name(actor.name),
                    "currency": self._quotes.currency,
                    "fee_fen": found.fee_fen,
                    "hold_s": self._hold_s,
                },
            )
        ).fetchone()
        assert row is not None
        seat = await self._seat(t, actor, show)
        await self._announcer.tell_after(t, [order], "placed")
        return _placed(row, seat)

    async def cancel(self, t: Transaction, actor: Actor, order: OrderId) -> Order:
        """Give an unpaid order up; what it held comes back. Again changes nothing.

        Raises NoSuchOrder (also somebody else's), OrderClosed.
        """
        locked = await self.lock(t.conn, order)
        if locked is None or not owns(actor, locked.member, "member.write"):
            raise NoSuchOrder
        if locked.state == "placed":
            await self._close(t, [locked.id], "cancelled")
        elif locked.state != "cancelled":
            raise OrderClosed
        return await self._one(t.conn, order)

    async def due(self, conn: Connection, limit: int = 400) -> list[OrderId]:
        """Unpaid orders whose hold is over."""
        found = await conn.execute(
            "SELECT id FROM orders WHERE state = 'placed' AND hold_until <= clock_timestamp()"
            " ORDER BY hold_until LIMIT %s",
            [limit],
        )
        return [OrderId(str(row["id"])) for row in await found.fetchall()]

    async def expire_due(self, t: Transaction, limit: int = 200, *, only: OrderId | None = None) -> int:
        """End unpaid orders whose hold is over, so many of plans and of goods each, or only this one; a plan whose
        renewal failed by it gets its grace. For the job."""
        plans = await self._lock_due(t.conn, "plan", limit, only)
        failed = await self._failed_renewals(t.conn, plans) if plans else []
        if failed:
            # Members come before orders of goods (docs/decisions/locks.md).
            await self._plans.give_grace(t, failed)
        orders = [*plans, *await self._lock_due(t.conn, "goods", limit, only)]
        if orders:
            await self._close(t, orders, "expired")
        return len(orders)

    # --- for payments ---

    async def lower_to_now(self, t: Transaction, actor: Actor, order: LockedOrder) -> int:
        """Before the first payment page: each line at the lower of the order and now. Returns the total.

        No line changes to a flash price here: its pieces were decided when the order was placed.
        """
        if order.kind == "plan":
            assert order.plan is not None
            plan = await self._plans.get(t.conn, order.plan)
            total = min(order.total_fen, plan.fee_fen)
            if total < order.total_fen:
                await t.conn.execute(
                    "UPDATE orders SET goods_fen = %(total)s, total_fen = %(total)s WHERE id = %(id)s",
                    {"total": total, "id": order.id},
                )
            return total
        assert order.show is not None
        goods_lines = await read_goods(t.conn, order.id)
        priced = await self._quotes.price(
            t.conn,
            actor.facts,
            order.show,
            {line.offer: line.quantity for line in goods_lines},
            quoted=True,
        )
        lines = [line.beside(priced) for line in goods_lines]
        noted = await self._spending.noted(t.conn, order.id)
        coupons = await self._spending.named(t.conn, order.member, noted)
        free_plan = priced.plan is not None and priced.plan.free_freight
        sending = await self._quotes.freight.row(t.conn, order.region)
        freight_off_fen = sum(each.off_fen for each in noted if each.kind == "freight")
        goods = [line.goods for line in lines]
        freight_fen = min(
            order.freight_fen + freight_off_fen,
            sending.of(sum(line.line_fen for line in goods), free_plan),
        )
        discount = work_out(goods, freight_fen, coupons, order.points_fen)
        shares = zip(lines, discount.line_coupon_fen, discount.line_points_fen, strict=True)
        stays = (
            discount.freight_fen == order.freight_fen
            and set(discount.coupons) == set(noted)
            and all(line.stays(coupon_fen, points_fen) for line, coupon_fen, points_fen in shares)
        )
        # A lower price can cost a coupon its threshold: what is to pay never rises by it.
        if stays or discount.total_fen > order.total_fen:
            return order.total_fen
        await lower_lines(t.conn, order.id, lines, discount)
        await self._spending.lower(t, order.id, noted, order.points_fen, discount)
        return discount.total_fen

    async def take_due(self, t: Transaction, order: LockedOrder) -> Lost | None:
        """For money that came: use the coupons, take what is due with the payment, and what an expired order gave
        back. All of it or nothing; what has been taken stays so. Returns why not, or None.

        An order that had ended did not count against the limits of its products and offers: it is counted again.
        """
        quotas: dict[OfferId, int] = {}
        await self.one_at_a_time(t.conn, order.member)
        if order.state == "expired":
            rows = await (
                await t.conn.execute(
                    """
                    SELECT l.offer_id::text AS offer, l.quantity FROM order_lines l
                    JOIN offers o ON o.id = l.offer_id
                    WHERE l.order_id = %s AND l.kind = 'goods' AND l.piece AND o.quota IS NOT NULL
                    """,
                    [order.id],
                )
            ).fetchall()
            quotas = {OfferId(row["offer"]): row["quantity"] for row in rows}
            try:
                await check_again(t.conn, order.member, order.id)
            except LimitReached:
                return "limit_reached"
        told = len(t.committed)
        try:
            async with t.conn.transaction():  # a savepoint: the order's row is locked already
                if order.state == "expired":
                    await self._spending.take_again(t, order.member, order.id, order.points_fen)
                await self._spending.use(t, order.id)  # before any row of stock (docs/decisions/locks.md)
                await self._pieces.take_due(t.conn, order.id, quotas)
        except (SoldOut, ReservedOut):
            del t.committed[told:]  # nobody is told of points that were not taken after all
            return "no_stock"
        except (CouponUsed, NotEnoughPoints):
            return "discount_gone"
        return None

    async def lose(self, t: Transaction, order: LockedOrder) -> None:
        """The money came, and what is paid first was gone: the order ends, and what it held comes back."""
        if order.state == "placed":
            await self._close(t, [order.id], "expired")

    async def pay_nothing(self, t: Transaction, order: OrderId) -> bool:
        """There is nothing to pay: the order is paid in this transaction, without a provider.

        What is only taken when the money comes is taken now. Raises SoldOut: then there is no order either.
        """
        locked = await self.lock(t.conn, order)
        assert locked is not None
        if await self.take_due(t, locked) is not None:
            raise SoldOut
        await self.mark_paid(t, locked)
        await self._announcer.tell_after(t, [order], "paid")
        return True

    async def mark_paid(self, t: Transaction, order: LockedOrder) -> None:
        """The verified payment is being recorded: the order is paid, and its goods earn points."""
        row = await (
            await t.conn.execute(
                """
                UPDATE orders SET state = 'paid', paid_at = clock_timestamp(), closed_at = NULL,
                    closed_announced_at = NULL
                WHERE id = %s AND state IN ('placed', 'expired') RETURNING paid_at
                """,
                [order.id],
            )
        ).fetchone()
        if row is None:
            raise OrderClosed
        if order.kind == "goods":
            paid_fen = await paid_by_product(t.conn, order.id)
            percents, money = bases(order.points_campaigns, paid_fen)
            await self._points.earn_for_goods(
                t,
                order.member,
                order.id,
                sum(paid_fen.values()),
                order.points_bonus_percent,
                row["paid_at"] + RETURN_WINDOW,
                percents,
                money,
            )

    async def mark_refunded(self, t: Transaction, order: LockedOrder) -> None:
        """Paid → refunded. The points it earned are taken back; coupons, and points that were spent and not
        given back yet, return to the buyer; sold pieces do not return to a quota."""
        changed = await t.conn.execute(
            "UPDATE orders SET state = 'refunded', closed_at = clock_timestamp()"
            " WHERE id = %s AND state = ANY(%s)",
            [order.id, list(PAID)],
        )
        if not changed.rowcount:
            raise NotPaid
        await self._points.lock(t, order.member)  # before the coupons
        await self._spending.free(t, [order.id], REFUNDED)
        await self._points.reverse(t, cause_of(order.id), part=REFUNDED)

    async def mark_fulfilled(self, t: Transaction, order: LockedOrder) -> None:
        """Paid → fulfilled: the first parcel is on its way."""
        changed = await t.conn.execute(
            "UPDATE orders SET state = 'fulfilled', fulfilled_at = clock_timestamp()"
            " WHERE id = %s AND state = 'paid'",
            [order.id],
        )
        if not changed.rowcount:
            raise NotPaid

    async def tell_buyer_after(self, t: Transaction, order: OrderId) -> None:
        """After the commit, tell the buyer alone how the order stands: sent, or refunded in part."""
        await self._announcer.tell_buyer_after(t, order)

    async def tell_after(self, t: Transaction, order: OrderId, step: Step) -> None:
        """After the commit, tell the show and the member of this step. Call it when all rows are written."""
        await self._announcer.tell_after(t, [order], step)

    # --- for the job ---

    async def settle_unannounced(
        self,
        database: Transactions,
        *,
        older_s: float = UNTOLD_S,
        closed_within_s: int = CLOSED_WITHIN_S,
        limit: int = 200,
        ahead_ms: int = 0,
    ) -> int:
        """What a crash left is told, and given back (OrderAnnouncer.settle_unannounced). Returns how many."""
        return await self._announcer.settle_unannounced(
            database, older_s=older_s, closed_within_s=closed_within_s, limit=limit, ahead_ms=ahead_ms
        )

    # --- parts ---

    async def _again(self, conn: Connection, member: MemberId, key: str, body: str) -> Placed | None:
        """The recorded answer to this key. Two commands of one key wait here for each other."""
        await lock(conn, order_lock(member, key))
        row = await (
            await conn.execute(
                """
                SELECT id, kind, state, total_fen, currency, hold_until, body_digest FROM orders
                WHERE member_id = %(member)s AND key = %(key)s
                UNION ALL
                SELECT o.id, o.kind, o.state, o.total_fen, o.currency, o.hold_until, a.body_digest
                FROM order_aliases a JOIN orders o ON o.id = a.order_id
                WHERE a.member_id = %(member)s AND a.key = %(key)s
                """,
                {"member": member, "key": key},
            )
        ).fetchone()
        if row is None:
            return None
        if row["body_digest"] != body:
            raise KeyReused
        return _placed(row, None)

    async def _lock_due(
        self, conn: Connection, kind: Literal["goods", "plan"], limit: int, only: OrderId | None
    ) -> list[OrderId]:
        rows = await (
            await conn.execute(
                """
                SELECT id FROM orders WHERE state = 'placed' AND hold_until <= clock_timestamp() AND kind = %s
                  AND (%s::uuid IS NULL OR id = %s)
                ORDER BY hold_until LIMIT %s FOR UPDATE SKIP LOCKED
                """,
                [kind, only, only, limit],
            )
        ).fetchall()
        return [OrderId(str(row["id"])) for row in rows]

    async def _failed_renewals(self, conn: Connection, orders: Sequence[OrderId]) -> list[FailedRenewal]:
        """Of orders that run out: those of plans with a grace whose payment was begun at a provider. A start
        without a page was never there: nobody was sent to pay."""
        rows = await (
            await conn.execute(
                """
                SELECT o.id::text AS id, o.member_id::text AS member, o.plan_id::text AS plan, o.placed_at
                FROM orders o JOIN plans p ON p.id = o.plan_id
                WHERE o.id = ANY(%s::uuid[]) AND p.grace_days > 0 AND EXISTS (
                    SELECT 1 FROM payment_starts s WHERE s.order_id = o.id AND s.ref IS NOT NULL)
                ORDER BY o.id
                """,
                [list(orders)],
            )
        ).fetchall()
        return [
            FailedRenewal(OrderId(row["id"]), MemberId(row["member"]), PlanId(row["plan"]), row["placed_at"])
            for row in rows
        ]

    async def one_at_a_time(self, conn: Connection, member: MemberId) -> None:
        """Two taps at once with two keys: the second sees the first's order, open or counted."""
        await lock(conn, buyer_lock(member))

    async def _check_placed(self, conn: Connection, member: MemberId) -> None:
        row = await (
            await conn.execute(
                "SELECT count(*) AS placed FROM orders WHERE member_id = %s AND state = 'placed'", [member]
            )
        ).fetchone()
        if row is not None and row["placed"] >= PLACED_MAX:
            raise LimitReached

    async def _close(
        self, t: Transaction, orders: Sequence[OrderId], state: Literal["cancelled", "expired"]
    ) -> None:
        """End placed orders, whose rows are locked: stock and quota come back in the same transaction."""
        conn = t.conn
        await conn.execute(
            "UPDATE orders SET state = %s, closed_at = clock_timestamp() WHERE id = ANY(%s::uuid[])",
            [state, list(orders)],
        )
        await self._spending.free(t, orders, ENDED)
        await self._pieces.give_back(conn, orders)
        seats = await (
            await conn.execute(
                """
                SELECT DISTINCT o.show_id, o.member_id FROM orders o
                WHERE o.id = ANY(%s::uuid[]) AND o.kind = 'plan' AND o.show_id IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM orders other
                    WHERE other.member_id = o.member_id AND other.show_id = o.show_id
                      AND other.kind = 'plan' AND other.state = 'placed')
                """,
                [list(orders)],
            )
        ).fetchall()
        for row in seats:
            await self._seats.release(t, ShowId(row["show_id"]), MemberId(str(row["member_id"])))
        await self._announcer.tell_after(t, orders, "closed")

    async def _seat(self, t: Transaction, actor: Actor, show: ShowId | None) -> SeatStatus | None:
        return None if show is None else await self._seats.take(t, actor, show)


# --- pure parts ---


def _key(key: str | None) -> str:
    if key is None or not 1 <= len(key) <= 64 or "\0" in key:
        raise BadRequest("an order needs a key of 1–64 characters")
    return key


def _digest(kind: str, show: ShowId | None, what: str, address: str, lines: list[list[Any]] | None) -> str:
    return hashlib.sha256(msgspec.json.encode([kind, show, what, address, lines])).hexdigest()


def _check_promise(promise: Promise, member: MemberId, show: ShowId, command: PlaceOrder) -> None:
    if promise.person != member:
        raise BadRequest("the quote was made for somebody else")
    if promise.show != show:
        raise BadRequest("the quote was made in another show")
    if command.lines is not None:
        quoted = {line.offer: line.quantity for line in promise.lines}
        if checked_lines(command.lines) != quoted:
            raise PriceChanged("these are not the quoted lines; ask for a new quote")


def _early(product: Product, now: datetime) -> bool:
    """Ordered before everybody may: such orders are sent first."""
    return product.on_sale_at is not None and now < product.on_sale_at


def _placed(row: dict[str, Any], seat: SeatStatus | None) -> Placed:
    return Placed(
        order=OrderId(str(row["id"])),
        kind=row["kind"],
        state=row["state"],
        total_fen=row["total_fen"],
        currency=row["currency"],
        hold_until=in_ms(row["hold_until"]),
        seat=seat,
    )
