"""Whom a benefit is for besides its audience: newly joined, watched so long, no order before, an order tonight.

Our own records decide, never what a client says: plan terms, the watching that the nodes recorded, the orders.
A claim is asked about before it is decided, so that who may not have it moves no counter; what earned it is
asked again, under lock, in the transaction that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from commerce.benefit_terms import Benefit
from membership.actor import BenefitId, MemberId, OrderId, PaymentId, ShowId
from membership.refusal import Refusal
from membership.transaction import Connection

# Money for the goods of order `o` that has not gone back; what a free order sent back still counts as paid.
GOODS_LEFT = """(o.total_fen - o.freight_fen - coalesce((
    SELECT sum(r.money_fen) FROM order_refunds r
    WHERE r.order_id = o.id AND r.position > 0 AND NOT starts_with(r.cause, 'claim:')), 0))"""
# What is left of it to be sent back: a free order has nothing more to give.
_MONEY_LEFT = """(o.total_fen - o.freight_fen - coalesce((
    SELECT sum(r.money_fen) FROM order_refunds r WHERE r.order_id = o.id AND r.position > 0), 0))"""


class NotEligible(Refusal):
    """This benefit is not for you."""

    code = "not_eligible"


class Earned(Struct, frozen=True, kw_only=True):
    """What earns a member their claims: orders not used for one yet, oldest first; the payment of a new plan."""

    orders: tuple[OrderId, ...] = ()
    joined_by: PaymentId | None = None


async def judge(
    conn: Connection, terms: Benefit, members: Sequence[MemberId], since: Mapping[MemberId, int]
) -> dict[MemberId, NotEligible]:
    """Who of these may not have it now, and which condition says so. `since` (ms): who is watching since when.

    Who has one already is not judged: the same command again gets the same answer.
    """
    asked = sorted(set(members) - await _holders(conn, terms.id, members))
    refused: dict[MemberId, NotEligible] = {}
    if terms.watched_s:
        watched = await _watched_ms(conn, terms.show, asked, since)
        for member in asked:
            short_ms = terms.watched_s * 1000 - watched.get(member, 0)
            if short_ms > 0:
                refused[member] = NotEligible(
                    f"It is for who has watched this show for {terms.watched_s} s.",
                    retry_ms=short_ms,
                    condition="watched",
                )
    if terms.newly_joined_s:
        joined = await _joined(conn, asked, terms.newly_joined_s)
        for member in asked:
            if member not in joined:
                refused[member] = _not_joined()
    if terms.first_order and terms.needs != "order":
        for member in await _ordered(conn, asked):
            refused[member] = NotEligible("It is for who has not ordered before.", condition="first_order")
    if terms.needs == "order":
        orders = await _orders(conn, terms, asked)
        for member in asked:
            if member not in orders:
                refused[member] = _no_order(terms)
    return refused


async def earned_by(conn: Connection, terms: Benefit, members: Sequence[MemberId]) -> dict[MemberId, Earned]:
    """What earns these members a claim, locked until the transaction ends; who has nothing is missing.

    The benefit's row is locked before the orders, so that two beats cannot hold one another's; who calls holds
    no lock yet.
    """
    if terms.newly_joined_s:
        await _lock_plans(conn, members)
    await conn.execute("SELECT 1 FROM benefits WHERE id = %s FOR NO KEY UPDATE", [terms.id])
    orders: dict[MemberId, list[OrderId]] = {}
    if terms.needs == "order":
        await conn.execute(
            """
            SELECT 1 FROM orders
            WHERE member_id = ANY(%s::uuid[]) AND show_id = %s AND kind = 'goods' AND paid_at IS NOT NULL
            ORDER BY id FOR UPDATE
            """,
            [list(members), terms.show],
        )
        orders = await _orders(conn, terms, members)
    joined = await _joined(conn, members, terms.newly_joined_s) if terms.newly_joined_s else {}
    return {
        member: Earned(orders=tuple(orders.get(member, ())), joined_by=joined.get(member))
        for member in members
        if (terms.needs != "order" or member in orders) and (not terms.newly_joined_s or member in joined)
    }


def not_earned(terms: Benefit) -> NotEligible:
    """Nothing that the person has paid earns it, or none of it any more."""
    return _no_order(terms) if terms.needs == "order" else _not_joined()


def _not_joined() -> NotEligible:
    return NotEligible("It is for who has just joined.", condition="newly_joined")


def _no_order(terms: Benefit) -> NotEligible:
    least = f" of at least {terms.min_fen} fen" if terms.min_fen else ""
    first = ", their first," if terms.first_order else ""
    return NotEligible(
        f"It is for who has paid an order{first} in this show{least}; each order counts once.",
        condition="first_order" if terms.first_order else "order",
    )


async def _holders(conn: Connection, benefit: BenefitId, members: Sequence[MemberId]) -> set[MemberId]:
    found = await conn.execute(
        """
        SELECT DISTINCT member_id::text AS member FROM benefit_claims
        WHERE benefit_id = %s AND member_id = ANY(%s::uuid[])
        """,
        [benefit, list(members)],
    )
    return {MemberId(row["member"]) for row in await found.fetchall()}


async def _watched_ms(
    conn: Connection, show: ShowId, members: Sequence[MemberId], since: Mapping[MemberId, int]
) -> dict[MemberId, int]:
    """How long each watched while the show ran. Two devices at once watch once: spans are joined, not added."""
    found = await conn.execute(
        """
        WITH asked AS (
            SELECT * FROM unnest(%(members)s::uuid[], %(since)s::bigint[]) AS a (member, since)
        ), spans AS (
            SELECT b.member_id AS member, b.at AS from_at, b.at + b.value * interval '1 ms' AS until_at
            FROM behaviour_records b
            WHERE b.member_id = ANY(%(members)s::uuid[]) AND b.show_id = %(show)s AND b.kind = 'watch'
            UNION ALL
            SELECT member, to_timestamp(since / 1000.0), clock_timestamp() FROM asked WHERE since IS NOT NULL
        ), watched AS (
            SELECT member, range_agg(tstzrange(from_at, until_at))
                * tstzmultirange(tstzrange((SELECT started_at FROM shows WHERE id = %(show)s), NULL)) AS parts
            FROM spans WHERE until_at > from_at GROUP BY member
        )
        SELECT member::text AS member,
            (SELECT floor(sum(extract(epoch FROM upper(part) - lower(part))) * 1000)
             FROM unnest(parts) AS part)::bigint AS ms
        FROM watched
        """,
        {"members": list(members), "since": [since.get(member) for member in members], "show": show},
    )
    return {MemberId(row["member"]): row["ms"] or 0 for row in await found.fetchall()}


async def _lock_plans(conn: Connection, members: Sequence[MemberId]) -> None:
    """No plan of theirs is given back until the transaction ends: who gives one back holds its member's row."""
    await conn.execute(
        "SELECT 1 FROM members WHERE id = ANY(%s::uuid[]) ORDER BY id FOR SHARE", [list(members)]
    )


