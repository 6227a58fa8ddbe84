"""Seats of a benefit for joining: held while one pays, settled with the payment, passed on to the queue.

Starting the payment takes a seat for five minutes, once per person and benefit, never renewed; at every
instant held + confirmed <= N. Redis decides the seats. The rank is given in PostgreSQL, inside the
transaction that records the verified payment and under the show's lock, so ranks are in commit order;
everybody is told after the commit.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from commerce.benefit_counters import benefit_keys, lock_show
from commerce.benefit_terms import (
    TEND_AFTER_CLOSE_S,
    TENDED,
    Benefit,
    FixedTerms,
    Transactions,
    may_have,
    read_terms,
)
from commerce.benefits import FactsOf
from commerce.claim_announcer import ClaimAnnouncer, Told, claim_record, nickname_of, shown_name
from commerce.claim_book import Claim, claim_by_payment, was_claimed_as
from commerce.conditions import NotEligible, judge
from commerce.grants import Grants
from commerce.messages import BenefitMissed
from commerce.offers import buyer_lock
from commerce.receipts import write_receipts
from membership.actor import Actor, BenefitId, MemberId, OrderId, PaymentId, ShowId, new_id
from membership.moment import in_ms
from membership.notices import Notices
from membership.refusal import Unavailable
from membership.script import Script, ScriptLoader
from membership.transaction import Connection, Transaction, try_lock

QUEUE_MAX = 5_000  # longer is no promise any more
OUTBOX_PAGE = 500  # changes of seats written at a time
RELEASE_PAGE = 200  # seats of ended orders looked at in one sweep of a show
SETTLING_GRACE_MS = 5_000  # a payment's transaction is shorter; after that the tables are asked
REFUND_H = 24  # late money without a gift: one tap gives it back

SeatWord = Literal[
    "held", "settling", "confirmed", "lapsed", "already_claimed", "paused", "reserved_out", "sold_out"
]
MissedWhy = Literal["sold_out", "reserved_out", "closed", "already_claimed"]


class SeatStatus(Struct, frozen=True, kw_only=True):
    """How a member who starts to pay stands with the open benefit for joining.

    `held`: a seat until `until` (ms). `settling`, `confirmed`: paid already. `lapsed`: had a seat before; one
    that is still free when the money comes is given. `already_claimed`: had the gift and gave the plan back;
    it is given once. `paused`, `reserved_out` (one may queue), `sold_out`: none now.
    """

    benefit: BenefitId
    status: SeatWord
    until: int | None = None


class Queued(Struct, frozen=True, kw_only=True):
    """A place in the queue with `ahead` before it, or a seat until `until` because one was free."""

    benefit: BenefitId
    status: Literal["queued", "held"]
    ahead: int = 0
    until: int | None = None


class Decision(Struct, frozen=True, kw_only=True):
    """What Redis decided for a verified payment. `had`: the person has had a seat."""

    word: Literal["settling", "confirmed", "sold_out", "reserved_out", "closed"]
    generation: int
    had: bool


class Missed(Struct, frozen=True, kw_only=True):
    """The plan without the gift. `refund_until` (ms) is set for late money: a full refund by one tap."""

    benefit: BenefitId
    why: MissedWhy
    refund_until: int | None = None


class Standing(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A seat held `until` (ms), or a place in the queue with so many `ahead`."""

    until: int | None = None
    queued: bool = False
    ahead: int | None = None


class Swept(Struct, frozen=True):
    """How many seats lapsed, were passed on to the queue, and were still held for an order that had ended."""

    lapsed: int = 0
    served: int = 0
    released: int = 0


class _Change(Struct):
    """One change of one seat, as the scripts note it."""

    v: int
    member: MemberId
    state: Literal["held", "served", "lapsed", "released", "left", "queued"]
    until: str
    place: str
    longer: int = 0  # 1: the hold was prolonged, which happens once in its life


