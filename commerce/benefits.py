"""Benefits: what the first N of a show get, and on which terms. Opening, raising, pausing, closing.

PostgreSQL holds the terms and the claims; Redis decides who is among the first. A change of terms is
committed first and put in force by an idempotent script after; `agree` repeats that for whatever a crash left
between. The seats of a benefit for joining stand in seats.py, the claims without payment in claims.py.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import UNSET, Meta, Struct
from psycopg import Error as SqlError
from psycopg import errors
from psycopg.types.json import Jsonb

from commerce.messages import (
    BenefitClaimed,
    BenefitClosed,
    BenefitOpened,
    BenefitPaused,
    BenefitRaised,
    BenefitResumed,
    BenefitSoldOut,
    Event,
    encoded,
)
from commerce.receipts import write_receipts
from membership.actor import Actor, BenefitId, Facts, MemberId, PaymentId, ShowId, new_id
from membership.audience import EVERYONE, Audience, ShowAudiences
from membership.behaviour import Record
from membership.members import mask_name
from membership.notices import Notices
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.script import Arg, Script, ScriptLoader, json_arg
from membership.transaction import Connection, Transaction

What = Literal["gift", "coupon", "points", "early_access"]
Needs = Literal["nothing", "join"]
Status = Literal["open", "paused", "closed"]
ClaimState = Literal["confirmed", "recalled", "deducted"]

Transactions = Callable[[], AbstractAsyncContextManager[Transaction]]  # database.transaction
FactsOf = Callable[[Connection, MemberId], Awaitable[Facts]]  # members.facts

REGISTERED = Audience(kind="registered")
QUOTA_MAX = 100_000
SEAT_S = 300  # starting the payment takes a seat for five minutes
TOLD_GRACE_S = 3  # a change this young is being put in force by the one who made it
TELL_MAX = 500  # claims told in one script call
KEPT_MAX = 256  # benefits whose fixed terms one process keeps
TEND_AFTER_CLOSE_S = 3600  # seats of a closed benefit run out within its seat_s


class BenefitInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The terms of a benefit, as staff or a prepared cue give them."""

    title: Annotated[str, Meta(min_length=1, max_length=60)]
    text: Annotated[str, Meta(max_length=400)] = ""
    what: What = "gift"
    value_fen: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    quota: Annotated[int, Meta(ge=1, le=QUOTA_MAX)]
    per_person: Annotated[int, Meta(ge=1, le=100)] = 1
    needs: Needs = "nothing"
    audience: Audience = EVERYONE
    seconds: Annotated[int, Meta(ge=5, le=86_400)] | None = None
    seat_s: Annotated[int, Meta(ge=1, le=3600)] = SEAT_S


class Benefit(Struct, frozen=True, kw_only=True):
    """A benefit and its terms. Times are ms."""

    id: BenefitId
    show: ShowId
    title: str
    text: str
    what: What
    value_fen: int
    quota: int
    per_person: int
    needs: Needs
    audience: Audience
    seat_s: int
    status: Status
    pause_reason: str | None
    opened_at: int
    closes_at: int | None
    closed_at: int | None
    generation: int
    version: int


class BenefitCounts(Struct, frozen=True):
    """One moment of a benefit: 已得 confirmed · 付款中 held · 剩 left."""

    quota: int
    confirmed: int
    held: int
    queued: int

    @property
    def left(self) -> int:
        return self.quota - self.confirmed - self.held


class Claim(Struct, frozen=True, kw_only=True):
    """One person's taking of one benefit. The rank never changes and is never given again."""

    id: str
    benefit: BenefitId
    show: ShowId
    title: str
    what: What
    value_fen: int
    member: MemberId
    nth: int
    rank: int
    of: int
    state: ClaimState
    claimed_at: int
    payment: PaymentId | None = None


class Told(Struct, frozen=True):
    """A committed claim on its way to the audience: whose, which, and the name that others see."""

    member: MemberId
    rank: int
    nth: int
    name: str
    record: bytes = b""


class NotLive(Refusal):
    """The show is not live."""

    code = "not_live"


