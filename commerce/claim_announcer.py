"""Tells of committed claims: the audience by the log, the winners by notice. Each once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from commerce.benefit_counters import benefit_keys
from commerce.benefit_terms import Benefit
from commerce.messages import BenefitClaimed, BenefitSoldOut, encoded
from membership.actor import BenefitId, MemberId, new_id
from membership.behaviour import Record
from membership.members import mask_name
from membership.notices import Notices
from membership.script import Arg, ScriptLoader
from membership.transaction import Connection, Transaction

TOLD_GRACE_S = 3  # a claim this young is being told by the one who wrote it
TELL_MAX = 500  # claims told in one script call


class Told(Struct, frozen=True):
    """A committed claim on its way to the audience: whose, which, and the name that others see."""

    member: MemberId
    rank: int
    nth: int
    name: str
    record: bytes = b""


class ClaimAnnouncer:
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


def shown_name(nickname: str | None) -> str:
    """A winner as strangers see them: 王**."""
    return mask_name(nickname or "会员")


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
