"""The books of a show as a close reads them: its rows, what its log tells of trade, and its counters in Redis."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString

import msgspec
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from commerce.benefit_counters import benefit_keys
from commerce.offers import ORDER_KEYS
from live.archive import ArchiveDraft
from membership.actor import BenefitId, ShowId
from membership.partition import show_key
from membership.refusal import Unavailable
from membership.transaction import Connection

FETCH: Final = 1_000

# What is archived, a row of JSON each. No address, payer, phone or name: an archive is not forgotten with a
# member. Marks of what was told when are left out too: they may be set later.
PARTS: Final[tuple[tuple[str, LiteralString], ...]] = (
    (
        "show",
        """SELECT id, room_id, title, state, starts_at, started_at, ended_at FROM shows
        WHERE id = %(show)s""",
    ),
    (
        "log",
        """SELECT epoch, seq, at, audience, event FROM show_log WHERE show_id = %(show)s
        ORDER BY epoch, seq""",
    ),
    (
        "polls",
        """SELECT id, question, choices, max_choices, audience, opened_at, closed_at, voters, tally FROM polls
        WHERE show_id = %(show)s ORDER BY id""",
    ),
    (
        "ballots",
        """SELECT v.poll_id, v.choices, count(*) AS people FROM ballots v JOIN polls p ON p.id = v.poll_id
        WHERE p.show_id = %(show)s GROUP BY v.poll_id, v.choices ORDER BY v.poll_id, v.choices""",
    ),
    (
        "benefits",
        """SELECT id, title, body, what, value_fen, quota, per_person, needs, audience, seat_s, status,
            coupon_rule, points, products, until_at, cap_fen, min_fen, newly_joined_s, watched_s, first_order,
            renewals, opened_by, opened_at, starts_at, closes_at, closed_at
        FROM benefits WHERE show_id = %(show)s ORDER BY id""",
    ),
    (
        "benefit_costs",  # beside what the terms say that one piece costs at most
        """SELECT c.benefit_id, c.piece_fen, c.month, greatest(b.value_fen, CASE b.what
            WHEN 'points' THEN b.points WHEN 'free_order' THEN b.cap_fen
            WHEN 'coupon' THEN (SELECT coalesce(r.off_fen, r.max_off_fen, 0)
                                FROM coupon_rules r WHERE r.id = b.coupon_rule) END) AS most_fen
        FROM benefit_costs c JOIN benefits b ON b.id = c.benefit_id
        WHERE b.show_id = %(show)s ORDER BY c.benefit_id""",
    ),
    (
        "approvals",
        """SELECT id, act, subject, rules, asked_by, asked_at, expires_at, state, decided_by, decided_at, used_at
        FROM approvals WHERE show_id = %(show)s ORDER BY id""",
    ),
    (
        "claims",  # with the order of the plan by which somebody had newly joined, in this show or elsewhere
        """SELECT c.id, c.benefit_id, c.member_id, c.nth, c.rank, c.payment_id, c.order_id, c.joined_by, c.state,
            c.claimed_at, c.settled_at, j.member_id AS joined_member, j.state AS joined_state
        FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
        LEFT JOIN payments p ON p.id = c.joined_by AND p.outcome = 'accepted'
        LEFT JOIN orders j ON j.id = p.order_id AND j.kind = 'plan'
        WHERE b.show_id = %(show)s ORDER BY c.benefit_id, c.rank""",
    ),
    (
        "grants",  # with what the other books say of each
        """SELECT g.claim_id, g.member_id, g.what, g.points, g.coupon_id, g.order_id, g.amount_fen, g.products,
            g.until_at, g.given_at, g.undone_at,
            (SELECT coalesce(sum(e.amount), 0)::bigint FROM points_entries e
             WHERE e.cause = 'claim:' || g.claim_id AND e.kind IN ('earn', 'reverse')) AS points_booked,
            (SELECT u.state FROM coupons u WHERE u.id = g.coupon_id) AS coupon_state,
            (SELECT coalesce(sum(f.money_fen), 0)::bigint FROM order_refunds f
             WHERE f.cause = 'claim:' || g.claim_id) AS sent_fen
        FROM benefit_grants g JOIN benefit_claims c ON c.id = g.claim_id
        JOIN benefits b ON b.id = c.benefit_id
        WHERE b.show_id = %(show)s ORDER BY c.benefit_id, c.rank""",
    ),
    (
        "receipts",
        """SELECT r.benefit_id, r.link, r.claim_id, r.digest, r.core
        FROM benefit_receipts r JOIN benefits b ON b.id = r.benefit_id
        WHERE b.show_id = %(show)s ORDER BY r.benefit_id, r.link""",
    ),
    (
        "seats",
        """SELECT s.benefit_id, s.member_id, s.state FROM benefit_seats s
        JOIN benefits b ON b.id = s.benefit_id
        WHERE b.show_id = %(show)s ORDER BY s.benefit_id, s.member_id""",
    ),
    (
        "misses",
        """SELECT m.payment_id, m.benefit_id, m.why, m.refund_until, m.recorded_at FROM benefit_misses m
        JOIN benefits b ON b.id = m.benefit_id WHERE b.show_id = %(show)s ORDER BY m.payment_id""",
    ),
    (
        "joins",
        """SELECT ordinal, member_id, payment_id, renewal, recorded_at, refunded_at FROM show_joins
        WHERE show_id = %(show)s ORDER BY ordinal""",
    ),
    (
        "offers",
        """SELECT id, product_id, kind, audience, flash_fen, quota, per_person, taken, status, opened_at,
            closes_at, closed_at, close_reason
        FROM offers WHERE show_id = %(show)s ORDER BY id""",
    ),
    (
        "orders",
        """SELECT id, kind, member_id, state, plan_id, currency, goods_fen, coupon_fen, points_fen,
            freight_fen, total_fen, points_bonus_percent, points_campaigns, placed_at, hold_until, paid_at, closed_at
        FROM orders WHERE show_id = %(show)s ORDER BY id""",
    ),
    (
        "order_lines",
        """SELECT l.order_id, l.position, l.kind, l.offer_id, l.product_id, l.name, l.quantity, l.unit_fen,
            l.line_fen, l.coupon_fen, l.points_fen, l.gift_value_fen, l.winner, l.candidates, l.piece
        FROM order_lines l JOIN orders o ON o.id = l.order_id
        WHERE o.show_id = %(show)s ORDER BY l.order_id, l.position""",
    ),
    (
        "order_coupons",  # with the coupon as it is now
        """SELECT c.order_id, c.coupon_id, c.kind, c.off_fen, u.member_id, u.state, u.order_id AS had_by
        FROM order_coupons c JOIN orders o ON o.id = c.order_id JOIN coupons u ON u.id = c.coupon_id
        WHERE o.show_id = %(show)s ORDER BY c.order_id, c.coupon_id""",
    ),
    (
        "order_pieces",
        """SELECT w.order_id, w.product_id, w.source, w.quantity, w.state, w.returned
        FROM order_pieces w JOIN orders o ON o.id = w.order_id
        WHERE o.show_id = %(show)s ORDER BY w.order_id, w.product_id, w.source""",
    ),
    (
        "bundle_parts",
        """SELECT b.bundle_id, b.part_id, b.quantity FROM bundle_parts b WHERE b.bundle_id IN (
            SELECT l.product_id FROM order_lines l JOIN orders o ON o.id = l.order_id
            WHERE o.show_id = %(show)s)
        ORDER BY b.bundle_id, b.part_id""",
    ),
    (
        "payment_starts",
        """SELECT s.provider, s.order_id, s.amount_fen, s.ref, s.started_at
        FROM payment_starts s JOIN orders o ON o.id = s.order_id
        WHERE o.show_id = %(show)s ORDER BY s.order_id, s.provider""",
    ),
    (
        "payments",
        """SELECT p.id, p.provider, p.ref, p.order_id, p.amount_fen, p.outcome, p.reason, p.provider_paid_at,
            p.recorded_at
        FROM payments p JOIN orders o ON o.id = p.order_id WHERE o.show_id = %(show)s ORDER BY p.id""",
    ),
    (
        "payment_returns",
        """SELECT r.id, r.payment_id, r.amount_fen, r.reason, r.marked_at, d.provider_ref, d.done_at
        FROM payment_returns r LEFT JOIN payment_returns_done d ON d.return_id = r.id
        JOIN payments p ON p.id = r.payment_id JOIN orders o ON o.id = p.order_id
        WHERE o.show_id = %(show)s ORDER BY r.id""",
    ),
    (
        "refunds",
        """SELECT r.id, r.order_id, r.position, r.quantity, r.money_fen, r.points, r.earned, r.restocked, r.cause,
            r.refunded_by, r.refunded_at, l.quantity AS bought,
            l.line_fen - l.coupon_fen - l.points_fen AS paid_fen, l.points_fen AS points_paid
        FROM order_refunds r JOIN orders o ON o.id = r.order_id
        LEFT JOIN order_lines l ON l.order_id = r.order_id AND l.position = r.position
        WHERE o.show_id = %(show)s ORDER BY r.id""",
    ),
    (
        "plan_refunds",
        """SELECT r.payment_id, r.order_id, r.way, r.fee_fen, r.price_fen, r.freight_fen, r.gifts_fen, r.time_fen,
            r.payable_fen, r.refunded_at
        FROM plan_refunds r JOIN orders o ON o.id = r.order_id
        WHERE o.show_id = %(show)s ORDER BY r.order_id""",
    ),
    (
        "cases",
        """SELECT c.id, c.order_id, c.kind, c.state, c.opened_at, c.closed_at, c.act, c.amount_fen, c.points
        FROM after_sales_cases c JOIN orders o ON o.id = c.order_id
        WHERE o.show_id = %(show)s ORDER BY c.id""",
    ),
    (
        "parcels",
        """SELECT s.id, s.order_id, s.case_id, s.sent_at, s.returned_at, s.claim_id
        FROM parcels s JOIN orders o ON o.id = s.order_id WHERE o.show_id = %(show)s
        UNION ALL
        SELECT s.id, s.order_id, s.case_id, s.sent_at, s.returned_at, s.claim_id
        FROM parcels s JOIN benefit_claims c ON c.id = s.claim_id JOIN benefits b ON b.id = c.benefit_id
        WHERE b.show_id = %(show)s ORDER BY id""",
    ),
    (
        "payment_decisions",
        """SELECT x.payment_id, x.act, x.note, x.decided_by, x.decided_at
        FROM payment_decisions x JOIN payments p ON p.id = x.payment_id JOIN orders o ON o.id = p.order_id
        WHERE o.show_id = %(show)s ORDER BY x.payment_id, x.act""",
    ),
    (
        "plan_terms",
        """SELECT t.id, t.member_id, t.plan_id, t.kind, t.starts_at, t.ends_at, t.payment_id,
            t.first_paid_start, t.ended_at, t.end_reason
        FROM plan_terms t JOIN payments p ON p.id = t.payment_id JOIN orders o ON o.id = p.order_id
        WHERE o.show_id = %(show)s ORDER BY t.id""",
    ),
    (
        "points",
        """SELECT e.id, e.member_id, e.lot_id, e.kind, e.amount, e.reason, e.cause, e.part, e.active_from,
            e.expires_at, e.at
        FROM points_entries e JOIN orders o ON e.cause = 'order:' || o.id
        WHERE o.show_id = %(show)s ORDER BY e.id""",
    ),
)
TRADE_EVENTS: Final = (
    "benefit.opened",
    "benefit.raised",
    "benefit.claimed",
    "benefit.closed",
    "order.paid",
    "plan.joined",
    "poll.closed",
)

Row = dict[str, Any]


class BenefitCounters(Struct, frozen=True):
    """A benefit as Redis has it. `terms` is empty when Redis has none."""

    terms: dict[str, str]
    claims: dict[str, list[int]]
    held: dict[str, int]
    settling: dict[str, str]
    queued: int
    unwritten: int  # changes of seats not yet in PostgreSQL
    told: set[int]
    spare: set[int]


class Counters(Struct, frozen=True):
    """The show as Redis has it."""

    meta: dict[str, str]
    counts: dict[str, int]
    offers: dict[str, str]
    people: dict[str, int]
    holds: dict[str, Any]
    unsettled: int
    benefits: dict[str, BenefitCounters]


class Books:
    """The rows of a show, and of its log what tells of trade."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {name: [] for name, _ in PARTS}
        self.epochs: dict[str, dict[int, bytes]] = defaultdict(dict)  # seq -> digest of its event
        self.events: dict[str, list[Row]] = defaultdict(list)

    def take(self, part: str, line: bytes) -> None:
        row: Row = msgspec.json.decode(line)
        if part != "log":
            self.rows[part].append(row)
            return
        event = row["event"]
        self.epochs[row["epoch"]][row["seq"]] = event_digest(event)
        if event.get("type") in TRADE_EVENTS:
            self.events[event["type"]].append(event)

    def by(self, part: str, column: str) -> dict[Any, list[Row]]:
        found: dict[Any, list[Row]] = defaultdict(list)
        for row in self.rows[part]:
            found[row[column]].append(row)
        return found

    def of_benefit(self, kind: str, benefit: str) -> list[Row]:
        return [event for event in self.events[kind] if event["benefit"] == benefit]