async def _joined(conn: Connection, members: Sequence[MemberId], within_s: int) -> dict[MemberId, PaymentId]:
    """Whose first paid start of a plan that runs is so young, and its payment."""
    found = await conn.execute(
        """
        SELECT DISTINCT ON (member_id) member_id::text AS member, payment_id::text AS payment
        FROM plan_terms
        WHERE member_id = ANY(%s::uuid[]) AND kind = 'paid' AND first_paid_start AND ended_at IS NULL
          AND starts_at > clock_timestamp() - make_interval(secs => %s) AND ends_at > clock_timestamp()
        ORDER BY member_id, starts_at DESC
        """,
        [list(members), within_s],
    )
    return {MemberId(row["member"]): PaymentId(row["payment"]) for row in await found.fetchall()}


async def _ordered(conn: Connection, members: Sequence[MemberId]) -> set[MemberId]:
    """Who has paid for goods before, also where the money went back."""
    found = await conn.execute(
        """
        SELECT DISTINCT member_id::text AS member FROM orders
        WHERE member_id = ANY(%s::uuid[]) AND kind = 'goods' AND paid_at IS NOT NULL
        """,
        [list(members)],
    )
    return {MemberId(row["member"]) for row in await found.fetchall()}


async def _orders(
    conn: Connection, terms: Benefit, members: Sequence[MemberId]
) -> dict[MemberId, list[OrderId]]:
    """Paid orders of this show with enough money for goods that has not gone back, unused here, oldest first."""
    found = await conn.execute(
        f"""
        SELECT o.member_id::text AS member, o.id::text AS id FROM orders o
        WHERE o.member_id = ANY(%(members)s::uuid[]) AND o.show_id = %(show)s AND o.kind = 'goods'
          AND o.paid_at IS NOT NULL AND o.closed_at IS NULL AND {GOODS_LEFT} >= greatest(%(min)s, 1)
          AND (NOT %(free)s OR {_MONEY_LEFT} > 0)
          AND NOT EXISTS (SELECT 1 FROM benefit_claims c
                          WHERE c.benefit_id = %(benefit)s AND c.order_id = o.id)
          AND NOT (%(first)s AND EXISTS (
              SELECT 1 FROM orders e WHERE e.member_id = o.member_id AND e.kind = 'goods'
                AND (e.paid_at, e.id) < (o.paid_at, o.id)))
        ORDER BY o.paid_at, o.id
        """,  # noqa: S608 - constants; what comes from outside is a parameter
        {
            "members": list(members),
            "show": terms.show,
            "min": terms.min_fen,
            "benefit": terms.id,
            "first": terms.first_order,
            "free": terms.what == "free_order",
        },
    )
    orders: dict[MemberId, list[OrderId]] = {}
    for row in await found.fetchall():
        orders.setdefault(MemberId(row["member"]), []).append(OrderId(row["id"]))
    return orders
