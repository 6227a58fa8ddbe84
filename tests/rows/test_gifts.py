"""A plan with a monthly sample and a birthday box: one a period, none piles up, and giving the plan back counts it."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.fulfilment import Fulfilment, ParcelRow
from live.database import Database, make_pool
from membership.actor import Actor, MemberId
from membership.addresses import Addresses
from membership.periodic_gifts import (
    BirthdayKnown,
    GiftInput,
    GiftNow,
    NoSuchGift,
    NotDue,
    PeriodicGifts,
    months_after,
    period_of,
)
from membership.personal import PERSONAL
from membership.plans import Plan
from membership.refusal import BadRequest
from tests.commerce.shop_stage import OPERATOR, Shop
from tests.commerce.test_plan_refunds import bill, days_ago, give_back, giving_back, joined
from tests.conftest import Emptied

pytestmark = pytest.mark.anyio

ZONE = ZoneInfo("Asia/Shanghai")
SAMPLE = GiftInput(title="小样", value_fen=1_500, every="month")
YEARLY = GiftInput(title="年礼", value_fen=9_900, every="year")
BOX = GiftInput(title="生日礼盒", value_fen=5_900, every="birthday")
HANDED = GiftInput(title="到店茶点", value_fen=800, every="month", needs_address=False)


def member_of(actor: Actor) -> MemberId:
    assert actor.member is not None
    return actor.member


async def gifts_now(shop: Shop, buyer: Actor, at: datetime | None = None) -> tuple[GiftNow, ...]:
    async with shop.tx() as t:
        return await PeriodicGifts(Addresses()).of_member(t.conn, member_of(buyer), at=at)


async def claim(shop: Shop, buyer: Actor, plan: Plan, place: int = 0, at: datetime | None = None) -> GiftNow:
    async with shop.tx() as t:
        return await PeriodicGifts(shop.addresses).claim(
            t, member_of(buyer), plan.gifts[place].id, shop._homes[buyer.id], at=at
        )


async def table(shop: Shop) -> list[dict[str, str]]:
    async with shop.tx() as t:
        text, _ = await Fulfilment(shop.orders).table(t.conn, OPERATOR)
    return list(csv.DictReader(io.StringIO(text.decode("utf-8-sig"))))


async def send(shop: Shop, row: dict[str, str], **more: Any) -> str:
    parcel = {
        "order": row["order"],
        "carrier": "顺丰",
        "tracking": "SF9",
        "gift": row["gift"] or None,
        **more,
    }
    async with shop.tx() as t:
        (outcome,) = await Fulfilment(shop.orders).take_in(t, OPERATOR, [ParcelRow(**parcel)])
    return outcome.outcome


@pytest.mark.rule("M15")
async def test_the_sample_is_one_each_month_and_one_not_taken_lapses(shop: Shop) -> None:
    plan = await shop.plan(gifts=(SAMPLE,))
    buyer, _ = await joined(shop, plan)
    first = await claim(shop, buyer, plan)
    again = await claim(shop, buyer, plan)
    assert (first.state, again) == ("claimed", first)
    assert first.from_at is not None
    assert first.until_at is not None
    # The second month passes untaken; in the third one is due, not two.
    in_third = months_after(first.from_at.astimezone(ZONE), 2) + timedelta(hours=1)
    assert [each.state for each in await gifts_now(shop, buyer, in_third)] == ["due"]
    third = await claim(shop, buyer, plan, at=in_third)
    assert third.claim != first.claim
    assert await claim(shop, buyer, plan, at=in_third) == third
    assert len(await shop.rows("SELECT id FROM gift_claims")) == 2


@pytest.mark.rule("M15")
async def test_the_birthday_box_is_one_a_year_from_the_day_that_was_told(shop: Shop) -> None:
    plan = await shop.plan(gifts=(BOX,), period_months=36)
    buyer, _ = await joined(shop, plan)
    gifts = PeriodicGifts(shop.addresses)
    assert [each.state for each in await gifts_now(shop, buyer)] == ["waiting"]
    with pytest.raises(NotDue):
        await claim(shop, buyer, plan)
    day = datetime.now(ZONE) + timedelta(days=60)
    async with shop.tx() as t:
        await gifts.set_birthday(t, member_of(buyer), day.strftime("%m-%d"))
    assert [each.state for each in await gifts_now(shop, buyer)] == ["waiting"]
    inside = day + timedelta(days=3)
    box = await claim(shop, buyer, plan, at=inside)
    assert await claim(shop, buyer, plan, at=inside + timedelta(days=20)) == box
    with pytest.raises(NotDue):
        await claim(shop, buyer, plan, at=inside + timedelta(days=40))
    assert (await claim(shop, buyer, plan, at=months_after(inside, 12))).claim != box.claim


@pytest.mark.rule("M15")
async def test_of_claims_at_two_nodes_at_once_exactly_one_takes_it(shop: Shop, emptied: Emptied) -> None:
    plan = await shop.plan(gifts=(SAMPLE,))
    buyer, _ = await joined(shop, plan)
    pool = make_pool(emptied.url)
    async with pool:
        second = Database(pool)

        async def take(number: int) -> str | None:
            async with second.transaction() if number % 2 else shop.tx() as t:
                got = await PeriodicGifts(Addresses()).claim(
                    t, member_of(buyer), plan.gifts[0].id, shop._homes[buyer.id]
                )
            return got.claim

        taken = await asyncio.wait_for(asyncio.gather(*(take(number) for number in range(8))), 60)
    assert len(set(taken)) == 1
    assert len(await shop.rows("SELECT id FROM gift_claims")) == 1


@pytest.mark.rule("M15", "semantics 3.1c")
async def test_a_trial_has_no_gift_and_a_plan_ended_has_none(shop: Shop) -> None:
    plan = await shop.plan(gifts=(SAMPLE,))
    other = await shop.plan(name="另卡", gifts=(SAMPLE,))
    trying = await shop.buyer(plan.id)
    assert await gifts_now(shop, trying) == ()
    with pytest.raises(NotDue):
        await claim(shop, trying, plan)
    buyer, placed = await joined(shop, plan)
    with pytest.raises(NotDue):
        await claim(shop, buyer, other)  # a gift of a plan one does not have
    await days_ago(shop, placed.order, 400)
    with pytest.raises(NotDue):
        await claim(shop, buyer, plan)
    async with shop.tx() as t:
        with pytest.raises(NoSuchGift):
            await PeriodicGifts(Addresses()).claim(t, member_of(buyer), "nothing")


@pytest.mark.rule("M15")
async def test_a_gift_is_in_the_table_until_it_is_sent_and_beside_the_gift_of_joining(shop: Shop) -> None:
    plan = await shop.plan(gifts=(SAMPLE, YEARLY, HANDED), gift_text="五谷礼盒", gift_value_fen=5_900)
    buyer, _ = await joined(shop, plan)
    async with shop.tx() as t:
        with pytest.raises(BadRequest):
            await PeriodicGifts(shop.addresses).claim(t, member_of(buyer), plan.gifts[0].id)
    for place in range(3):
        await claim(shop, buyer, plan, place)
    rows = await table(shop)
    assert [(row["why"], row["name"]) for row in rows] == [
        ("gift", "五谷礼盒"),
        ("period", "小样"),
        ("period", "年礼"),
    ]
    assert all(row["detail"] == "文三路 1 号" for row in rows)
    assert await send(shop, rows[1]) == "sent"
    assert await send(shop, rows[1]) == "again"
    assert await send(shop, rows[2]) == "refused"  # each gift has a tracking number of its own
    assert await send(shop, rows[1], tracking="SF10") == "refused"  # it was sent
    assert [row["name"] for row in await table(shop)] == ["五谷礼盒", "年礼"]


@pytest.mark.rule("M15", "semantics 3.3b")
async def test_giving_the_plan_back_counts_the_gifts_that_were_sent_or_handed_over(shop: Shop) -> None:
    plan = await shop.plan(gifts=(SAMPLE, YEARLY, HANDED))
    buyer, _ = await joined(shop, plan)
    back = giving_back(shop)
    for place in (0, 1):
        await claim(shop, buyer, plan, place)
    assert (await bill(shop, back, buyer)).way == "whole"  # asked for, not sent
    await claim(shop, buyer, plan, 2)
    (sample, yearly) = await table(shop)
    await send(shop, sample)
    await send(shop, yearly, tracking="SF10")
    shown = await bill(shop, back, buyer)
    assert {(each.cause, each.title, each.deducted_fen) for each in shown.gifts} == {
        ("period", "小样", 1_500),
        ("period", "年礼", 9_900),
        ("period", "到店茶点", 800),
    }
    assert shown.payable_fen == 19_900 - 1_500 - 9_900 - 800
    await send(shop, yearly, tracking="SF10", returned=True)
    assert (await give_back(shop, back, buyer)).payable_fen == 19_900 - 1_500 - 800
    assert await gifts_now(shop, buyer) == ()


@pytest.mark.rule("M15")
async def test_a_gift_not_sent_is_not_sent_after_the_plan_was_given_back(shop: Shop) -> None:
    plan = await shop.plan(gifts=(SAMPLE,))
    buyer, _ = await joined(shop, plan)
    await claim(shop, buyer, plan)
    (row,) = await table(shop)
    await give_back(shop, giving_back(shop), buyer)
    assert await table(shop) == []
    assert await send(shop, row) == "refused"


async def test_a_birthday_is_told_once_and_forgotten_with_the_person_and_their_address(shop: Shop) -> None:
    plan = await shop.plan(gifts=(SAMPLE,))
    buyer, _ = await joined(shop, plan)
    await claim(shop, buyer, plan)
    gifts = PeriodicGifts(shop.addresses)
    for wrong in ("02-30", "2-3", "13-01", "0203", "02-03 "):
        async with shop.tx() as t:
            with pytest.raises(BadRequest):
                await gifts.set_birthday(t, member_of(buyer), wrong)
    async with shop.tx() as t:
        assert await gifts.set_birthday(t, member_of(buyer), "02-29") == "02-29"
        assert await gifts.set_birthday(t, member_of(buyer), "02-29") == "02-29"
        with pytest.raises(BirthdayKnown):
            await gifts.set_birthday(t, member_of(buyer), "03-01")
    async with shop.tx() as t:
        for personal in PERSONAL:
            await t.conn.execute(personal.erase, {"member": buyer.member})
    left = await shop.rows(
        "SELECT m.birthday, c.address FROM members m JOIN gift_claims c ON c.member_id = m.id"
    )
    assert left == [{"birthday": None, "address": None}]


def test_29_february_is_28_february_in_common_years() -> None:
    anchor = datetime(2024, 1, 1, tzinfo=UTC)
    for year, day in ((2024, 29), (2025, 28), (2100, 28)):
        now = datetime(year, 2, day, 0, 0, tzinfo=ZONE)
        period = period_of("birthday", anchor, now, ZONE, "02-29")
        assert period is not None
        assert period[0] == now
        assert period_of("birthday", anchor, now - timedelta(seconds=1), ZONE, "02-29") is None


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.timedeltas(timedelta(0), timedelta(days=4_000)),
    st.sampled_from(["month", "year"]),
)
def test_periods_follow_each_other_without_gap_and_hold_their_moment(
    anchor: datetime, later: timedelta, every: Any
) -> None:
    now = anchor + later
    period = period_of(every, anchor, now, ZONE)
    assert period is not None
    assert period[0] <= now < period[1]
    assert period_of(every, anchor, period[0], ZONE) == period
    after = period_of(every, anchor, period[1], ZONE)
    assert after is not None
    assert after[0] == period[1]