class Marks(Struct, frozen=True):
    """What the rows say of Redis: what was not told yet, and under which generation it counts."""

    untold: set[str]  # claims
    generation: int
    benefits: dict[str, tuple[int, int]]  # generation and version
    stock: tuple[
        Row, ...
    ] = ()  # of each product on offer or sold, and of bundles' parts: what both books say


async def read_rows(conn: Connection, show: ShowId, archive: ArchiveDraft) -> Books:
    """Every part, written to the archive as it is read."""
    books = Books()
    for name, statement in PARTS:
        await _read_part(conn, show, name, statement, archive, books)
    return books


async def _read_part(
    conn: Connection,
    show: ShowId,
    name: str,
    statement: LiteralString,
    archive: ArchiveDraft,
    books: Books,
) -> None:
    # Both are made of the constants above.
    counted = await conn.execute(f"SELECT count(*) AS rows FROM ({statement}) w", {"show": show})  # noqa: S608
    row = await counted.fetchone()
    assert row is not None
    archive.begin(name, row["rows"])
    async with conn.cursor(name="part") as cursor:
        cursor.itersize = FETCH
        await cursor.execute(
            f"SELECT row_to_json(w)::text AS line FROM ({statement}) w",  # noqa: S608
            {"show": show},
        )
        async for each in cursor:
            line = each["line"].encode()
            archive.row(line)
            books.take(name, line)


