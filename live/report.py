"""What a show came to: numbers while it runs, and the end card, built from the record.

Every number of the end card is a sum over rows that do not change any more; building it again after all
records are in gives the same.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from chat.comments import Comments, Pace
from chat.polls import Poll, Polls
from chat.questions import Question, top_questions
from commerce.costs import ShowCosts
from commerce.incidents import Incident
from commerce.payment_health import PaymentHealth
from live.meter import Meter
from live.shows import Shows
from membership.actor import BenefitId, PollId, ProductId, ShowId
from membership.refusal import Unavailable
from membership.transaction import Connection, Transaction

QUESTIONS = 5
COMMENTS_READ_MAX = 50_000  # the latest; a show of an hour at 14 comments a second


class Sales(Struct, frozen=True, kw_only=True):
    """Orders of goods placed in the show. `sales_fen` is what was paid for goods, freight apart and before
    anything went back; `refunded_fen` what went back of these orders, freight included."""

    placed: int
    paid: int
    sales_fen: int
    freight_fen: int
    refunded_fen: int


class Joins(Struct, frozen=True, kw_only=True):
    """Plans begun in the show. `first` are first paid starts, trials apart."""

    paid: int
    first: int
    trials: int
    fees_fen: int


class LiveNumbers(Struct, frozen=True, kw_only=True):
    """The show at this moment, for staff."""

    viewers: int
    viewers_peak: int
    comments: Pace
    claims: int
    sales: Sales
    joins: Joins
    costs: ShowCosts | None = None
    payments: PaymentHealth | None = None
    approvals: int = 0  # asks of this show that wait for a second person
    incident: Incident | None = None


class Gift(Struct, frozen=True, kw_only=True):
    """A benefit and what it cost at its stated value; what was recalled or deducted costs nothing."""

    benefit: BenefitId
    title: str
    what: str
    quota: int
    claimed: int
    value_fen: int
    cost_fen: int


class PollResult(Struct, frozen=True, kw_only=True):
    """A poll with its question, so that the numbers can be read alone."""

    poll: PollId
    question: str
    choices: list[str]
    voters: int
    tally: list[int]


class FirstSold(Struct, frozen=True, kw_only=True):
    """A product that only some could order, or order early: who bought it, of the plan members who were there."""

    product: ProductId
    name: str
    buyers: int
    members: int


class EndCard(Struct, frozen=True, kw_only=True):
    """What a show came to."""

    show: ShowId
    title: str
    started_at: int | None
    ended_at: int | None
    viewers: int  # different people who did anything or watched
    members: int  # of them, by name
    viewers_peak: int
    watched_average_s: int
    comments: int
    commenters: int
    reactions: int
    sales: Sales
    joins: Joins
    gifts: list[Gift]
    gifts_cost_fen: int
    questions: list[Question]
    polls: list[PollResult]
    first_sold: list[FirstSold] = []


class Report:
    """Reads the record; changes nothing but the kept end card."""

    def __init__(self, comments: Comments, polls: Polls, shows: Shows, meter: Meter | None = None) -> None:
        self._meter = meter
        self._comments = comments
        self._polls = polls
        self._shows = shows

    async def live(self, conn: Connection, show: ShowId) -> LiveNumbers:
        """The show at this moment. Raises Unavailable when its counters are away."""
        viewers, peak = await self._shows.position(show)
        gifts = await _gifts(conn, show)
        reading = None if self._meter is None else await self._meter.read(conn, show)
        return LiveNumbers(
            viewers=viewers,
            viewers_peak=max(viewers, peak),
            comments=await self._comments.pace(show),
            claims=sum(gift.claimed for gift in gifts),
            sales=await _sales(conn, show),
            joins=await _joins(conn, show),
            costs=None if reading is None else reading.costs,
            payments=None if reading is None else reading.payments,
            approvals=0 if reading is None else reading.approvals,
            incident=None if reading is None else reading.incident,
        )

    async def build(self, t: Transaction, show: ShowId) -> EndCard:
        """Build the end card and keep it with the show. Raises NotFound."""
        found = await self._shows.get(t.conn, show)
        people = await _people(t.conn, show)
        gifts = await _gifts(t.conn, show)
        card = EndCard(
            show=found.id,
            title=found.title,
            started_at=found.started_at,
            ended_at=found.ended_at,
            viewers=people["viewers"],
            members=people["members"],
            viewers_peak=max(await _peak(t.conn, show), await self._peak_counted(show)),
            watched_average_s=people["watched_average_s"],
            comments=people["comments"],
            commenters=people["commenters"],
            reactions=people["reactions"],
            sales=await _sales(t.conn, show),
            joins=await _joins(t.conn, show),
            gifts=gifts,
            gifts_cost_fen=sum(gift.cost_fen for gift in gifts),
            questions=await _questions(t.conn, show),
            polls=[_result(poll) for poll in await self._polls.of_show(t.conn, show) if poll.result],
            first_sold=await _first_sold(t.conn, show),
        )
        await t.conn.execute(
            "UPDATE shows SET report = %s WHERE id = %s", [Jsonb(msgspec.to_builtins(card)), show]
        )
        return card

    async def get(self, conn: Connection, show: ShowId) -> EndCard | None:
        """The kept end card; None until it is built. Raises NotFound."""
        await self._shows.get(conn, show)
        row = await (await conn.execute("SELECT report FROM shows WHERE id = %s", [show])).fetchone()
        return None if row is None or row["report"] is None else msgspec.convert(row["report"], EndCard)

    async def _peak_counted(self, show: ShowId) -> int:
        """The highest count of open windows; 0 when Redis no longer knows it."""
        try:
            return (await self._shows.position(show))[1]
        except Unavailable:
            return 0


async def _one(conn: Connection, statement: Any, show: ShowId) -> dict[str, Any]:
    row = await (await conn.execute(statement, {"show": show})).fetchone()
    assert row is not None
    return row


async def _sales(conn: Connection, show: ShowId) -> Sales:
    row = await _one(
        conn,
        """
        SELECT count(*) AS placed, count(paid_at) AS paid,
            coalesce(sum(goods_fen - coupon_fen - points_fen) FILTER (WHERE paid_at IS NOT NULL), 0)::bigint
                AS sales_fen,
            coalesce(sum(freight_fen) FILTER (WHERE paid_at IS NOT NULL), 0)::bigint AS freight_fen,
            coalesce(sum(CASE WHEN state = 'refunded' THEN total_fen ELSE (
                SELECT sum(r.amount_fen) FROM payments p JOIN payment_returns r ON r.payment_id = p.id
                WHERE p.order_id = orders.id AND p.outcome = 'accepted') END), 0)::bigint AS refunded_fen
        FROM orders WHERE show_id = %(show)s AND kind = 'goods'
        """,
        show,
    )
    return Sales(**row)


async def _joins(conn: Connection, show: ShowId) -> Joins:
    terms = await _one(
        conn,
        """
        SELECT count(*) FILTER (WHERE kind = 'paid') AS paid,
            count(*) FILTER (WHERE kind = 'paid' AND first_paid_start) AS first,
            count(*) FILTER (WHERE kind = 'trial') AS trials
        FROM plan_terms WHERE source_show = %(show)s
        """,
        show,
    )
    fees = await _one(
        conn,
        """
        SELECT coalesce(sum(total_fen), 0)::bigint AS fees_fen
        FROM orders WHERE show_id = %(show)s AND kind = 'plan' AND paid_at IS NOT NULL
        """,
        show,
    )
    return Joins(**terms, **fees)


async def _gifts(conn: Connection, show: ShowId) -> list[Gift]:
    cursor = await conn.execute(
        """
        SELECT b.id, b.title, b.what, b.quota, b.value_fen, count(c.id) AS claimed,
            (count(c.id) FILTER (WHERE c.state = 'confirmed') * b.value_fen)::bigint AS cost_fen
        FROM benefits b LEFT JOIN benefit_claims c ON c.benefit_id = b.id
        WHERE b.show_id = %s GROUP BY b.id ORDER BY b.id
        """,
        [show],
    )
    return [
        Gift(
            benefit=BenefitId(str(row["id"])),
            title=row["title"],
            what=row["what"],
            quota=row["quota"],
            claimed=row["claimed"],
            value_fen=row["value_fen"],
            cost_fen=row["cost_fen"],
        )
        for row in await cursor.fetchall()
    ]


async def _first_sold(conn: Connection, show: ShowId) -> list[FirstSold]:
    cursor = await conn.execute(
        """
        WITH there AS (
            SELECT count(DISTINCT b.member_id) AS members FROM behaviour_records b
            JOIN plan_terms t ON t.member_id = b.member_id AND t.starts_at <= b.at
                AND coalesce(t.ended_at, t.ends_at) > b.at
            WHERE b.show_id = %(show)s
        )
        SELECT p.id, p.name, there.members, count(DISTINCT d.member_id) FILTER (
            WHERE d.paid_at IS NOT NULL AND d.state <> 'refunded') AS buyers
        FROM (SELECT DISTINCT product_id FROM offers WHERE show_id = %(show)s) o
        JOIN products p ON p.id = o.product_id CROSS JOIN there
        LEFT JOIN order_lines l ON l.product_id = p.id AND l.kind = 'goods'
        LEFT JOIN orders d ON d.id = l.order_id AND d.show_id = %(show)s
        WHERE p.early_s > 0 OR coalesce(p.audience->>'kind', 'everyone') <> 'everyone'
        GROUP BY p.id, there.members ORDER BY p.id
        """,
        {"show": show},
    )
    return [
        FirstSold(
            product=ProductId(str(row["id"])),
            name=row["name"],
            buyers=row["buyers"],
            members=row["members"],
        )
        for row in await cursor.fetchall()
    ]


async def _people(conn: Connection, show: ShowId) -> dict[str, Any]:
    return await _one(
        conn,
        """
        SELECT count(DISTINCT viewer) AS viewers, count(DISTINCT member_id) AS members,
            count(*) FILTER (WHERE kind = 'comment') AS comments,
            count(DISTINCT viewer) FILTER (WHERE kind = 'comment') AS commenters,
            coalesce(sum(value) FILTER (WHERE kind = 'reaction'), 0)::bigint AS reactions,
            coalesce(round(sum(value) FILTER (WHERE kind = 'watch') / 1000.0
                / nullif(count(DISTINCT viewer) FILTER (WHERE kind = 'watch'), 0)), 0)::bigint
                AS watched_average_s
        FROM behaviour_records WHERE show_id = %(show)s
        """,
        show,
    )


async def _peak(conn: Connection, show: ShowId) -> int:
    """The most people watching at one time, each person's windows taken as one."""
    row = await _one(
        conn,
        """
        WITH watched AS (
            SELECT unnest(range_agg(tstzrange(at, at + make_interval(secs => value / 1000.0)))) AS during
            FROM behaviour_records
            WHERE show_id = %(show)s AND kind = 'watch' AND value > 0 AND viewer IS NOT NULL
            GROUP BY viewer
        ), steps AS (
            SELECT lower(during) AS at, 1 AS step FROM watched
            UNION ALL SELECT upper(during), -1 FROM watched
        )
        SELECT coalesce(max(here), 0)::int AS peak FROM (
            SELECT sum(step) OVER (ORDER BY at, step ROWS UNBOUNDED PRECEDING) AS here FROM steps
        ) counted
        """,
        show,
    )
    return int(row["peak"])


