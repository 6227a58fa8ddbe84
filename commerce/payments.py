"""Payments: a page at the provider, and the record of the money that came.

A page is made in three steps, so that no SQL transaction is open while the provider is called: `start`, the
call, `keep_page`. The outermost room runs them.

Recording is one SQL transaction: the payment's row, the order's state, stock or plan or seat, and points
stand or fall together. Each provider reference is recorded once; what came wrongly or too late is kept and
marked, never dropped. What is to go back is a row, and so is the proof that it went.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from commerce.benefits import Claim
from commerce.offers import in_ms
from commerce.order_announcer import Transactions
from commerce.order_book import LockedOrder, NoSuchOrder, Order
from commerce.orders import NotPaid, OrderClosed, Orders
from commerce.seats import Missed, Seats
from membership.actor import Actor, MemberId, OrderId, PaymentId, PlanId, ShowId, is_id, new_id
from membership.audit import Audit
from membership.notices import Notices
from membership.plans import Plans
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.transaction import Connection, Transaction

log = logging.getLogger(__name__)

AMOUNT_MAX_FEN = 100_000_000_000
ASK_AFTER_S = 30  # a webhook older than this is asked for
ASK_FOR_H = 24  # and after this no longer
ASK_AGAIN_MAX_S = 600  # the wait between two questions doubles up to this
RETURN_AGAIN_S = 5  # a return that did not go is tried again after this, then after twice that …
RETURN_AGAIN_MAX_S = 300
FAILURES_MAX = 3  # calls that failed in one round: the provider is away, the next round goes on
SAID_CHARS = 200  # of what a provider says, kept for people
NOTE_CHARS = 200

Outcome = Literal["accepted", "returned", "quarantined"]
Reason = Literal["unknown_order", "wrong_amount", "second_payment", "cancelled_before", "no_stock"]
Decision = Literal["return", "keep", "by_hand"]

RECORDER = Actor(kind="job", id="payments", name="payments")


class RefundOver(Refusal):
    """The time for a refund by one tap is over; ask the shop."""

    code = "closed"


class AlreadyRefunded(Refusal):
    """The money of this order was sent back before."""

    code = "already_refunded"


class AlreadyDecided(Refusal):
    """Somebody has decided about this payment before."""

    code = "already_decided"


class NoSuchPayment(NotFound):
    """There is no such payment to decide about."""


class ReturnRefused(Refusal):
    """The provider declines to send this money back; a person is to look."""


class BadSignature(Refusal):
    """The signature does not fit the body."""

    code = "bad_signature"


class PayerClient(Struct, frozen=True, kw_only=True):
    """Where the buyer sits: some providers ask for it. `openid` is the buyer's name at WeChat, if known."""

    ip: str = ""
    openid: str = ""


class PaymentRequest(Struct, frozen=True, kw_only=True):
    """What a provider is asked to collect. `way`: how it made this order's page before, if it did."""

    order: OrderId
    kind: Literal["goods", "plan"]
    show: ShowId | None
    member: MemberId
    amount_fen: int
    currency: str
    description: str
    hold_until: int  # ms
    client: PayerClient = PayerClient()
    way: str = ""


class PaymentPage(Struct, frozen=True):
    """The provider's reference, and where the buyer pays. `until` (ms): after that the address is made anew."""

    ref: str
    url: str
    until: int | None = None
    way: str = ""


class FoundPayment(Struct, frozen=True, kw_only=True):
    """A payment as the provider verified it."""

    ref: str
    order: str
    amount_fen: int
    payer: str
    paid_at: datetime


class FoundReturn(Struct, frozen=True, kw_only=True):
    """What became of a return, as the provider verified it. `key` is ours, or that of somebody at the
    provider's own desk; `declined` says why it does not go."""

    key: str
    ref: str  # of the payment
    amount_fen: int
    return_ref: str
    declined: str = ""


class PaymentProvider(Protocol):
    """A payment provider. Calls may raise Unavailable; the same arguments again are answered the same."""

    @property
    def name(self) -> str: ...

    async def create(self, request: PaymentRequest) -> PaymentPage:
        """A page where this order is paid."""

    async def query(self, ref: str) -> FoundPayment | None:
        """The payment behind a reference when it was paid, else None."""

    async def give_back(self, ref: str, amount_fen: int, key: str) -> str | None:
        """Send money back; the same key once. Returns the provider's reference of the return, None while it
        is under way: then asking again tells. Raises ReturnRefused."""

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> FoundPayment | FoundReturn | None:
        """Verify and read what the provider tells; None for what is none of our business.

        Raises BadSignature, BadRequest.
        """


