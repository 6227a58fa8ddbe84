"""Gifts of a plan by the month, by the year and on the birthday: one a period, and none piles up.

Months and years count from the term's anchor in the shop's zone, so that a year has twelve of them whatever day it
began on. The birthday's gift may be taken for thirty days from the day; who was born on 29 February has it on
28 February in common years. A trial has none of them.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NewType
from zoneinfo import ZoneInfo

import msgspec

from membership.actor import AddressId, MemberId, PlanId, is_id, new_id
from membership.addresses import Addresses
from membership.line import clean_line
from membership.members import NoSuchMember, lock_member
from membership.refusal import BadRequest, NotFound, Refusal
from membership.transaction import Connection, Transaction

GiftId = NewType("GiftId", str)

GIFTS_MAX = 12  # of one plan
TITLE_MAX = 60
VALUE_FEN_MAX = 10_000_000
BIRTHDAY_DAYS = 30
LEAP_YEAR = 2000  # any: 29 February is a birthday

Every = Literal["month", "year", "birthday"]


class NoSuchGift(NotFound):
    """There is no such gift."""


class NotDue(Refusal):
    """This gift is not yours to take now."""

    code = "not_eligible"


class BirthdayKnown(Refusal):
    """A birthday is told once."""

    code = "already_decided"


class GiftInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gift as staff write it. `value_fen`: what it counts for when the plan is given back."""

    title: str
    value_fen: int = 0
    every: Every
    needs_address: bool = True  # it is sent; otherwise it is handed over when it is taken


class PeriodicGift(msgspec.Struct, frozen=True, kw_only=True):
    id: GiftId
    title: str
    value_fen: int
    every: Every
    needs_address: bool


class GiftNow(msgspec.Struct, frozen=True, kw_only=True):
    """A gift of one's plan in its current period. `waiting`: the birthday's, on other days or with none told."""

    gift: PeriodicGift
    state: Literal["due", "claimed", "waiting"]
    from_at: datetime | None = None
    until_at: datetime | None = None
    claim: str | None = None
    claimed_at: datetime | None = None


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    """A gift with the term that gives it, and the moment at which it was read."""

    gift: PeriodicGift
    term: str
    anchor_at: datetime
    birthday: str | None
    now: datetime


def checked_gifts(given: Sequence[GiftInput]) -> tuple[GiftInput, ...]:
    """The gifts as they are kept. Raises BadRequest."""
    if len(given) > GIFTS_MAX:
        raise BadRequest(f"A plan has at most {GIFTS_MAX} gifts.", field="gifts")
    kept = []
    for gift in given:
        title = clean_line(gift.title)
        if not 1 <= len(title) <= TITLE_MAX:
            raise BadRequest(f"A gift's title has 1–{TITLE_MAX} characters.", field="gifts")
        if not 0 <= gift.value_fen <= VALUE_FEN_MAX:
            raise BadRequest(f"A gift's value_fen is 0–{VALUE_FEN_MAX}.", field="gifts")
        kept.append(msgspec.structs.replace(gift, title=title))
    return tuple(kept)


def checked_birthday(given: str) -> str:
    """MM-DD. Raises BadRequest."""
    try:
        day = datetime.strptime(f"{LEAP_YEAR}-{given}", "%Y-%m-%d")  # noqa: DTZ007 - a day of no year
    except ValueError:
        day = None
    if day is None or day.strftime("%m-%d") != given:
        raise BadRequest("A birthday is MM-DD.", field="birthday")
    return given


def period_of(
    every: Every, anchor_at: datetime, now: datetime, zone: ZoneInfo, birthday: str | None = None
) -> tuple[datetime, datetime] | None:
    """The period of this moment, its beginning within it and its end not; None when there is none."""
    local = now.astimezone(zone)
    if every == "birthday":
        return None if birthday is None else _birthday_period(birthday, local, zone)
    start = anchor_at.astimezone(zone)
    months = (local.year - start.year) * 12 + local.month - start.month
    if months_after(start, months) > local:
        months -= 1
    step = 12 if every == "year" else 1
    first = months // step * step
    return months_after(start, first), months_after(start, first + step)