class BenefitOpen(Refusal):
    """Another benefit for joining is open in this show."""

    code = "benefit_open"


class Closed(Refusal):
    """The benefit is closed."""

    code = "closed"


def benefit_keys(benefit: BenefitId) -> list[str]:
    """The keys of a benefit within its show, in the order of scripts/seats.lua."""
    parts = ("claims", "held", "settling", "queue", "had", "outbox", "told", "spare")
    return [f"benefit:{benefit}", *(f"benefit:{benefit}:{part}" for part in parts)]


def claim_digest(benefit: BenefitId) -> str:
    """What a claim's key is bound to: a claim has no body but its benefit."""
    return f"benefit.claim:{benefit}"


def shown_name(nickname: str | None) -> str:
    """A winner as strangers see them: 王**."""
    return mask_name(nickname or "会员")


async def lock_show(conn: Connection, show: ShowId) -> None:
    """One at a time in this show until the transaction ends: payments of plans, the opening of a benefit.

    Ranks are given under it, so their order is the order of commits.
    """
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 8))", [f"show:{show}"])


def may_have(audience: Audience, facts: Facts) -> bool:
    """Whether a benefit for `audience` is for this person. A trial gives no part in the first N."""
    if facts.on_trial:
        facts = msgspec.structs.replace(facts, plans=frozenset())
    return audience.has(facts)


def require(actor: Actor) -> None:
    if not actor.may("offer.run"):
        raise Forbidden


class Announcer:
    """Tells of committed claims: the audience by the log, the winners by notice. Each once."""

    def __init__(self, scripts: ScriptLoader, notices: Notices) -> None:
        self._announce = scripts.load("commerce", "announce_claims")
        self._notices = notices

    async def tell(self, benefit: Benefit, of: int, claims: Sequence[Told]) -> None:
        """`of` is the quota now. Raises Unavailable: then `announce_left` does it."""
        args: list[Arg] = [benefit.id, encoded(BenefitSoldOut(benefit=benefit.id, of=of))]
        for claim in claims:
            event = BenefitClaimed(benefit=benefit.id, rank=claim.rank, of=of, name=claim.name)
            args += [claim.member, claim.rank, claim.nth, encoded(event), claim.record]
        answer = await self._announce(benefit.show, benefit_keys(benefit.id), args)
        told = {int(rank) for rank in answer}
        await self._notices.send_many(
            [
                (
                    claim.member,
                    {"type": "benefit.won", "benefit": benefit.id, "rank": claim.rank, "of": of},
                )
                for claim in claims
                if claim.rank in told
            ]
        )

    async def announce_left(self, t: Transaction, benefit: Benefit) -> int:
        """Tell of committed claims not yet marked as told, and mark them. Returns how many."""
        found = await t.conn.execute(
            """
            SELECT c.id, c.member_id::text AS member, c.rank, c.nth, m.nickname
            FROM benefit_claims c JOIN members m ON m.id = c.member_id
            WHERE c.benefit_id = %s AND c.announced_at IS NULL
              AND c.claimed_at < clock_timestamp() - make_interval(secs => %s)
            ORDER BY c.rank LIMIT %s
            FOR UPDATE OF c SKIP LOCKED
            """,
            [benefit.id, TOLD_GRACE_S, TELL_MAX],
        )
        rows = await found.fetchall()
        if not rows:
            return 0
        claims = [Told(row["member"], row["rank"], row["nth"], shown_name(row["nickname"])) for row in rows]
        await self.tell(benefit, benefit.quota, claims)
        await t.conn.execute(
            "UPDATE benefit_claims SET announced_at = clock_timestamp() WHERE id = ANY(%s)",
            [[row["id"] for row in rows]],
        )
        return len(rows)


class FixedTerms:
    """What never changes once a benefit is open (show, audience, needs, per person), read once a process."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._kept: dict[BenefitId, Benefit] = {}

    async def get(self, show: ShowId, benefit: BenefitId) -> Benefit:
        """Raises NotFound, also for another show's benefit; Unavailable when PostgreSQL does not answer."""
        terms = self._kept.get(benefit)
        if terms is None:
            try:
                async with self._transactions() as t:
                    terms = await read_terms(t.conn, benefit)
            except SqlError as error:
                raise Unavailable(retry_ms=1000) from error
            if len(self._kept) >= KEPT_MAX:
                self._kept.pop(next(iter(self._kept)))
            self._kept[benefit] = terms
        if terms.show != show:
            raise NotFound
        return terms