async def _questions(conn: Connection, show: ShowId) -> list[Question]:
    """What viewers asked most; hidden comments and staff's own are left out."""
    cursor = await conn.execute(
        """
        SELECT l.event->>'viewer' AS person, l.event->>'text' AS text
        FROM show_log l
        WHERE l.show_id = %(show)s AND l.event->>'type' = 'comment.posted' AND l.event->>'badge' <> 'host'
          AND NOT EXISTS (
            SELECT 1 FROM show_log h
            WHERE h.show_id = l.show_id AND h.epoch = l.epoch AND h.event->>'type' = 'comment.hidden'
              AND (h.event->>'comment')::bigint = l.seq)
        ORDER BY l.at DESC, l.seq DESC LIMIT %(most)s
        """,
        {"show": show, "most": COMMENTS_READ_MAX},
    )
    said = [(row["person"], row["text"]) for row in await cursor.fetchall()]
    cursor = await conn.execute(
        """
        SELECT DISTINCT unnest(ARRAY[p.name, p.tag_name]) AS name
        FROM offers o JOIN products p ON p.id = o.product_id WHERE o.show_id = %s
        """,
        [show],
    )
    names = [row["name"] for row in await cursor.fetchall() if row["name"]]
    return top_questions(said, QUESTIONS, names)


def _result(poll: Poll) -> PollResult:
    assert poll.result is not None
    return PollResult(
        poll=poll.id,
        question=poll.question,
        choices=poll.choices,
        voters=poll.result.voters,
        tally=poll.result.tally,
    )
