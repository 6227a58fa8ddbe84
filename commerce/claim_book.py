"""The book of claims: who has what of a benefit, by rank; read for staff, for the holder, and for a payment."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from commerce.benefit_terms import What
from commerce.limits import household_of
from commerce.parcels import Parcel, parcel_of_row
from membership.actor import BenefitId, MemberId, OrderId, PaymentId, ShowId
from membership.moment import in_ms
from membership.transaction import Connection

ClaimState = Literal["confirmed", "recalled", "deducted"]


class Claim(Struct, frozen=True, kw_only=True):
    """One person's taking of one benefit. The rank never changes and is never given again.

    `payment` joined with it; `order` earned it; what it brought: `coupon`, `points`, `returned_fen` of the order.
    `parcel`: with which a gift was sent; one of joining is sent with the order of its plan.
    `shares_address`, for staff who ship: another winner lives at the same address. It refuses nothing.
    """

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
    order: OrderId | None = None
    coupon: str | None = None
    points: int = 0
    returned_fen: int = 0
    shares_address: bool = False
    parcel: Parcel | None = None


async def claims_of_benefit(
    conn: Connection, benefit: BenefitId, *, after_rank: int = 0, limit: int = 100
) -> tuple[Claim, ...]:
    """The winners by rank; who shares an address with another is marked."""
    found = await conn.execute(
        f"{_CLAIMS} WHERE c.benefit_id = %s AND c.rank > %s ORDER BY c.rank LIMIT %s",
        [benefit, after_rank, limit],
    )
    rows = await found.fetchall()
    together = await _at_one_address(conn, benefit)
    return tuple(
        msgspec.structs.replace(_claim(row), shares_address=str(row["member_id"]) in together) for row in rows
    )


async def _at_one_address(conn: Connection, benefit: BenefitId) -> set[str]:
    """The winners whose newest address is that of another winner, however it is written."""
    found = await conn.execute(
        """
        SELECT DISTINCT ON (a.member_id) a.member_id::text AS member, a.region, a.detail
        FROM benefit_claims c JOIN addresses a ON a.member_id = c.member_id
        WHERE c.benefit_id = %s ORDER BY a.member_id, a.id DESC
        """,
        [benefit],
    )
    homes: dict[str, set[str]] = {}
    for row in await found.fetchall():
        homes.setdefault(household_of(row["region"], row["detail"], b""), set()).add(row["member"])
    return {member for members in homes.values() if len(members) > 1 for member in members}


async def claims_of_member(conn: Connection, member: MemberId, *, limit: int = 200) -> tuple[Claim, ...]:
    """What a member has won, newest first."""
    found = await conn.execute(
        f"{_CLAIMS} WHERE c.member_id = %s ORDER BY c.id DESC LIMIT %s", [member, limit]
    )
    return tuple(_claim(row) for row in await found.fetchall())


async def claim_by_payment(conn: Connection, payment: PaymentId) -> Claim | None:
    found = await conn.execute(f"{_CLAIMS} WHERE c.payment_id = %s", [payment])
    row = await found.fetchone()
    return None if row is None else _claim(row)


async def was_claimed_as(conn: Connection, benefit: BenefitId, member: MemberId, payer: str) -> bool:
    """One person by member, by payer, and by the phone they had when they claimed."""
    found = await conn.execute(
        """
        SELECT EXISTS (
            SELECT 1 FROM benefit_claims c
            LEFT JOIN payments p ON p.id = c.payment_id
            WHERE c.benefit_id = %(benefit)s AND (
                c.member_id = %(member)s
                OR (%(payer)s <> '' AND p.payer = %(payer)s)
                OR EXISTS (
                    SELECT 1 FROM identifiers mine
                    JOIN identifiers theirs ON theirs.kind = mine.kind AND theirs.value = mine.value
                    WHERE mine.member_id = %(member)s AND mine.kind = 'phone' AND mine.ended_at IS NULL
                      AND theirs.member_id = c.member_id AND theirs.started_at <= c.claimed_at
                      AND (theirs.ended_at IS NULL OR theirs.ended_at > c.claimed_at)
                )
            )
        ) AS claimed
        """,
        {"benefit": benefit, "member": member, "payer": payer},
    )
    row = await found.fetchone()
    return row is not None and bool(row["claimed"])


_CLAIMS = """
SELECT c.*, b.show_id, b.title, b.what, b.value_fen, b.quota, g.coupon_id, g.points, g.amount_fen,
    s.id AS parcel_id, s.carrier, s.tracking, s.sent_at, s.returned_at
FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id LEFT JOIN benefit_grants g ON g.claim_id = c.id
LEFT JOIN parcels s ON s.claim_id = c.id
"""


def _claim(row: dict[str, Any]) -> Claim:
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
        claimed_at=in_ms(row["claimed_at"]),
        payment=PaymentId(str(row["payment_id"])) if row["payment_id"] else None,
        order=OrderId(str(row["order_id"])) if row["order_id"] else None,
        coupon=str(row["coupon_id"]) if row["coupon_id"] else None,
        points=row["points"] or 0,
        returned_fen=row["amount_fen"] or 0,
        parcel=parcel_of_row({**row, "id": row["parcel_id"], "case_id": None}) if row["parcel_id"] else None,
    )
