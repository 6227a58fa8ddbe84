"""Members: people who proved a phone. An opaque id; the phone is a dated identifier beside it.

Registering is idempotent by phone. A shop's server may feed members in by its own id.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import phonenumbers
from psycopg.rows import DictRow

from membership.actor import NOBODY, Actor, Facts, GuestId, MemberId, PlanId, ShowId, is_id, new_id
from membership.line import clean_line
from membership.notices import Notices
from membership.page import Page, check_page, page_of
from membership.personal import PERSONAL, Personal
from membership.refusal import BadRequest, NotFound, Refusal
from membership.transaction import Connection, Transaction, lock

NICKNAME_MAX = 20  # code points
FEED_MAX = 1000  # rows a call
EXTERNAL_ID_MAX = 128
NOTICE = "2026-11"  # edition of the privacy notice that a person agrees to by registering


class InvalidPhone(BadRequest):
    """This is not a mobile number."""

    code = "invalid_phone"


class InvalidNickname(BadRequest):
    """A nickname has 1–20 characters."""

    code = "invalid_nickname"


class PhoneTaken(Refusal):
    """This phone belongs to another member."""

    code = "phone_taken"


class NoSuchMember(NotFound):
    """There is no such member."""


class Member(msgspec.Struct, frozen=True):
    id: MemberId
    nickname: str | None
    phone: str | None  # E.164; None: no phone at present
    created_at: datetime
    external_id: str | None = None
    source_show: ShowId | None = None


class FeedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member as the shop's server knows them."""

    external_id: str
    phone: str
    nickname: str | None = None


class FedRow(msgspec.Struct, frozen=True):
    """What became of one fed row; a refused one leaves the others standing."""

    external_id: str
    outcome: Literal["created", "updated", "unchanged", "refused"]
    member: MemberId | None = None
    code: str | None = None  # the refusal's word


def parse_phone(text: str, region: str = "CN") -> str:
    """E.164 of a mobile number as people write it. Raises InvalidPhone."""
    if len(text) > 32:
        raise InvalidPhone
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        raise InvalidPhone from None
    kinds = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
    if number.extension or not phonenumbers.is_valid_number(number):
        raise InvalidPhone
    if phonenumbers.number_type(number) not in kinds:
        raise InvalidPhone
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def mask_phone(phone: str) -> str:
    """+8613812345678 → 138****5678; for the member's own eyes and for staff."""
    national = phone.removeprefix("+86")
    return f"{national[:3]}****{national[-4:]}"


def mask_name(name: str) -> str:
    """王小明 → 王**; what strangers are shown when somebody buys or joins."""
    return f"{name[:1]}**"


def display_name(member: Member) -> str:
    """The nickname, else 观众 and four digits drawn from the opaque id (never from the phone).

    Not 会员, which is the badge of who pays.
    """
    return shown_as(member.id, member.nickname)


def shown_as(member: MemberId, nickname: str | None) -> str:
    return nickname or f"观众{zlib.crc32(member.encode()) % 10_000:04d}"


def guest_name(guest: str) -> str:
    return f"访客{zlib.crc32(guest.encode()) % 10_000:04d}"


_GUEST = re.compile(r"g_[0-9a-z-]{8,48}")


def new_guest_id() -> GuestId:
    return GuestId(f"g_{new_id()}")


def is_guest_id(text: str) -> bool:
    return _GUEST.fullmatch(text) is not None


def guest(guest_id: GuestId) -> Actor:
    """The actor of somebody we cannot name."""
    return Actor(kind="viewer", id=guest_id, name=guest_name(guest_id))


def check_nickname(text: str) -> str:
    """The nickname as it is kept. Raises InvalidNickname."""
    nickname = clean_line(text)
    if not 1 <= len(nickname) <= NICKNAME_MAX:
        raise InvalidNickname
    return nickname


_SELECT = """
    SELECT m.id, m.nickname, m.created_at, m.external_id, m.source_show, i.value AS phone
    FROM members m LEFT JOIN identifiers i ON i.member_id = m.id AND i.kind = 'phone' AND i.ended_at IS NULL
"""


