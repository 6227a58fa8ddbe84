"""Money that goes back: marked in the transaction that decides it, sent by a job, proven by the provider.

What is to go back is a row, and so is the proof that it went: never more than came, each cause once. A
person decides about money that bought nothing, and about a return that the provider declines.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct
from psycopg import OperationalError

from commerce import refund_lines
from commerce.benefit_counters import lock_show
from commerce.order_announcer import Transactions
from commerce.order_book import PAID, LockedOrder, NoSuchOrder, Order
from commerce.orders import NotPaid, Orders
from commerce.provider import FoundReturn, PaymentProvider
from commerce.refund_lines import AlreadyRefunded
from commerce.seats import Missed, Seats
from membership.actor import Actor, OrderId, PaymentId, is_id, new_id
from membership.alone import alone
from membership.audit import Audit
from membership.members import lock_member
from membership.moment import in_ms
from membership.notices import Notices
from membership.plans import Plans
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.transaction import Connection, Transaction

log = logging.getLogger(__name__)

RETURNS_MAX = 300  # a round: so many who lose at once have their money back within a minute
RETURNS_AT_ONCE = 5  # each is three calls at WeChat, one after the other
RETURN_AGAIN_S = 5  # a return that did not go is tried again after this, then after twice that …
RETURN_AGAIN_MAX_S = 300
FAILURES_MAX = 3  # calls that failed in one round: the provider is away, the next round goes on
SAID_CHARS = 200  # of what a provider says, kept for people
NOTE_CHARS = 200

Outcome = Literal["accepted", "returned", "quarantined"]
Reason = Literal[
    "unknown_order",
    "wrong_amount",
    "second_payment",
    "cancelled_before",
    "no_stock",
    "limit_reached",
    "discount_gone",
]
Decision = Literal["return", "keep", "by_hand"]

RECORDER = Actor(kind="job", id="payments", name="payments")


class RefundOver(Refusal):
    """The time for a refund by one tap is over; ask the shop."""

    code = "closed"


class AlreadyDecided(Refusal):
    """Somebody has decided about this payment before."""

    code = "already_decided"


class NoSuchPayment(NotFound):
    """There is no such payment to decide about."""


Returned = Literal["noted", "again", "unknown"]
Went = Literal["done", "not_yet", "away"]
Row = dict[str, Any]


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


async def go_through(
    due: Iterable[Row], what: str, act: Callable[[Row], Awaitable[Went]], *, at_once: int = 1
) -> int:
    """Act on each row that is due, so many at once. Returns how many were done.

    `act` notes when the row is due next, whatever came of it. One that fails keeps back no other; after
    FAILURES_MAX that found somebody away, the rest are left to the next round.
    """
    turns = iter(due)
    done = failures = 0

    async def take_turns() -> None:
        nonlocal done, failures
        for row in turns:
            went: Went = "away"  # so it stays where not even the next time could be noted
            with alone(what, log):
                went = await act(row)
            done += went == "done"
            failures += went == "away"
            if failures >= FAILURES_MAX:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(take_turns())
    return done


class Returns:
    """Sends money back, each cause once, and takes note of what the provider says of it."""

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
        if paid is None and (locked.state not in PAID or locked.total_fen):
            raise NotPaid
        payment, left_fen = paid or (None, 0)  # nothing was to pay: coupons and points paid all
        if not actor.may("member.write"):
            missed = None if payment is None else await self._seats.missed(t.conn, payment)
            await self._check_one_tap(t.conn, missed)
        if locked.kind == "goods":
            lines = refund_lines.split(
                await refund_lines.read_lines(t.conn, order),
                locked.freight_fen,
                await refund_lines.read_freight_back(t.conn, order),
                None,
                left_fen,
            )
            await refund_lines.write(t.conn, order, lines, "refund", actor.id)
        if locked.kind == "plan":
            await self.lock_plan(t.conn, locked)  # before the points
        await self._orders.mark_refunded(t, locked)
        if locked.kind == "goods":
            await self.recall_unearned(t, locked.id)
        elif payment is not None:
            await self._plans.end_refunded(t, payment)
            await self._seats.refund(t, payment, "recalled")
        if payment is not None:
            await self._mark_return(t.conn, payment, left_fen, "refund")
        await self._orders.tell_after(t, locked.id, "closed")
        return await self._orders.get(t.conn, actor, order)

    async def lock_plan(self, conn: Connection, order: LockedOrder) -> None:
        """Before a plan is given back: its member's terms, and the ranks of the show it was joined in.

        Who claims by it, or opens a benefit for who joined earlier, comes before and is recalled, or sees that
        the plan has ended.
        """
        await lock_member(conn, order.member)
        if order.show is not None:
            await lock_show(conn, order.show)

    async def left_fen(self, conn: Connection, order: LockedOrder) -> int:
        """How much of a paid order's money is not marked to go back; 0 where no money was asked for."""
        paid = await self._paid(conn, order)
        return 0 if paid is None else paid[1]

    async def recall_unearned(self, t: Transaction, order: OrderId) -> None:
        """Benefits that what is left of this order does not earn go with its money."""
        await self._seats.order_refunded(t, order)

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
            await self._mark_return(t.conn, payment, row["left_fen"], "decided")
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

    async def return_due(
        self, database: Transactions, limit: int = RETURNS_MAX, *, again_s: float = RETURN_AGAIN_S
    ) -> int:
        """Send back what is marked to go back; each once. Returns how many went.

        What does not go is tried again, ever more seldom; what is declined, or fails in a way that nobody
        foresaw, is shown to staff too. Another process may send the same: the provider sends a key once.
        Only what is open is read: behind 100,000 returns that went, 30 pages instead of 1,787 (0.1 ms, not 41).
        """
        async with database.transaction() as t:
            rows = await (
                await t.conn.execute(
                    """
                    SELECT r.id, r.amount_fen, p.ref FROM payment_returns_open o
                    JOIN payment_returns r ON r.id = o.return_id
                    JOIN payments p ON p.id = r.payment_id
                    LEFT JOIN payment_return_tries y ON y.return_id = r.id
                    WHERE p.provider = %s AND coalesce(y.next_at <= clock_timestamp(), true)
                    ORDER BY coalesce(y.next_at, r.marked_at) LIMIT %s
                    """,
                    [self._provider.name, limit],
                )
            ).fetchall()

        async def send(row: Row) -> Went:
            return await self._send_back(database, row, again_s)

        return await go_through(rows, "sending money back", send, at_once=RETURNS_AT_ONCE)

    async def _send_back(self, database: Transactions, row: Row, again_s: float) -> Went:
        """One return: the proof that it went, or the try with when the next one is."""
        went: Went = "not_yet"
        refused, said = False, "under way"
        try:
            reference = await self._provider.give_back(row["ref"], row["amount_fen"], str(row["id"]))
            if reference is not None:
                async with database.transaction() as t:
                    await self._note_done(t.conn, str(row["id"]), reference)
                return "done"
        except (Unavailable, OperationalError) as error:  # the provider, or our own tables
            went, said = "away", str(error)
        except Refusal as refusal:
            refused, said = True, str(refusal)
        except Exception as error:
            log.exception("return %s did not go", row["id"])
            refused, said = True, f"{type(error).__name__}: {error}"
        async with database.transaction() as t:
            await self._note_try(t.conn, str(row["id"]), said, refused=refused, again_s=again_s)
        return went

    # --- parts ---

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
        if row is None or order.state not in PAID:
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
        """A payment's row, locked, with what was decided, which of its returns were declined, and what has not gone
        back: some may have at the provider's own desk."""
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
                    %(amount)s - coalesce((SELECT sum(amount_fen) FROM payment_returns
                                           WHERE payment_id = %(payment)s), 0)::bigint AS left_fen,
                    ARRAY(SELECT r.id FROM payment_returns r JOIN payment_return_tries y ON y.return_id = r.id
                          WHERE r.payment_id = %(payment)s AND y.refused AND NOT EXISTS (
                              SELECT 1 FROM payment_returns_done d WHERE d.return_id = r.id)) AS declined
                """,
                {"payment": payment, "amount": locked["amount_fen"]},
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
