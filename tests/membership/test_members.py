from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from membership.actor import NOBODY, GuestId, MemberId, ShowId, new_id
from membership.members import (
    FEED_MAX,
    FeedRow,
    InvalidNickname,
    InvalidPhone,
    Member,
    Members,
    NoSuchMember,
    PhoneTaken,
    display_name,
    guest,
    is_guest_id,
    mask_name,
    mask_phone,
    new_guest_id,
    parse_phone,
)
from membership.plans import Plans
from membership.refusal import BadRequest
from tests.conftest import TransactionFactory
from tests.membership.conftest import MakeMember, MakePlan, next_phone, told

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]


# -- names and numbers


@pytest.mark.parametrize(
    "text",
    ["13812345678", "+86 138 1234 5678", "138-1234-5678", "0086 13812345678", "１３８１２３４５６７８"],
)
def test_a_phone_is_one_number_however_it_is_written(text: str) -> None:
    assert parse_phone(text) == "+8613812345678"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "12345",
        "12812345678",
        "010 6552 9988",
        "1381234567",
        "138123456789",
        "9" * 40,
        "<b>1</b>",
        "\0",
    ],
)
def test_what_is_no_mobile_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidPhone) as refusal:
        parse_phone(text)
    assert refusal.value.word == "invalid_phone"


def test_names_shown_to_others_give_nothing_away() -> None:
    nameless = Member(MemberId(new_id()), None, "+8613812345678", datetime.now(UTC))
    assert display_name(nameless).startswith("观众")
    assert "5678" not in display_name(Member(MemberId("x"), None, "+8613812345678", datetime.now(UTC)))
    assert display_name(nameless) == display_name(nameless)
    assert display_name(Member(nameless.id, "小米", None, nameless.created_at)) == "小米"
    assert mask_name("王小明") == "王**"
    assert mask_name("") == "**"
    assert mask_phone("+8613812345678") == "138****5678"


def test_a_guest_has_a_name_of_four_digits_and_no_facts() -> None:
    actor = guest(new_guest_id())
    assert is_guest_id(actor.id)
    assert actor.facts == NOBODY
    assert actor.name.removeprefix("访客").isdigit() and len(actor.name) == 6
    assert guest(GuestId(actor.id)) == actor
    assert not is_guest_id(new_id())
    assert not is_guest_id("g_'; --")


# -- registering


async def test_registering_twice_gives_the_same_member(members: Members, tx: TransactionFactory) -> None:
    async with tx() as t:
        first = await members.register(t, "13812345678", "小米", ShowId("abcdefghjk"))
    async with tx() as t:
        again = await members.register(t, "+86 13812345678", "别的名字", ShowId("zzzzzzzzzz"))
    assert again == first
    assert (first.nickname, first.phone, first.source_show) == ("小米", "+8613812345678", "abcdefghjk")


async def test_a_nickname_is_taken_when_there_was_none(make_member: MakeMember) -> None:
    assert (await make_member("13812345678")).nickname is None
    assert (await make_member("13812345678", " 小  米 ")).nickname == "小 米"


@pytest.mark.parametrize("nickname", ["", "   ", "\u202e", "长" * 21])
async def test_a_bad_nickname_registers_nobody(
    members: Members, tx: TransactionFactory, pool: Pool, nickname: str
) -> None:
    with pytest.raises(InvalidNickname):
        async with tx() as t:
            await members.register(t, "13812345678", nickname)
    async with pool.connection() as conn:
        assert await members.by_phone(conn, "13812345678") is None


async def test_twenty_at_once_with_one_phone_are_one_member(
    members: Members, tx: TransactionFactory, pool: Pool
) -> None:
    async def register() -> Member:
        async with tx() as t:
            return await members.register(t, "13812345678")

    made = await asyncio.gather(*(register() for _ in range(20)))
    assert len({member.id for member in made}) == 1
    async with pool.connection() as conn:
        assert len((await members.find(conn)).items) == 1