def _member(row: DictRow) -> Member:
    return Member(
        id=MemberId(str(row["id"])),
        nickname=row["nickname"],
        phone=row["phone"],
        created_at=row["created_at"],
        external_id=row["external_id"],
        source_show=row["source_show"],
    )


class Members:
    """`personal` is the list that erasing walks: ours and that of the packages above."""

    def __init__(
        self, notices: Notices, *, region: str = "CN", personal: Sequence[Personal] = PERSONAL
    ) -> None:
        self._notices = notices
        self._region = region
        self._personal = tuple(personal)

    async def register(
        self, t: Transaction, phone: str, nickname: str | None = None, source_show: ShowId | None = None
    ) -> Member:
        """The member who holds this phone; made when there is none. The phone was proven by a code.

        A nickname is taken when the member has none yet; signing in never renames.
        """
        phone = parse_phone(phone, self._region)
        if nickname is not None:
            nickname = check_nickname(nickname)
        await _lock_phones(t, [phone])
        found = await self.by_phone(t.conn, phone)
        if found is None:
            return await self._create(t, phone, nickname, source_show=source_show, agreed=True)
        await t.conn.execute(
            "UPDATE identifiers SET seen_at = clock_timestamp()"
            " WHERE kind = 'phone' AND value = %s AND ended_at IS NULL",
            (phone,),
        )
        await t.conn.execute(
            "UPDATE members SET agreed_at = clock_timestamp(), notice = %s"
            " WHERE id = %s AND notice IS DISTINCT FROM %s",
            (NOTICE, found.id, NOTICE),
        )
        if found.nickname is None and nickname is not None:
            return await self.rename(t, found.id, nickname)
        return found

    async def by_id(self, conn: Connection, member: MemberId | str) -> Member:
        """Raises NoSuchMember, also for an erased one."""
        if not is_id(member):
            raise NoSuchMember
        found = await self._one(conn, "m.id = %s", member)
        if found is None:
            raise NoSuchMember
        return found

    async def by_phone(self, conn: Connection, phone: str) -> Member | None:
        """Who holds this phone now."""
        return await self._one(conn, "i.value = %s", parse_phone(phone, self._region))

    async def by_external_id(self, conn: Connection, external_id: str) -> Member | None:
        """The member the shop's server knows by this id."""
        if not 1 <= len(external_id) <= EXTERNAL_ID_MAX or "\0" in external_id:
            return None
        return await self._one(conn, "m.external_id = %s", external_id)

    async def facts(self, conn: Connection, member: MemberId) -> Facts:
        """What decides the member's audiences, now. An erased or unknown member is nobody."""
        found = await self.actors(conn, [member])
        return found[member].facts if member in found else NOBODY

    async def actors(self, conn: Connection, members: Sequence[MemberId]) -> dict[MemberId, Actor]:
        """The viewers that a door hands down for these members, in one read; unknown and erased ones missing."""
        rows = await (
            await conn.execute(
                """
                SELECT m.id::text AS id, m.nickname,
                       array_agg(t.plan_id::text) FILTER (WHERE t.id IS NOT NULL) AS plans,
                       bool_and(t.kind = 'trial') AS on_trial,
                       bool_and(t.kind <> 'paid') AND bool_or(t.kind = 'grace') AS in_grace
                FROM members m
                LEFT JOIN plan_terms t ON t.member_id = m.id AND t.starts_at <= clock_timestamp()
                     AND coalesce(t.ended_at, t.ends_at) > clock_timestamp()
                WHERE m.id = ANY(%s::uuid[]) AND m.erased_at IS NULL
                GROUP BY m.id
                """,
                ([member for member in members if is_id(member)],),
            )
        ).fetchall()
        found: dict[MemberId, Actor] = {}
        for row in rows:
            member = MemberId(row["id"])
            facts = Facts(
                member=member,
                registered=True,
                plans=frozenset(PlanId(plan) for plan in row["plans"] or ()),
                on_trial=bool(row["on_trial"]),
                in_grace=bool(row["in_grace"]),
            )
            name = shown_as(member, row["nickname"])
            found[member] = Actor(kind="viewer", id=member, name=name, facts=facts)
        return found

    async def actor(self, conn: Connection, member: MemberId) -> Actor:
        """The viewer that a door hands down for this member. Raises NoSuchMember."""
        found = await self.actors(conn, [member])
        if member not in found:
            raise NoSuchMember
        return found[member]

    async def rename(self, t: Transaction, member: MemberId, nickname: str) -> Member:
        """Raises InvalidNickname, NoSuchMember. Sockets are told."""
        nickname = check_nickname(nickname)
        await t.conn.execute(
            "UPDATE members SET nickname = %s WHERE id = %s AND erased_at IS NULL", (nickname, member)
        )
        found = await self.by_id(t.conn, member)
        self._tell(t, found.id)
        return found

    async def change_phone(self, t: Transaction, member: MemberId, phone: str) -> Member:
        """End the member's phone and begin another, proven by a code. Raises PhoneTaken."""
        phone = parse_phone(phone, self._region)
        await _lock_phones(t, [phone])
        holder = await self.by_phone(t.conn, phone)
        if holder is not None and holder.id != member:
            raise PhoneTaken
        found = await self.by_id(t.conn, member)
        if holder is None:
            await self._move_phone(t, found.id, phone)
        return await self.by_id(t.conn, member)

    async def find(
        self,
        conn: Connection,
        *,
        phone: str | None = None,
        query: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Member]:
        """Members, newest first: all, a phone's holder, or by a part of the nickname or the shop's id."""
        check_page(cursor, limit)
        exact = parse_phone(phone, self._region) if phone is not None else None
        part = clean_line(query)[:64] if query is not None else None
        like = None if part is None else "%" + re.sub(r"([\\%_])", r"\\\1", part) + "%"
        rows = await (
            await conn.execute(
                _SELECT
                + """
                WHERE m.erased_at IS NULL
                  AND (%(phone)s::text IS NULL OR i.value = %(phone)s)
                  AND (%(like)s::text IS NULL OR m.nickname ILIKE %(like)s OR m.external_id = %(part)s)
                  AND (%(cursor)s::uuid IS NULL OR m.id < %(cursor)s)
                ORDER BY m.id DESC LIMIT %(limit)s + 1
                """,
                {"phone": exact, "like": like, "part": part, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, _member)

    async def feed(self, t: Transaction, rows: Sequence[FeedRow]) -> list[FedRow]:
        """Take in members from the shop's server, by its own id and the phone. Again changes nothing.

        A row that cannot be taken is refused by itself: `invalid_phone`, `invalid_nickname`, `bad_request`
        (the id), `phone_taken` (held by a member whom the shop knows by another id).
        """
        if len(rows) > FEED_MAX:
            raise BadRequest(f"A call takes {FEED_MAX} rows at most.", code="too_large")
        phones: list[str] = []
        for row in rows:
            try:
                phones.append(parse_phone(row.phone, self._region))
            except InvalidPhone:
                continue
        await _lock_phones(t, phones)
        return [await self._feed_one(t, row) for row in rows]

    async def erase(self, t: Transaction, member: MemberId) -> None:
        """Forget the person, keep the books: personal columns emptied, running terms ended, the phone free.

        What was paid for and not used is given up; whoever calls this has warned of it.
        """
        row = None
        if is_id(member):
            row = await (
                await t.conn.execute(
                    "SELECT 1 FROM members WHERE id = %s AND erased_at IS NULL FOR UPDATE", (member,)
                )
            ).fetchone()
        if row is None:
            raise NoSuchMember
        await t.conn.execute(
            """
            UPDATE plan_terms SET ended_at = greatest(clock_timestamp(), starts_at), end_reason = 'erased'
            WHERE member_id = %s AND ended_at IS NULL AND ends_at > clock_timestamp()
            """,
            (member,),
        )
        for personal in self._personal:
            await t.conn.execute(personal.erase, {"member": member})
        self._tell(t, member)

    async def _feed_one(self, t: Transaction, row: FeedRow) -> FedRow:
        def refused(code: str) -> FedRow:
            return FedRow(row.external_id, "refused", None, code)

        if clean_line(row.external_id) != row.external_id or not 1 <= len(row.external_id) <= EXTERNAL_ID_MAX:
            return refused("bad_request")
        try:
            phone = parse_phone(row.phone, self._region)
            nickname = None if row.nickname is None else check_nickname(row.nickname)
        except Refusal as refusal:
            return refused(refusal.word)
        known = await self.by_external_id(t.conn, row.external_id)
        holder = await self.by_phone(t.conn, phone)
        if holder is not None and holder.external_id not in (None, row.external_id):
            return refused("phone_taken")
        if known is not None and holder is not None and holder.id != known.id:
            return refused("phone_taken")
        found = known or holder
        if found is None:
            made = await self._create(t, phone, nickname, external_id=row.external_id)
            return FedRow(row.external_id, "created", made.id)
        changed = False
        if found.external_id is None:
            await t.conn.execute(
                "UPDATE members SET external_id = %s WHERE id = %s", (row.external_id, found.id)
            )
            changed = True
        if found.phone != phone:
            await self._move_phone(t, found.id, phone)
            changed = True
        if nickname is not None and nickname != found.nickname:
            await self.rename(t, found.id, nickname)
            changed = True
        return FedRow(row.external_id, "updated" if changed else "unchanged", found.id)

    async def _create(
        self,
        t: Transaction,
        phone: str,
        nickname: str | None,
        *,
        external_id: str | None = None,
        source_show: ShowId | None = None,
        agreed: bool = False,
    ) -> Member:
        member = MemberId(new_id())
        await t.conn.execute(
            """
            INSERT INTO members (id, nickname, external_id, source_show, agreed_at, notice)
            VALUES (%s, %s, %s, %s, CASE WHEN %s THEN clock_timestamp() END, %s)
            """,
            (member, nickname, external_id, source_show, agreed, NOTICE if agreed else None),
        )
        await self._begin_phone(t, member, phone)
        return await self.by_id(t.conn, member)

    async def _begin_phone(self, t: Transaction, member: MemberId, phone: str) -> None:
        await t.conn.execute(
            "INSERT INTO identifiers (id, member_id, kind, value) VALUES (%s, %s, 'phone', %s)",
            (new_id(), member, phone),
        )

    async def _move_phone(self, t: Transaction, member: MemberId, phone: str) -> None:
        await t.conn.execute(
            "UPDATE identifiers SET ended_at = clock_timestamp()"
            " WHERE member_id = %s AND kind = 'phone' AND ended_at IS NULL",
            (member,),
        )
        await self._begin_phone(t, member, phone)

    async def _one(self, conn: Connection, where: Any, value: str) -> Member | None:
        cursor = await conn.execute(_SELECT + " WHERE m.erased_at IS NULL AND " + where, (value,))
        row = await cursor.fetchone()
        return None if row is None else _member(row)

    def _tell(self, t: Transaction, member: MemberId) -> None:
        t.after_commit(lambda: self._notices.facts_changed(member))


async def lock_member(conn: Connection, member: MemberId) -> bool:
    """One change at a time of what a member has. False when there is none, or an erased one."""
    locked = await conn.execute(
        "SELECT 1 FROM members WHERE id = %s AND erased_at IS NULL FOR NO KEY UPDATE", (member,)
    )
    return await locked.fetchone() is not None


async def _lock_phones(t: Transaction, phones: Sequence[str]) -> None:
    """One at a time for a phone, until the transaction ends; sorted, so that two feeds cannot deadlock."""
    for phone in sorted(set(phones)):
        await lock(t.conn, f"phone:{phone}")
