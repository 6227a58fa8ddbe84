"""The counters of a benefit in Redis: put in force after a commit, read whole, rebuilt from the books.

A change of terms is committed first and put in force by an idempotent script after; `agree` repeats that for
whatever a crash left between.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from psycopg.rows import DictRow

from commerce.benefit_terms import GONE_AFTER_S, TEND_AFTER_CLOSE_S, TENDED, Benefit, benefit_of
from membership.actor import BenefitId, ShowId
from membership.audience import Audience, ShowAudiences
from membership.refusal import Away, Unavailable
from membership.script import Script, ScriptLoader, json_arg
from membership.transaction import Connection, Transaction, lock

TOLD_GRACE_S = 3  # a change this young is being put in force by the one who made it


class BenefitCounts(Struct, frozen=True):
    """One moment of a benefit: 已得 confirmed · 付款中 held · 剩 left."""

    quota: int
    confirmed: int
    held: int
    queued: int

    @property
    def left(self) -> int:
        return self.quota - self.confirmed - self.held


class _Reading(Struct, frozen=True):
    """One answer of read_benefit.lua. `generation` 0: the counters are missing."""

    generation: int
    version: int
    counts: BenefitCounts
    unwritten: int  # changes of seats


def benefit_keys(benefit: BenefitId) -> list[str]:
    """The keys of a benefit within its show, in the order of scripts/seats.lua."""
    parts = ("claims", "held", "settling", "queue", "had", "outbox", "told", "spare")
    return [f"benefit:{benefit}", *(f"benefit:{benefit}:{part}" for part in parts)]


def claim_digest(benefit: BenefitId) -> str:
    """What a claim's key is bound to: a claim has no body but its benefit."""
    return f"benefit.claim:{benefit}"


async def lock_show(conn: Connection, show: ShowId) -> None:
    """One at a time in this show until the transaction ends: payments of plans, the opening of a benefit.

    Ranks are given under it, so their order is the order of commits.
    """
    await lock(conn, f"show:{show}")


