"""Paid membership: the plans on sale, trials, and the terms that members have started.

A term is one started period. Renewing early adds a term that begins where the last one ends; nothing but
a refund, a conversion or erasing ends a trial or paid term before its time.

Nothing charges by itself, so a renewal fails only in the member's own hands: an order for the plan they have,
placed while the paid time still ran, whose payment was begun at the provider and that ran out without money.
Then a plan with `grace_days` goes on past its end by a term of its own, once for a paid term.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from psycopg.rows import DictRow

from membership.actor import MemberId, OrderId, PaymentId, PlanId, ShowId, is_id, new_id
from membership.line import clean_line
from membership.members import NoSuchMember, parse_phone
from membership.notices import Notices
from membership.page import Page, check_page
from membership.periodic_gifts import GiftInput, PeriodicGift, checked_gifts, gifts_of, insert_gifts
from membership.refusal import BadRequest, KeyReused, NotFound, Refusal
from membership.transaction import Connection, Transaction

TRIAL_DAYS = 7
POINTS_BONUS_PERCENT = 20
FEE_FEN_MAX = 10_000_000  # 100,000 yuan: beyond it somebody typed yuan for fen
GRACE_DAYS_MAX = 30
ENDING_MAX = 10_000  # terms that run out, read at once
# A renewal begins where the paid time ended: who pays in the grace of a plan by the month still has half of it.
GRACE_DAYS_MAX_OF_A_MONTH = 14


class NoSuchPlan(NotFound):
    """There is no such plan."""


class TrialUsed(Refusal):
    """The trial was used before. One a person, over all plans."""

    code = "trial_used"


class NoTrial(Refusal):
    """This plan has no trial."""

    code = "not_eligible"


class AlreadyMember(Refusal):
    """A plan is running already."""

    code = "already_member"


class PlanInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    fee_fen: int
    period_months: int
    trial_days: int = TRIAL_DAYS  # 0: no trial
    percent: int | None = None  # of the list price, for products without a member price of their own
    points_bonus_percent: int = POINTS_BONUS_PERCENT
    free_freight: bool = True
    gift_text: str = ""
    gift_value_fen: int = 0
    gifts: tuple[GiftInput, ...] = ()  # by the month, by the year, on the birthday
    grace_days: int = 0  # of 24 h, after a renewal that failed; 14 at most for a plan of one month


class Plan(msgspec.Struct, frozen=True):
    id: PlanId
    name: str
    fee_fen: int
    period_months: int
    trial_days: int
    percent: int | None
    points_bonus_percent: int
    free_freight: bool
    gift_text: str
    gift_value_fen: int
    on_sale: bool
    gifts: tuple[PeriodicGift, ...] = ()
    grace_days: int = 0


class FailedRenewal(msgspec.Struct, frozen=True):
    """An order for a plan, placed then, whose payment was begun and that ran out without money."""

    order: OrderId
    member: MemberId
    plan: PlanId
    placed_at: datetime


class Term(msgspec.Struct, frozen=True):
    """One started period of one member; or the grace after the last, where a renewal failed."""

    id: str
    member: MemberId
    plan: PlanId
    plan_name: str
    kind: Literal["trial", "paid", "grace"]
    starts_at: datetime
    ends_at: datetime  # of this term; where it was cut short, that moment
    until: datetime  # with the renewals that join on
    first_paid_start: bool  # guest, registered, trial or lapsed → paid
    source_show: ShowId | None = None
    cancelled: bool = False  # for its end; undone until then

    @property
    def trial(self) -> bool:
        return self.kind == "trial"

    @property
    def grace(self) -> bool:
        return self.kind == "grace"


def _check(given: PlanInput) -> PlanInput:
    name, gift_text = clean_line(given.name), clean_line(given.gift_text)
    bounds: tuple[tuple[str, int, int, int], ...] = (
        ("name", len(name), 1, 40),
        ("fee_fen", given.fee_fen, 1, FEE_FEN_MAX),
        ("period_months", given.period_months, 1, 120),
        ("trial_days", given.trial_days, 0, 60),
        ("percent", 99 if given.percent is None else given.percent, 1, 99),
        ("points_bonus_percent", given.points_bonus_percent, 0, 1000),
        ("gift_text", len(gift_text), 0, 200),
        ("gift_value_fen", given.gift_value_fen, 0, FEE_FEN_MAX),
        ("grace_days", given.grace_days, 0, _most_grace(given.period_months)),
    )
    for field, value, low, high in bounds:
        if not low <= value <= high:
            raise BadRequest(f"{field} is {low}–{high}.", field=field)
    return msgspec.structs.replace(given, name=name, gift_text=gift_text, gifts=checked_gifts(given.gifts))


def _most_grace(period_months: int) -> int:
    return GRACE_DAYS_MAX_OF_A_MONTH if period_months == 1 else GRACE_DAYS_MAX


_PLAN = """
    SELECT id, name, fee_fen, period_months, trial_days, percent, points_bonus_percent, free_freight,
           gift_text, gift_value_fen, on_sale, grace_days
    FROM plans