def months_after(start: datetime, months: int) -> datetime:
    """So many months later on the same day, or on the last day of a month that is shorter."""
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return start.replace(year=year, month=month + 1, day=day)


def birthday_in(birthday: str, year: int, zone: ZoneInfo) -> datetime:
    """The midnight with which the birthday begins; 29 February is 28 February in common years."""
    month, day = int(birthday[:2]), int(birthday[3:])
    day = min(day, calendar.monthrange(year, month)[1])
    return datetime(year, month, day, tzinfo=zone)


def _birthday_period(birthday: str, local: datetime, zone: ZoneInfo) -> tuple[datetime, datetime] | None:
    for year in (local.year, local.year - 1):  # December's reaches into the year after
        start = birthday_in(birthday, year, zone)
        if start <= local < start + timedelta(days=BIRTHDAY_DAYS):
            return start, start + timedelta(days=BIRTHDAY_DAYS)
    return None


async def insert_gifts(t: Transaction, plan: PlanId, gifts: Sequence[GiftInput]) -> None:
    """Keep the gifts of a plan that is being made."""
    for position, gift in enumerate(gifts, 1):
        await t.conn.execute(
            "INSERT INTO plan_gifts (id, plan_id, position, title, value_fen, every, needs_address)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (new_id(), plan, position, gift.title, gift.value_fen, gift.every, gift.needs_address),
        )


async def gifts_of(conn: Connection, plans: Sequence[PlanId]) -> dict[PlanId, tuple[PeriodicGift, ...]]:
    """The gifts of these plans, in their order; plans without one are left out."""
    rows = await (
        await conn.execute(
            "SELECT plan_id, id, title, value_fen, every, needs_address FROM plan_gifts"
            " WHERE plan_id = ANY(%s::uuid[]) ORDER BY plan_id, position",
            (list(plans),),
        )
    ).fetchall()
    found: dict[PlanId, tuple[PeriodicGift, ...]] = {}
    for row in rows:
        plan = PlanId(str(row["plan_id"]))
        found[plan] = (*found.get(plan, ()), _gift(row))
    return found


def _gift(row: dict[str, Any]) -> PeriodicGift:
    return PeriodicGift(
        id=GiftId(str(row["id"])),
        title=row["title"],
        value_fen=row["value_fen"],
        every=row["every"],
        needs_address=row["needs_address"],
    )


