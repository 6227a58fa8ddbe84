"""Payments: a page at the provider, and the record of the money that came.

A page is made in three steps, so that no SQL transaction is open while the provider is called: `start`, the
call, `keep_page`. The outermost room runs them.

Recording is one SQL transaction: the payment's row, the order's state, stock or plan or seat, and points
stand or fall together. Each provider reference is recorded once; what came wrongly or too late is kept and
marked, never dropped. What is to go back is a row, and so is the proof that it went.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from commerce.benefits import Claim
from commerce.offers import in_ms
from commerce.order_announcer import Transactions
from commerce.order_book import LockedOrder, NoSuchOrder, Order
from commerce.orders import NotPaid, OrderClosed, Orders
from commerce.seats import Missed, Seats
from membership.actor import Actor, MemberId, OrderId, PaymentId, PlanId, ShowId, is_id, new_id
from membership.notices import Notices
from membership.plans import Plans
from membership.refusal import BadRequest, Forbidden, Refusal, Unavailable
from membership.transaction import Connection, Transaction

log = logging.getLogger(__name__)

AMOUNT_MAX_FEN = 100_000_000_000
ASK_AFTER_S = 30  # a webhook older than this is asked for
ASK_FOR_H = 24  # and after this no longer
FAILURES_MAX = 3  # calls that failed in one round: the provider is away, the next round goes on

Outcome = Literal["accepted", "returned", "quarantined"]
Reason = Literal["unknown_order", "wrong_amount", "second_payment", "cancelled_before", "no_stock"]


class RefundOver(Refusal):
    """The time for a refund by one tap is over; ask the shop."""

    code = "closed"


class PaymentRequest(Struct, frozen=True, kw_only=True):
    """What a provider is asked to collect."""

    order: OrderId
    kind: Literal["goods", "plan"]
    show: ShowId | None
    member: MemberId
    amount_fen: int
    currency: str
    description: str
    hold_until: int  # ms


class PaymentPage(Struct, frozen=True):
    """The provider's reference, and where the buyer pays."""

    ref: str
    url: str


class FoundPayment(Struct, frozen=True, kw_only=True):
    """A payment as the provider verified it."""

    ref: str
    order: str
    amount_fen: int
    payer: str
    paid_at: datetime


class PaymentProvider(Protocol):
    """A payment provider. Calls may raise Unavailable; the same arguments again are answered the same."""

    @property
    def name(self) -> str: ...

    async def create(self, request: PaymentRequest) -> PaymentPage:
        """A page where this order is paid."""

    async def query(self, ref: str) -> FoundPayment | None:
        """The payment behind a reference when it was paid, else None."""

    async def give_back(self, ref: str, amount_fen: int, key: str) -> str:
        """Send money back; the same key once. Returns the provider's reference of the return."""


class Recorded(Struct, frozen=True, kw_only=True):
    """What became of a payment. `again`: it was recorded before."""

    payment: PaymentId
    outcome: Outcome
    reason: Reason | None
    again: bool
    order: OrderId | None = None
    claim: Claim | None = None


class PaymentRow(Struct, frozen=True, kw_only=True):
    """A payment as staff see it."""

    id: PaymentId
    provider: str
    ref: str
    order: OrderId | None
    amount_fen: int
    outcome: Outcome
    reason: Reason | None
    recorded_at: int  # ms
    returning_fen: int
    returned_fen: int


