"""Claims of a benefit that needs no joining: first come, first served, in order of arrival at Redis.

One script call decides up to 500. The winners' rows are written in one statement before anybody is told;
then a second, idempotent script counts and announces them. What a crash leaves between the two is settled in
favour of PostgreSQL: by the same person's repeat, or by `settle`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from msgspec import Struct
from psycopg import Error as SqlError

from commerce.benefit_counters import benefit_keys, claim_digest
from commerce.benefit_terms import (
    KEPT_MAX,
    TENDED,
    Benefit,
    FixedTerms,
    Transactions,
    benefit_of,
    may_have,
)
from commerce.benefits import Closed, NotLive
from commerce.claim_announcer import ClaimAnnouncer, Told, claim_record, nickname_of, shown_name
from commerce.conditions import Earned, NotEligible, earned_by, judge, not_earned
from commerce.grants import CannotGive, Grants, SendBack
from commerce.receipts import cores_of, write_receipts
from membership.actor import Actor, BenefitId, MemberId, ShowId, is_id, new_id
from membership.notices import Notices
from membership.refusal import (
    BadRequest,
    Forbidden,
    KeyReused,
    Refusal,
    Unauthenticated,
    Unavailable,
)
from membership.script import Arg, Script, ScriptLoader
from membership.transaction import Transaction

BATCH_MAX = 500  # claims in one script call: about 4 ms of the store's one thread
WAITING_MAX = 50_000  # claims gathered for one benefit; above, come back later
SPENT_S = 0.25  # a spent quota is answered from memory so long: then a raised one is noticed …
FOLLOWED_S = 5.0  # … and so long, while the state that the node follows says that nothing is left
SETTLE_AFTER_MS = 2_000  # a decision this old without a row lost its process


class Won(Struct, frozen=True):
    """The claim is committed. With per_person > 1, `nth` counts the person's claims.

    `core` is what its receipt says, to be signed for who won; '' when it could not be read just now.
    """

    rank: int
    of: int
    nth: int = 1
    core: str = ""


class SoldOut(Refusal):
    """None left."""

    code = "sold_out"


class AlreadyClaimed(Refusal):
    """You have this benefit already."""

    code = "already_claimed"


class Paused(Refusal):
    """The benefit is paused."""

    code = "paused"


class NotStarted(Refusal):
    """The countdown is still running."""

    code = "not_started"


_WORDS: dict[str, type[Refusal]] = {
    "sold_out": SoldOut,
    "closed": Closed,
    "paused": Paused,
    "not_live": NotLive,
    "key_reused": KeyReused,
}


class _Answer(Struct, frozen=True):
    """One answer of the deciding script; with a key, its row is to be written. `not_started` has ms for rank."""

    word: str
    rank: int = 0
    nth: int = 0
    key: str | None = None
    why: str = ""  # of paused

    @classmethod
    def read(cls, answer: bytes) -> _Answer:
        if answer.startswith(b"paused "):
            return cls("paused", why=answer.decode().partition(" ")[2])
        word, *rest = answer.decode().split(" ", 3)
        if not rest:
            return cls(word)
        return cls(word, int(rest[0]), int(rest[1]), rest[2] if len(rest) > 2 else None)


class _Decided(Struct, frozen=True):
    """A rank that Redis gave; its row may not be written yet."""

    member: MemberId
    rank: int
    nth: int
    key: str
    name: str
    record: bytes


class _Written(Struct, frozen=True):
    """What the tables say after the attempt to write."""

    ranks: dict[tuple[MemberId, int], int]  # (member, nth) -> rank
    returned: set[tuple[MemberId, int]]  # not taken: the same person has it under another id …
    why: dict[tuple[MemberId, int], Refusal]  # … or what earned it is gone, or what it brings
    cores: dict[tuple[MemberId, int], str]  # of the receipts


class _Spent(Struct):
    """A quota known to be spent: who holds of it, and when that was last asked."""

    stamp: str
    holders: frozenset[str]
    asked: float

    def is_believed(self, left: int | None) -> bool:
        """`left` is what the followed state says; None: nobody follows it here."""
        age_s = time.monotonic() - self.asked
        return age_s < SPENT_S or (left is not None and left <= 0 and age_s < FOLLOWED_S)


class Claims:
    """`send_back` sends part of an order's money back, for free orders (Refunds.give)."""

    def __init__(
        self,
        scripts: ScriptLoader,
        notices: Notices,
        transactions: Transactions,
        grants: Grants,
        send_back: SendBack | None = None,
    ) -> None:
        self._transactions = transactions
        self._grants = grants
        self._send_back = send_back
        self._announcer = ClaimAnnouncer(scripts, notices)
        self._decide: Script = scripts.load("commerce", "claim_benefit")
        self._return: Script = scripts.load("commerce", "return_claims")
        self._sweep: Script = scripts.load("commerce", "sweep_seats")
        self._fixed = FixedTerms(transactions)
        self._spent: dict[BenefitId, _Spent] = {}

    async def claim_many(
        self,
        show: ShowId,
        benefit: BenefitId,
        claims: Sequence[tuple[Actor, str]],
        since: Mapping[MemberId, int] | None = None,
        left: int | None = None,
    ) -> list[Won | Refusal]:
        """Decide claims (actor, key) in their order; the answers in the same order, winners committed.

        `since` (ms): since when who claims is watching, as the node that has the socket recorded it. `left`:
        what the state that the node follows says; only a spent quota's memory is asked less often by it.
        Answers: Won, or Unauthenticated, Forbidden, BadRequest, NotFound, NotEligible (with the condition),
        NotStarted (with the time left), SoldOut, AlreadyClaimed (with rank), Closed, Paused, NotLive,
        KeyReused, Unavailable (nothing is lost: the same key again completes it).
        """
        if len(claims) > BATCH_MAX:
            raise ValueError(f"at most {BATCH_MAX} claims a call")
        try:
            terms = await self._fixed.get(show, benefit)
        except Refusal as refusal:
            return [refusal for _ in claims]
        answers: list[Won | Refusal | None] = []
        asked: list[int] = []
        for place, (actor, key) in enumerate(claims):
            early = self._at_the_door(terms, actor, key, left)
            answers.append(early)
            if early is None:
                asked.append(place)
        if asked and terms.is_conditional:
            refused = await self._judged(terms, [_member(claims[place]) for place in asked], since or {})
            for place in asked:
                answers[place] = refused.get(_member(claims[place]))
            asked = [place for place in asked if answers[place] is None]
        if asked:
            decided = await self._ask(terms, [claims[place] for place in asked])
            for place, answer in zip(asked, decided, strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    async def settle(self, show: ShowId) -> int:
        """Write decisions whose process died before their row, and tell of rows never told. Returns how many.

        Idempotent; each second or so while a benefit of the show is tended. Each benefit in transactions of its
        own: who holds one's orders and claims never waits for another benefit.
        """
        async with self._transactions() as t:
            found = await t.conn.execute(
                f"SELECT * FROM benefits WHERE show_id = %s AND needs <> 'join' AND {TENDED} ORDER BY id",  # noqa: S608 - a constant
                [show],
            )
            tended = [benefit_of(row) for row in await found.fetchall()]
        settled = 0
        for terms in tended:
            settled += await self._write_left(terms)
            async with self._transactions() as t:
                settled += await self._announcer.announce_left(t, terms)
        return settled

    # --- parts ---

    def _at_the_door(self, terms: Benefit, actor: Actor, key: str, left: int | None) -> Refusal | None:
        """What needs no race, and the memory of a spent quota. Who may not have it learns nothing of it."""
        if actor.kind != "viewer":
            return Forbidden("A benefit is claimed by a viewer.")
        if actor.member is None:
            return Unauthenticated()
        if not may_have(terms.audience, actor.facts):
            return NotEligible()
        if terms.needs == "join":
            return NotEligible("This benefit comes with joining.", condition="join")
        if not 1 <= len(key) <= 64:
            return BadRequest("A claim needs a key of 1 to 64 characters.")
        if not is_id(actor.member):
            return Unauthenticated()
        spent = self._spent.get(terms.id)
        if spent is not None and actor.member not in spent.holders and spent.is_believed(left):
            return SoldOut()
        return None

    async def _judged(
        self, terms: Benefit, members: Sequence[MemberId], since: Mapping[MemberId, int]
    ) -> Mapping[MemberId, Refusal]:
        """Who may not have it, before anything is decided; everybody, when that cannot be read."""
        try:
            async with self._transactions() as t:
                return await judge(t.conn, terms, members, since)
        except (SqlError, Unavailable):
            return {member: Unavailable(retry_ms=1000) for member in members}

    async def _ask(self, terms: Benefit, claims: Sequence[tuple[Actor, str]]) -> list[Won | Refusal]:
        spent = self._spent.get(terms.id)
        args: list[Arg] = [terms.id, claim_digest(terms.id), spent.stamp if spent else ""]
        members = [_member(claim) for claim in claims]
        for member, (_, key) in zip(members, claims, strict=True):
            args += [member, key]
        try:
            generation, quota, stamp, holders, words = await self._decide(
                terms.show, benefit_keys(terms.id), args
            )
        except Refusal as refusal:
            return [refusal for _ in claims]
        self._note_spent(terms.id, stamp.decode(), holders)

        found = [_Answer.read(word) for word in words]
        decided = {
            (member, answer.nth): _Decided(
                member,
                answer.rank,
                answer.nth,
                answer.key,
                shown_name(actor.name),
                claim_record(terms.id, member),
            )
            for (actor, _), member, answer in zip(claims, members, found, strict=True)
            if answer.key is not None
        }
        written = _Written({}, set(), {}, {})
        if decided:
            try:
                written = await self._write_and_tell(terms, int(generation), list(decided.values()))
            except (SqlError, Unavailable):
                pass  # the ranks stay decided: a repeat or `settle` completes them
        again = [
            m for m, answer in zip(members, found, strict=True) if answer.word == "won" and not answer.key
        ]
        cores = {**written.cores, **await self._cores(terms.id, again)}

        told: list[Won | Refusal] = []
        for member, answer in zip(members, found, strict=True):
            place = (member, answer.nth)
            rank = answer.rank if answer.key is None else written.ranks.get(place, 0)
            if answer.word == "not_started":
                told.append(NotStarted(retry_ms=answer.rank))
            elif answer.why:
                told.append(Paused(f"This is paused: {answer.why}", reason=answer.why))
            elif answer.word not in ("won", "already"):
                told.append(_WORDS[answer.word]())
            elif place in written.why:
                told.append(written.why[place])
            elif place in written.returned:
                told.append(AlreadyClaimed())
            elif not rank:
                told.append(Unavailable(retry_ms=1000))
            elif answer.word == "won" and rank == answer.rank:
                told.append(Won(rank, quota, answer.nth, cores.get(place, "")))
            else:
                told.append(AlreadyClaimed(rank=rank))
        return told

    async def _cores(
        self, benefit: BenefitId, members: Sequence[MemberId]
    ) -> dict[tuple[MemberId, int], str]:
        """For who repeats a claim that was answered before: the receipt's core once more."""
        if not members:
            return {}
        try:
            async with self._transactions() as t:
                return await cores_of(t.conn, benefit, members)
        except (SqlError, Unavailable):
            return {}

    def _note_spent(self, benefit: BenefitId, stamp: str, holders: Sequence[bytes]) -> None:
        """Holders only change with the stamp: a raised quota, a freed seat, another generation."""
        if not stamp:
            self._spent.pop(benefit, None)
            return
        known = self._spent.get(benefit)
        if known is None or known.stamp != stamp:
            if len(self._spent) >= KEPT_MAX:
                self._spent.pop(next(iter(self._spent)))
            known = _Spent(stamp, frozenset(holder.decode() for holder in holders), 0.0)
            self._spent[benefit] = known
        known.asked = time.monotonic()

    async def _write_and_tell(self, terms: Benefit, generation: int, decided: Sequence[_Decided]) -> _Written:
        """When what it brings cannot be given any more, only who has a row already has the benefit."""
        try:
            async with self._transactions() as t:
                return await self._write(t, terms, generation, decided)
        except CannotGive as refusal:
            async with self._transactions() as t:
                return await self._write(t, terms, generation, decided, nothing_new=refusal)

    async def _write(
        self,
        t: Transaction,
        terms: Benefit,
        generation: int,
        decided: Sequence[_Decided],
        *,
        nothing_new: CannotGive | None = None,
    ) -> _Written:
        """All rows in one statement, linked to their receipts; then what the tables hold, whoever wrote it.

        The benefit's row is locked before: a beat of another process waits, so that links follow one another.
        With `nothing_new` no row is written, and that is the answer to who has none. Raises CannotGive.
        """
        earned = {} if nothing_new else await self._earned(t, terms, decided)
        wanted = [one for one in decided if (one.member, one.nth) in earned]
        found = await t.conn.execute(
            """
            WITH terms AS (
                SELECT id, quota FROM benefits
                WHERE id = %(benefit)s AND generation = %(generation)s FOR NO KEY UPDATE
            ), wanted AS (
                SELECT w.* FROM unnest(%(ids)s::uuid[], %(members)s::uuid[], %(nths)s::integer[],
                    %(ranks)s::integer[], %(keys)s::text[], %(orders)s::uuid[], %(joined_by)s::uuid[])
                    AS w (id, member_id, nth, rank, key, order_id, joined_by)
                JOIN members m ON m.id = w.member_id
            )
            INSERT INTO benefit_claims (id, benefit_id, member_id, nth, rank, key, order_id, joined_by)
            SELECT w.id, t.id, w.member_id, w.nth, w.rank, w.key, w.order_id, w.joined_by
            FROM wanted w CROSS JOIN terms t
            WHERE w.rank <= t.quota AND NOT EXISTS (
                SELECT 1 FROM identifiers mine
                JOIN identifiers theirs ON theirs.kind = mine.kind AND theirs.value = mine.value
                    AND theirs.member_id <> mine.member_id
                JOIN benefit_claims c ON c.member_id = theirs.member_id AND c.benefit_id = t.id
                WHERE mine.member_id = w.member_id AND mine.kind = 'phone' AND mine.ended_at IS NULL
                  AND theirs.started_at <= c.claimed_at
                  AND (theirs.ended_at IS NULL OR theirs.ended_at > c.claimed_at))
            ORDER BY w.rank
            ON CONFLICT DO NOTHING
            RETURNING id
            """,
            {
                "benefit": terms.id,
                "generation": generation,
                "ids": [new_id() for _ in wanted],
                "members": [one.member for one in wanted],
                "nths": [one.nth for one in wanted],
                "ranks": [one.rank for one in wanted],
                "keys": [one.key for one in wanted],
                "orders": [next(iter(earned[one.member, one.nth].orders), None) for one in wanted],
                "joined_by": [earned[one.member, one.nth].joined_by for one in wanted],
            },
        )
        new = [row["id"] for row in await found.fetchall()]
        await write_receipts(t.conn, terms.id, new)
        await self._grants.give(t, terms, new, self._send_back)
        found = await t.conn.execute(
            """
            SELECT c.member_id::text AS member, c.nth, c.rank, r.core
            FROM benefit_claims c LEFT JOIN benefit_receipts r ON r.claim_id = c.id
            WHERE c.benefit_id = %(benefit)s
              AND (c.member_id = ANY(%(members)s::uuid[]) OR c.rank = ANY(%(ranks)s))
            """,
            {
                "benefit": terms.id,
                "members": [one.member for one in decided],
                "ranks": [one.rank for one in decided],
            },
        )
        rows = await found.fetchall()
        found = await t.conn.execute("SELECT generation, quota FROM benefits WHERE id = %s", [terms.id])
        now = await found.fetchone()
        assert now is not None
        stale = now["generation"] != generation
        ranks = {(MemberId(row["member"]), int(row["nth"])): int(row["rank"]) for row in rows}
        taken = {int(row["rank"]) for row in rows}

        tellable = [one for one in decided if ranks.get((one.member, one.nth)) == one.rank]
        refused = [one for one in decided if ranks.get((one.member, one.nth)) != one.rank]
        # The tables hold another rank for the person, or the rank for another person: they are right.
        distrust = any(ranks.get((one.member, one.nth)) or one.rank in taken for one in refused)
        returned = set() if stale else {(one.member, one.nth) for one in refused if not distrust}
        if tellable:
            told = [Told(one.member, one.rank, one.nth, one.name, one.record) for one in tellable]

            async def tell() -> None:
                await self._announcer.tell(terms, now["quota"], told)

            t.after_commit(tell)
        if refused and not stale:
            t.after_commit(lambda: self._give_back(terms, generation, refused, distrust=distrust))
        cores = {(MemberId(row["member"]), int(row["nth"])): row["core"] for row in rows if row["core"]}
        why: dict[tuple[MemberId, int], Refusal] = {
            place: nothing_new or not_earned(terms) for place in returned if place not in earned
        }
        return _Written(ranks, returned, why, cores)

    async def _give_back(
        self, terms: Benefit, generation: int, refused: Sequence[_Decided], *, distrust: bool = False
    ) -> None:
        """Ranks that nobody was told come back; with `distrust` the counters are built anew."""
        self._spent.pop(terms.id, None)
        args: list[Arg] = [terms.id, generation, "1" if distrust else ""]
        for one in refused:
            args += [one.member, one.rank, one.key]
        await self._return(terms.show, benefit_keys(terms.id), args)

    async def _earned(
        self, t: Transaction, terms: Benefit, decided: Sequence[_Decided]
    ) -> dict[tuple[MemberId, int], Earned]:
        """What earns each of these claims, each order one; where nothing does any more, it is missing."""
        if not terms.is_conditional:
            return {(one.member, one.nth): Earned() for one in decided}
        members = [one.member for one in decided]
        left = await earned_by(t.conn, terms, members)
        earned: dict[tuple[MemberId, int], Earned] = {}
        for one in sorted(decided, key=lambda one: one.nth):
            has = left.get(one.member)
            if has is None:
                continue
            earned[one.member, one.nth] = Earned(orders=has.orders[:1], joined_by=has.joined_by)
            if terms.needs != "order":
                continue
            if len(has.orders) > 1:
                left[one.member] = Earned(orders=has.orders[1:], joined_by=has.joined_by)
            else:
                del left[one.member]
        return earned

    async def _write_left(self, terms: Benefit) -> int:
        generation, _, _, _, _, settling = await self._sweep(
            terms.show, benefit_keys(terms.id), [terms.id, 1, SETTLE_AFTER_MS]
        )
        if not generation or not settling:
            return 0  # without a generation Benefits.agree builds the counters anew
        decided = []
        async with self._transactions() as t:
            for rank, value in zip(settling[::2], settling[1::2], strict=True):
                _, member_text, nth, key = value.decode().split("|", 3)
                member = MemberId(member_text)
                name = shown_name(await nickname_of(t.conn, member))
                record = claim_record(terms.id, member)
                decided.append(_Decided(member, int(rank), int(nth), key, name, record))
        await self._write_and_tell(terms, int(generation), decided[:BATCH_MAX])
        return len(decided)


def _member(claim: tuple[Actor, str]) -> MemberId:
    return MemberId(claim[0].member or "")