class Seats:
    def __init__(
        self,
        scripts: ScriptLoader,
        notices: Notices,
        facts_of: FactsOf,
        transactions: Transactions,
        grants: Grants,
    ) -> None:
        self._transactions = transactions
        self._grants = grants
        self._fixed = FixedTerms(transactions)
        self._notices = notices
        self._facts_of = facts_of
        self._announcer = ClaimAnnouncer(scripts, notices)
        self._hold: Script = scripts.load("commerce", "hold_seat")
        self._release: Script = scripts.load("commerce", "release_seat")
        self._settle: Script = scripts.load("commerce", "settle_seat")
        self._unsettle: Script = scripts.load("commerce", "unsettle_seat")
        self._queue: Script = scripts.load("commerce", "queue_seat")
        self._sweep: Script = scripts.load("commerce", "sweep_seats")
        self._drop: Script = scripts.load("commerce", "drop_changes")

    # --- a member who pays ---

    async def take(self, t: Transaction, actor: Actor, show: ShowId) -> SeatStatus | None:
        """Take a seat for who starts the payment of a plan. None when no benefit for joining is open to them.

        Who has a paid plan renews: one for them where the benefit says so. A hold of this transaction goes
        back when it rolls back.
        """
        member = actor.member
        if actor.kind != "viewer" or member is None:
            return None
        benefit = await self._open_benefit(t.conn, show)
        if benefit is None or not may_have(benefit.audience, actor.facts) or _only_renews(benefit, actor):
            return None
        if await self._is_judged_out(t.conn, benefit, member):
            return None
        keys = benefit_keys(benefit.id)
        token = secrets.token_hex(8)

        async def undo() -> None:
            await self._release(show, keys, [benefit.id, member, "undo", token])

        t.on_rollback(undo)  # first: a call that is not answered may have taken the seat
        word, until, change = await self._hold(show, keys, [benefit.id, member, token])
        status = word.decode()
        if status == "closed":
            return None
        if status == "held":
            await self._write(t.conn, benefit.id, [_Change(int(change), member, "held", until.decode(), "")])
        if status == "confirmed" and await self._was_taken_back(t.conn, benefit.id, member):
            status = "already_claimed"
        return SeatStatus(
            benefit=benefit.id,
            status="held" if status == "holding" else status,
            until=int(until) if until else None,
        )

    async def release(self, t: Transaction, show: ShowId, member: MemberId) -> None:
        """The order ended unpaid: once that is committed its seat comes free, for the queue's head."""
        held, unwritten = await self._seats_of(t.conn, show, member)
        for benefit in (*held, *unwritten):
            self._release_after(t, benefit, member)

    async def confirm(
        self,
        t: Transaction,
        show: ShowId,
        member: MemberId,
        payment: PaymentId,
        payer: str,
        *,
        renewal: bool = False,
    ) -> Claim | None:
        """Rank a first paid start of a plan, or a renewal, whose verified payment this transaction records.

        None: the plan without the gift (see `missed`), or no benefit. The same payment again gives the same
        answer. Everybody is told after the commit. Raises Unavailable when the seats cannot be asked: record
        it again later.
        """
        conn = t.conn
        await lock_show(conn, show)
        before = await claim_by_payment(conn, payment)
        if before is not None or await self.missed(conn, payment) is not None:
            return before
        await conn.execute(
            """
            INSERT INTO show_joins (show_id, member_id, payment_id, renewal)
            SELECT id, %s, %s, %s FROM shows WHERE id = %s AND started_at IS NOT NULL AND ended_at IS NULL
            ON CONFLICT (payment_id) DO NOTHING
            """,
            [member, payment, renewal, show],
        )
        held, unwritten = await self._seats_of(conn, show, member)
        gone = await self._gone_benefit(conn, show, member)
        if renewal:  # a seat that was taken to join is not for who has renewed meanwhile
            for benefit in (*held, *unwritten):
                if not benefit.renewals:
                    self._release_after(t, benefit, member)
            held = [benefit for benefit in held if benefit.renewals]
            unwritten = [benefit for benefit in unwritten if benefit.renewals]
            gone = gone if gone and gone.renewals else None
        benefits = held + [one for one in unwritten if await self._may_bring(conn, one, member, payer)]
        missed: tuple[Benefit, MissedWhy, bool] | None = (gone, "closed", True) if gone else None
        for benefit in benefits:
            if await was_claimed_as(conn, benefit.id, member, payer):
                self._release_after(t, benefit, member)
                missed = missed if missed and missed[2] else (benefit, "already_claimed", False)
                continue
            token = secrets.token_hex(8)
            decision = await self.reserve_for_payment(benefit, member, token)
            if decision.word == "settling":
                self._unsettle_on_rollback(t, benefit, member, token)
                return await self._rank(t, benefit, member, payment, decision.generation)
            if decision.word == "confirmed":  # Redis knows a claim that the tables do not
                raise Unavailable(retry_ms=2000)
            if benefit.status == "closed" and not decision.had:
                continue  # who never had a seat in it missed nothing
            if decision.had or missed is None or not missed[2]:  # late money for one is late money
                missed = benefit, decision.word, decision.had
        if missed is not None:
            await self._miss(t, member, payment, *missed)
        return None

    async def reserve_for_payment(self, benefit: Benefit, member: MemberId, token: str) -> Decision:
        """Keep the member's held seat, else a free one if it is not closed, while the payment is recorded."""
        closed = "1" if benefit.status == "closed" else ""  # the store may not have heard of it yet
        word, generation, had = await self._settle(
            benefit.show, benefit_keys(benefit.id), [benefit.id, member, token, closed]
        )
        return Decision(word=word.decode(), generation=int(generation), had=bool(had))

    async def standing(self, conn: Connection, show: ShowId, member: MemberId) -> dict[BenefitId, Standing]:
        """The seats a member holds and the lines they stand in, for a page that was loaded anew."""
        return (await self.standing_of(conn, show, [member])).get(member, {})

    async def standing_of(
        self, conn: Connection, show: ShowId, members: Sequence[MemberId]
    ) -> dict[MemberId, dict[BenefitId, Standing]]:
        """The same for many, in one read; who has and waits for none is missing."""
        rows = await conn.execute(
            """
            SELECT s.member_id, s.benefit_id, s.state, s.until,
                (SELECT count(*) FROM benefit_seats o WHERE o.benefit_id = s.benefit_id
                    AND o.state = 'queued' AND o.place < s.place) AS ahead
            FROM benefit_seats s JOIN benefits b ON b.id = s.benefit_id
            WHERE b.show_id = %s AND s.member_id = ANY(%s::uuid[])
              AND ((s.state = 'queued' AND b.status <> 'closed')
                   OR (s.state = 'held' AND s.until > clock_timestamp()))
            """,
            [show, list(members)],
        )
        found: dict[MemberId, dict[BenefitId, Standing]] = {}
        for row in await rows.fetchall():
            held = row["state"] == "held"
            found.setdefault(MemberId(str(row["member_id"])), {})[BenefitId(str(row["benefit_id"]))] = (
                Standing(until=in_ms(row["until"])) if held else Standing(queued=True, ahead=row["ahead"])
            )
        return found

    async def missed(self, conn: Connection, payment: PaymentId) -> Missed | None:
        """Why this payment brought the plan without the gift; None when it missed nothing."""
        found = await conn.execute("SELECT * FROM benefit_misses WHERE payment_id = %s", [payment])
        row = await found.fetchone()
        if row is None:
            return None
        return Missed(
            benefit=BenefitId(str(row["benefit_id"])),
            why=row["why"],
            refund_until=in_ms(row["refund_until"]) if row["refund_until"] else None,
        )

    async def refund(
        self, t: Transaction, payment: PaymentId, gift: Literal["recalled", "deducted"]
    ) -> Claim | None:
        """The plan's payment was refunded: the gift is recalled or its value deducted; no seat reopens."""
        await t.conn.execute(
            """
            UPDATE show_joins SET refunded_at = coalesce(refunded_at, clock_timestamp())
            WHERE payment_id = %s
            """,
            [payment],
        )
        await self._grants.settle_payment(t, payment, gift)
        return await claim_by_payment(t.conn, payment)

    async def order_refunded(self, t: Transaction, order: OrderId) -> None:
        """Money of this order is going back: benefits that what is left of it does not earn are recalled."""
        await self._grants.recall_unearned(t, order)

    # --- the queue ---

    async def queue(self, show: ShowId, benefit: BenefitId, actor: Actor) -> Queued:
        """Stand in line for a seat that may come back; twice keeps the first place.

        `sweep` serves the line in order and tells by notice. Raises Unauthenticated, NotFound, NotEligible;
        sold_out, already_claimed, limit_reached, paused, closed.
        """
        terms, member = await self._queue_terms(show, benefit, actor)
        word, value = await self._queue(show, benefit_keys(benefit), [benefit, member, "join", QUEUE_MAX])
        if word == b"held":
            return Queued(benefit=terms.id, status="held", until=int(value))
        return Queued(benefit=terms.id, status="queued", ahead=int(value))

    async def leave_queue(self, show: ShowId, benefit: BenefitId, actor: Actor) -> None:
        """Step out of line; again changes nothing."""
        _, member = await self._queue_terms(show, benefit, actor)
        await self._queue(show, benefit_keys(benefit), [benefit, member, "leave", QUEUE_MAX])

    # --- each second ---

    async def sweep(self, show: ShowId) -> Swept:
        """Take back lapsed seats, serve the queue in order; write, tell and settle what there is.

        Each second, by any number of processes: one at a time works on a show, the others have nothing to do.
        """
        left: list[tuple[Benefit, Sequence[bytes]]] = []
        async with self._transactions() as t:
            swept = await self._sweep_show(t, show, left)
        for benefit, settling in left:
            # On its own: a payment holds the show's lock before it writes a seat, never the other way round.
            async with self._transactions() as t:
                await self._settle_left(t, benefit, settling)
        async with self._transactions() as t:
            released = await self._release_ended(t, show)
        return msgspec.structs.replace(swept, released=released)

    async def _sweep_show(
        self, t: Transaction, show: ShowId, left: list[tuple[Benefit, Sequence[bytes]]]
    ) -> Swept:
        if not await try_lock(t.conn, f"sweep:{show}"):
            return Swept()
        found = await t.conn.execute(
            f"SELECT id FROM benefits WHERE show_id = %s AND needs = 'join' AND {TENDED} ORDER BY id",  # noqa: S608 - a constant
            [show],
        )
        lapsed = served = 0
        for row in await found.fetchall():
            terms = await read_terms(t.conn, BenefitId(str(row["id"])))
            swept = await self._sweep_one(t, terms, left)
            lapsed += swept.lapsed
            served += swept.served
        return Swept(lapsed, served)

    async def _sweep_one(
        self, t: Transaction, benefit: Benefit, left: list[tuple[Benefit, Sequence[bytes]]]
    ) -> Swept:
        """Adds to `left` who is still settling after the time of grace."""
        keys = benefit_keys(benefit.id)
        generation, _, lapsed, served, outbox, settling = await self._sweep(
            benefit.show, keys, [benefit.id, OUTBOX_PAGE, SETTLING_GRACE_MS]
        )
        if not generation:
            return Swept()  # Benefits.agree builds the counters anew
        changes = [msgspec.json.decode(text, type=_Change) for text in outbox]
        if changes:
            await self._write(t.conn, benefit.id, changes)

            async def tell() -> None:
                await self._notices.send_many(
                    [
                        (change.member, notice)
                        for change in changes
                        if (notice := _notice(benefit.id, change)) is not None
                    ]
                )
                await self._drop(benefit.show, keys, [benefit.id, generation, changes[-1].v])

            t.after_commit(tell)
        if settling:
            left.append((benefit, settling[::2]))
        await self._announcer.announce_left(t, benefit)
        return Swept(lapsed, served)

    async def _settle_left(self, t: Transaction, benefit: Benefit, members: Sequence[bytes]) -> None:
        """Under the show's lock no payment is being recorded: what still settles has a row, or never will."""
        await lock_show(t.conn, benefit.show)
        asked = [MemberId(member.decode()) for member in members]
        found = await t.conn.execute(
            """
            SELECT member_id::text AS member FROM benefit_claims
            WHERE benefit_id = %s AND member_id = ANY(%s::uuid[])
            """,
            [benefit.id, asked],
        )
        recorded = {row["member"] for row in await found.fetchall()}
        for member in asked:
            if member not in recorded:
                await self._unsettle(benefit.show, benefit_keys(benefit.id), [benefit.id, member, ""])

    async def _release_ended(self, t: Transaction, show: ShowId) -> int:
        """Seats still held for an order that ended unpaid while the store was away, and for no other."""
        found = await t.conn.execute(
            f"""
            SELECT s.benefit_id, s.member_id FROM benefit_seats s JOIN benefits b ON b.id = s.benefit_id
            WHERE b.show_id = %(show)s AND b.needs = 'join' AND s.state = 'held' AND {TENDED}
              AND s.until > clock_timestamp() AND EXISTS (
                  SELECT 1 FROM orders o
                  WHERE o.member_id = s.member_id AND o.show_id = b.show_id AND o.kind = 'plan'
                    AND o.state IN ('cancelled', 'expired')
                    AND o.closed_at >= s.until - make_interval(secs => b.seat_s))
            ORDER BY s.member_id, s.benefit_id LIMIT %(page)s
            """,  # noqa: S608 - a constant
            {"show": show, "page": RELEASE_PAGE},
        )
        released = 0
        for row in await found.fetchall():
            member, benefit = MemberId(str(row["member_id"])), BenefitId(str(row["benefit_id"]))
            if not await self._has_no_order(t.conn, show, member):
                continue
            try:
                held = await self._release(show, benefit_keys(benefit), [benefit, member, "release"])
            except Unavailable:  # away again, or its counters are being built anew: the next sweep
                break
            released += int(held)
        return released

    async def _has_no_order(self, conn: Connection, show: ShowId, member: MemberId) -> bool:
        """True until the transaction ends: who is placing an order now is left for the next time."""
        if not await try_lock(conn, buyer_lock(member)):
            return False
        found = await conn.execute(
            "SELECT 1 FROM orders WHERE member_id = %s AND show_id = %s AND kind = 'plan' AND state = 'placed'",
            [member, show],
        )
        return await found.fetchone() is None

    # --- parts ---

    async def _rank(
        self, t: Transaction, benefit: Benefit, member: MemberId, payment: PaymentId, generation: int
    ) -> Claim | None:
        conn = t.conn
        found = await conn.execute(
            "SELECT generation, quota FROM benefits WHERE id = %s FOR NO KEY UPDATE", [benefit.id]
        )
        now = await found.fetchone()
        assert now is not None
        if now["generation"] != generation:
            raise Unavailable("The seats are being rebuilt.", retry_ms=2000)
        found = await conn.execute(
            "SELECT coalesce(max(rank), 0) + 1 AS rank FROM benefit_claims WHERE benefit_id = %s",
            [benefit.id],
        )
        row = await found.fetchone()
        assert row is not None
        if row["rank"] > now["quota"]:  # Redis gave more than there is: the tables win
            raise Unavailable("The seats are being rebuilt.", retry_ms=2000)
        claim_id = new_id()
        await conn.execute(
            """
            INSERT INTO benefit_claims (id, benefit_id, member_id, rank, payment_id)
            VALUES (%s, %s, %s, %s, %s)
            """,
            [claim_id, benefit.id, member, row["rank"], payment],
        )
        await write_receipts(conn, benefit.id, [claim_id])
        await self._grants.give(t, benefit, [claim_id])
        await conn.execute(
            """
            INSERT INTO benefit_seats (benefit_id, member_id, state, version) VALUES (%s, %s, 'confirmed', 0)
            ON CONFLICT (benefit_id, member_id) DO UPDATE SET state = 'confirmed'
            """,
            [benefit.id, member],
        )
        claim = await claim_by_payment(conn, payment)
        assert claim is not None
        name = shown_name(await nickname_of(conn, member))
        terms = await read_terms(conn, benefit.id)
        record = claim_record(benefit.id, member)

        async def announce() -> None:
            await self._announcer.tell(
                terms, terms.quota, [Told(member, claim.rank, claim.nth, name, record)]
            )

        t.after_commit(announce)
        return claim

    async def _miss(
        self,
        t: Transaction,
        member: MemberId,
        payment: PaymentId,
        benefit: Benefit,
        why: MissedWhy,
        late: bool,
    ) -> None:
        """The plan without the gift: kept, and told at once."""
        found = await t.conn.execute(
            """
            INSERT INTO benefit_misses (payment_id, benefit_id, why, refund_until, recorded_at)
            SELECT %s, %s, %s, CASE WHEN %s THEN now + make_interval(hours => %s) END, now
            FROM clock_timestamp() AS now
            RETURNING refund_until
            """,
            [payment, benefit.id, why, late, REFUND_H],
        )
        row = await found.fetchone()
        until = in_ms(row["refund_until"]) if row and row["refund_until"] else None
        notice = BenefitMissed(benefit=benefit.id, why=why, refund_until=until)

        async def tell() -> None:
            await self._notices.send(member, msgspec.to_builtins(notice))

        t.after_commit(tell)

    def _release_after(self, t: Transaction, benefit: Benefit, member: MemberId) -> None:
        async def release() -> None:
            await self._release(benefit.show, benefit_keys(benefit.id), [benefit.id, member, "release"])

        t.after_commit(release)

    def _unsettle_on_rollback(self, t: Transaction, benefit: Benefit, member: MemberId, token: str) -> None:
        async def unsettle() -> None:
            await self._unsettle(benefit.show, benefit_keys(benefit.id), [benefit.id, member, token])

        t.on_rollback(unsettle)

    async def _write(self, conn: Connection, benefit: BenefitId, changes: Sequence[_Change]) -> None:
        """The last change of each seat; an older one never overwrites, nor anything a confirmed claim."""
        by_member = {change.member: change for change in changes}
        last = [by_member[member] for member in sorted(by_member)]
        longer = {change.member for change in changes if change.longer}
        await conn.execute(
            """
            INSERT INTO benefit_seats (benefit_id, member_id, state, until, place, version, prolonged)
            SELECT %s, w.member, w.state, to_timestamp(nullif(w.until, '')::bigint / 1000.0),
                nullif(w.place, '')::bigint, w.version, w.prolonged
            FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::boolean[])
                AS w (member, state, until, place, version, prolonged)
            ON CONFLICT (benefit_id, member_id) DO UPDATE
            SET state = excluded.state, until = coalesce(excluded.until, benefit_seats.until),
                place = excluded.place, version = excluded.version,
                prolonged = benefit_seats.prolonged OR excluded.prolonged
            WHERE benefit_seats.version < excluded.version AND benefit_seats.state <> 'confirmed'
            """,
            [
                benefit,
                [change.member for change in last],
                ["held" if change.state == "served" else change.state for change in last],
                [change.until for change in last],
                [change.place for change in last],
                [change.v for change in last],
                [change.member in longer for change in last],
            ],
        )

    async def _open_benefit(self, conn: Connection, show: ShowId) -> Benefit | None:
        found = await conn.execute(
            "SELECT id FROM benefits WHERE show_id = %s AND needs = 'join' AND status <> 'closed'", [show]
        )
        row = await found.fetchone()
        return None if row is None else await read_terms(conn, BenefitId(str(row["id"])))

    async def _seats_of(
        self, conn: Connection, show: ShowId, member: MemberId
    ) -> tuple[list[Benefit], list[Benefit]]:
        """Where a row says that the member has a seat, and where only Redis can say it: each benefit once.

        The second is read first: a row that is written between the two is seen by one of them.
        """
        unwritten = await self._unsettled_benefits(conn, show, member)
        held = await self._held_benefits(conn, show, member)
        seen = {benefit.id for benefit in held}
        return held, [benefit for benefit in unwritten if benefit.id not in seen]

    async def _unsettled_benefits(self, conn: Connection, show: ShowId, member: MemberId) -> list[Benefit]:
        """The open one, last; before it those that closed and are not settled, where no row says what became of
        the member: the queue may have served them, and the jobs not have written it."""
        found = await conn.execute(
            """
            SELECT b.id FROM benefits b
            WHERE b.show_id = %s AND b.needs = 'join' AND (b.status <> 'closed' OR (
                b.settled_at IS NULL AND b.closed_at > clock_timestamp() - make_interval(secs => %s)
                AND NOT EXISTS (SELECT 1 FROM benefit_seats s
                    WHERE s.benefit_id = b.id AND s.member_id = %s AND s.state NOT IN ('queued', 'left'))))
            ORDER BY b.closed_at DESC NULLS LAST
            """,
            [show, TEND_AFTER_CLOSE_S, member],
        )
        return [await read_terms(conn, BenefitId(str(row["id"]))) for row in await found.fetchall()]

    async def _may_bring(self, conn: Connection, benefit: Benefit, member: MemberId, payer: str) -> bool:
        """Whether to ask for a seat of which there is no row."""
        if benefit.status == "closed":  # who was let in to its queue may have one, but none a second time
            return not await was_claimed_as(conn, benefit.id, member, payer)
        if not may_have(benefit.audience, await self._facts_of(conn, member)):
            return False
        return not await self._is_judged_out(conn, benefit, member)

    async def _held_benefits(self, conn: Connection, show: ShowId, member: MemberId) -> list[Benefit]:
        """Where the member has or had a seat not given back: also in a benefit closed since. Newest first."""
        found = await conn.execute(
            """
            SELECT b.id FROM benefit_seats s JOIN benefits b ON b.id = s.benefit_id
            WHERE s.member_id = %s AND s.state = 'held' AND b.show_id = %s
              AND (b.status <> 'closed' OR s.until > clock_timestamp() - make_interval(secs => %s))
            ORDER BY s.until DESC
            """,
            [member, show, TEND_AFTER_CLOSE_S],
        )
        return [await read_terms(conn, BenefitId(str(row["id"]))) for row in await found.fetchall()]

    async def _gone_benefit(self, conn: Connection, show: ShowId, member: MemberId) -> Benefit | None:
        """The last one closed in which the member's seat lapsed or was given back: it gives no more seats.

        Needs no Redis: late money may come when a show's keys are gone. So may a hold that ran out while its
        benefit was no longer tended, and that nobody noted as lapsed.
        """
        found = await conn.execute(
            """
            SELECT b.id FROM benefit_seats s JOIN benefits b ON b.id = s.benefit_id
            WHERE s.member_id = %s AND b.show_id = %s AND b.status = 'closed'
              AND (s.state IN ('lapsed', 'released') OR (
                  s.state = 'held' AND s.until <= clock_timestamp() - make_interval(secs => %s)))
            ORDER BY b.closed_at DESC LIMIT 1
            """,
            [member, show, TEND_AFTER_CLOSE_S],
        )
        row = await found.fetchone()
        return None if row is None else await read_terms(conn, BenefitId(str(row["id"])))

    async def _was_taken_back(self, conn: Connection, benefit: BenefitId, member: MemberId) -> bool:
        """Recalled or deducted when the plan was given back; its rank stays taken."""
        found = await conn.execute(
            "SELECT 1 FROM benefit_claims WHERE benefit_id = %s AND member_id = %s AND state <> 'confirmed'",
            [benefit, member],
        )
        return await found.fetchone() is not None

    async def _is_judged_out(self, conn: Connection, benefit: Benefit, member: MemberId) -> bool:
        return benefit.is_conditional and bool(await judge(conn, benefit, [member], {}))

    async def _queue_terms(self, show: ShowId, benefit: BenefitId, actor: Actor) -> tuple[Benefit, MemberId]:
        member = actor.signed_in()
        terms = await self._fixed.get(show, benefit)
        if terms.needs != "join" or _only_renews(terms, actor) or not may_have(terms.audience, actor.facts):
            raise NotEligible
        if terms.is_conditional:
            async with self._transactions() as t:
                refused = await judge(t.conn, terms, [member], {})
            if member in refused:
                raise refused[member]
        return terms, member


def _only_renews(benefit: Benefit, actor: Actor) -> bool:
    """Who has a paid plan only renews; that counts where the benefit says so."""
    return bool(actor.facts.plans) and not actor.facts.on_trial and not benefit.renewals


def _notice(benefit: BenefitId, change: _Change) -> dict[str, object] | None:
    """What the member is told; what the reply to their own act said already is not repeated."""
    match change.state:
        case "served":
            return {"type": "seat.held", "benefit": benefit, "until": int(change.until)}
        case "lapsed":
            return {"type": "seat.lapsed", "benefit": benefit}
    return None