class Recorded(Struct, frozen=True, kw_only=True):
    """What became of a payment. `again`: it was recorded before."""

    payment: PaymentId
    outcome: Outcome
    reason: Reason | None
    again: bool
    order: OrderId | None = None
    claim: Claim | None = None


Returned = Literal["noted", "again", "unknown"]


class PaymentRow(Struct, frozen=True, kw_only=True):
    """A payment as staff see it. `stuck`: why its return does not go; `decided`: what a person decided."""

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
    stuck: str | None
    decided: tuple[Decision, ...]


class Payments:
    """Starts payments at the provider and records what comes."""

    def __init__(
        self,
        orders: Orders,
        plans: Plans,
        seats: Seats,
        provider: PaymentProvider,
        notices: Notices,
        audit: Audit | None = None,
    ) -> None:
        self._provider = provider
        self._orders = orders
        self._plans = plans
        self._seats = seats
        self._notices = notices
        self._audit = audit or Audit()

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
        # Two webhooks of one payment at once take turns, also where there is no order's row to wait for.
        await t.conn.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"payment:{provider}:{ref}"]
        )
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

    async def refund(self, t: Transaction, actor: Actor, order: OrderId) -> Order:
        """Send a paid order's money back in full.

        Staff may for any paid order. A member may for a plan that came without its gift because the money was
        late, within 24 hours. Points and plan end with it; a gift is recalled; a seat does not reopen. What
        went back in parts before is not sent again.
        Raises NoSuchOrder, Forbidden, NotPaid, AlreadyRefunded, RefundOver.
        """
        locked = await self._orders.lock(t.conn, order)
        own = locked is not None and actor.kind == "viewer" and actor.member == locked.member
        if locked is None or not (own or actor.may("member.write")):
            raise NoSuchOrder
        if locked.state == "refunded":
            raise AlreadyRefunded
        paid = await self._paid(t.conn, locked)
        if paid is None:
            raise NotPaid
        payment, left_fen = paid
        if not actor.may("member.write"):
            missed = await self._seats.missed(t.conn, payment)
            await self._check_one_tap(t.conn, missed)
        await self._orders.mark_refunded(t, locked)
        if locked.kind == "plan":
            await self._plans.end_refunded(t, payment)
            await self._seats.refund(t, payment, "recalled")
        await self._mark_return(t.conn, payment, left_fen, "refund")
        await self._orders.tell_after(t, locked.id, "closed")
        return await self._orders.get(t.conn, actor, order)

    async def return_part(self, t: Transaction, order: OrderId, amount_fen: int, cause: str) -> int:
        """Mark part of a paid order's money to go back; the same cause again changes nothing. Returns what
        is left of it. The order's state, points and lines are the caller's to settle in the same transaction.

        Raises NoSuchOrder, NotPaid, BadRequest (no amount, or more than is left).
        """
        locked = await self._orders.lock(t.conn, order)
        if locked is None:
            raise NoSuchOrder
        paid = await self._paid(t.conn, locked)
        if paid is None:
            raise NotPaid
        payment, left_fen = paid
        reason = f"part:{cause}"
        before = await (
            await t.conn.execute(
                "SELECT amount_fen FROM payment_returns WHERE payment_id = %s AND reason = %s",
                [payment, reason],
            )
        ).fetchone()
        if before is not None:
            if before["amount_fen"] != amount_fen:
                raise BadRequest("another amount went back for this cause")
            return left_fen
        if not 0 < amount_fen <= left_fen:
            raise BadRequest(f"of this order {left_fen} are left to send back")
        await self._mark_return(t.conn, payment, amount_fen, reason)
        return left_fen - amount_fen

    async def note_return(self, t: Transaction, provider: str, found: FoundReturn) -> Returned:
        """Note what the provider says of a return. The same again changes nothing.

        A return that we did not ask for was made at the provider's own desk: it is written down, so that the
        books say what is true, and audited. One for a payment we do not know is audited only.
        """
        row = None
        if is_id(found.key):
            row = await (
                await t.conn.execute(
                    """
                    SELECT r.id, r.amount_fen FROM payment_returns r JOIN payments p ON p.id = r.payment_id
                    WHERE r.id = %s AND p.provider = %s AND p.ref = %s
                    """,
                    [found.key, provider, found.ref],
                )
            ).fetchone()
        if row is None:
            return await self._note_foreign_return(t, provider, found)
        if row["amount_fen"] != found.amount_fen:
            raise BadRequest("this is not the amount that was to go back")
        if found.declined:
            await self._note_try(t.conn, str(row["id"]), found.declined, refused=True, again_s=RETURN_AGAIN_S)
            return "noted"
        return "noted" if await self._note_done(t.conn, str(row["id"]), found.return_ref) else "again"

    async def decide(
        self, t: Transaction, actor: Actor, payment: PaymentId, act: Decision, note: str
    ) -> PaymentRow:
        """A person decides about money that bought nothing, or that does not go back by itself.

        `return`: quarantined money goes back. `keep`: it stays, settled otherwise (a note says how).
        `by_hand`: a return that the provider declined was made by other means. Each once, and audited.
        Raises Forbidden, BadRequest, NoSuchPayment (also one that needs no such decision), AlreadyDecided.
        """
        if not actor.may("member.write"):
            raise Forbidden
        if not 1 <= len(note.strip()) <= NOTE_CHARS or "\0" in note:
            raise BadRequest(f"a note of 1 to {NOTE_CHARS} characters says why")
        row = await self._lock_odd(t.conn, payment)
        if row is None:
            raise NoSuchPayment
        if row["decided"] and (act != "by_hand" or "by_hand" in row["decided"] or "keep" in row["decided"]):
            raise AlreadyDecided
        if act == "by_hand":
            if not row["declined"]:
                raise NoSuchPayment("No return of this payment was declined.")
            for each in row["declined"]:
                await self._note_done(t.conn, str(each), "by hand")
        elif row["outcome"] != "quarantined":
            raise NoSuchPayment("This payment is not kept apart.")
        elif act == "return":
            await self._mark_return(t.conn, payment, row["amount_fen"], "decided")
        await t.conn.execute(
            "INSERT INTO payment_decisions (payment_id, act, note, decided_by) VALUES (%s, %s, %s, %s)",
            [payment, act, note.strip(), actor.id],
        )
        await self._audit.record(
            t,
            actor,
            f"payment.{act}",
            f"payment:{payment}",
            {"amount_fen": row["amount_fen"], "note": note.strip()},
        )
        return (await self._rows(t.conn, payment=payment))[0]

    async def of_order(self, conn: Connection, order: OrderId) -> tuple[PaymentRow, ...]:
        """The payments that came for an order, oldest first. For staff."""
        return await self._rows(conn, order=order) if is_id(order) else ()

    async def to_look_at(self, conn: Connection, actor: Actor, limit: int = 50) -> tuple[PaymentRow, ...]:
        """Payments that wait for a person, oldest first: kept apart and undecided, or with a return that the
        provider declined. Raises Forbidden."""
        if not actor.may("member.read"):
            raise Forbidden
        return await self._rows(conn, odd=True, limit=limit)

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
        recorded = failures = 0
        for row in rows:
            try:
                found = await self._provider.query(row["ref"])
            except Unavailable:
                await self._ask_later(database, row["ref"], after_s, answered=False)
                failures += 1
                if failures == FAILURES_MAX:
                    break
                continue
            await self._ask_later(database, row["ref"], after_s, answered=True)
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

    async def _ask_later(self, database: Transactions, ref: str, after_s: float, *, answered: bool) -> None:
        """The next question: twice as far away each time the provider answered; a provider that is away is
        asked again as soon as the first time."""
        async with database.transaction() as t:
            await t.conn.execute(
                """
                UPDATE payment_starts SET asked = asked + %(more)s, ask_at = clock_timestamp() + make_interval(
                    secs => least(%(after)s * 2 ^ least(asked * %(more)s, 16), %(most)s))
                WHERE provider = %(provider)s AND ref = %(ref)s
                """,
                {
                    "more": int(answered),
                    "after": after_s,
                    "most": ASK_AGAIN_MAX_S,
                    "provider": self._provider.name,
                    "ref": ref,
                },
            )

    async def return_due(
        self, database: Transactions, limit: int = 50, *, again_s: float = RETURN_AGAIN_S
    ) -> int:
        """Send back what is marked to go back; each once. Returns how many went.

        What does not go is tried again, ever more seldom; what the provider declines is shown to staff too.
        """
        async with database.transaction() as t:
            rows = await (
                await t.conn.execute(
                    """
                    SELECT r.id, r.amount_fen, p.ref FROM payment_returns r
                    JOIN payments p ON p.id = r.payment_id
                    LEFT JOIN payment_return_tries y ON y.return_id = r.id
                    WHERE p.provider = %s AND coalesce(y.next_at <= clock_timestamp(), true)
                      AND NOT EXISTS (SELECT 1 FROM payment_returns_done d WHERE d.return_id = r.id)
                    ORDER BY coalesce(y.next_at, r.marked_at) LIMIT %s
                    """,
                    [self._provider.name, limit],
                )
            ).fetchall()
        sent = failures = 0
        for row in rows:
            away = refused = False
            said, reference = "under way", None
            try:
                reference = await self._provider.give_back(row["ref"], row["amount_fen"], str(row["id"]))
            except Unavailable as error:
                away, said = True, str(error)
            except ReturnRefused as error:
                refused, said = True, str(error)
            async with database.transaction() as t:
                if reference is None:
                    await self._note_try(t.conn, str(row["id"]), said, refused=refused, again_s=again_s)
                else:
                    await self._note_done(t.conn, str(row["id"]), reference)
                    sent += 1
            failures += away
            if failures == FAILURES_MAX:
                break
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

    async def _paid(self, conn: Connection, order: LockedOrder) -> tuple[PaymentId, int] | None:
        """The payment that paid this order, and how much of it is not marked to go back."""
        row = await (
            await conn.execute(
                """
                SELECT p.id, p.amount_fen - coalesce((
                    SELECT sum(r.amount_fen) FROM payment_returns r WHERE r.payment_id = p.id), 0)::bigint
                    AS left_fen
                FROM payments p WHERE p.order_id = %s AND p.outcome = 'accepted'
                """,
                [order.id],
            )
        ).fetchone()
        if row is None or order.state != "paid":
            return None
        return PaymentId(str(row["id"])), int(row["left_fen"])

    async def _note_done(self, conn: Connection, returned: str, reference: str) -> bool:
        """The proof that it went; False when there was one."""
        done = await conn.execute(
            "INSERT INTO payment_returns_done (return_id, provider_ref) VALUES (%s, %s)"
            " ON CONFLICT (return_id) DO NOTHING",
            [returned, reference],
        )
        return done.rowcount == 1

    async def _note_try(
        self, conn: Connection, returned: str, said: str, *, refused: bool, again_s: float
    ) -> None:
        await conn.execute(
            """
            INSERT INTO payment_return_tries AS y (return_id, tries, refused, said, next_at)
            VALUES (%(id)s, 1, %(refused)s, %(said)s, clock_timestamp() + make_interval(secs => %(again)s))
            ON CONFLICT (return_id) DO UPDATE SET tries = y.tries + 1, refused = excluded.refused,
                said = excluded.said, next_at = clock_timestamp()
                    + make_interval(secs => least(%(again)s * 2 ^ least(y.tries, 16), %(most)s))
            """,
            {
                "id": returned,
                "refused": refused,
                "said": said[:SAID_CHARS].replace("\0", ""),
                "again": again_s,
                "most": RETURN_AGAIN_MAX_S,
            },
        )

    async def _note_foreign_return(self, t: Transaction, provider: str, found: FoundReturn) -> Returned:
        row = await (
            await t.conn.execute(
                "SELECT id, amount_fen FROM payments WHERE provider = %s AND ref = %s FOR UPDATE",
                [provider, found.ref],
            )
        ).fetchone()
        if found.declined:
            return "unknown"
        detail: dict[str, object] = {"key": found.key, "ref": found.ref, "amount_fen": found.amount_fen}
        if row is None or found.amount_fen <= 0:
            await self._audit.record(t, RECORDER, "payment.unknown_return", f"provider:{provider}", detail)
            return "unknown"
        reason = f"at_provider:{found.key}"
        seen = await (
            await t.conn.execute(
                """
                SELECT coalesce(sum(amount_fen), 0)::bigint AS back_fen,
                    coalesce(bool_or(reason = %s), false) AS again
                FROM payment_returns WHERE payment_id = %s
                """,
                [reason, row["id"]],
            )
        ).fetchone()
        assert seen is not None
        if seen["again"]:
            return "again"
        if seen["back_fen"] + found.amount_fen > row["amount_fen"]:
            await self._audit.record(t, RECORDER, "payment.unknown_return", f"payment:{row['id']}", detail)
            return "unknown"
        await self._mark_return(t.conn, PaymentId(str(row["id"])), found.amount_fen, reason)
        await t.conn.execute(
            "INSERT INTO payment_returns_done (return_id, provider_ref)"
            " SELECT id, %s FROM payment_returns WHERE payment_id = %s AND reason = %s",
            [found.return_ref, row["id"], reason],
        )
        await self._audit.record(t, RECORDER, "payment.returned_elsewhere", f"payment:{row['id']}", detail)
        return "noted"

    async def _lock_odd(self, conn: Connection, payment: PaymentId) -> dict[str, Any] | None:
        """A payment's row, locked, with what was decided and which of its returns were declined."""
        if not is_id(payment):
            return None
        locked = await (
            await conn.execute("SELECT outcome, amount_fen FROM payments WHERE id = %s FOR UPDATE", [payment])
        ).fetchone()
        if locked is None:
            return None
        more = await (
            await conn.execute(
                """
                SELECT ARRAY(SELECT act FROM payment_decisions WHERE payment_id = %(payment)s) AS decided,
                    ARRAY(SELECT r.id FROM payment_returns r JOIN payment_return_tries y ON y.return_id = r.id
                          WHERE r.payment_id = %(payment)s AND y.refused AND NOT EXISTS (
                              SELECT 1 FROM payment_returns_done d WHERE d.return_id = r.id)) AS declined
                """,
                {"payment": payment},
            )
        ).fetchone()
        return {**locked, **(more or {})}

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
        payment: PaymentId | None = None,
        odd: bool = False,
        limit: int = 200,
    ) -> tuple[PaymentRow, ...]:
        rows = await (
            await conn.execute(
                """
                SELECT * FROM (
                    SELECT p.id, p.provider, p.ref, p.order_id, p.amount_fen, p.outcome, p.reason,
                           p.recorded_at, back.returning_fen, back.returned_fen, back.stuck,
                           ARRAY(SELECT act FROM payment_decisions c WHERE c.payment_id = p.id
                                 ORDER BY c.decided_at) AS decided
                    FROM payments p CROSS JOIN LATERAL (
                        SELECT coalesce(sum(r.amount_fen) FILTER (WHERE d.return_id IS NULL), 0)::bigint
                                   AS returning_fen,
                               coalesce(sum(r.amount_fen) FILTER (WHERE d.return_id IS NOT NULL), 0)::bigint
                                   AS returned_fen,
                               max(y.said) FILTER (WHERE d.return_id IS NULL AND y.refused) AS stuck
                        FROM payment_returns r
                        LEFT JOIN payment_returns_done d ON d.return_id = r.id
                        LEFT JOIN payment_return_tries y ON y.return_id = r.id
                        WHERE r.payment_id = p.id
                    ) AS back
                    WHERE (%(order)s::uuid IS NULL OR p.order_id = %(order)s)
                      AND (%(payment)s::uuid IS NULL OR p.id = %(payment)s)
                      AND (NOT %(odd)s OR p.outcome = 'quarantined' OR p.id IN (
                          SELECT r.payment_id FROM payment_return_tries y
                          JOIN payment_returns r ON r.id = y.return_id WHERE y.refused))
                ) AS found
                WHERE NOT %(odd)s OR stuck IS NOT NULL OR (outcome = 'quarantined' AND decided = '{}')
                ORDER BY id LIMIT %(limit)s
                """,
                {"order": order, "payment": payment, "odd": odd, "limit": limit},
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