class BenefitCounters:
    def __init__(self, scripts: ScriptLoader, audiences: ShowAudiences) -> None:
        self._audiences = audiences
        self._put: Script = scripts.load("commerce", "put_benefit")
        self._read: Script = scripts.load("commerce", "read_benefit")

    async def counts(self, show: ShowId, benefit: BenefitId) -> BenefitCounts:
        """One moment, read whole from Redis. Raises Unavailable when the counters are lost."""
        now = await self._read_counters(show, benefit)
        if not now.generation:
            raise Unavailable(retry_ms=1000)
        return now.counts

    async def agree(self, t: Transaction, show: ShowId, *, at_once: bool = False) -> int:
        """Put in force what Redis has not, or has lost; returns how many benefits were put.

        Idempotent; each second, and `at_once` after the keys of a show were opened anew. Lost counters are
        rebuilt from PostgreSQL under the show's lock and a new generation: what was decided under the old
        one is not written, and claims that neither row nor Redis knows as told are counted and left to be
        announced. A closed one of which nothing is left to do is noted as settled; so is one of whose show Redis
        holds nothing a day after.
        """
        found = await t.conn.execute(
            f"""
            SELECT id, version, told_version, generation, status = 'closed' AS closed,
                settled_at IS NOT NULL AS settled,
                closed_at <= clock_timestamp() - make_interval(secs => %s) AS long_over,
                changed_at > clock_timestamp() - make_interval(secs => %s) AS young,
                EXISTS (SELECT 1 FROM benefit_claims c
                        WHERE c.benefit_id = benefits.id AND c.announced_at IS NULL) AS untold
            FROM benefits
            WHERE show_id = %s AND ({TENDED} OR closed_at > now() - make_interval(secs => %s))
            ORDER BY id
            """,  # noqa: S608 - a constant
            [GONE_AFTER_S, TOLD_GRACE_S, show, TEND_AFTER_CLOSE_S],
        )
        due: list[tuple[BenefitId, DictRow, Literal["told", "settled", "behind", "lost"]]] = []
        for row in await found.fetchall():
            benefit = BenefitId(str(row["id"]))
            try:
                now = await self._read_counters(show, benefit)
            except Away:
                raise
            except Unavailable:
                if not row["long_over"]:
                    raise
                if not row["settled"]:
                    due.append((benefit, row, "settled"))
                continue
            lost = now.generation != row["generation"]
            if not lost and now.version >= row["version"]:
                is_settled = not (now.counts.held or now.unwritten or row["untold"])
                if row["told_version"] < row["version"]:
                    due.append((benefit, row, "told"))
                elif row["closed"] and row["settled"] != is_settled:
                    due.append((benefit, row, "settled"))
            elif at_once or not row["young"]:
                due.append((benefit, row, "lost" if lost else "behind"))
        if any(state == "lost" for _, _, state in due):
            await lock_show(t.conn, show)  # before the first row, as in a payment
        for benefit, row, state in due:
            if state == "told":
                await t.conn.execute(
                    "UPDATE benefits SET told_version = greatest(told_version, %s) WHERE id = %s",
                    [row["version"], benefit],
                )
                continue
            if state == "settled":
                await t.conn.execute(
                    """
                    UPDATE benefits SET settled_at = CASE WHEN %s THEN clock_timestamp() END
                    WHERE id = %s AND version = %s AND generation = %s
                    """,
                    [not row["settled"], benefit, row["version"], row["generation"]],
                )
                continue
            if state == "lost":
                await t.conn.execute(
                    """
                    UPDATE benefits SET generation = generation + 1, changed_at = clock_timestamp()
                    WHERE id = %s AND generation = %s
                    """,
                    [benefit, row["generation"]],
                )
            await self.put_after(t, benefit, told=row["told_version"] >= row["version"])
        return sum(state in ("behind", "lost") for _, _, state in due)

    async def _read_counters(self, show: ShowId, benefit: BenefitId) -> _Reading:
        generation, version, quota, confirmed, held, queued, _status, unwritten = await self._read(
            show, benefit_keys(benefit), [benefit]
        )
        return _Reading(
            int(generation or 0), version, BenefitCounts(quota, confirmed, held, queued), unwritten
        )

    async def put_after(self, t: Transaction, benefit: BenefitId, *, told: bool = False) -> None:
        """Read what is to be in force now; hand it to Redis once it is committed."""
        show, record, parts, event = await _record(t.conn, benefit)

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
    conn: Connection, benefit: BenefitId
) -> tuple[ShowId, dict[str, object], tuple[Audience, dict[str, object]], dict[str, object]]:
    """Terms and counters for put_benefit.lua, the state for viewers, and the event of the last change."""
    found = await conn.execute("SELECT * FROM benefits WHERE id = %s", [benefit])
    row = await found.fetchone()
    assert row is not None
    terms = benefit_of(row)
    found = await conn.execute(
        """
        SELECT member_id::text AS member, rank, nth, key, announced_at,
            string_agg(rank::text, ',') OVER (PARTITION BY member_id) AS ranks
        FROM benefit_claims WHERE benefit_id = %s ORDER BY rank
        """,
        [benefit],
    )
    claims = await found.fetchall()
    found = await conn.execute(
        """
        SELECT member_id::text AS member, state, until > clock_timestamp() AS running,
            (extract(epoch FROM until) * 1000)::bigint AS until, version, prolonged
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
        "starts_at": "" if terms.starts_at is None else str(terms.starts_at),
        "closes_at": "" if terms.closes_at is None else str(terms.closes_at),
        "seat_ms": terms.seat_s * 1000,
        "confirmed": len(claims),
        "ranked": max((claim["rank"] for claim in claims), default=0),
        "changes": max((seat["version"] for seat in seats), default=0),
        "claims": [
            [claim["member"], claim["ranks"], claim["key"], f"{claim['rank']} {claim['nth']}"]
            for claim in claims
        ],
        "told": [claim["rank"] for claim in claims if claim["announced_at"]],
        "untold": [claim["rank"] for claim in claims if not claim["announced_at"]],
        "held": [
            [seat["member"], seat["until"]]
            for seat in seats
            if seat["state"] == "held" and seat["running"] and seat["member"] not in won
        ],
        "had": [seat["member"] for seat in seats if seat["state"] not in ("queued", "left")],
        "longer": [seat["member"] for seat in seats if seat["prolonged"]],
        "queue": [seat["member"] for seat in await queued.fetchall()],
    }
    event: dict[str, object] = {"type": row["event"]["type"], **row["event"]}  # the log wants it first
    return terms.show, record, (terms.audience, _shown(terms)), event


def _shown(terms: Benefit) -> dict[str, object]:
    """The state for its audience; the terms that do not apply are left out."""
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
    further: dict[str, object] = {
        "starts_at": terms.starts_at,
        "closes_at": terms.closes_at,
        "reason": terms.pause_reason,
        "points": terms.points,
        "products": list(terms.products),
        "until": terms.until,
        "cap_fen": terms.cap_fen,
        "min_fen": terms.min_fen,
        "newly_joined_s": terms.newly_joined_s,
        "watched_s": terms.watched_s,
        "first_order": terms.first_order,
        "renewals": terms.renewals,
    }
    return shown | {name: value for name, value in further.items() if value}