async def read_marks(conn: Connection, show: ShowId) -> Marks:
    """What was committed and, as far as the rows say, not told yet."""
    claims = await conn.execute(
        """
        SELECT c.id::text AS id FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
        WHERE b.show_id = %s AND c.announced_at IS NULL
        """,
        [show],
    )
    row = await (await conn.execute("SELECT generation FROM shows WHERE id = %s", [show])).fetchone()
    assert row is not None
    generations = await conn.execute(
        "SELECT id::text AS id, generation, version FROM benefits WHERE show_id = %s", [show]
    )
    return Marks(
        untold={each["id"] for each in await claims.fetchall()},
        generation=row["generation"],
        benefits={each["id"]: (each["generation"], each["version"]) for each in await generations.fetchall()},
        stock=await read_stock(conn, show),
    )


async def read_stock(conn: Connection, show: ShowId) -> tuple[Row, ...]:
    """The stock of what the show offered and sold, beside both books of it, in every show and none."""
    rows = await conn.execute(
        """
        WITH mine AS (
            SELECT product_id AS id FROM offers WHERE show_id = %(show)s
            UNION SELECT w.product_id FROM order_pieces w JOIN orders o ON o.id = w.order_id
                WHERE o.show_id = %(show)s
        )
        SELECT p.id::text AS id, p.sku, p.bundle, p.stock, p.presale_cap, p.presale_taken,
            coalesce((SELECT sum(e.delta) FROM stock_entries e WHERE e.product_id = p.id), 0)::bigint
                AS entered,
            coalesce(w.at_hand, 0)::bigint AS at_hand, coalesce(w.to_come, 0)::bigint AS to_come
        FROM products p LEFT JOIN LATERAL (
            SELECT sum(quantity - returned) FILTER (WHERE source = 'stock') AS at_hand,
                sum(quantity - returned) FILTER (WHERE source = 'presale') AS to_come
            FROM order_pieces WHERE product_id = p.id AND state = 'taken'
        ) w ON true
        WHERE p.id IN (SELECT id FROM mine) OR p.id IN (
            SELECT b.part_id FROM bundle_parts b WHERE b.bundle_id IN (SELECT id FROM mine))
        ORDER BY p.id
        """,
        {"show": show},
    )
    return tuple(await rows.fetchall())