class PeriodicGifts:
    """Says what is due to a member now, and notes what they take. `timezone` is the shop's."""

    def __init__(self, addresses: Addresses, *, timezone: str = "Asia/Shanghai") -> None:
        self._addresses = addresses
        self._zone = ZoneInfo(timezone)

    async def of_member(
        self, conn: Connection, member: MemberId, *, at: datetime | None = None
    ) -> tuple[GiftNow, ...]:
        """The gifts of the member's paid plans, each in its current period."""
        return tuple([await self._now(conn, member, held) for held in await self._held(conn, member, at)])

    async def claim(
        self,
        t: Transaction,
        member: MemberId,
        gift: GiftId | str,
        address: AddressId | str | None = None,
        *,
        at: datetime | None = None,
    ) -> GiftNow:
        """Take the gift of this period; again answers the same. What was not taken lapses with its period.

        Raises NoSuchMember, NoSuchGift, NotDue (no paid plan with it, or not the time), BadRequest (no
        address), NoSuchAddress.
        """
        # The member's row is what two calls at once wait for, and giving the plan back too.
        if not await lock_member(t.conn, member):
            raise NoSuchMember
        known = (
            is_id(gift)
            and await (await t.conn.execute("SELECT 1 FROM plan_gifts WHERE id = %s", (gift,))).fetchone()
        )
        if not known:
            raise NoSuchGift
        held = next((each for each in await self._held(t.conn, member, at) if each.gift.id == gift), None)
        if held is None:
            raise NotDue
        before = await self._now(t.conn, member, held)
        if before.state == "claimed":
            return before
        if before.state == "waiting":
            raise NotDue("The birthday's gift may be taken for thirty days from the day.")
        kept: str | None = None
        if held.gift.needs_address:
            if address is None:
                raise BadRequest("This gift is sent; name an address.", field="address")
            to = await self._addresses.get(t.conn, member, AddressId(address))
            copy = {"name": to.name, "phone": to.phone, "region": to.region, "detail": to.detail}
            kept = msgspec.json.encode(copy).decode()
        await t.conn.execute(
            """
            INSERT INTO gift_claims (id, gift_id, member_id, term_id, period_from, period_until, address)
            VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb)
            """,
            (new_id(), held.gift.id, member, held.term, before.from_at, before.until_at, kept),
        )
        return await self._now(t.conn, member, held)

    async def birthday(self, conn: Connection, member: MemberId) -> str | None:
        """MM-DD, when it was told."""
        row = await (await conn.execute("SELECT birthday FROM members WHERE id = %s", (member,))).fetchone()
        return None if row is None else row["birthday"]

    async def set_birthday(self, t: Transaction, member: MemberId, birthday: str) -> str:
        """Tell one's birthday, once; the same again changes nothing.

        Raises BadRequest, BirthdayKnown (another one was told), NoSuchMember.
        """
        kept = checked_birthday(birthday)
        row = await (
            await t.conn.execute(
                "UPDATE members SET birthday = coalesce(birthday, %s) WHERE id = %s AND erased_at IS NULL"
                " RETURNING birthday",
                (kept, member),
            )
        ).fetchone()
        if row is None:
            raise NoSuchMember
        if row["birthday"] != kept:
            raise BirthdayKnown
        return kept

    # --- parts ---

    async def _held(self, conn: Connection, member: MemberId, at: datetime | None) -> list[_Held]:
        rows = await (
            await conn.execute(
                """
                SELECT g.id, g.title, g.value_fen, g.every, g.needs_address, t.id::text AS term, t.anchor_at,
                    m.birthday, now.at AS now
                FROM (SELECT coalesce(%(at)s::timestamptz, clock_timestamp()) AS at) now
                JOIN plan_terms t ON t.starts_at <= now.at AND coalesce(t.ended_at, t.ends_at) > now.at
                JOIN members m ON m.id = t.member_id
                JOIN plan_gifts g ON g.plan_id = t.plan_id
                WHERE t.member_id = %(member)s AND t.kind = 'paid'
                ORDER BY t.id, g.position
                """,
                {"member": member, "at": at},
            )
        ).fetchall()
        return [
            _Held(
                gift=_gift(row),
                term=row["term"],
                anchor_at=row["anchor_at"],
                birthday=row["birthday"],
                now=row["now"],
            )
            for row in rows
        ]

    async def _now(self, conn: Connection, member: MemberId, held: _Held) -> GiftNow:
        period = period_of(held.gift.every, held.anchor_at, held.now, self._zone, held.birthday)
        if period is None:
            return GiftNow(gift=held.gift, state="waiting")
        # One that was taken in a period that reaches into this one counts, whichever term gave it; after a
        # refund it was paid for or never sent.
        row = await (
            await conn.execute(
                """
                SELECT c.id::text AS id, c.period_from, c.period_until, c.claimed_at
                FROM gift_claims c JOIN plan_terms t ON t.id = c.term_id
                WHERE c.member_id = %s AND c.gift_id = %s AND c.period_from < %s AND c.period_until > %s
                  AND t.end_reason IS DISTINCT FROM 'refunded'
                ORDER BY c.period_from DESC LIMIT 1
                """,
                (member, held.gift.id, period[1], period[0]),
            )
        ).fetchone()
        if row is None:
            return GiftNow(gift=held.gift, state="due", from_at=period[0], until_at=period[1])
        return GiftNow(
            gift=held.gift,
            state="claimed",
            from_at=row["period_from"],
            until_at=row["period_until"],
            claim=row["id"],
            claimed_at=row["claimed_at"],
        )