async def test_without_our_lock_two_at_once_are_stopped_by_the_database(
    make_member: MakeMember, tx: TransactionFactory
) -> None:
    """The last guard: a phone has one holder at a time."""
    await make_member("13812345678")
    other = await make_member()
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with tx() as t:
            await t.conn.execute(
                "UPDATE identifiers SET value = '+8613812345678' WHERE member_id = %s", (other.id,)
            )


async def test_agreement_to_the_privacy_notice_is_dated(make_member: MakeMember, pool: Pool) -> None:
    member = await make_member()
    async with pool.connection() as conn:
        row = await (
            await conn.execute("SELECT agreed_at, notice FROM members WHERE id = %s", (member.id,))
        ).fetchone()
    assert row["agreed_at"] is not None
    assert row["notice"]


# -- looking up


async def test_an_unknown_member_is_refused(members: Members, pool: Pool) -> None:
    async with pool.connection() as conn:
        for member in (new_id(), "x", "", "' OR 1=1"):
            with pytest.raises(NoSuchMember):
                await members.by_id(conn, member)
            assert await members.facts(conn, MemberId(member)) == NOBODY


@pytest.mark.rule("semantics 3.1b")
async def test_facts_of_registered_trial_and_paid(
    members: Members, plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan, other = await make_member(), await make_plan(), await make_plan("季卡")
    assert member.phone is not None
    async with tx() as t:
        before = await members.facts(t.conn, member.id)
        assert (before.registered, before.plans, before.on_trial) == (True, frozenset(), False)
        await plans.start_trial(t, member.id, plan.id, member.phone)
        trying = await members.facts(t.conn, member.id)
        assert trying.plans == {plan.id} and trying.on_trial
        await plans.start_paid(t, member.id, other.id, _payment())
        paid = await members.facts(t.conn, member.id)
        assert paid.plans == {other.id} and not paid.on_trial and paid.member == member.id


@pytest.mark.rule("semantics 3.2c")
async def test_a_lapsed_member_is_registered(
    members: Members, plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan(period_months=1)
    async with tx() as t:
        await plans.start_paid(t, member.id, plan.id, _payment(), at=datetime.now(UTC) - timedelta(days=32))
        facts = await members.facts(t.conn, member.id)
    assert facts.registered and not facts.plans


async def test_the_actor_carries_name_and_facts(
    members: Members, make_member: MakeMember, pool: Pool
) -> None:
    member = await make_member(nickname="小米")
    async with pool.connection() as conn:
        actor = await members.actor(conn, member.id)
    assert (actor.kind, actor.id, actor.name, actor.member) == ("viewer", member.id, "小米", member.id)


async def test_find_by_phone_by_name_and_page_by_page(
    members: Members, make_member: MakeMember, pool: Pool
) -> None:
    made = [await make_member(nickname=f"米_{number}") for number in range(5)]
    async with pool.connection() as conn:
        assert (await members.find(conn, phone=made[2].phone)).items == (made[2],)
        assert (await members.find(conn, query="米_3")).items == (made[3],)
        assert (await members.find(conn, query="%")).items == ()
        assert (await members.find(conn, query="米x3")).items == ()
        seen: list[Member] = []
        cursor = None
        while True:
            page = await members.find(conn, cursor=cursor, limit=2)
            seen += page.items
            if page.next is None:
                break
            cursor = page.next
    assert seen == made[::-1]


# -- changing


async def test_renaming_tells_the_sockets(
    members: Members, make_member: MakeMember, tx: TransactionFactory, redis: Redis
) -> None:
    member = await make_member()
    async with tx() as t:
        renamed = await members.rename(t, member.id, "<b>米</b>")
    assert renamed.nickname == "<b>米</b>"
    assert await told(redis) == [{"member": member.id}]


async def test_a_phone_that_changes_hands_is_dated(
    members: Members, make_member: MakeMember, tx: TransactionFactory, pool: Pool
) -> None:
    old = await make_member("13812345678")
    async with tx() as t:
        assert (await members.change_phone(t, old.id, "13987654321")).phone == "+8613987654321"
    new = await make_member("13812345678")
    assert new.id != old.id
    async with pool.connection() as conn:
        rows = await (
            await conn.execute(
                "SELECT member_id::text AS member, ended_at FROM identifiers"
                " WHERE value = '+8613812345678' ORDER BY id"
            )
        ).fetchall()
    assert [(row["member"], row["ended_at"] is None) for row in rows] == [(old.id, False), (new.id, True)]


async def test_somebody_elses_phone_is_not_taken_over(
    members: Members, make_member: MakeMember, tx: TransactionFactory
) -> None:
    one, other = await make_member(), await make_member()
    assert other.phone is not None and one.phone is not None
    with pytest.raises(PhoneTaken):
        async with tx() as t:
            await members.change_phone(t, one.id, other.phone)
    async with tx() as t:
        assert await members.change_phone(t, one.id, one.phone) == one


# -- fed in by the shop's server


async def test_feeding_again_changes_nothing(members: Members, tx: TransactionFactory) -> None:
    rows = [FeedRow("c-1", next_phone(), "甲"), FeedRow("c-2", next_phone())]
    async with tx() as t:
        first = await members.feed(t, rows)
    async with tx() as t:
        again = await members.feed(t, rows)
    assert [row.outcome for row in first] == ["created", "created"]
    assert [row.outcome for row in again] == ["unchanged", "unchanged"]
    assert [row.member for row in first] == [row.member for row in again]


async def test_feeding_joins_the_member_who_registered_by_phone(
    members: Members, make_member: MakeMember, tx: TransactionFactory
) -> None:
    known = await make_member("13812345678", "小米")
    async with tx() as t:
        (row,) = await members.feed(t, [FeedRow("c-1", "138 1234 5678")])
        found = await members.by_external_id(t.conn, "c-1")
    assert (row.outcome, row.member) == ("updated", known.id)
    assert found is not None and found.nickname == "小米"


async def test_feeding_moves_a_phone_and_renames(members: Members, tx: TransactionFactory) -> None:
    async with tx() as t:
        await members.feed(t, [FeedRow("c-1", "13812345678", "甲")])
        (row,) = await members.feed(t, [FeedRow("c-1", "13987654321", "乙")])
        found = await members.by_external_id(t.conn, "c-1")
    assert row.outcome == "updated"
    assert found is not None and (found.phone, found.nickname) == ("+8613987654321", "乙")


async def test_a_bad_row_is_refused_by_itself(members: Members, tx: TransactionFactory) -> None:
    taken = next_phone()
    async with tx() as t:
        fed = await members.feed(
            t,
            [
                FeedRow("c-1", taken),
                FeedRow("c-2", "12345"),
                FeedRow("c-3", next_phone(), "长" * 30),
                FeedRow("c-4", taken),
                FeedRow("", next_phone()),
                FeedRow("a\0b", next_phone()),
                FeedRow("c-5", next_phone()),
            ],
        )
    assert [(row.outcome, row.code) for row in fed] == [
        ("created", None),
        ("refused", "invalid_phone"),
        ("refused", "invalid_nickname"),
        ("refused", "phone_taken"),
        ("refused", "bad_request"),
        ("refused", "bad_request"),
        ("created", None),
    ]


async def test_too_long_a_feed_is_refused(members: Members, tx: TransactionFactory) -> None:
    with pytest.raises(BadRequest):
        async with tx() as t:
            await members.feed(t, [FeedRow("c-1", "13812345678")] * (FEED_MAX + 1))


async def test_two_feeds_of_the_same_rows_at_once_make_each_member_once(
    members: Members, tx: TransactionFactory, pool: Pool
) -> None:
    rows = [FeedRow(f"c-{number}", next_phone()) for number in range(30)]

    async def feed(order: list[FeedRow]) -> None:
        async with tx() as t:
            await members.feed(t, order)

    await asyncio.gather(feed(rows), feed(rows[::-1]), feed(rows))
    async with pool.connection() as conn:
        assert len((await members.find(conn, limit=200)).items) == 30


def _payment() -> Any:
    return new_id()