async def read_counters(client: Redis, show: ShowId, benefits: Sequence[BenefitId]) -> Counters | None:
    """None when Redis holds nothing of the show any more."""
    redis: Any = client

    def key(name: str) -> str:
        return show_key(show, name)

    try:
        meta = _texts(await redis.hgetall(key("meta")))
        if not meta:
            return None
        offers, people, holds, unsettled = (key(name) for name in ORDER_KEYS[:4])
        found = Counters(
            meta=meta,
            counts={field: int(value) for field, value in _texts(await redis.hgetall(key("counts"))).items()},
            offers=_texts(await redis.hgetall(offers)),
            people={field: int(value) for field, value in _texts(await redis.hgetall(people)).items()},
            holds={
                order: msgspec.json.decode(record)
                for order, record in _texts(await redis.hgetall(holds)).items()
            },
            unsettled=await redis.zcard(unsettled),
            benefits={},
        )
        for benefit in benefits:
            terms, claims, held, settling, queue, _, outbox, told, spare = (
                key(name) for name in benefit_keys(benefit)
            )
            found.benefits[benefit] = BenefitCounters(
                terms=_texts(await redis.hgetall(terms)),
                claims={
                    member: sorted(int(rank) for rank in ranks.split(","))
                    for member, ranks in _texts(await redis.hgetall(claims)).items()
                },
                held={
                    member.decode(): int(until)
                    for member, until in await redis.zrange(held, 0, -1, withscores=True)
                },
                settling=_texts(await redis.hgetall(settling)),
                queued=await redis.zcard(queue),
                unwritten=await redis.llen(outbox),
                told=_bits(await redis.get(told) or b""),
                spare={int(rank) for rank in await redis.zrange(spare, 0, -1)},
            )
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"Redis does not answer: {error}", retry_ms=1000) from error
    return found


