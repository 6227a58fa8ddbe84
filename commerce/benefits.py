"""Benefits: what the first N of a show get. Opening, raising, pausing, closing.

PostgreSQL holds the terms and the claims; Redis decides who is among the first. The terms stand in
benefit_terms.py, the counters in benefit_counters.py, what a claim brings in grants.py; the seats of a benefit
for joining in seats.py, the claims of every other in claims.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import msgspec
from msgspec import UNSET
from psycopg import errors
from psycopg.types.json import Jsonb

from commerce.benefit_counters import BenefitCounters, BenefitCounts, lock_show
from commerce.benefit_terms import (
    QUOTA_MAX,
    REGISTERED,
    TENDED,
    Benefit,
    BenefitInput,
    benefit_of,
    checked_terms,
    known_shape,
    may_have,
    read_terms,
)
from commerce.claim_book import Claim, claims_of_benefit, claims_of_member
from commerce.conditions import judge
from commerce.grants import Grants
from commerce.guards import Guards
from commerce.messages import (
    BenefitClosed,
    BenefitOpened,
    BenefitPaused,
    BenefitRaised,
    BenefitResumed,
    Event,
)
from commerce.receipts import write_receipts
from membership.actor import Actor, BenefitId, Facts, MemberId, ShowId, new_id
from membership.audience import EVERYONE, ShowAudiences
from membership.notices import Notices
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.script import ScriptLoader
from membership.transaction import Connection, Transaction

FactsOf = Callable[[Connection, MemberId], Awaitable[Facts]]  # members.facts

# For what was promised until a time: while selling is paused, time stands still.
_NOW = "coalesce((SELECT began_at FROM incidents WHERE ended_at IS NULL), clock_timestamp())"


class NotLive(Refusal):
    """The show is not live."""

    code = "not_live"


class BenefitOpen(Refusal):
    """Another benefit for joining is open in this show."""

    code = "benefit_open"


class Closed(Refusal):
    """The benefit is closed."""

    code = "closed"


class WindowPromised(Refusal):
    """Viewers were promised this benefit until its time: let it run out, or pause it with a reason."""

    code = "window_promised"


def require(actor: Actor) -> None:
    if not actor.may("offer.run"):
        raise Forbidden


class Benefits:
    """Open, raise, pause, close; and keep Redis in agreement with the books."""

    def __init__(
        self,
        scripts: ScriptLoader,
        audiences: ShowAudiences,
        notices: Notices,
        facts_of: FactsOf,
        grants: Grants,
        guards: Guards | None = None,
    ) -> None:
        self._guards = guards
        self._audiences = audiences
        self._notices = notices
        self._facts_of = facts_of
        self._grants = grants
        self._counters = BenefitCounters(scripts, audiences)

    # --- staff acts ---

    async def open(self, t: Transaction, actor: Actor, show: ShowId, terms: BenefitInput) -> Benefit:
        """Open a benefit in a live show. Of one for joining, tonight's earlier joins are confirmed first.

        Raises Forbidden, BadRequest, NotFound, NotLive, BenefitOpen, TooManyAudiences, and what the guards
        refuse (guards.py).
        """
        require(actor)
        if self._guards is not None:
            await self._guards.check_selling(t.conn)
        terms = checked_terms(terms)
        found = await t.conn.execute("SELECT state FROM shows WHERE id = %s FOR SHARE", [show])
        row = await found.fetchone()
        if row is None:
            raise NotFound
        if row["state"] != "live":
            raise NotLive
        await self._grants.check(t.conn, terms)
        await self._audiences.bit(show, terms.audience)
        await lock_show(t.conn, show)
        benefit = BenefitId(new_id())
        try:
            await t.conn.execute(
                """
                INSERT INTO benefits (id, show_id, title, body, what, value_fen, quota, per_person, needs,
                    audience, seat_s, opened_by, coupon_rule, points, products, until_at, cap_fen, min_fen,
                    newly_joined_s, watched_s, first_order, renewals, opened_at, starts_at, closes_at, event)
                SELECT %(id)s, %(show)s, %(title)s, %(text)s, %(what)s, %(value_fen)s, %(quota)s,
                    %(per_person)s, %(needs)s, %(audience)s, %(seat_s)s, %(by)s, %(coupon_rule)s, %(points)s,
                    %(products)s::uuid[], to_timestamp(%(until)s / 1000.0), %(cap_fen)s, %(min_fen)s,
                    %(newly_joined_s)s, %(watched_s)s, %(first_order)s, %(renewals)s, now,
                    CASE WHEN %(starts_in_s)s > 0 THEN now + make_interval(secs => %(starts_in_s)s) END,
                    now + make_interval(secs => %(starts_in_s)s + %(seconds)s), '{}'
                FROM clock_timestamp() AS now
                """,
                {
                    "id": benefit,
                    "show": show,
                    "title": terms.title,
                    "text": terms.text,
                    "what": terms.what,
                    "value_fen": terms.value_fen,
                    "quota": terms.quota,
                    "per_person": terms.per_person,
                    "needs": terms.needs,
                    "audience": Jsonb(msgspec.to_builtins(terms.audience)),
                    "seat_s": terms.seat_s,
                    "by": f"{actor.kind}:{actor.id}",
                    "coupon_rule": terms.coupon_rule,
                    "points": terms.points,
                    "products": sorted(set(terms.products)),
                    "until": terms.until,
                    "cap_fen": terms.cap_fen,
                    "min_fen": terms.min_fen,
                    "newly_joined_s": terms.newly_joined_s,
                    "watched_s": terms.watched_s,
                    "first_order": terms.first_order,
                    "renewals": terms.renewals,
                    "starts_in_s": terms.starts_in_s,
                    "seconds": terms.seconds,
                },
            )
        except errors.UniqueViolation as error:
            raise BenefitOpen from error
        if self._guards is not None:
            await self._guards.check_benefit(t, actor, benefit)
        opened = await self.get(t.conn, benefit)
        earlier = await self._confirm_earlier(t, opened) if terms.needs == "join" else []
        event = BenefitOpened(
            benefit=benefit,
            title=opened.title,
            value_fen=opened.value_fen,
            quota=opened.quota,
            needs=opened.needs,
            confirmed=len(earlier),
            starts_at=UNSET if opened.starts_at is None else opened.starts_at,
            closes_at=UNSET if opened.closes_at is None else opened.closes_at,
        )
        await self._set_event(t.conn, benefit, event)
        await self._counters.put_after(t, benefit)
        if earlier:
            won = [
                (
                    member,
                    cast(
                        "dict[str, object]",
                        {"type": "benefit.won", "benefit": benefit, "rank": rank, "of": opened.quota},
                    ),
                )
                for rank, member in enumerate(earlier, 1)
            ]
            t.after_commit(lambda: self._notices.send_many(won))
        return opened

    async def raise_quota(self, t: Transaction, actor: Actor, benefit: BenefitId, quota: int) -> Benefit:
        """N may rise, never fall. The queue is served from what is new. Raises BadRequest, Closed."""
        require(actor)
        now = await self._lock(t.conn, benefit)
        if now.status == "closed":
            raise Closed
        if quota == now.quota:
            return now
        if not now.quota < quota <= QUOTA_MAX:
            raise BadRequest(f"A quota may rise, never fall: more than {now.quota}, at most {QUOTA_MAX}.")
        await t.conn.execute("UPDATE benefits SET quota = %s WHERE id = %s", [quota, benefit])
        if self._guards is not None:
            await self._guards.check_raise(t, actor, benefit, now.quota)
        return await self._changed(t, benefit, BenefitRaised(benefit=benefit, quota=quota, before=now.quota))

    async def pause(self, t: Transaction, actor: Actor, benefit: BenefitId, reason: str) -> Benefit:
        """Nothing new is given until it is resumed; viewers see the reason. Held seats stay held."""
        require(actor)
        reason = reason.strip()
        if not 1 <= len(reason) <= 200:
            raise BadRequest("A pause needs a reason of 1 to 200 characters; viewers see it.")
        now = await self._lock(t.conn, benefit)
        if now.status == "closed":
            raise Closed
        if now.status == "paused" and now.pause_reason == reason:
            return now
        await t.conn.execute(
            "UPDATE benefits SET status = 'paused', pause_reason = %s WHERE id = %s", [reason, benefit]
        )
        return await self._changed(t, benefit, BenefitPaused(benefit=benefit, reason=reason))

    async def resume(self, t: Transaction, actor: Actor, benefit: BenefitId) -> Benefit:
        """Go on after a pause: first the queue is served."""
        require(actor)
        now = await self._lock(t.conn, benefit)
        if now.status == "closed":
            raise Closed
        if now.status == "open":
            return now
        await t.conn.execute(
            "UPDATE benefits SET status = 'open', pause_reason = NULL WHERE id = %s", [benefit]
        )
        return await self._changed(t, benefit, BenefitResumed(benefit=benefit))

    async def close(self, t: Transaction, actor: Actor, benefit: BenefitId) -> Benefit:
        """No claim and no new seat after this; held seats run on to their time. Again changes nothing.

        Raises WindowPromised while some is left and the time that was told has not passed.
        """
        require(actor)
        now = await self._lock(t.conn, benefit)
        if now.status != "closed" and now.closes_at is not None:
            found = await t.conn.execute(
                f"""
                SELECT closes_at > {_NOW} AND quota > (
                    SELECT count(*) FROM benefit_claims c WHERE c.benefit_id = b.id) AS promised
                FROM benefits b WHERE id = %s
                """,  # noqa: S608 - a constant; what comes from outside is a parameter
                [benefit],
            )
            row = await found.fetchone()
            if row is not None and row["promised"]:
                raise WindowPromised
        return await self._close(t, benefit)

    async def close_due(self, t: Transaction) -> int:
        """Close what has passed its time, in every show. The scripts keep to the time by themselves."""
        found = await t.conn.execute(
            f"SELECT id FROM benefits WHERE status <> 'closed' AND closes_at <= {_NOW} ORDER BY id"  # noqa: S608 - a constant
        )
        due = await found.fetchall()
        for row in due:
            await self._close(t, BenefitId(str(row["id"])))
        return len(due)

    async def close_all(self, t: Transaction, actor: Actor, show: ShowId) -> list[Benefit]:
        """Close what is open in a show that ends."""
        if not (actor.may("offer.run") or actor.may("show.run")):
            raise Forbidden
        found = await t.conn.execute(
            "SELECT id FROM benefits WHERE show_id = %s AND status <> 'closed' ORDER BY id", [show]
        )
        return [await self._close(t, BenefitId(str(row["id"]))) for row in await found.fetchall()]

    # --- reading ---

    async def get(self, conn: Connection, benefit: BenefitId) -> Benefit:
        """Raises NotFound."""
        return await read_terms(conn, benefit)

    async def list(self, conn: Connection, show: ShowId) -> list[Benefit]:
        """The benefits of a show in the order they were opened."""
        found = await conn.execute("SELECT * FROM benefits WHERE show_id = %s ORDER BY id", [show])
        return [benefit_of(row) for row in await found.fetchall()]

    async def claims(
        self, conn: Connection, benefit: BenefitId, *, after_rank: int = 0, limit: int = 100
    ) -> Sequence[Claim]:
        """The winners by rank. For staff."""
        return await claims_of_benefit(conn, benefit, after_rank=after_rank, limit=limit)

    async def claims_of(self, conn: Connection, member: MemberId, *, limit: int = 200) -> Sequence[Claim]:
        """What a member has won, newest first."""
        return await claims_of_member(conn, member, limit=limit)

    async def counts(self, show: ShowId, benefit: BenefitId) -> BenefitCounts:
        """One moment, read whole from Redis. Raises Unavailable when the counters are lost."""
        return await self._counters.counts(show, benefit)

    async def to_tend(self, conn: Connection) -> Sequence[ShowId]:
        """The shows whose benefits need `agree`, `Seats.sweep` and `Claims.settle` each second, newest first."""
        found = await conn.execute(
            f"SELECT show_id FROM benefits WHERE {TENDED} GROUP BY show_id ORDER BY max(opened_at) DESC"  # noqa: S608 - a constant
        )
        return [ShowId(row["show_id"]) for row in await found.fetchall()]

    # --- agreement between Redis and the books ---

    async def put_in_force(self, t: Transaction, show: ShowId) -> int:
        """After the commit, put in force what this transaction changed."""
        return await self.agree(t, show, at_once=True)

    async def agree(self, t: Transaction, show: ShowId, *, at_once: bool = False) -> int:
        """Put in force what Redis has not, or has lost (see BenefitCounters.agree)."""
        return await self._counters.agree(t, show, at_once=at_once)

    # --- parts ---

    async def _confirm_earlier(self, t: Transaction, terms: Benefit) -> Sequence[MemberId]:
        """Tonight's paid joins in payment order, each person once, up to the quota; returns them by rank.

        A payment has one rank: what brought that of an earlier benefit brings none of this. Under the show's
        lock, so that no plan is given back meanwhile.
        """
        conn, benefit = t.conn, terms.id
        found = await conn.execute(
            """
            SELECT j.member_id, j.payment_id, p.payer, i.value AS phone
            FROM show_joins j
            JOIN payments p ON p.id = j.payment_id
            LEFT JOIN LATERAL (
                SELECT value FROM identifiers
                WHERE member_id = j.member_id AND kind = 'phone' AND started_at <= j.recorded_at
                  AND (ended_at IS NULL OR ended_at > j.recorded_at)
                LIMIT 1
            ) i ON true
            WHERE j.show_id = %s AND j.refunded_at IS NULL AND (NOT j.renewal OR %s)
              AND NOT EXISTS (SELECT 1 FROM benefit_claims c WHERE c.payment_id = j.payment_id)
            ORDER BY j.ordinal
            """,
            [terms.show, terms.renewals],
        )
        seen: set[tuple[str, str]] = set()
        members: list[MemberId] = []
        payments: list[str] = []
        for row in await found.fetchall():
            member = MemberId(str(row["member_id"]))
            marks = {("member", str(member))}
            marks |= {(kind, row[kind]) for kind in ("payer", "phone") if row[kind]}
            if marks & seen or not await self._may_have(conn, terms, member):
                continue
            seen |= marks
            members.append(member)
            payments.append(str(row["payment_id"]))
            if len(members) == terms.quota:
                break
        claims = [new_id() for _ in members]
        await conn.execute(
            """
            INSERT INTO benefit_claims (id, benefit_id, member_id, rank, payment_id, announced_at)
            SELECT w.id, %s, w.member_id, w.rank, w.payment_id, clock_timestamp()
            FROM unnest(%s::uuid[], %s::uuid[], %s::integer[], %s::uuid[])
                AS w (id, member_id, rank, payment_id)
            """,
            [benefit, claims, members, list(range(1, len(members) + 1)), payments],
        )
        await write_receipts(conn, benefit, claims)
        await self._grants.give(t, terms, claims)
        return members

    async def _may_have(self, conn: Connection, terms: Benefit, member: MemberId) -> bool:
        if terms.is_conditional and await judge(conn, terms, [member], {}):
            return False
        if terms.audience in (EVERYONE, REGISTERED):
            return True
        return may_have(terms.audience, await self._facts_of(conn, member))

    async def _lock(self, conn: Connection, benefit: BenefitId) -> Benefit:
        found = await conn.execute(
            "SELECT * FROM benefits WHERE id = %s FOR NO KEY UPDATE", [known_shape(benefit)]
        )
        row = await found.fetchone()
        if row is None:
            raise NotFound
        return benefit_of(row)

    async def _close(self, t: Transaction, benefit: BenefitId) -> Benefit:
        now = await self._lock(t.conn, benefit)
        if now.status == "closed":
            return now
        await t.conn.execute(
            """
            UPDATE benefits SET status = 'closed', pause_reason = NULL, closed_at = clock_timestamp()
            WHERE id = %s
            """,
            [benefit],
        )
        return await self._changed(t, benefit, BenefitClosed(benefit=benefit))

    async def _changed(self, t: Transaction, benefit: BenefitId, event: Event) -> Benefit:
        await t.conn.execute("UPDATE benefits SET version = version + 1 WHERE id = %s", [benefit])
        await self._set_event(t.conn, benefit, event)
        await self._counters.put_after(t, benefit)
        return await self.get(t.conn, benefit)

    async def _set_event(self, conn: Connection, benefit: BenefitId, event: Event) -> None:
        await conn.execute(
            "UPDATE benefits SET event = %s, changed_at = clock_timestamp() WHERE id = %s",
            [Jsonb(msgspec.to_builtins(event)), benefit],
        )
