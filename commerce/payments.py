"""Payments: a page at the provider, and the record of the money that came.

A page is made in three steps, so that no SQL transaction is open while the provider is called: `start`, the
call, `keep_page`. The outermost room runs them.

Recording is one SQL transaction: the payment's row, the order's state, stock or plan or seat, and points
stand or fall together. Each provider reference is recorded once; what came wrongly or too late is kept and
marked, never dropped. What is to go back is a row, and so is the proof that it went.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from msgspec import Struct

from commerce.claim_book import Claim
from commerce.order_announcer import Transactions
from commerce.order_book import LockedOrder, NoSuchOrder
from commerce.orders import OrderClosed
from commerce.payment_returns import (
    NOTE_CHARS,
    RECORDER,
    AlreadyDecided,
    Decision,
    NoSuchPayment,
    Outcome,
    PaymentRow,
    Reason,
    RefundOver,
    Returned,
    Returns,
    Row,
    Went,
    go_through,
)
from commerce.provider import (
    BadSignature,
    FoundPayment,
    FoundReturn,
    PayerClient,
    PaymentPage,
    PaymentProvider,
    PaymentRequest,
    ReturnRefused,
)
from commerce.refund_lines import AlreadyRefunded
from membership.actor import Actor, MemberId, OrderId, PaymentId, PlanId, new_id
from membership.alone import alone
from membership.moment import in_ms
from membership.refusal import BadRequest, Unavailable
from membership.transaction import Connection, Transaction, lock

__all__ = [
    "ASK_AFTER_S",
    "NOTE_CHARS",
    "AlreadyDecided",
    "AlreadyRefunded",
    "BadSignature",
    "Decision",
    "FoundPayment",
    "FoundReturn",
    "NoSuchPayment",
    "PayerClient",
    "PaymentPage",
    "PaymentProvider",
    "PaymentRequest",
    "PaymentRow",
    "Payments",
    "Recorded",
    "RefundOver",
    "ReturnRefused",
    "Returned",
]

log = logging.getLogger(__name__)

AMOUNT_MAX_FEN = 100_000_000_000
ASK_AFTER_S = 30  # a webhook older than this is asked for
ASK_FOR_H = 24  # and after this no longer
ASK_AGAIN_MAX_S = 600  # the wait between two questions doubles up to this


class Recorded(Struct, frozen=True, kw_only=True):
    """What became of a payment. `again`: it was recorded before."""

    payment: PaymentId
    outcome: Outcome
    reason: Reason | None
    again: bool
    order: OrderId | None = None
    claim: Claim | None = None


class Payments(Returns):
    """Starts payments at the provider and records what comes; what goes back is in payment_returns.py."""

    async def start(
        self, t: Transaction, actor: Actor, order: OrderId, client: PayerClient | None = None
    ) -> PaymentRequest | str:
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
                    s.url, s.way, s.page_until <= clock_timestamp() AS stale
                FROM (SELECT 1) AS one LEFT JOIN payment_starts s
                    ON s.order_id = %(order)s AND s.provider = %(provider)s
                """,
                {"hold": locked.hold_until, "order": locked.id, "provider": self._provider.name},
            )
        ).fetchone()
        assert row is not None
        if locked.state != "placed" or row["over"]:
            raise OrderClosed
        if row["url"] is not None and not row["stale"]:
            return str(row["url"])
        amount_fen = locked.total_fen
        if not row["started"]:
            amount_fen = await self._orders.lower_to_now(t, actor, locked)
            if not amount_fen:  # today's price left nothing to pay: no provider is asked
                await self._orders.pay_nothing(t, locked.id)
                return f"/s/{locked.show}"
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
            client=client or PayerClient(),
            way=row["way"] or "",
        )

    async def keep_page(self, t: Transaction, order: OrderId, page: PaymentPage) -> str | None:
        """Keep the page the provider made; the first payment kept stands, its address may be made anew.
        Returns the address.

        None when the order was paid, given up or its hold ran out during the call: nobody is to be sent
        there. The page is kept even so, and money on it would be asked for.
        """
        row = await (
            await t.conn.execute(
                """
                UPDATE payment_starts s SET ref = coalesce(s.ref, %(ref)s),
                    url = CASE WHEN coalesce(s.ref, %(ref)s) = %(ref)s THEN %(url)s ELSE s.url END,
                    way = CASE WHEN coalesce(s.ref, %(ref)s) = %(ref)s THEN %(way)s ELSE s.way END,
                    page_until = CASE WHEN coalesce(s.ref, %(ref)s) = %(ref)s
                        THEN %(until)s::timestamptz ELSE s.page_until END
                FROM orders o
                WHERE o.id = s.order_id AND s.order_id = %(order)s AND s.provider = %(provider)s
                RETURNING s.url, o.state = 'placed' AND o.hold_until > clock_timestamp() AS open
                """,
                {
                    "ref": page.ref,
                    "url": page.url,
                    "way": page.way,
                    "until": None if page.until is None else datetime.fromtimestamp(page.until / 1000, UTC),
                    "order": order,
                    "provider": self._provider.name,
                },
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
        order takes what is due with the payment, and for one that expired the stock again, if it is still
        free; a plan starts anyway. Returned: a second payment, one for a cancelled order, no stock left (the
        order ends), a limit reached meanwhile. Quarantined: a wrong amount, an unknown order.
        """
        if (
            not ref
            or len(ref) > 200
            or not 0 <= amount_fen <= AMOUNT_MAX_FEN
            or "\0" in ref + order_id + payer
        ):
            raise BadRequest("this is no payment")
        # Two webhooks of one payment at once take turns, also where there is no order's row to wait for.
        await lock(t.conn, f"payment:{provider}:{ref}")
        before = await self._seen(t.conn, provider, ref)
        if before is not None:
            return before
        order = await self._orders.lock(t.conn, order_id)
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
            if order is not None and reason in ("no_stock", "limit_reached", "discount_gone"):
                await self._orders.lose(t, order)
            await self._mark_return(t.conn, payment, amount_fen, reason or "")
        if outcome == "accepted":
            assert order is not None
            claim = await self._accept(t, order, payment, payer)
        elif order is not None:
            await self._tell_unaccepted(t, order, outcome, reason, amount_fen)
        if outcome == "quarantined":
            log.warning("payment %s of %s is kept apart: %s", ref, provider, reason)
            await self._audit.record(
                t,
                RECORDER,
                "payment.quarantine",
                f"payment:{payment}",
                {"reason": reason, "amount_fen": amount_fen, "order": None if order is None else order.id},
            )
        return Recorded(
            payment=payment,
            outcome=outcome,
            reason=reason,
            again=False,
            order=None if order is None else order.id,
            claim=claim,
        )

    # --- for the job ---

    async def ask_due(self, database: Transactions, limit: int = 50, *, after_s: float = ASK_AFTER_S) -> int:
        """Ask the provider for payments whose webhook did not come. Returns how many were recorded.

        Also where the order was cancelled or paid otherwise since: such money is to go back. A start without
        a page is passed over: nobody was sent to pay there, and a webhook needs no page to be recorded. Who
        has not paid is asked for ever more seldom.
        """
        async with database.transaction() as t:
            rows = await (
                await t.conn.execute(
                    """
                    SELECT s.ref FROM payment_starts s
                    WHERE s.provider = %s AND s.ref IS NOT NULL AND s.ask_at <= clock_timestamp()
                      AND s.started_at <= clock_timestamp() - make_interval(secs => %s)
                      AND s.started_at > clock_timestamp() - make_interval(hours => %s)
                      AND NOT EXISTS (
                          SELECT 1 FROM payments p WHERE p.provider = s.provider AND p.ref = s.ref)
                    ORDER BY s.ask_at LIMIT %s
                    """,
                    [self._provider.name, after_s, ASK_FOR_H, limit],
                )
            ).fetchall()

        async def ask(row: Row) -> Went:
            return await self._ask(database, row["ref"], after_s)

        return await go_through(rows, "asking for a payment", ask)

    async def _ask(self, database: Transactions, ref: str, after_s: float) -> Went:
        """One question, and when the next one is.

        Money that was found and could not be recorded is asked for again soon: what it pays for may lapse.
        """
        went: Went = "not_yet"
        found = None
        with alone(f"payment {ref}", log):
            try:
                found = await self._provider.query(ref)
            except Unavailable:
                went = "away"
            if found is not None and await self._record_found(database, found):
                went = "done"
        await self._ask_later(database, ref, after_s, seldom=found is None and went != "away")
        return went

    async def _record_found(self, database: Transactions, found: FoundPayment) -> bool:
        """False when it was recorded before."""
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
            if not done.again:
                await t.conn.execute("INSERT INTO payments_found (payment_id) VALUES (%s)", [done.payment])
        return not done.again

    async def _ask_later(self, database: Transactions, ref: str, after_s: float, *, seldom: bool) -> None:
        """The next question: as soon as the first one, or (`seldom`) twice as far away as the last."""
        async with database.transaction() as t:
            await t.conn.execute(
                """
                UPDATE payment_starts SET asked = asked + %(more)s, ask_at = clock_timestamp() + make_interval(
                    secs => least(%(after)s * 2 ^ least(asked * %(more)s, 16), %(most)s))
                WHERE provider = %(provider)s AND ref = %(ref)s
                """,
                {
                    "more": int(seldom),
                    "after": after_s,
                    "most": ASK_AGAIN_MAX_S,
                    "provider": self._provider.name,
                    "ref": ref,
                },
            )

    # --- parts ---

    async def _judge(
        self, t: Transaction, order: LockedOrder | None, amount_fen: int
    ) -> tuple[Outcome, Reason | None]:
        if order is None:
            return "quarantined", "unknown_order"
        if amount_fen != order.total_fen:
            return "quarantined", "wrong_amount"
        match order.state:
            case "paid" | "fulfilled" | "refunded":
                return "returned", "second_payment"
            case "cancelled":
                return "returned", "cancelled_before"
        if await self._is_erased(t.conn, order.member):  # who is forgotten gets neither goods nor a plan
            return "returned", "cancelled_before"
        if order.kind == "goods":
            lost = await self._orders.take_due(t, order)
            if lost is not None:  # so a payment that was to be the second is one too: both go back
                return "returned", lost
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
            if order.show is not None:
                claim = await self._seats.confirm(
                    t, order.show, order.member, payment, payer, renewal=not term.first_paid_start
                )
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