def totals(books: Books) -> dict[str, int]:
    """Sums for people, in fen and points."""
    rows = books.rows
    came = sum(row["amount_fen"] for row in rows["payments"] if row["outcome"] == "accepted")
    counted = {name: len(found) for name, found in rows.items() if name != "log"}
    return {
        **{
            name: counted[name] for name in ("benefits", "claims", "receipts", "offers", "orders", "payments")
        },
        "log_entries": sum(len(numbers) for numbers in books.epochs.values()),
        "paid_fen": came,
        "returned_fen": sum(row["amount_fen"] for row in rows["payment_returns"]),
        "points": sum(row["amount"] for row in rows["points"]),
    }


def kept_counters(counters: Counters) -> dict[str, Any]:
    """The compared counters as they were found. Who holds what is in the rows, which say the same."""
    return {
        "counts": {
            field: number
            for field, number in counters.counts.items()
            if field.startswith(("benefit:", "offer:", "poll:"))
        },
        "benefits": {
            benefit: {
                field: now.terms[field]
                for field in ("quota", "status", "confirmed", "ranked")
                if field in now.terms
            }
            for benefit, now in counters.benefits.items()
        },
    }


def event_digest(event: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(event, order="sorted"), digest_size=16).digest()


def _texts(found: Mapping[bytes, bytes]) -> dict[str, str]:
    return {field.decode(): value.decode() for field, value in found.items()}


def _bits(bitmap: bytes) -> set[int]:
    return {
        8 * place + bit
        for place, byte in enumerate(bitmap)
        if byte
        for bit in range(8)
        if byte >> (7 - bit) & 1
    }