class Benefits:
    """Open, raise, pause, close; and keep Redis in agreement with the books."""

    def __init__(
        self, scripts: ScriptLoader, audiences: ShowAudiences, notices: Notices, facts_of: FactsOf
    ) -> None:
        self._audiences = audiences
        self._notices = notices
        self._facts_of = facts_of
        self._put: Script = scripts.load("commerce", "put_benefit")
        self._read: Script = scripts.load("commerce", "read_benefit")

    # --- staff acts ---

    async def open(self, t: Transaction, actor: Actor, show: ShowId, terms: BenefitInput) -> Benefit:
        """Open a benefit in a live show. Of one for joining, tonight's earlier joins are confirmed first.

        Raises Forbidden, BadRequest, NotFound, NotLive, BenefitOpen, TooManyAudiences.
        """
        require(actor)
        if terms.needs == "join" and terms.per_person != 1:
            raise BadRequest("A benefit for joining is given once to a person.")
        if terms.needs == "join" and _depends_on_plans(terms.audience):
            raise BadRequest("A benefit for joining cannot depend on having a plan: joining changes that.")
        if not terms.title.strip():
            raise BadRequest("A benefit needs a title.")
        found = await t.conn.execute("SELECT state FROM shows WHERE id = %s FOR SHARE", [show])
        row = await found.fetchone()
        if row is None:
            raise NotFound
        if row["state"] != "live":
            raise NotLive
        await self._audiences.bit(show, terms.audience)
        await lock_show(t.conn, show)
        benefit = BenefitId(new_id())
        try:
            await t.conn.execute(
                """
                INSERT INTO benefits (id, show_id, title, body, what, value_fen, quota, per_person, needs,
                    audience, seat_s, opened_by, closes_at, event)
                VALUES (%(id)s, %(show)s, %(title)s, %(text)s, %(what)s, %(value_fen)s, %(quota)s,
                    %(per_person)s, %(needs)s, %(audience)s, %(seat_s)s, %(by)s,
                    clock_timestamp() + make_interval(secs => %(seconds)s), '{}')
                """,
                {
                    "id": benefit,
                    "show": show,
                    "title": terms.title.strip(),
                    "text": terms.text,
                    "what": terms.what,
                    "value_fen": terms.value_fen,
                    "quota": terms.quota,
                    "per_person": terms.per_person,
                    "needs": terms.needs,
                    "audience": Jsonb(msgspec.to_builtins(terms.audience)),
                    "seat_s": terms.seat_s,
                    "by": f"{actor.kind}:{actor.id}",
                    "seconds": terms.seconds,
                },
            )
        except errors.UniqueViolation as error:
            raise BenefitOpen from error
        earlier = await self._confirm_earlier(t.conn, show, benefit, terms) if terms.needs == "join" else []
        opened = await self.get(t.conn, benefit)
        event = BenefitOpened(
            benefit=benefit,
            title=opened.title,
            value_fen=opened.value_fen,
            quota=opened.quota,
            needs=opened.needs,
            confirmed=len(earlier),
            closes_at=UNSET if opened.closes_at is None else opened.closes_at,
        )
        await self._set_event(t.conn, benefit, event)
        await self._put_after(t, benefit)
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
        """No claim and no new seat after this; held seats run on to their time. Again changes nothing."""
        require(actor)
        return await self._close(t, benefit)

    async def close_due(self, t: Transaction) -> int:
        """Close what has passed its time, in every show. The scripts keep to the time by themselves."""
        found = await t.conn.execute(
            "SELECT id FROM benefits WHERE status <> 'closed' AND closes_at <= clock_timestamp() ORDER BY id"
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
        return [_benefit(row) for row in await found.fetchall()]

    async def claims(
        self, conn: Connection, benefit: BenefitId, *, after_rank: int = 0, limit: int = 100
    ) -> Sequence[Claim]:
        """The winners by rank. For staff."""
        found = await conn.execute(
            f"{_CLAIMS} WHERE c.benefit_id = %s AND c.rank > %s ORDER BY c.rank LIMIT %s",
            [benefit, after_rank, limit],
        )
        return [claim_of(row) for row in await found.fetchall()]

    async def claims_of(self, conn: Connection, member: MemberId, *, limit: int = 200) -> Sequence[Claim]:
        """What a member has won, newest first."""
        found = await conn.execute(
            f"{_CLAIMS} WHERE c.member_id = %s ORDER BY c.id DESC LIMIT %s", [member, limit]
        )
        return [claim_of(row) for row in await found.fetchall()]

    async def counts(self, show: ShowId, benefit: BenefitId) -> BenefitCounts:
        """One moment, read whole from Redis. Raises Unavailable when the counters are lost."""
        generation, _, quota, confirmed, held, queued, _ = await self._read(
            show, benefit_keys(benefit), [benefit]
        )
        if not generation:
            raise Unavailable(retry_ms=1000)
        return BenefitCounts(quota, confirmed, held, queued)

    async def to_tend(self, conn: Connection) -> Sequence[ShowId]:
        """The shows whose benefits need `agree`, `Seats.sweep` and `Claims.settle` each second."""
        found = await conn.execute(
            """
            SELECT DISTINCT show_id FROM benefits b
            WHERE status <> 'closed' OR closed_at > now() - make_interval(secs => %s)
               OR EXISTS (SELECT 1 FROM benefit_claims c WHERE c.benefit_id = b.id AND c.announced_at IS NULL)
            """,
            [TEND_AFTER_CLOSE_S],
        )
        return [ShowId(row["show_id"]) for row in await found.fetchall()]

    # --- agreement between Redis and the books ---

    async def agree(self, t: Transaction, show: ShowId, *, at_once: bool = False) -> int:
        """Put in force what Redis has not, or has lost; returns how many benefits were put.

        Idempotent; each second, and `at_once` after the keys of a show were opened anew. Lost counters are
        rebuilt from PostgreSQL under the show's lock and a new generation: what was decided under the old
        one is not written.
        """
        found = await t.conn.execute(
            """
            SELECT id, version, told_version, generation,
                changed_at > clock_timestamp() - make_interval(secs => %s) AS young
            FROM benefits
            WHERE show_id = %s AND (status <> 'closed' OR closed_at > now() - make_interval(secs => %s))
            ORDER BY id
            """,
            [TOLD_GRACE_S, show, TEND_AFTER_CLOSE_S],
        )
        put = 0
        told: list[tuple[int, BenefitId]] = []
        for row in await found.fetchall():
            benefit = BenefitId(str(row["id"]))
            generation, version, *_ = await self._read(show, benefit_keys(benefit), [benefit])
            lost = not generation or int(generation) != row["generation"]
            if not lost and version >= row["version"]:
                if row["told_version"] < row["version"]:
                    told.append((row["version"], benefit))
            elif at_once or not row["young"]:
                if lost:
                    await lock_show(t.conn, show)
                    await t.conn.execute(
                        """
                        UPDATE benefits SET generation = generation + 1, changed_at = clock_timestamp()
                        WHERE id = %s AND generation = %s
                        """,
                        [benefit, row["generation"]],
                    )
                await self._put_after(t, benefit, told=row["told_version"] >= row["version"])
                put += 1
        for version, benefit in told:  # last: the show's lock comes before the rows, as in a payment
            await t.conn.execute(
                "UPDATE benefits SET told_version = greatest(told_version, %s) WHERE id = %s",
                [version, benefit],
            )
        return put

    # --- parts ---

    async def _confirm_earlier(
        self, conn: Connection, show: ShowId, benefit: BenefitId, terms: BenefitInput
    ) -> Sequence[MemberId]:
        """Tonight's paid joins in payment order, each person once, up to the quota; returns them by rank."""
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
            WHERE j.show_id = %s AND j.refunded_at IS NULL
            ORDER BY j.ordinal
            """,
            [show],
        )
        seen: set[tuple[str, str]] = set()
        members: list[MemberId] = []
        payments: list[str] = []
        for row in await found.fetchall():
            member = MemberId(str(row["member_id"]))
            marks = {("member", str(member))}
            marks |= {(kind, row[kind]) for kind in ("payer", "phone") if row[kind]}
            if marks & seen or not await self._may_have(conn, terms.audience, member):
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
        return members

    async def _may_have(self, conn: Connection, audience: Audience, member: MemberId) -> bool:
        if audience in (EVERYONE, REGISTERED):
            return True
        return may_have(audience, await self._facts_of(conn, member))

    async def _lock(self, conn: Connection, benefit: BenefitId) -> Benefit:
        found = await conn.execute(
            "SELECT * FROM benefits WHERE id = %s FOR NO KEY UPDATE", [_known_shape(benefit)]
        )
        row = await found.fetchone()
        if row is None:
            raise NotFound
        return _benefit(row)

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
        await self._put_after(t, benefit)
        return await self.get(t.conn, benefit)

    async def _set_event(self, conn: Connection, benefit: BenefitId, event: Event) -> None:
        await conn.execute(
            "UPDATE benefits SET event = %s, changed_at = clock_timestamp() WHERE id = %s",
            [Jsonb(msgspec.to_builtins(event)), benefit],
        )

    async def _put_after(self, t: Transaction, benefit: BenefitId, *, told: bool = False) -> None:
        """Read what is to be in force now; hand it to Redis once it is committed."""
        show, record, parts, event = await self._record(t.conn, benefit)

        async def put() -> None:
            bit = await self._audiences.bit(show, parts[0])
            record["bit"] = bit
            state = [{"a": bit, "d": parts[1], "counts": ["*"]}]
            await self._put(
                show,
                benefit_keys(benefit),
                [
                    benefit,
                    json_arg(record),
                    json_arg(state),
                    b"" if told else json_arg(event),
                    claim_digest(benefit),
                ],
            )

        t.after_commit(put)

    async def _record(
        self, conn: Connection, benefit: BenefitId
    ) -> tuple[ShowId, dict[str, object], tuple[Audience, dict[str, object]], dict[str, object]]:
        """Terms and counters for put_benefit.lua, the state for viewers, and the event of the last change."""
        found = await conn.execute("SELECT * FROM benefits WHERE id = %s", [benefit])
        row = await found.fetchone()
        assert row is not None
        terms = _benefit(row)
        found = await conn.execute(
            """
            SELECT member_id::text AS member, rank, nth, key,
                string_agg(rank::text, ',') OVER (PARTITION BY member_id) AS ranks
            FROM benefit_claims WHERE benefit_id = %s ORDER BY rank
            """,
            [benefit],
        )
        claims = await found.fetchall()
        found = await conn.execute(
            """
            SELECT member_id::text AS member, state, until > clock_timestamp() AS running,
                (extract(epoch FROM until) * 1000)::bigint AS until, version
            FROM benefit_seats WHERE benefit_id = %s ORDER BY version DESC
            """,
            [benefit],
        )
        seats = await found.fetchall()
        queued = await conn.execute(
            """
            SELECT member_id::text AS member FROM benefit_seats
            WHERE benefit_id = %s AND state = 'queued' ORDER BY place
            """,
            [benefit],
        )
        won = {claim["member"] for claim in claims}
        record: dict[str, object] = {
            "generation": terms.generation,
            "version": terms.version,
            "status": terms.status,
            "reason": terms.pause_reason or "",
            "quota": terms.quota,
            "needs": terms.needs,
            "per_person": terms.per_person,
            "closes_at": "" if terms.closes_at is None else str(terms.closes_at),
            "seat_ms": terms.seat_s * 1000,
            "confirmed": len(claims),
            "ranked": max((claim["rank"] for claim in claims), default=0),
            "sold_told": int(len(claims) >= terms.quota),
            "changes": max((seat["version"] for seat in seats), default=0),
            "claims": [
                [claim["member"], claim["ranks"], claim["key"], f"{claim['rank']} {claim['nth']}"]
                for claim in claims
            ],
            "told": [claim["rank"] for claim in claims],
            "held": [
                [seat["member"], seat["until"]]
                for seat in seats
                if seat["state"] == "held" and seat["running"] and seat["member"] not in won
            ],
            "had": [seat["member"] for seat in seats if seat["state"] not in ("queued", "left")],
            "queue": [seat["member"] for seat in await queued.fetchall()],
        }
        shown: dict[str, object] = {
            "id": terms.id,
            "title": terms.title,
            "text": terms.text,
            "what": terms.what,
            "value_fen": terms.value_fen,
            "quota": terms.quota,
            "per_person": terms.per_person,
            "needs": terms.needs,
            "opens_at": terms.opened_at,
            "status": terms.status,
        }
        if terms.closes_at is not None:
            shown["closes_at"] = terms.closes_at
        if terms.pause_reason is not None:
            shown["reason"] = terms.pause_reason
        event: dict[str, object] = {"type": row["event"]["type"], **row["event"]}  # the log wants it first
        return terms.show, record, (terms.audience, shown), event


_CLAIMS = """
SELECT c.*, b.show_id, b.title, b.what, b.value_fen, b.quota
FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
"""


async def read_terms(conn: Connection, benefit: BenefitId) -> Benefit:
    """The terms of one benefit. Raises NotFound, also for what is no id at all."""
    found = await conn.execute("SELECT * FROM benefits WHERE id = %s", [_known_shape(benefit)])
    row = await found.fetchone()
    if row is None:
        raise NotFound
    return _benefit(row)


def claim_record(benefit: BenefitId, member: MemberId) -> bytes:
    """The behaviour record of a claim, as the announcing script's argument."""
    return msgspec.json.encode(
        Record(
            id=new_id(),
            kind="claim",
            viewer=member,
            member=member,
            subject=f"benefit:{benefit}",
            value=1,
            at=time.time_ns() // 1_000_000,
        )
    )


async def nickname_of(conn: Connection, member: MemberId) -> str | None:
    found = await conn.execute("SELECT nickname FROM members WHERE id = %s", [member])
    row = await found.fetchone()
    return row["nickname"] if row else None


def _known_shape(benefit: BenefitId) -> uuid.UUID:
    try:
        return uuid.UUID(benefit)
    except ValueError as error:
        raise NotFound from error


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _benefit(row: dict[str, Any]) -> Benefit:
    return Benefit(
        id=BenefitId(str(row["id"])),
        show=ShowId(row["show_id"]),
        title=row["title"],
        text=row["body"],
        what=row["what"],
        value_fen=row["value_fen"],
        quota=row["quota"],
        per_person=row["per_person"],
        needs=row["needs"],
        audience=msgspec.convert(row["audience"], Audience),
        seat_s=row["seat_s"],
        status=row["status"],
        pause_reason=row["pause_reason"],
        opened_at=ms(row["opened_at"]),
        closes_at=ms(row["closes_at"]) if row["closes_at"] else None,
        closed_at=ms(row["closed_at"]) if row["closed_at"] else None,
        generation=row["generation"],
        version=row["version"],
    )


def claim_of(row: dict[str, Any]) -> Claim:
    """A Claim from a row of benefit_claims joined with its benefit's terms."""
    return Claim(
        id=str(row["id"]),
        benefit=BenefitId(str(row["benefit_id"])),
        show=ShowId(row["show_id"]),
        title=row["title"],
        what=row["what"],
        value_fen=row["value_fen"],
        member=MemberId(str(row["member_id"])),
        nth=row["nth"],
        rank=row["rank"],
        of=row["quota"],
        state=row["state"],
        claimed_at=ms(row["claimed_at"]),
        payment=PaymentId(str(row["payment_id"])) if row["payment_id"] else None,
    )


def _depends_on_plans(audience: Audience) -> bool:
    if audience.kind in ("plan_members", "plans"):
        return True
    return audience.exclude is not None and _depends_on_plans(audience.exclude)