class Payments:
    """Starts payments at the provider and records what comes."""

    def __init__(
        self, orders: Orders, plans: Plans, seats: Seats, provider: PaymentProvider, notices: Notices
    ) -> None:
        self._provider = provider
        self._orders = orders
        self._plans = plans
        self._seats = seats
        self._notices = notices

    async def start(self, t: Transaction, actor: Actor, order: OrderId) -> PaymentRequest | str:
        """Begin a payment: what to ask the provider for once this is committed, or the page there already is.

        The first start lowers the order to now's price when that is lower; from then on the amount stands,
        so that every call, also one after a crash, asks for the same payment. The hold is not renewed.
        Raises NoSuchOrder (also somebody else's), OrderClosed (paid, over, its hold run out).
        """
        locked = await self._orders.lock(t.conn, order)
        if locked is None or actor.kind != "viewer" or locked.member != actor.member:
            raise NoSuchOrder
        row = await (
            await t.conn.execute(
                """
                SELECT %(hold)s <= clock_timestamp() AS over,
                    EXISTS (SELECT 1 FROM payment_starts WHERE order_id = %(order)s) AS started,
                    (SELECT url FROM payment_starts WHERE order_id = %(order)s AND provider = %(provider)s)
                """,
                {"hold": locked.hold_until, "order": locked.id, "provider": self._provider.name},
            )
        ).fetchone()
        assert row is not None
        if locked.state != "placed" or row["over"]:
            raise OrderClosed
        if row["url"] is not None:
            return str(row["url"])
        amount_fen = locked.total_fen
        if not row["started"]:
            amount_fen = await self._orders.lower_to_now(t, actor, locked)
        await t.conn.execute(
            """
            INSERT INTO payment_starts (provider, order_id, amount_fen) VALUES (%s, %s, %s)
            ON CONFLICT (provider, order_id) DO NOTHING
            """,
            [self._provider.name, locked.id, amount_fen],
        )
        return PaymentRequest(
            order=locked.id,
            kind=locked.kind,
            show=locked.show,
            member=locked.member,
            amount_fen=amount_fen,
            currency=locked.currency,
            description=await self._describe(t.conn, locked),
            hold_until=in_ms(locked.hold_until),
        )

    async def keep_page(self, t: Transaction, order: OrderId, page: PaymentPage) -> str | None:
        """Keep the page the provider made; the first one kept stands. Returns its address.

        None when the order was paid, given up or its hold ran out during the call: nobody is to be sent
        there. The page is kept even so, and money on it would be asked for.
        """
        row = await (
            await t.conn.execute(
                """
                UPDATE payment_starts s SET ref = coalesce(s.ref, %s), url = coalesce(s.url, %s)
                FROM orders o WHERE o.id = s.order_id AND s.order_id = %s AND s.provider = %s
                RETURNING s.url, o.state = 'placed' AND o.hold_until > clock_timestamp() AS open
                """,
                [page.ref, page.url, order, self._provider.name],
            )
        ).fetchone()
        assert row is not None, "a page is kept for a payment that was started"
        return str(row["url"]) if row["open"] else None

    async def record(
        self,
        t: Transaction,
        provider: str,
        ref: str,
        order_id: str,
        amount_fen: int,
        payer: str,
        paid_at: datetime,
    ) -> Recorded:
        """Record money that came, as the provider verified it. The same reference again changes nothing.

        Accepted: the order is paid, a plan starts, a seat is ranked, points are earned. Money for a goods
        order that expired takes the stock again, if it is still free; a plan starts anyway. Returned: a
        second payment, one for a cancelled order, no stock left. Quarantined: a wrong amount, an unknown
        order.
        """
        if (
            not ref
            or len(ref) > 200
            or not 0 <= amount_fen <= AMOUNT_MAX_FEN
            or "\0" in ref + order_id + payer
        ):
            raise BadRequest("this is no payment")
        before = await self._seen(t.conn, provider, ref)
        if before is not None:
            return before
        order = await self._orders.lock(t.conn, order_id)
        before = await self._seen(t.conn, provider, ref)  # the same one, recorded while we waited for the row
        if before is not None:
            return before
        outcome, reason = await self._judge(t, order, amount_fen)
        payment = PaymentId(new_id())
        await t.conn.execute(
            """
            INSERT INTO payments (id, provider, ref, order_id, said_order, amount_fen, payer, outcome, reason,
                provider_paid_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                payment,
                provider,
                ref,
                None if order is None else order.id,
                order_id[:200],
                amount_fen,
                payer[:200],
                outcome,
                reason,
                paid_at,
            ],
        )
        claim = None
        if outcome == "returned":
            await self._mark_return(t.conn, payment, amount_fen, reason or "")
        if outcome == "accepted":
            assert order is not None
            claim = await self._accept(t, order, payment, payer)
        elif order is not None:
            await self._tell_unaccepted(t, order, outcome, reason, amount_fen)
        return Recorded(
            payment=payment,
            outcome=outcome,
            reason=reason,
            again=False,
            order=None if order is None else order.id,
            claim=claim,
        )

    async def refund(self, t: Transaction, actor: Actor, order: OrderId) -> Order:
        """Send a paid order's money back in full.

        Staff may for any paid order. A member may for a plan that came without its gift because the money was
        late, within 24 hours. Points and plan end with it; a gift is recalled; a seat does not reopen.
        Raises NoSuchOrder, Forbidden, NotPaid, RefundOver.
        """
        locked = await self._orders.lock(t.conn, order)
        own = locked is not None and actor.kind == "viewer" and actor.member == locked.member
        if locked is None or not (own or actor.may("member.write")):
            raise NoSuchOrder
        if locked.state == "refunded":
            return await self._orders.get(t.conn, actor, order)
        row = await (
            await t.conn.execute(
                "SELECT id, amount_fen FROM payments WHERE order_id = %s AND outcome = 'accepted'",
                [locked.id],
            )
        ).fetchone()
        if row is None or locked.state != "paid":
            raise NotPaid
        payment = PaymentId(str(row["id"]))
        if not actor.may("member.write"):
            missed = await self._seats.missed(t.conn, payment)
            await self._check_one_tap(t.conn, missed)
        await self._orders.mark_refunded(t, locked)
        if locked.kind == "plan":
            await self._plans.end_refunded(t, payment)
            await self._seats.refund(t, payment, "recalled")
        await self._mark_return(t.conn, payment, row["amount_fen"], "refund")
        await self._orders.tell_after(t, locked.id, "closed")
        return await self._orders.get(t.conn, actor, order)

    async def of_order(self, conn: Connection, order: OrderId) -> tuple[PaymentRow, ...]:
        """The payments that came for an order, oldest first. For staff."""
        return await self._rows(conn, order=order) if is_id(order) else ()

    async def to_look_at(self, conn: Connection, actor: Actor, limit: int = 50) -> tuple[PaymentRow, ...]:
        """Quarantined payments, oldest first: a person decides. Raises Forbidden."""
        if not actor.may("member.read"):
            raise Forbidden
        return await self._rows(conn, outcome="quarantined", limit=limit)

    # --- for the job ---

    async def ask_due(self, database: Transactions, limit: int = 50, *, after_s: float = ASK_AFTER_S) -> int:
        """Ask the provider for payments whose webhook did not come. Returns how many were recorded.

        Also where the order was cancelled or paid otherwise since: such money is to go back. A start without
        a page is passed over: nobody was sent to pay there, and a webhook needs no page to be recorded.
        """
        async with database.transaction() as t:
            rows = await (
                await t.conn.execute(
                    """
                    SELECT s.ref FROM payment_starts s
                    WHERE s.provider = %s AND s.ref IS NOT NULL
                      AND s.started_at < clock_timestamp() - make_interval(secs => %s)
                      AND s.started_at > clock_timestamp() - make_interval(hours => %s)
                      AND NOT EXISTS (
                          SELECT 1 FROM payments p WHERE p.provider = s.provider AND p.ref = s.ref)
                    ORDER BY random() LIMIT %s
                    """,
                    [self._provider.name, after_s, ASK_FOR_H, limit],
                )
            ).fetchall()
        recorded = failures = 0
        for row in rows:
            try:
                found = await self._provider.query(row["ref"])
            except Unavailable:
                failures += 1
                if failures == FAILURES_MAX:
                    break
                continue
            if found is None:
                continue
            try:
                async with database.transaction() as t:
                    done = await self.record(
                        t,
                        self._provider.name,
                        found.ref,
                        found.order,
                        found.amount_fen,
                        found.payer,
                        found.paid_at,
                    )
            except Refusal as refusal:  # one that cannot be recorded does not keep back the others
                log.warning("payment %s is not recorded yet: %s", row["ref"], refusal)
                continue
            recorded += not done.again
        return recorded

    async def return_due(self, database: Transactions, limit: int = 50) -> int:
        """Send back what is marked to go back; each once. Returns how many went."""
        async with database.transaction() as t:
            rows = await (
                await t.conn.execute(
                    """
                    SELECT r.id, r.amount_fen, p.ref, p.order_id FROM payment_returns r
                    JOIN payments p ON p.id = r.payment_id
                    WHERE p.provider = %s AND NOT EXISTS (
                        SELECT 1 FROM payment_returns_done d WHERE d.return_id = r.id)
                    ORDER BY random() LIMIT %s
                    """,
                    [self._provider.name, limit],
                )
            ).fetchall()
        sent = failures = 0
        for row in rows:
            try:
                reference = await self._provider.give_back(row["ref"], row["amount_fen"], str(row["id"]))
            except Unavailable:
                failures += 1
                if failures == FAILURES_MAX:
                    break
                continue
            async with database.transaction() as t:
                await t.conn.execute(
                    "INSERT INTO payment_returns_done (return_id, provider_ref) VALUES (%s, %s)"
                    " ON CONFLICT (return_id) DO NOTHING",
                    [row["id"], reference],
                )
            sent += 1
        return sent

    # --- parts ---

    async def _judge(
        self, t: Transaction, order: LockedOrder | None, amount_fen: int
    ) -> tuple[Outcome, Reason | None]:
        if order is None:
            return "quarantined", "unknown_order"
        if amount_fen != order.total_fen:
            return "quarantined", "wrong_amount"
        match order.state:
            case "paid" | "refunded":
                return "returned", "second_payment"
            case "cancelled":
                return "returned", "cancelled_before"
        if await self._is_erased(t.conn, order.member):  # who is forgotten gets neither goods nor a plan
            return "returned", "cancelled_before"
        if order.state == "expired" and order.kind == "goods" and not await self._orders.take_again(t, order):
            # Nothing is left, so a payment that was to be the second is one too: both go back.
            return "returned", "no_stock"
        return "accepted", None

    async def _is_erased(self, conn: Connection, member: MemberId) -> bool:
        row = await (
            await conn.execute("SELECT erased_at IS NOT NULL AS erased FROM members WHERE id = %s", [member])
        ).fetchone()
        return row is not None and bool(row["erased"])

    async def _accept(
        self, t: Transaction, order: LockedOrder, payment: PaymentId, payer: str
    ) -> Claim | None:
        await self._orders.mark_paid(t, order)
        claim = None
        if order.kind == "plan":
            assert order.plan is not None
            term = await self._plans.start_paid(t, order.member, PlanId(order.plan), payment, order.show)
            if order.show is not None and term.first_paid_start:
                claim = await self._seats.confirm(t, order.show, order.member, payment, payer)
            elif order.show is not None:
                await self._seats.release(t, order.show, order.member)
        await self._orders.tell_after(t, order.id, "paid")
        return claim

    async def _tell_unaccepted(
        self, t: Transaction, order: LockedOrder, outcome: Outcome, reason: Reason | None, amount_fen: int
    ) -> None:
        """The buyer learns at once what happens with money that bought nothing."""
        message: dict[str, object] = {
            "type": "notice",
            "code": "payment_returning" if outcome == "returned" else "payment_checked",
            "order": order.id,
            "reason": reason,
            "amount_fen": amount_fen,
            "text": "您的付款将原路退回" if outcome == "returned" else "您的付款正在人工核对",
        }
        t.after_commit(lambda: self._notices.send(order.member, message))

    async def _seen(self, conn: Connection, provider: str, ref: str) -> Recorded | None:
        row = await (
            await conn.execute(
                "SELECT id, outcome, reason, order_id FROM payments WHERE provider = %s AND ref = %s",
                [provider, ref],
            )
        ).fetchone()
        if row is None:
            return None
        return Recorded(
            payment=PaymentId(str(row["id"])),
            outcome=row["outcome"],
            reason=row["reason"],
            again=True,
            order=None if row["order_id"] is None else OrderId(str(row["order_id"])),
        )

    async def _mark_return(self, conn: Connection, payment: PaymentId, amount_fen: int, reason: str) -> None:
        if amount_fen > 0:
            await conn.execute(
                "INSERT INTO payment_returns (id, payment_id, amount_fen, reason) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (payment_id, reason) DO NOTHING",
                [new_id(), payment, amount_fen, reason],
            )

    async def _check_one_tap(self, conn: Connection, missed: Missed | None) -> None:
        if missed is None or missed.refund_until is None:
            raise Forbidden("Ask the shop for a refund.")
        row = await (
            await conn.execute(
                "SELECT clock_timestamp() >= to_timestamp(%s / 1000.0) AS over", [missed.refund_until]
            )
        ).fetchone()
        if row is None or row["over"]:
            raise RefundOver

    async def _describe(self, conn: Connection, order: LockedOrder) -> str:
        """What the buyer reads on the provider's page."""
        if order.plan is not None:
            return (await self._plans.get(conn, order.plan)).name
        rows = await (
            await conn.execute(
                "SELECT name, quantity FROM order_lines WHERE order_id = %s AND kind = 'goods'"
                " ORDER BY position",
                [order.id],
            )
        ).fetchall()
        first = rows[0]
        text = f"{first['name']} × {first['quantity']}"
        return text if len(rows) == 1 else f"{text} 等 {len(rows)} 种"

    async def _rows(
        self,
        conn: Connection,
        *,
        order: OrderId | None = None,
        outcome: Outcome | None = None,
        limit: int = 200,
    ) -> tuple[PaymentRow, ...]:
        rows = await (
            await conn.execute(
                """
                SELECT p.id, p.provider, p.ref, p.order_id, p.amount_fen, p.outcome, p.reason, p.recorded_at,
                       coalesce(sum(r.amount_fen) FILTER (WHERE d.return_id IS NULL), 0)::bigint
                           AS returning_fen,
                       coalesce(sum(r.amount_fen) FILTER (WHERE d.return_id IS NOT NULL), 0)::bigint
                           AS returned_fen
                FROM payments p LEFT JOIN payment_returns r ON r.payment_id = p.id
                LEFT JOIN payment_returns_done d ON d.return_id = r.id
                WHERE (%(order)s::uuid IS NULL OR p.order_id = %(order)s)
                  AND (%(outcome)s::text IS NULL OR p.outcome = %(outcome)s)
                GROUP BY p.id ORDER BY p.id LIMIT %(limit)s
                """,
                {"order": order, "outcome": outcome, "limit": limit},
            )
        ).fetchall()
        return tuple(
            msgspec.convert(
                {
                    **row,
                    "id": str(row["id"]),
                    "order": None if row["order_id"] is None else str(row["order_id"]),
                    "recorded_at": in_ms(row["recorded_at"]),
                },
                PaymentRow,
            )
            for row in rows
        )