"""

# `until`: renewals of the same plan begin exactly where the term before them ends
_TERM = """
    SELECT t.id, t.member_id, t.plan_id, p.name AS plan_name, t.kind, t.starts_at,
           coalesce(t.ended_at, t.ends_at) AS ends_at, t.first_paid_start, t.source_show,
           t.cancelled_at IS NOT NULL AS cancelled,
           CASE WHEN t.ended_at IS NOT NULL THEN t.ended_at ELSE (
               SELECT max(n.ends_at) FROM plan_terms n
               WHERE n.member_id = t.member_id AND n.plan_id = t.plan_id AND n.kind = t.kind
                 AND n.ended_at IS NULL AND n.anchor_at = t.anchor_at
           ) END AS until
    FROM plan_terms t JOIN plans p ON p.id = t.plan_id
"""


def _plan(row: DictRow, gifts: tuple[PeriodicGift, ...]) -> Plan:
    return Plan(**{**row, "id": PlanId(str(row["id"])), "gifts": gifts})


def _term(row: DictRow) -> Term:
    return Term(
        id=str(row["id"]),
        member=MemberId(str(row["member_id"])),
        plan=PlanId(str(row["plan_id"])),
        plan_name=row["plan_name"],
        kind=row["kind"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        until=row["until"],
        first_paid_start=row["first_paid_start"],
        source_show=row["source_show"],
        cancelled=row["cancelled"],
    )


class Plans:
    """`secret` keys the digests by which a used trial is remembered; `timezone` is the shop's, in which
    months are counted. `at` in the methods is for records of an earlier moment; left out, the store's clock
    decides."""

    def __init__(self, notices: Notices, secret: bytes | str, *, timezone: str = "Asia/Shanghai") -> None:
        self._notices = notices
        key = secret.encode() if isinstance(secret, str) else secret
        self._mark_key = hmac.digest(key, b"companion trial marks", "sha256")
        self._timezone = timezone

    async def all(self, conn: Connection, *, on_sale: bool = True) -> tuple[Plan, ...]:
        """The plans on sale, cheapest first; or all there ever were."""
        rows = await (
            await conn.execute(_PLAN + " WHERE on_sale OR NOT %s ORDER BY fee_fen, id", (on_sale,))
        ).fetchall()
        return await self._with_gifts(conn, rows)

    async def page(self, conn: Connection, cursor: str | None = None, limit: int = 50) -> Page[Plan]:
        """All plans there ever were, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                _PLAN
                + " WHERE (%(cursor)s::uuid IS NULL OR id < %(cursor)s) ORDER BY id DESC LIMIT %(limit)s + 1",
                {"cursor": cursor, "limit": limit},
            )
        ).fetchall()
        items = await self._with_gifts(conn, rows[:limit])
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def get(self, conn: Connection, plan: PlanId | str) -> Plan:
        """Raises NoSuchPlan."""
        row = None
        if is_id(plan):
            row = await (await conn.execute(_PLAN + " WHERE id = %s", (plan,))).fetchone()
        if row is None:
            raise NoSuchPlan
        return (await self._with_gifts(conn, [row]))[0]

    async def create(self, t: Transaction, given: PlanInput) -> Plan:
        """Put a plan on sale. What members bought does not change later; a new price is a new plan."""
        kept = _check(given)
        plan = PlanId(new_id())
        await t.conn.execute(
            """
            INSERT INTO plans (id, name, fee_fen, period_months, trial_days, percent, points_bonus_percent,
                               free_freight, gift_text, gift_value_fen, grace_days)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            (
                plan,
                kept.name,
                kept.fee_fen,
                kept.period_months,
                kept.trial_days,
                kept.percent,
                kept.points_bonus_percent,
                kept.free_freight,
                kept.gift_text,
                kept.gift_value_fen,
                kept.grace_days,
            ),
        )
        await insert_gifts(t, plan, kept.gifts)
        return await self.get(t.conn, plan)

    async def set_on_sale(self, t: Transaction, plan: PlanId, on_sale: bool) -> Plan:
        """Take a plan off sale, or put it back. Members who have it keep it."""
        await self.get(t.conn, plan)
        await t.conn.execute("UPDATE plans SET on_sale = %s WHERE id = %s", (on_sale, plan))
        return await self.get(t.conn, plan)

    async def start_trial(
        self,
        t: Transaction,
        member: MemberId,
        plan: PlanId,
        phone: str,
        source_show: ShowId | None = None,
        *,
        openid: str | None = None,
        payer: str | None = None,
        at: datetime | None = None,
    ) -> Term:
        """Trial days of 24 h, to the second. Once a member, phone, OpenID and payer, over all plans.

        Raises TrialUsed, AlreadyMember, NoTrial, NoSuchPlan.
        """
        offered = await self.get(t.conn, plan)
        if not offered.on_sale:
            raise NoSuchPlan
        if offered.trial_days == 0:
            raise NoTrial
        held = await self._lock(t, member)
        marks = {("member", str(member)), ("phone", parse_phone(phone))}
        if held is not None:  # the phone we know counts too, whatever was passed
            marks.add(("phone", held))
        if openid:
            marks.add(("openid", openid))
        if payer:
            marks.add(("payer", payer))
        digests = {(kind, self._mark(kind, value)) for kind, value in marks}
        used = await t.conn.execute(
            "SELECT 1 FROM trial_marks WHERE (kind, mark) IN"
            " (SELECT * FROM unnest(%s::text[], %s::bytea[])) LIMIT 1",
            ([kind for kind, _ in digests], [mark for _, mark in digests]),
        )
        if await used.fetchone() is not None:
            raise TrialUsed
        if await self.current(t.conn, member, at=at) is not None:
            raise AlreadyMember
        term = new_id()
        async with t.conn.transaction():  # a savepoint: a refusal leaves no trial without its marks
            await t.conn.execute(
                """
                INSERT INTO plan_terms (id, member_id, plan_id, kind, starts_at, ends_at, anchor_at,
                                        anchor_months, first_paid_start, source_show)
                SELECT %(id)s, %(member)s, %(plan)s, 'trial', now.at, now.at + %(days)s * interval '24 hours',
                       now.at, 0, false, %(show)s
                FROM (SELECT coalesce(%(at)s::timestamptz, clock_timestamp()) AS at) now
                """,
                {
                    "id": term,
                    "member": member,
                    "plan": plan,
                    "days": offered.trial_days,
                    "show": source_show,
                    "at": at,
                },
            )
            for kind, mark in sorted(digests):  # one order for all, so that two cannot deadlock
                # two members with one phone wait here for each other; the second finds it used
                marked = await t.conn.execute(
                    "INSERT INTO trial_marks (kind, mark, term_id) VALUES (%s, %s, %s)"
                    " ON CONFLICT DO NOTHING",
                    (kind, mark, term),
                )
                if marked.rowcount == 0:
                    raise TrialUsed
        self._tell(t, member)
        return await self._get_term(t.conn, term)

    async def start_paid(
        self,
        t: Transaction,
        member: MemberId,
        plan: PlanId,
        payment_id: PaymentId,
        source_show: ShowId | None = None,
        *,
        at: datetime | None = None,
    ) -> Term:
        """A paid period, in the payment's own transaction. The same payment is answered by the same term.

        Renewing extends from the end, in a grace too, which ends; a running trial converts at once. Raises
        NoSuchPlan, NoSuchMember, KeyReused when the payment was for something else.
        """
        bought = await self.get(t.conn, plan)
        await self._lock(t, member)
        seen = await (await t.conn.execute(_TERM + " WHERE t.payment_id = %s", (payment_id,))).fetchone()
        if seen is not None:
            term = _term(seen)
            if (term.member, term.plan) != (member, bought.id):
                raise KeyReused("This payment started another term.")
            return term
        row = await (
            await t.conn.execute("SELECT coalesce(%s::timestamptz, clock_timestamp()) AS at", (at,))
        ).fetchone()
        assert row is not None
        moment: datetime = row["at"]
        await t.conn.execute(
            """
            UPDATE plan_terms SET ended_at = %(at)s, end_reason = 'converted'
            WHERE member_id = %(member)s AND kind = 'trial' AND ended_at IS NULL
              AND starts_at <= %(at)s AND ends_at > %(at)s
            """,
            {"member": member, "at": moment},
        )
        ahead = await (
            await t.conn.execute(
                """
                SELECT plan_id::text AS plan, ends_at, anchor_at, anchor_months FROM plan_terms
                WHERE member_id = %s AND kind = 'paid' AND ended_at IS NULL AND ends_at > %s
                ORDER BY ends_at DESC
                """,
                (member, moment),
            )
        ).fetchall()
        # Who pays once more does not want the end any longer.
        await t.conn.execute(
            "UPDATE plan_terms SET cancelled_at = NULL"
            " WHERE member_id = %s AND plan_id = %s AND ended_at IS NULL AND cancelled_at IS NOT NULL",
            (member, bought.id),
        )
        graces = await (
            await t.conn.execute(
                """
                SELECT g.plan_id::text AS plan, last.ends_at, last.anchor_at, last.anchor_months
                FROM plan_terms g JOIN plan_terms last ON last.id = g.after_term
                WHERE g.member_id = %(member)s AND g.kind = 'grace' AND g.ended_at IS NULL
                  AND g.starts_at <= %(at)s AND g.ends_at > %(at)s
                """,
                {"member": member, "at": moment},
            )
        ).fetchall()
        await t.conn.execute(
            """
            UPDATE plan_terms SET end_reason = 'renewed', ended_at = coalesce(ended_at, greatest(starts_at, %(at)s))
            WHERE member_id = %(member)s AND plan_id = %(plan)s AND kind = 'grace'
              AND (ended_at IS NULL AND ends_at > %(at)s OR end_reason = 'cancelled')
            """,
            {"member": member, "plan": bought.id, "at": moment},
        )
        last = next((term for term in [*ahead, *graces] if term["plan"] == bought.id), None)
        starts_at = moment if last is None else last["ends_at"]
        anchor_at = moment if last is None else last["anchor_at"]
        anchor_months = bought.period_months + (0 if last is None else last["anchor_months"])
        term_id = new_id()
        await t.conn.execute(
            """
            INSERT INTO plan_terms (id, member_id, plan_id, kind, starts_at, ends_at, anchor_at,
                                    anchor_months, payment_id, first_paid_start, source_show)
            VALUES (%(id)s, %(member)s, %(plan)s, 'paid', %(starts_at)s,
                    (%(anchor_at)s::timestamptz AT TIME ZONE %(zone)s
                     + make_interval(months => %(months)s)) AT TIME ZONE %(zone)s,
                    %(anchor_at)s, %(months)s, %(payment)s, %(first)s, %(show)s)
            """,
            {
                "id": term_id,
                "member": member,
                "plan": bought.id,
                "starts_at": starts_at,
                "anchor_at": anchor_at,
                "months": anchor_months,
                "zone": self._timezone,
                "payment": payment_id,
                "first": not ahead and not graces,
                "show": source_show,
            },
        )
        self._tell(t, member)
        return await self._get_term(t.conn, term_id)

    async def give_grace(self, t: Transaction, failed: Sequence[FailedRenewal]) -> None:
        """Renewals failed: each plan goes on from the end of its last paid term, for the days that it says.

        Once for a paid term. Not for a plan that is cancelled for its end, was renewed meanwhile or is no longer
        on sale, so that nobody could renew it; an order
        placed in a trial, in a grace or without the plan was no renewal.
        """
        locked = await t.conn.execute(
            "SELECT id::text AS id FROM members WHERE id = ANY(%s::uuid[]) AND erased_at IS NULL"
            " ORDER BY id FOR NO KEY UPDATE",
            ([each.member for each in failed],),
        )
        known = {row["id"] for row in await locked.fetchall()}
        for each in failed:
            if each.member not in known:
                continue
            given = await t.conn.execute(
                """
                INSERT INTO plan_terms (id, member_id, plan_id, kind, starts_at, ends_at, anchor_at, anchor_months,
                                        first_paid_start, after_term, failed_order)
                SELECT %(id)s, last.member_id, last.plan_id, 'grace', last.ends_at, grace.until, last.ends_at, 0,
                       false, last.id, %(order)s
                FROM (SELECT * FROM plan_terms
                      WHERE member_id = %(member)s AND plan_id = %(plan)s AND kind = 'paid' AND ended_at IS NULL
                      ORDER BY ends_at DESC LIMIT 1) last
                JOIN plans p ON p.id = last.plan_id
                CROSS JOIN LATERAL (SELECT last.ends_at + p.grace_days * interval '24 hours' AS until) grace
                WHERE p.grace_days > 0 AND p.on_sale AND last.cancelled_at IS NULL AND last.created_at < %(placed_at)s
                  AND last.ends_at > %(placed_at)s AND grace.until > clock_timestamp()
                ON CONFLICT (after_term) DO NOTHING
                """,
                {
                    "id": new_id(),
                    "order": each.order,
                    "member": each.member,
                    "plan": each.plan,
                    "placed_at": each.placed_at,
                },
            )
            if given.rowcount:
                self._tell(t, each.member)

    async def end_refunded(
        self, t: Transaction, payment_id: PaymentId, *, at: datetime | None = None
    ) -> Term | None:
        """End the term this payment started, the access it gave and the grace after it. None when it started
        none.

        Afterwards the person is registered, not on trial. Running it again changes nothing.
        """
        row = await (
            await t.conn.execute("SELECT id, member_id FROM plan_terms WHERE payment_id = %s", (payment_id,))
        ).fetchone()
        if row is None:
            return None
        await self._lock(t, MemberId(str(row["member_id"])))
        await t.conn.execute(
            """
            UPDATE plan_terms SET end_reason = 'refunded',
                   ended_at = greatest(starts_at, coalesce(%s::timestamptz, clock_timestamp()))
            WHERE id = %s AND ended_at IS NULL
            """,
            (at, row["id"]),
        )
        await t.conn.execute(
            """
            UPDATE plan_terms SET end_reason = 'refunded', ended_at = coalesce(ended_at,
                   greatest(starts_at, coalesce(%s::timestamptz, clock_timestamp())))
            WHERE after_term = %s AND (ended_at IS NULL OR end_reason = 'cancelled')
            """,
            (at, row["id"]),
        )
        self._tell(t, MemberId(str(row["member_id"])))
        return await self._get_term(t.conn, str(row["id"]))

    async def cancel(self, t: Transaction, member: MemberId) -> Term:
        """Cancel the paid plan for its end; access and prices stay until then, and no grace follows. Again
        changes nothing.

        Raises NoSuchPlan.
        """
        return await self._set_cancelled(t, member, cancelled=True)

    async def undo_cancel(self, t: Transaction, member: MemberId) -> Term:
        """Take the cancellation back, until the end. Raises NoSuchPlan."""
        return await self._set_cancelled(t, member, cancelled=False)

    async def _set_cancelled(self, t: Transaction, member: MemberId, *, cancelled: bool) -> Term:
        await self._lock(t, member)
        changed = await t.conn.execute(
            """
            UPDATE plan_terms SET cancelled_at = CASE WHEN %s THEN coalesce(cancelled_at, clock_timestamp()) END
            WHERE member_id = %s AND kind = 'paid' AND ended_at IS NULL AND ends_at > clock_timestamp()
            """,
            (cancelled, member),
        )
        await t.conn.execute(
            """
            UPDATE plan_terms SET ended_at = CASE WHEN %(cancelled)s THEN starts_at END,
                   end_reason = CASE WHEN %(cancelled)s THEN 'cancelled' END
            WHERE member_id = %(member)s AND kind = 'grace' AND starts_at > clock_timestamp()
              AND (ended_at IS NULL OR end_reason = 'cancelled')
            """,
            {"cancelled": cancelled, "member": member},
        )
        term = await self.current(t.conn, member)
        if not changed.rowcount or term is None:
            raise NoSuchPlan("You have no paid plan.")
        self._tell(t, member)
        return term

    async def current(self, conn: Connection, member: MemberId, *, at: datetime | None = None) -> Term | None:
        """The term that gives access now: a paid one before the others, then the one that lasts longest."""
        return (await self.current_of(conn, [member], at=at)).get(member)

    async def current_of(
        self, conn: Connection, members: Sequence[MemberId], *, at: datetime | None = None
    ) -> dict[MemberId, Term]:
        """The same for many, in one read; who has none is missing."""
        rows = await (
            await conn.execute(
                _TERM
                + """
                WHERE t.member_id = ANY(%(members)s::uuid[])
                  AND t.starts_at <= coalesce(%(at)s::timestamptz, clock_timestamp())
                  AND coalesce(t.ended_at, t.ends_at) > coalesce(%(at)s::timestamptz, clock_timestamp())
                ORDER BY t.kind = 'paid' DESC, until DESC
                """,
                {"members": list(members), "at": at},
            )
        ).fetchall()
        found: dict[MemberId, Term] = {}
        for row in rows:
            found.setdefault(MemberId(str(row["member_id"])), _term(row))
        return found

    async def terms(self, conn: Connection, member: MemberId) -> tuple[Term, ...]:
        """Every term of a member, newest first."""
        rows = await (
            await conn.execute(_TERM + " WHERE t.member_id = %s ORDER BY t.id DESC LIMIT 200", (member,))
        ).fetchall()
        return tuple(_term(row) for row in rows)

    async def points_bonus_percent(self, conn: Connection, member: MemberId) -> int:
        """What the member's paid plans add to points; a trial or a grace adds nothing."""
        row = await (
            await conn.execute(
                """
                SELECT coalesce(max(p.points_bonus_percent), 0) AS percent
                FROM plan_terms t JOIN plans p ON p.id = t.plan_id
                WHERE t.member_id = %s AND t.kind = 'paid' AND t.starts_at <= clock_timestamp()
                  AND coalesce(t.ended_at, t.ends_at) > clock_timestamp()
                """,
                (member,),
            )
        ).fetchone()
        assert row is not None
        return int(row["percent"])

    async def ending(
        self,
        conn: Connection,
        after: datetime,
        until: datetime,
        *,
        kind: Literal["trial", "paid", "grace"] | None = None,
        beyond: Term | None = None,
    ) -> tuple[Term, ...]:
        """Terms that run out in (after, until] with no renewal behind them, soonest first. A grace is none, and
        runs out itself. At most ENDING_MAX; those behind them are read with `beyond`, the last of them.

        A job looks back to tell sockets that have lapsed, and ahead to warn a day before.
        """
        rows = await (
            await conn.execute(
                _TERM  # noqa: S608 - a constant; what comes from outside is a parameter
                + """
                WHERE t.ends_at > %(after)s AND t.ends_at <= %(until)s AND t.ended_at IS NULL
                  AND (%(beyond)s::uuid IS NULL
                       OR (t.ends_at, t.id) > (%(beyond_at)s::timestamptz, %(beyond)s::uuid))
                  AND (%(kind)s::text IS NULL OR t.kind = %(kind)s)
                  AND NOT EXISTS (SELECT 1 FROM plan_terms n
                                  WHERE n.member_id = t.member_id AND n.plan_id = t.plan_id
                                    AND n.starts_at = t.ends_at AND n.ended_at IS NULL AND n.kind <> 'grace')
                ORDER BY t.ends_at, t.id LIMIT %(most)s
                """,
                {
                    "after": after,
                    "until": until,
                    "kind": kind,
                    "beyond": beyond.id if beyond else None,
                    "beyond_at": beyond.ends_at if beyond else None,
                    "most": ENDING_MAX,
                },
            )
        ).fetchall()
        return tuple(_term(row) for row in rows)

    async def given_back_since(self, conn: Connection, member: MemberId, at: datetime) -> bool:
        """Whether a paid plan that ran then was refunded since. One that only lapsed was not."""
        found = await conn.execute(
            """
            SELECT 1 FROM plan_terms
            WHERE member_id = %(member)s AND kind = 'paid' AND end_reason = 'refunded'
              AND starts_at <= %(at)s AND ends_at > %(at)s AND ended_at >= %(at)s
            """,
            {"member": member, "at": at},
        )
        return await found.fetchone() is not None

    async def _with_gifts(self, conn: Connection, rows: Sequence[DictRow]) -> tuple[Plan, ...]:
        gifts = await gifts_of(conn, [PlanId(str(row["id"])) for row in rows])
        return tuple(_plan(row, gifts.get(PlanId(str(row["id"])), ())) for row in rows)

    async def _lock(self, t: Transaction, member: MemberId) -> str | None:
        """One change of a member's terms at a time. Returns the member's phone."""
        row = None
        if is_id(member):
            row = await (
                await t.conn.execute(
                    """
                    SELECT (SELECT value FROM identifiers
                            WHERE member_id = m.id AND kind = 'phone' AND ended_at IS NULL) AS phone
                    FROM members m WHERE m.id = %s AND m.erased_at IS NULL FOR NO KEY UPDATE OF m
                    """,
                    (member,),
                )
            ).fetchone()
        if row is None:
            raise NoSuchMember
        phone: str | None = row["phone"]
        return phone

    async def _get_term(self, conn: Connection, term: str) -> Term:
        row = await (await conn.execute(_TERM + " WHERE t.id = %s", (term,))).fetchone()
        assert row is not None
        return _term(row)

    def _mark(self, kind: str, value: str) -> bytes:
        return hmac.new(self._mark_key, f"{kind}:{value}".encode(), hashlib.sha256).digest()

    def _tell(self, t: Transaction, member: MemberId) -> None:
        t.after_commit(lambda: self._notices.facts_changed(member))
